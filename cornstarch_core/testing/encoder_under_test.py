"""The encoder under test: the methods that its author defines, and the model that the checks compose with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from .._hf.peft import unwrap
from ..model import MultimodalModel
from ..modeling.encoder import ModalEncoderModule
from ..plugins import CORE, Registration, registry
from ..processor import MultimodalProcessor
from ..specs import EncoderSpec
from .composed import Composed, seeded
from .pieces import tiny_language_model, tiny_tokenizer
from .promises import Promises, fail, say

__all__ = ["EncoderUnderTest"]

_TRIES = 20  # maximum number of calls of make_items to get enough items


class EncoderUnderTest(Promises):
    """Base class of the checks of an encoder; :class:`~cornstarch_core.testing.EncoderConformance` documents it."""

    encoder: str
    key: str | None = None
    callbacks: str | None = None
    callback_options: dict[str, Any] = {}  # noqa: RUF012 - read only; plugin authors write it like this, too
    projection_type: str = "linear"
    lora_targets: list[str] | None = None
    rounds: int = 5
    tolerance: float = 1e-4
    bf16_tolerance: float = 0.1

    # --- what an author defines ---------------------------------------------------------------------------------------

    def make_module(self) -> nn.Module:
        """Return a small encoder with random weights, of the class that users pass to ``ModalEncoderModule``."""
        raise NotImplementedError("give make_module(self), which returns a small encoder")

    def make_items(self, rng: np.random.Generator) -> list[Any]:
        """Return a list of one or more random media items of various sizes, in the form in which users pass them."""
        raise NotImplementedError("give make_items(self, rng), which returns a list of random items")

    def make_language_model(self) -> nn.Module:
        """Return the language model; by default a tiny Llama."""
        return tiny_language_model()

    # --- what is composed with it -------------------------------------------------------------------------------------

    @property
    def registration(self) -> Registration[EncoderSpec]:
        """The registration of the encoder's spec."""
        return registry().lookup("encoders", self.encoder)

    @property
    def composed(self) -> Composed:
        """The model that the checks share. A check that changes the model uses a :meth:`fresh` one."""
        return self.keep("composed", self.compose)

    def compose(self, change: Callable[[nn.Module], nn.Module] = lambda module: module) -> Composed:
        """Make a model in eval mode and its processor, always with the same weights; ``change`` replaces the module."""
        key, options = self.key or self.registration.spec.modality, deepcopy(self.callback_options)
        with seeded(0):
            module, language_model = self.make_module(), self.make_language_model()
            encoder = ModalEncoderModule(change(module), callbacks=self.callbacks, callback_options=options)
            model = MultimodalModel(
                encoders={key: encoder}, language_model=language_model, init_projector_type=self.projection_type
            )
        return Composed(key, model.eval(), MultimodalProcessor(tokenizer=tiny_tokenizer(), model=model))

    def fresh(self) -> Composed:
        """Return a new model with the weights of :attr:`composed`."""
        composed = self.compose()
        composed.model.load_state_dict(self.composed.model.state_dict())
        return composed

    def items(self, seed: int, least: int = 1) -> list[Any]:
        """Return at least ``least`` random items, from as many calls of :meth:`make_items` as needed."""
        rng, found = np.random.default_rng(seed), []
        for _ in range(_TRIES):
            found += self.make_items(rng)
            if len(found) >= least:
                return found
        self.fail(f"{_TRIES} calls of make_items gave {len(found)} items.", "Let it return one or more.")

    def prepare(self, items: list[Any]) -> tuple[dict[str, Any], list[int]]:
        """Return the encoder inputs of items, and the feature count of each; on an error, fail with advice."""
        fix = f"Let make_items return what users pass, or look at the ProcessorSpec's target and at {self.counting}."
        with self.failing(f"{len(items)} items of make_items can't be prepared and counted", fix):
            return self.composed.prepare(items)

    def features(self, items: list[Any]) -> list[torch.Tensor]:
        """Return the projected features of each item, ``(tokens, embedding width)``, without gradients."""
        inputs, counts = self.prepare(items)
        fix = "Let forward accept all that the processor makes of such items, also of a single one."
        with self.failing(f"{self.module_name} can't be run on {len(items)} items of make_items", fix), torch.no_grad():
            return list(self.composed.features(inputs).split(counts))

    # --- messages -----------------------------------------------------------------------------------------------------

    def fail(self, found: str, fix: str) -> NoReturn:
        """Fail a check of this encoder; see :func:`~cornstarch_core.testing.promises.fail`."""
        name = self.encoder if self.callbacks is None else f"{self.encoder} with callbacks {self.callbacks!r}"
        fail(f"{name}: {found}", fix)

    @contextmanager
    def failing(self, what: str, fix: str, kind: type[Exception] = Exception) -> Iterator[None]:
        """Fail a check, with the advice ``fix``, if the code in the ``with`` block raises an error of type ``kind``."""
        try:
            yield
        except kind as error:
            self.fail(f"{what}: {say(error)}.", fix)

    @property
    def module_name(self) -> str:
        """The name of the class of the encoder's module."""
        return type(unwrap(self.composed.encoder.module)).__name__

    @property
    def target(self) -> str:
        """The name of the class that is the target of the encoder's spec."""
        return self.registration.spec.target.rpartition(":")[2]

    @property
    def counting(self) -> str:
        """The names of the functions that count the encoder's features, for messages."""
        encoder, names = self.composed.encoder, ("num_tokens_before_projector", "num_tokens_after_projector")
        given = [name for name in names if getattr(encoder.callbacks, name) is not None]
        functions = [f"{self.target}.num_tokens", *(f"{name} of callbacks {self.callbacks!r}" for name in given)]
        projector = encoder.projector.registration
        if projector is not None and projector.plugin != CORE:
            functions.append(f"{projector.spec.target.rpartition(':')[2]}.num_tokens of {projector.spec.name!r}")
        return " and ".join(functions)
