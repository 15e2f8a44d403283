"""The checks of an encoder's features: their width, their number, and their independence of other items."""

from __future__ import annotations

import inspect
from numbers import Integral
from typing import Any

import torch

from .._hf.language_model import embedding_width
from .._hf.peft import unwrap
from ..errors import CornstarchError
from ..modeling.placeholders import Features, flatten, item_lengths
from ..plugins import registry
from .composed import distance
from .encoder_under_test import EncoderUnderTest
from .promises import promise, say

__all__ = ["ALONE", "COUNTS", "DESCRIBED", "DUMMIES", "WIDTH", "FeatureChecks"]

DESCRIBED = "test_its_spec_describes_the_module"
WIDTH = "test_features_are_as_wide_as_it_says"
COUNTS = "test_features_are_as_many_as_were_counted"
DUMMIES = "test_dummy_inputs_are_one_valid_item"
ALONE = "test_features_do_not_depend_on_the_rest_of_the_batch"
"""Names of checks that other checks depend on."""


class FeatureChecks(EncoderUnderTest):
    """The checks of an encoder's features."""

    @promise()
    def test_its_spec_describes_the_module(self) -> None:
        """The spec is found by the module's class, and a model is composed with it."""
        fix = "Let `encoder` be the name of an EncoderSpec of a plugin that is active."
        with self.failing("its spec can't be found", fix, CornstarchError):
            registration = self.registration
            module = self.make_module()
            found = registry().find_encoder(module)
        cls, classes = type(module), ", ".join(registration.spec.classes)
        if found != registration:
            other = found.qualified_name if found else "no spec"
            fix = f"Name its class '{cls.__module__}:{cls.__qualname__}' in EncoderSpec.classes, which has {classes}."
            self.fail(f"make_module() returns a {cls.__name__}, which is described by {other}.", fix)
        fix = f"Look at {self.target}.hidden_size and prefix_tokens, and at build of the other specs' targets."
        if getattr(module, "config", None) is None:
            fix = f"Keep in {cls.__name__}.config what they read; it is None now."
        with self.failing("no model with its processor can be composed", fix):
            self.composed  # noqa: B018 - composes the model

    @promise(DESCRIBED)
    def test_features_are_as_wide_as_it_says(self) -> None:
        """The module runs on what the processor makes, and its features have the width that the spec's target says."""
        inputs, _ = self.prepare(self.items(0))
        encoder, entered, fix = self.composed.encoder, [], "Look at what the ProjectorSpec's target builds."
        source = f"{self.target}.hidden_size, by default config.hidden_size,"
        if encoder.callbacks.hidden_size is not None:
            source = f"ModalCallbacks.hidden_size of callbacks {self.callbacks!r}"

        def check_entering(_: object, args: tuple[Features, ...]) -> None:
            entered.append(args)
            self._check_width("enter the projector", args[0], encoder.info.feature_size, source)

        with encoder.projector.register_forward_pre_hook(check_entering), torch.no_grad():
            try:
                leaving = encoder(**inputs)[0]
            except Exception as error:
                if entered:
                    self.fail(f"features can't be projected: {say(error)}.", fix)
                made = _shown(inputs) or "nothing of what EncoderSpec.input_names has"
                self.fail(
                    f"{self.module_name} can't be run on what the processor makes, {made}: {say(error)}.",
                    self._inputs_advice(),
                )
        width = embedding_width(self.composed.model.language_model)
        self._check_width("leave it for the language model", leaving, width, "what the ProjectorSpec's target builds")

    def _inputs_advice(self) -> str:
        """Advise to change the names in the spec, if ``forward`` does not accept them, or the processor's output."""
        forward = inspect.signature(unwrap(self.composed.encoder.module).forward)
        names = self.registration.spec.input_names
        given, taken = ", ".join(names), ", ".join(forward.parameters)
        try:
            forward.bind(**dict.fromkeys(names))
        except TypeError:
            return f"Name in EncoderSpec.input_names what {self.module_name}.forward takes, {taken}; it has {given}."
        return f"Let the ProcessorSpec's target make EncoderSpec.input_names ({given}) as forward takes them."

    def _check_width(self, where: str, features: Features, expected: int, source: str) -> None:
        is_one = isinstance(features, torch.Tensor)
        fix = "Return (items, tokens, width), (all tokens, width), or a list of one (tokens, width) an item."
        for one in [features] if is_one else features:
            if not isinstance(one, torch.Tensor) or one.dim() not in ((2, 3) if is_one else (2,)):
                self.fail(f"features that {where} are {_shape(one)}.", fix)
            if (width := one.shape[-1]) != expected:
                fix = f"Make {source} say {width}, or give features of width {expected}."
                self.fail(f"features that {where} are {width} wide, expected {expected}.", fix)

    @promise(WIDTH)
    def test_features_are_as_many_as_were_counted(self) -> None:
        """For random batches, the number of features that is counted from the inputs is right for each item."""
        for seed in range(self.rounds):
            inputs, counts = self.prepare(self.items(seed, least=1 + seed % 3))
            found: object = self.composed.encoder.info.num_tokens(dict(inputs))
            wrong = [one for one in found if not isinstance(one, Integral)] if isinstance(found, list) else [found]
            fix = f"Let {self.counting} return plain numbers, from shapes and lengths, not from values on a device."
            if wrong:
                self.fail(f"counts are not a list of int; a {type(wrong[0]).__name__} was found.", fix)
            with torch.no_grad():
                features = self.composed.encoder(**inputs)[0]
            self._check_counts(f"batch {seed} of make_items", features, counts)

    def _check_counts(self, where: str, features: Features, counts: list[int]) -> None:
        fix = f"Make {self.counting} tell what {self.module_name}.forward gives, after what the processor does to it."
        lengths = item_lengths(features) or []
        for item, (got, expected) in enumerate(zip(lengths, counts, strict=False)):
            if got != expected and len(lengths) == len(counts):
                self.fail(f"{where}: item {item} of {len(counts)} has {got} features, but {expected} are counted.", fix)
        if (total := len(flatten(features))) != sum(counts):
            fix += " Let it return a list of one tensor an item, and no tuple: of that only the first entry counts."
            given = f"{sum(counts)} are counted ({', '.join(map(str, counts))})"
            self.fail(f"{where}: {len(counts)} items have {total} features, but {given}.", fix)

    @promise(COUNTS)
    def test_dummy_inputs_are_one_valid_item(self) -> None:
        """The smallest inputs hold one item, which can be counted and encoded."""
        fix = f"Let {self.target}.dummy_inputs return inputs of one item, the smallest that forward takes."
        encoder = self.composed.encoder
        prepare = encoder.callbacks.prepare_on_host or dict
        with self.failing("its dummy inputs can't be counted and run", fix), torch.no_grad():
            inputs = encoder.info.dummy_inputs() or {}
            counts = encoder.info.num_tokens(dict(prepare(dict(inputs))))
            features = encoder(**inputs)[0]
        if len(counts) != 1 or counts[0] < 1:
            self.fail(f"its dummy inputs, {_shown(inputs)}, are counted as items with {counts} features.", fix)
        self._check_counts("dummy_inputs", features, counts)

    @promise(COUNTS)
    def test_features_do_not_depend_on_the_rest_of_the_batch(self) -> None:
        """An item has the same features alone and in a batch, up to ``tolerance``."""
        for seed in range(self.rounds):
            items = self.items(100 + seed, least=3)
            for index, (item, together) in enumerate(zip(items, self.features(items), strict=True)):
                (alone,) = self.features([item])
                if not (difference := distance(together, alone)) <= self.tolerance:
                    self.fail(
                        f"item {index} of a batch of {len(items)} has {len(together)} features, and alone {len(alone)},"
                        f" that differ by {difference:.1g} of the largest, more than tolerance={self.tolerance:g}.",
                        f"Let nothing in {self.module_name}.forward mix items: mask padding, keep means and norms "
                        "within an item, or run items of different sizes apart.",
                    )


def _shown(inputs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_shape(value)}" for name, value in inputs.items())


def _shape(value: object) -> str:
    """Return the shape of a tensor, or the type of another value, as text."""
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else f"({type(value).__name__})"
