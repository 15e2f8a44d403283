"""What an encoder promises about the whole model: it generates, is saved, and comes back, or says what is missing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from .. import plugins
from ..errors import MissingPluginError
from ..model import MultimodalModel
from ..processor import MultimodalProcessor
from ..runtime.discovery import BLOCK
from .composed import Sample, distance
from .features import ALONE, COUNTS
from .promises import fail, promise, say
from .subject import EncoderSubject

__all__ = ["ModelChecks"]

_SAVED = "test_a_saved_model_comes_back_equal"
_AROUND = (
    "Let what runs around the language model pass attention_mask and position_ids on: look at the hook "
    "cornstarch_model_composed, and for state that forward keeps between calls."
)
_PLAIN = "Keep in module.config what JSON holds, and weights in parameters and buffers that share no memory."
_GREEDY: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


class ModelChecks(EncoderSubject):
    """The checks of a model with the encoder in it."""

    @promise(ALONE)
    def test_generation_with_left_padding_equals_single(self) -> None:
        """Samples of different lengths, generated for in one batch, get what each gets alone."""
        items = self.items(500, least=2)
        samples: list[Sample] = [(7, items[:1]), (2, items[1:2]), (4, [])]
        try:
            together = self._generate(*samples)
            alone = [self._generate(sample) for sample in samples]
        except Exception as error:
            fail(f"{self.name}: a model with it can't generate: {say(error)}.", _AROUND)
        for row, single in enumerate(alone):
            for step, (one, other) in enumerate(zip(together, single, strict=True)):
                difference = distance(one[row], other[0])
                if not difference <= 10 * self.tolerance:
                    fail(
                        f"{self.name}: sample {row} ({len(samples[row][1])} items, {samples[row][0]} words) gets other "
                        f"logits for new token {step} in a left-padded batch than alone; they differ by "
                        f"{difference:.1g} of the largest, though its features are the same.",
                        _AROUND,
                    )
                if one[row].argmax() != other[0].argmax():  # a tie within the tolerance; what follows differs rightly
                    break

    def _generate(self, *samples: Sample) -> list[torch.Tensor]:
        """Logits ``(B, vocabulary)`` of each new token."""
        batch = self.composed.batch(*samples, padding_side="left")
        output = self.composed.model.generate(**batch, **_GREEDY, return_dict_in_generate=True, output_logits=True)
        return list(output.logits)

    @promise(COUNTS)
    def test_a_saved_model_comes_back_equal(self) -> None:
        """Saved and loaded, it gives the same logits."""
        batch = self.composed.batch((3, self.items(600)), (2, []))
        target = self.provided.spec.build
        fix = (
            f"EncoderSpec.build is {target}. Unless the class is one of transformers, it must name a function that "
            "makes the module again from its config, a dictionary of plain data in module.config, which must tell all "
            "that forward depends on; what is no parameter and no persistent buffer is not saved."
        )
        with self._saved_model() as folder:
            try:
                loaded = MultimodalModel.from_pretrained(folder).eval()
                with torch.no_grad():
                    logits = loaded(**batch).logits
            except Exception as error:
                fail(f"{self.name}: a saved model can't be loaded: {say(error)}", fix)
        with torch.no_grad():
            expected = self.composed.model(**batch).logits
        if not torch.equal(logits, expected):
            fail(
                f"{self.name}: a saved model comes back with logits that differ by {distance(logits, expected):.1g} of "
                "the largest.",
                fix,
            )

    @promise(COUNTS)
    def test_a_saved_processor_comes_back_equal(self) -> None:
        """Saved and loaded without the model, it makes the same batch."""
        samples: list[Sample] = [(3, self.items(700, least=2)), (2, [])]
        fix = (
            "What ProcessorSpec.build returns must be made anew from the encoder's config alone, or have to_dict and "
            "from_dict that keep all of its settings."
        )
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.composed.processor.save_pretrained(folder)
                again = MultimodalProcessor.from_pretrained(folder)
                batch = replace(self.composed, processor=again).batch(*samples)
            except Exception as error:
                fail(f"{self.name}: a saved processor can't be loaded: {say(error)}", fix)
        if different := dict.fromkeys(_different(self.composed.batch(*samples), batch)):
            fail(f"{self.name}: a saved processor comes back and makes other {', '.join(different)}.", fix)

    @promise(_SAVED)
    def test_loading_without_the_plugin_names_what_to_install(self) -> None:
        """While the plugin is blocked, loading a saved model raises ``MissingPluginError`` with the ``pip install``."""
        with self._saved_model() as folder:
            record = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("plugins") or []
            made_by = {self.provided.plugin, *(entry["distribution"] for entry in record)}
            for plugin in sorted(made_by):
                with _blocked(plugin):
                    said = _error_of(folder)
                if not isinstance(said, MissingPluginError) or f'pip install "{plugin}' not in str(said):
                    fail(
                        f'{self.name}: without {plugin}, loading a saved model should say pip install "{plugin}…"; it '
                        f"{f'raises {say(said)}' if said else 'loads'}. Its config.json has plugins: {record}.",
                        "Let cornstarch_model_composed, and whatever else the plugin does to a model, leave "
                        "config.plugins, save_pretrained and what the encoder says of its spec as they are.",
                    )

    @contextmanager
    def _saved_model(self) -> Iterator[str]:
        """A folder with the model."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.composed.model.save_pretrained(folder)
            except Exception as error:
                fail(f"{self.name}: a model with it can't be saved: {say(error)}", _PLAIN)
            yield folder


@contextmanager
def _blocked(plugin: str) -> Iterator[None]:
    """As in a process that was started without this plugin; then all is as it was."""
    fresh = plugins.PluginRegistry()
    with patch.dict(os.environ, {BLOCK: plugin}), patch.object(plugins, "_registry", fresh):
        yield


def _error_of(folder: str) -> Exception | None:
    try:
        MultimodalModel.from_pretrained(folder)
    except Exception as error:
        return error
    return None


def _different(one: Any, other: Any, name: str = "a batch") -> Iterator[str]:
    """Where two batches differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield name
    elif isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        for key in one:
            yield from _different(one[key], other[key], str(key))
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for first, second in zip(one, other, strict=True):
            yield from _different(first, second, name)
    elif one != other:
        yield name
