"""What an encoder promises about its features: width, number, and that the items beside do not change them."""

from __future__ import annotations

import inspect
from numbers import Integral
from typing import Any

import torch

from .._hf import embedding_shape, unwrap
from ..errors import CornstarchError
from ..merge import flatten, item_lengths
from ..plugins import registry
from .composed import distance
from .promises import fail, promise, say
from .subject import EncoderSubject

__all__ = ["ALONE", "COUNTS", "DESCRIBED", "DUMMIES", "WIDTH", "FeatureChecks"]

DESCRIBED = "test_its_spec_describes_the_module"
WIDTH = "test_features_are_as_wide_as_it_says"
COUNTS = "test_features_are_as_many_as_were_counted"
DUMMIES = "test_dummy_inputs_are_one_valid_item"
ALONE = "test_features_do_not_depend_on_the_rest_of_the_batch"
"""Names of checks that others build on."""


class FeatureChecks(EncoderSubject):
    """The checks of an encoder's features."""

    @promise()
    def test_its_spec_describes_the_module(self) -> None:
        """The spec is found by the module's class, and a model is composed with it."""
        try:
            provided = self.provided
            module = self.make_module()
            found = registry().find_encoder(module)
        except CornstarchError as error:
            fail(f"{self.name}: {error}.", "Let `encoder` be the name of an EncoderSpec of a plugin that is active.")
        cls = f"{type(module).__module__}:{type(module).__qualname__}"
        if found != provided:
            fail(
                f"{self.name}: make_module() returns a {type(module).__name__}, which is described by "
                f"{found.qualified_name if found else 'no spec'}.",
                f"Name its class {cls!r} in EncoderSpec.classes, which has {', '.join(provided.spec.classes)}.",
            )
        try:
            self.composed  # noqa: B018 - makes it
        except Exception as error:
            fix = "Look at the targets that are called for it: hidden_size, prefix_tokens and build of the specs."
            if getattr(module, "config", None) is None:
                fix = f"Keep in {type(module).__name__}.config what they read: they get it, and it is None now."
            fail(f"{self.name}: no model with its processor can be composed: {say(error)}.", fix)

    @promise(DESCRIBED)
    def test_features_are_as_wide_as_it_says(self) -> None:
        """The module runs on what the processor makes, and gives features of the width that its spec tells."""
        inputs, _ = self.prepare(self.items(0))
        encoder = self.composed.encoder
        entering: list[Any] = []
        hook = encoder.projector.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
        leaving, problem = None, ""
        try:
            with torch.no_grad():
                leaving = encoder(**inputs)[0]
        except Exception as error:
            problem = say(error)
        finally:
            hook.remove()
        if not entering:
            fail(
                f"{self.name}: {self.module_name} can't be run on what the processor makes, "
                f"{_shown(inputs) or 'nothing of what EncoderSpec.input_names has'}: {problem}.",
                self._names_advice()
                or "Let ProcessorSpec.build return something that makes EncoderSpec.input_names "
                f"({', '.join(encoder.input_names)}) as forward takes them.",
            )
        self._check_width("enter the projector", entering[0], encoder.feature_size, self._width_source)
        if leaving is None:
            fail(f"{self.name}: features can't be projected: {problem}.", "Look at what ProjectorSpec.build returns.")
        _, width = embedding_shape(self.composed.model.language_model)
        self._check_width("leave it for the language model", leaving, width, "what ProjectorSpec.build returns")

    def _names_advice(self) -> str:
        """What to do if the spec names other inputs than ``forward`` has arguments."""
        arguments = inspect.signature(unwrap(self.composed.encoder.module).forward).parameters.values()
        names = self.provided.spec.input_names
        single = [one for one in arguments if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        forgotten = [one.name for one in single if one.default is one.empty and one.name not in names]
        takes_all = any(one.kind == one.VAR_KEYWORD for one in arguments)
        unknown = [] if takes_all else [name for name in names if name not in {one.name for one in single}]
        if not (forgotten or unknown):
            return ""
        return (
            f"Name in EncoderSpec.input_names what {self.module_name}.forward takes, "
            f"{', '.join(one.name for one in single)}; it has {', '.join(names)}."
        )

    @property
    def _width_source(self) -> str:
        if self.composed.encoder.modal_callbacks.hidden_size is not None:
            return f"ModalCallbacks.hidden_size of callbacks {self.callbacks!r}"
        target = self.provided.spec.hidden_size
        return f"EncoderSpec.hidden_size ({target})" if target else "config.hidden_size, or EncoderSpec.hidden_size,"

    def _check_width(self, where: str, features: Any, expected: int, source: str) -> None:
        for one in features if isinstance(features, (list, tuple)) else [features]:
            forms = (2,) if isinstance(features, (list, tuple)) else (2, 3)
            if not isinstance(one, torch.Tensor) or one.dim() not in forms:
                shape = tuple(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__
                fail(
                    f"{self.name}: features that {where} are {shape}.",
                    "Return (items, tokens, width), (all tokens, width), or a list of one (tokens, width) an item.",
                )
            if one.shape[-1] != expected:
                fail(
                    f"{self.name}: features that {where} are {one.shape[-1]} wide, expected {expected}.",
                    f"Make {source} say {one.shape[-1]}, or give features of width {expected}.",
                )

    @promise(WIDTH)
    def test_features_are_as_many_as_were_counted(self) -> None:
        """For random batches: what is counted from the inputs alone is what comes out, item by item."""
        for seed in range(self.rounds):
            inputs, counts = self.prepare(self.items(seed, least=1 + seed % 3))
            self._check_kind(self.composed.encoder.counter(dict(inputs)))
            with torch.no_grad():
                features = self.composed.encoder(**inputs)[0]
            self._check_counts(f"batch {seed} of make_items", features, counts)

    def _check_kind(self, counted: Any) -> None:
        wrong = [one for one in counted if not isinstance(one, Integral)] if isinstance(counted, list) else [counted]
        if wrong:
            fail(
                f"{self.name}: counts are not a list of int; a {type(wrong[0]).__name__} was found.",
                f"Let {self.counting} return plain numbers, from shapes and lengths: of a tensor they would have to be "
                "fetched from the device.",
            )

    def _check_counts(self, where: str, features: Any, counts: list[int]) -> None:
        fix = (
            f"Make {self.counting} tell what {self.module_name}.forward gives, with what the processor does to an item "
            "taken into account; or change that."
        )
        lengths = item_lengths(features)
        pairs = list(zip(lengths, counts, strict=True)) if lengths and len(lengths) == len(counts) else []
        for item, (got, expected) in enumerate(pairs):
            if got != expected:
                fail(
                    f"{self.name}: {where}: item {item} of {len(counts)} has {got} features, but {expected} are "
                    "counted.",
                    fix,
                )
        total = len(flatten(features))
        if total != sum(counts):
            fail(
                f"{self.name}: {where}: {len(counts)} items have {total} features, but {sum(counts)} are counted "
                f"({', '.join(map(str, counts))}).",
                f"{fix} Let it return a list of one tensor an item, and no tuple: of that only the first entry counts.",
            )

    @promise(COUNTS)
    def test_dummy_inputs_are_one_valid_item(self) -> None:
        """The smallest inputs hold one item, are counted as such, and the module takes them."""
        target = self.provided.spec.dummy_inputs
        fix = f"Let EncoderSpec.dummy_inputs ({target}) return inputs of one item, the smallest that forward takes."
        encoder = self.composed.encoder
        process = encoder.modal_callbacks.process or dict
        try:
            assert encoder.dummy_inputs is not None  # a spec has them
            inputs = encoder.dummy_inputs()
            counts = encoder.counter(dict(process(dict(inputs))))
            with torch.no_grad():
                features = encoder(**inputs)[0]
        except Exception as error:
            fail(f"{self.name}: its dummy inputs can't be counted and run: {say(error)}.", fix)
        if len(counts) != 1 or counts[0] < 1:
            fail(f"{self.name}: its dummy inputs, {_shown(inputs)}, are counted as items with {counts} features.", fix)
        self._check_counts("dummy_inputs", features, counts)

    @promise(COUNTS)
    def test_features_do_not_depend_on_the_rest_of_the_batch(self) -> None:
        """An item's features are the same alone and among others, up to ``tolerance``."""
        for seed in range(self.rounds):
            items = self.items(100 + seed, least=3)
            together = self.features(items)
            for index, item in enumerate(items):
                (alone,) = self.features([item])
                difference = distance(together[index], alone)
                if not difference <= self.tolerance:
                    fail(
                        f"{self.name}: item {index} of a batch of {len(items)} has {len(together[index])} features, "
                        f"and alone {len(alone)}, that differ by {difference:.1g} of the largest, more than "
                        f"tolerance={self.tolerance:g}.",
                        f"Let nothing in {self.module_name}.forward mix items: mask padding, keep means and norms "
                        "within an item, or run items of different sizes apart.",
                    )


def _shown(inputs: dict[str, Any]) -> str:
    """Names and shapes."""
    return ", ".join(
        f"{name} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"{name} ({type(value).__name__})"
        for name, value in inputs.items()
    )
