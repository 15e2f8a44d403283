"""A model with the encoder under test, and its processor: batches, features and losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..model import MultimodalModel
from ..modeling.encoder import ModalEncoderModule
from ..modeling.placeholders import flatten
from ..processor import MultimodalProcessor
from .pieces import WORDS

__all__ = ["Composed", "Sample", "distance", "seeded"]

Sample = tuple[int, Sequence[Any]]
"""``(number of words, media items)`` of a sample."""


@dataclass(frozen=True)
class Composed:
    """A model with one encoder, and its processor.

    Args:
        key: modality key of the encoder.
        model: the model, in eval mode.
        processor: the processor of the model.
    """

    key: str
    model: MultimodalModel
    processor: MultimodalProcessor

    @property
    def encoder(self) -> ModalEncoderModule:
        """The encoder with its projector and callbacks."""
        return self.model.encoders[self.key]

    def prepare(self, items: Sequence[Any]) -> tuple[dict[str, Any], list[int]]:
        """Return the encoder inputs of ``items``, and the counted number of features of each item."""
        inputs, (counts,) = self.processor.modalities[self.key].prepare([items], {})
        return inputs, counts

    def features(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the projected features of all items, ``(tokens of all items, embedding width)``."""
        return flatten(self.encoder(**inputs)[0])

    def batch(self, *samples: Sample, **options: Any) -> dict[str, Any]:
        """Return the processor's batch of samples, whose texts are one placeholder for each item and then the words."""
        token = self.processor.tokens[self.key]
        texts = [" ".join([*[token] * len(items), *(WORDS * words)[:words]]) for words, items in samples]
        media: dict[str, Any] = {self.key: [list(items) for _, items in samples]}
        return dict(self.processor(text=texts, **media, **options))

    def loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the language model's loss over all words of a batch."""
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return self.model(**batch, labels=labels).loss


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of two tensors, relative to the largest entry; infinity if the shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    largest = max(float(other.abs().max()), 1e-12) if other.numel() else 1.0
    return float((one - other).abs().max()) / largest if one.numel() else 0.0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random generator in the ``with`` block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
