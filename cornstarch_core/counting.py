"""How many features an encoder gives for each media item: the counting contract.

Whoever changes the number of features says by how much: encoder, callbacks, projector, in that order. The processor
expands placeholders by this count, and the model holds the features against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .errors import CompositionError
from .plugins import Provided, resolve
from .projector import MultimodalProjectorConfig
from .specs import EncoderContext, EncoderSpec, ModalCallbacks

__all__ = ["EMBEDS", "TokenCounter", "encoder_context", "token_counter"]

EMBEDS = "embeds"  # the one input of ready-made embeddings


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
                f"{self.key}: how many features this encoder gives is not known. Give its ModalEncoderModule "
                "callbacks=ModalCallbacks(num_tokens=f), where f(encoder_inputs, counts) returns one count for each "
                "media item (counts is empty here), or register the encoder in a plugin."
            )
        counts = self.encoder(encoder_inputs) if self.encoder is not None else []
        if self.callbacks.num_tokens is not None:
            counts = self.callbacks.num_tokens(encoder_inputs, counts)
        if self.projector is not None:
            counts = self.projector(counts)
        if self.callbacks.num_features is not None:
            counts = self.callbacks.num_features(encoder_inputs, counts)
        return counts


def encoder_context(
    key: str, config: Any, provided: Provided | None, hidden_size: int, text_hidden_size: int
) -> EncoderContext:
    """What plugins are told about an encoder, from its config alone."""
    spec: EncoderSpec | None = provided.spec if provided is not None else None
    prefix = 0
    if spec is not None and spec.prefix_tokens is not None:
        prefix = resolve(spec.prefix_tokens, provided.plugin)(config)  # type: ignore[union-attr]
    return EncoderContext(
        key=key,
        config=config,
        hidden_size=hidden_size,
        text_hidden_size=text_hidden_size,
        prefix_tokens=prefix,
        layers=spec.layers if spec is not None else None,
    )


def token_counter(
    key: str,
    config: Any,
    provided: Provided | None,
    callbacks: ModalCallbacks,
    projector: Provided | None,
    projector_config: MultimodalProjectorConfig | None,
    *,
    ready_made: bool = False,
) -> TokenCounter:
    """The counter of an encoder, from what its config says."""
    count = _count_embeds if ready_made else None
    if provided is not None:
        count = partial(resolve(provided.spec.num_tokens, provided.plugin), config)
    shorten = None
    if projector is not None and projector.spec.num_tokens is not None:
        shorten = partial(resolve(projector.spec.num_tokens, projector.plugin), projector_config)
    return TokenCounter(key=key, encoder=count, callbacks=callbacks, projector=shorten)


def _count_embeds(inputs: dict[str, Any]) -> list[int]:
    embeds = inputs[EMBEDS]
    if isinstance(embeds, torch.Tensor):
        return [embeds.shape[1] if embeds.dim() == 3 else 1] * embeds.shape[0]
    return [len(item) for item in embeds]
