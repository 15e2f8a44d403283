"""The encoder under test: what its author gives, and the model that is composed with it for all checks."""

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

_TRIES = 20  # calls of make_items until there are enough


class EncoderUnderTest(Promises):
    """What the checks of an encoder look at; :class:`~cornstarch_core.testing.EncoderConformance` describes it."""

    encoder: str
    key: str | None = None
    callbacks: str | None = None
    callback_options: dict[str, Any] = {}  # noqa: RUF012 - read only; authors write it like this, too
    projection_type: str = "linear"
    lora_targets: list[str] | None = None
    rounds: int = 5
    tolerance: float = 1e-4
    bf16_tolerance: float = 0.1

    # --- what an author gives -----------------------------------------------------------------------------------------

    def make_module(self) -> nn.Module:
        """A small encoder with random weights, as a user would pass it to ``ModalEncoderModule``."""
        raise NotImplementedError("give make_module(self), which returns a small encoder")

    def make_items(self, rng: np.random.Generator) -> list[Any]:
        """One or more random items as users pass them, of various sizes."""
        raise NotImplementedError("give make_items(self, rng), which returns a list of random items")

    def make_language_model(self) -> nn.Module:
        """The language model; default: a tiny Llama."""
        return tiny_language_model()

    # --- what is composed with it -------------------------------------------------------------------------------------

    @property
    def registration(self) -> Registration[EncoderSpec]:
        """What is registered for the encoder."""
        return registry().lookup("encoders", self.encoder)

    @property
    def composed(self) -> Composed:
        """The model that the checks share; those that change one take a :meth:`fresh` one."""
        return self.keep("composed", self.compose)

    def compose(self, change: Callable[[nn.Module], nn.Module] = lambda module: module) -> Composed:
        """Make a model and its processor, in eval mode; the same each time, except for a ``change`` of the module."""
        key, options = self.key or self.registration.spec.modality, deepcopy(self.callback_options)
        with seeded(0):
            module, language_model = self.make_module(), self.make_language_model()
            encoder = ModalEncoderModule(change(module), callbacks=self.callbacks, callback_options=options)
            model = MultimodalModel(
                encoders={key: encoder}, language_model=language_model, init_projector_type=self.projection_type
            )
        return Composed(key, model.eval(), MultimodalProcessor(tokenizer=tiny_tokenizer(), model=model))

    def fresh(self) -> Composed:
        """A second model with the weights of :attr:`composed`."""
        composed = self.compose()
        composed.model.load_state_dict(self.composed.model.state_dict())
        return composed

    def items(self, seed: int, least: int = 1) -> list[Any]:
        """Random items of as many calls of :meth:`make_items` as needed."""
        rng, found = np.random.default_rng(seed), []
        for _ in range(_TRIES):
            found += self.make_items(rng)
            if len(found) >= least:
                return found
        self.fail(f"{_TRIES} calls of make_items gave {len(found)} items.", "Let it return one or more.")

    def prepare(self, items: list[Any]) -> tuple[dict[str, Any], list[int]]:
        """Encoder inputs of items with the number of features that are counted for each; or advice."""
        fix = f"Let make_items return what users pass, or look at the ProcessorSpec's target and at {self.counting}."
        with self.failing(f"{len(items)} items of make_items can't be prepared and counted", fix):
            return self.composed.prepare(items)

    def features(self, items: list[Any]) -> list[torch.Tensor]:
        """Projected features of each item, ``(tokens, D)``, without gradients."""
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
        """Fail a check, with advice, if the code inside raises an error of this kind."""
        try:
            yield
        except kind as error:
            self.fail(f"{what}: {say(error)}.", fix)

    @property
    def module_name(self) -> str:
        """The class of its module."""
        return type(unwrap(self.composed.encoder.module)).__name__

    @property
    def target(self) -> str:
        """The class that its spec names."""
        return self.registration.spec.target.rpartition(":")[2]

    @property
    def counting(self) -> str:
        """The functions that count its features."""
        encoder, names = self.composed.encoder, ("num_tokens_before_projector", "num_tokens_after_projector")
        given = [name for name in names if getattr(encoder.callbacks, name) is not None]
        functions = [f"{self.target}.num_tokens", *(f"{name} of callbacks {self.callbacks!r}" for name in given)]
        projector = encoder.projector.registration
        if projector is not None and projector.plugin != CORE:
            functions.append(f"{projector.spec.target.rpartition(':')[2]}.num_tokens of {projector.spec.name!r}")
        return " and ".join(functions)
