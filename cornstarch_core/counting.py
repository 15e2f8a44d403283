"""How many features an encoder gives for each media item: the counting contract.

Whoever changes the number of features says by how much: encoder, callbacks, projector, in that order. The processor
expands placeholders by this count, and the model holds the features against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import CompositionError
from .specs import ModalCallbacks

__all__ = ["TokenCounter"]


@dataclass(frozen=True, kw_only=True)
class TokenCounter:
    """Counts features for one encoder, from its inputs alone.

    Args:
        key: modality, for messages.
        encoder: ``(encoder_inputs) -> list[int]``: what the encoder itself gives, or ``None`` if nobody knows.
        callbacks: the callbacks around it.
        projector: ``(counts) -> list[int]``, or ``None`` if the projector keeps the length.
    """

    key: str
    encoder: Callable[[dict[str, Any]], list[int]] | None
    callbacks: ModalCallbacks
    projector: Callable[[list[int]], list[int]] | None = None

    def __call__(self, encoder_inputs: dict[str, Any]) -> list[int]:
        """Features per media item, in order. Arithmetic on the host only.

        Raises:
            CompositionError: the encoder is one that no plugin knows.
        """
        if self.encoder is None and self.callbacks.num_tokens is None:
            raise CompositionError(
                f"{self.key}: how many features this encoder gives is not known. Give "
                "callbacks=ModalCallbacks(num_tokens=...) to its ModalEncoderModule, or register it in a plugin."
            )
        counts = self.encoder(encoder_inputs) if self.encoder is not None else []
        if self.callbacks.num_tokens is not None:
            counts = self.callbacks.num_tokens(encoder_inputs, counts)
        if self.projector is not None:
            counts = self.projector(counts)
        if self.callbacks.num_features is not None:
            counts = self.callbacks.num_features(encoder_inputs, counts)
        return counts
