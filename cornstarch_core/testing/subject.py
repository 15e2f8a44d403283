"""The encoder that is tried: what its author gives, and the model that is made of it for all checks."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from .._hf import unwrap
from ..encoder import ModalEncoderModule
from ..model import MultimodalModel
from ..plugins import Provided, registry
from ..processor import MultimodalProcessor
from ..specs import ModalCallbacks
from .composed import Composed, seeded
from .pieces import tiny_language_model, tiny_tokenizer
from .promises import Promises, fail, say

__all__ = ["EncoderSubject"]

_TRIES = 20  # calls of make_items until there are enough


class EncoderSubject(Promises):
    """What the checks of an encoder look at; :class:`~cornstarch_core.testing.EncoderConformance` describes it."""

    encoder: str
    key: str | None = None
    callbacks: str | None = None
    callback_options: dict[str, Any] = {}  # noqa: RUF012 - read only; an author writes it so, too
    projection_type: str = "linear"
    lora_targets: list[str] | None = None
    rounds: int = 5
    tolerance: float = 1e-4
    bf16_tolerance: float = 0.1

    # --- what an author gives -----------------------------------------------------------------------------------------

    def make_module(self) -> nn.Module:
        """A small encoder with random weights, as a user would hand it to ``ModalEncoderModule``."""
        raise NotImplementedError("give make_module(self), which returns a small encoder")

    def make_items(self, rng: np.random.Generator) -> list[Any]:
        """One or more random items as users give them, of various sizes."""
        raise NotImplementedError("give make_items(self, rng), which returns a list of random items")

    def make_language_model(self) -> nn.Module:
        """The language model; default: a tiny Llama."""
        return tiny_language_model()

    # --- what is made of it -------------------------------------------------------------------------------------------

    @property
    def provided(self) -> Provided:
        """The encoder's spec."""
        return registry().lookup("encoders", self.encoder)

    @property
    def composed(self) -> Composed:
        """The model that the checks share; those that change one take a :meth:`fresh` one."""
        return self.keep("composed", self.compose)

    def compose(self, change: Callable[[nn.Module], nn.Module] | None = None) -> Composed:
        """Make a model and its processor, in eval mode; the same each time, but for a ``change`` of the module."""
        with seeded(0):
            module = self.make_module()
        with seeded(1):
            language_model = self.make_language_model()
        key = self.key if self.key is not None else self.provided.spec.modality
        with seeded(2):
            encoder = ModalEncoderModule(
                module if change is None else change(module),
                callbacks=self.callbacks,
                callback_options=deepcopy(self.callback_options),
            )
            model = MultimodalModel(
                encoders={key: encoder}, language_model=language_model, init_projector_type=self.projection_type
            )
            processor = MultimodalProcessor(tokenizer=tiny_tokenizer(), model=model)
        return Composed(key, model.eval(), processor)

    def fresh(self) -> Composed:
        """A second model with the weights of :attr:`composed`."""
        composed = self.compose()
        composed.model.load_state_dict(self.composed.model.state_dict())
        return composed

    def items(self, seed: int, least: int = 1) -> list[Any]:
        """Random items of as many calls of :meth:`make_items` as it takes."""
        rng = np.random.default_rng(seed)
        found: list[Any] = []
        for _ in range(_TRIES):
            found += self.make_items(rng)
            if len(found) >= least:
                return found
        fail(f"{self.name}: {_TRIES} calls of make_items gave {len(found)} items.", "Let it return one or more.")

    def prepare(self, items: list[Any]) -> tuple[dict[str, Any], list[int]]:
        """Encoder inputs of items with the number of features that are counted for each; or advice."""
        try:
            return self.composed.prepare(items)
        except Exception as error:
            fail(
                f"{self.name}: {len(items)} items of make_items can't be prepared and counted: {say(error)}.",
                "Let make_items return what a user may give; or look at what ProcessorSpec.build returns, at "
                f"ProcessorSpec.prepare, and at {self.counting}.",
            )

    def features(self, items: list[Any]) -> list[torch.Tensor]:
        """Projected features of each item, ``(tokens, D)``, without gradients."""
        inputs, counts = self.prepare(items)
        try:
            with torch.no_grad():
                return list(self.composed.features(inputs).split(counts))
        except Exception as error:
            fail(
                f"{self.name}: {self.module_name} can't be run on {len(items)} items of make_items: {say(error)}.",
                "Let forward take whatever the processor makes of such items, also of a single one.",
            )

    # --- how it is called ---------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The encoder, for messages."""
        return self.encoder if self.callbacks is None else f"{self.encoder} with callbacks {self.callbacks!r}"

    @property
    def module_name(self) -> str:
        """The class of its module, for messages."""
        return type(unwrap(self.composed.encoder.module)).__name__

    @property
    def counting(self) -> str:
        """Who counts, for messages."""
        who = [f"EncoderSpec.num_tokens ({self.provided.spec.num_tokens})"]
        encoder = self.composed.encoder
        callbacks: ModalCallbacks = encoder.modal_callbacks
        who += [
            f"{part} of callbacks {self.callbacks!r}"
            for part in ("num_tokens", "num_features")
            if getattr(callbacks, part) is not None
        ]
        projector = encoder.projector.provided
        if projector is not None:
            who.append(f"ProjectorSpec.num_tokens of {projector.spec.name!r}")
        return ", ".join(who[:-1]) + " and " + who[-1] if len(who) > 1 else who[0]
