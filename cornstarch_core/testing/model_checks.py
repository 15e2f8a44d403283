"""The checks of a model with the encoder: generation, saving, loading, and the error if the plugin is missing."""

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

from ..errors import MissingPluginError
from ..model import MultimodalModel
from ..plugins import manager
from ..plugins.discovery import BLOCK
from ..processor import MultimodalProcessor
from .composed import Sample, distance
from .encoder_under_test import EncoderUnderTest
from .feature_checks import ALONE, COUNTS
from .promises import promise, say

__all__ = ["ModelChecks"]

_SAVED = "test_a_saved_model_comes_back_equal"
_GREEDY: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
_WITH_LOGITS: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}


class ModelChecks(EncoderUnderTest):
    """The checks of a model that contains the encoder."""

    @promise(ALONE)
    def test_generation_with_left_padding_equals_single(self) -> None:
        """A padded batch of samples of different lengths generates the same as each sample alone."""
        items = self.items(500, least=2)
        samples: list[Sample] = [(7, items[:1]), (2, items[1:2]), (4, [])]
        fix = "Pass attention_mask and position_ids on in cornstarch_model_composed; keep no state between calls."
        with self.failing("a model with it can't generate", fix):
            together = self._generate(*samples)
            alone = [self._generate(sample) for sample in samples]
        for row, (words, media) in enumerate(samples):
            for step, (one, (single,)) in enumerate(zip(together, alone[row], strict=True)):
                if not (difference := distance(one[row], single)) <= 10 * self.tolerance:
                    self.fail(
                        f"sample {row} ({len(media)} items, {words} words) gets other logits for new token {step} in a "
                        f"left-padded batch than alone; they differ by {difference:.1g} of the largest, though its "
                        "features are the same.",
                        fix,
                    )
                if one[row].argmax() != single.argmax():  # a tie within the tolerance, after which the texts may differ
                    break

    def _generate(self, *samples: Sample) -> tuple[torch.Tensor, ...]:
        """Return the logits of each new token, ``(samples, vocabulary)``."""
        batch = self.composed.batch(*samples, padding_side="left")
        return self.composed.model.generate(**batch, **_GREEDY, **_WITH_LOGITS).logits

    @promise(COUNTS)
    def test_a_saved_model_comes_back_equal(self) -> None:
        """A saved model gives the same logits after loading."""
        batch = self.composed.batch((3, self.items(600)), (2, []))
        fix = (
            f"Unless the class is one of transformers, {self.target}.build must make the module again from its config, "
            "plain data in module.config that forward depends on; only parameters and persistent buffers are saved."
        )
        with self._saved_model() as folder, torch.no_grad():
            with self.failing("a saved model can't be loaded", fix):
                logits = MultimodalModel.from_pretrained(folder).eval()(**batch).logits
            expected = self.composed.model(**batch).logits
        if not torch.equal(logits, expected):
            difference = distance(logits, expected)
            self.fail(f"a saved model comes back with logits that differ by {difference:.1g} of the largest.", fix)

    @promise(COUNTS)
    def test_a_saved_processor_comes_back_equal(self) -> None:
        """A saved processor, loaded without the model, makes the same batch."""
        samples: list[Sample] = [(3, self.items(700, least=2)), (2, [])]
        fix = "What the ProcessorSpec's target builds must depend on the config alone, or have to_dict and from_dict."
        with tempfile.TemporaryDirectory() as folder, self.failing("a saved processor can't be loaded", fix):
            self.composed.processor.save_pretrained(folder)
            loaded = MultimodalProcessor.from_pretrained(folder)
            found = list(_leaves(replace(self.composed, processor=loaded).batch(*samples)))
        expected = list(_leaves(self.composed.batch(*samples)))
        different = [leaf for leaf in (*found, *expected) if leaf not in found or leaf not in expected]
        if different:
            names = ", ".join(dict.fromkeys(name for name, _ in different))
            self.fail(f"a saved processor comes back and makes other {names}.", fix)

    @promise(_SAVED)
    def test_loading_without_the_plugin_names_what_to_install(self) -> None:
        """While the plugin is blocked, loading raises ``MissingPluginError`` with the ``pip install`` command."""
        fix = "Let cornstarch_model_composed leave config.plugins, save_pretrained and encoder.registration unchanged."
        with self._saved_model() as folder:
            record = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("plugins") or []
            for plugin in sorted({self.registration.plugin, *(entry["distribution"] for entry in record)}):
                said: Exception | None = None
                # Act as a process that is started without this plugin; both patches are undone at the end of the block.
                fresh = patch.object(manager, "_registry", manager.PluginRegistry())
                with patch.dict(os.environ, {BLOCK: plugin}), fresh:
                    try:
                        MultimodalModel.from_pretrained(folder)
                    except Exception as error:
                        said = error
                if not isinstance(said, MissingPluginError) or f'pip install "{plugin}' not in str(said):
                    self.fail(
                        f'without {plugin}, loading a saved model should say pip install "{plugin}…"; it '
                        f"{f'raises {say(said)}' if said else 'loads'}. Its config.json has plugins: {record}.",
                        fix,
                    )

    @contextmanager
    def _saved_model(self) -> Iterator[str]:
        """Save the model to a temporary folder, and yield the folder."""
        fix = "Keep in module.config what JSON holds, and weights in parameters and buffers that share no memory."
        with tempfile.TemporaryDirectory() as folder:
            with self.failing("a model with it can't be saved", fix):
                self.composed.model.save_pretrained(folder)
            yield folder


def _leaves(value: object, name: str = "a batch") -> Iterator[tuple[str, object]]:
    """Yield every value in a batch with its name; a tensor as ``(dtype, list)``, so that tensors can be compared."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, str(key))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one, name)
    else:
        yield name, (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else value
