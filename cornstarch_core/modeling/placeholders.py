"""Features at placeholders: find the placeholders, check the counts, place the features, mask the labels.

Pure tensor code: knows no model, no plugin, and touches no attention mask.

Shapes: B samples, S tokens a sample, D embedding width, P placeholders, N features.
A *position* is an index into the flat ``(B * S)`` grid of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import CompositionError, InputError, PlaceholderMismatchError

__all__ = [
    "IGNORE_INDEX",
    "checked_features",
    "find_positions",
    "flatten",
    "item_lengths",
    "mask_labels",
    "place_features",
]

Features = torch.Tensor | Sequence[torch.Tensor]

IGNORE_INDEX = -100  # the label that a loss leaves out


def find_positions(input_ids_BS: torch.Tensor, token_id: int) -> torch.Tensor:  # noqa: N803
    """Positions ``(P,)`` of every ``token_id``. Costs a device sync; a batch of our processor brings its own."""
    return (input_ids_BS.reshape(-1) == token_id).nonzero().squeeze(1)


def flatten(features: Features) -> torch.Tensor:
    """``(N, D)``, ``(items, tokens, D)`` or a list of ``(tokens_i, D)`` as ``(N, D)``."""
    if isinstance(features, torch.Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat(list(features))


def item_lengths(features: Features) -> list[int] | None:
    """Features per media item, or ``None`` where ``(N, D)`` doesn't tell."""
    if not isinstance(features, torch.Tensor):
        return [len(item) for item in features]
    return [features.shape[1]] * features.shape[0] if features.dim() == 3 else None


def checked_features(
    key: str,
    positions_P: torch.Tensor,  # noqa: N803
    features: Features,
    shape: Sequence[int],
) -> torch.Tensor:
    """Features as ``(N, D)``, if there are as many as positions and they are so wide. Compares shapes: costs no sync.

    Args:
        key: modality, for messages.
        positions_P: positions of the modality's placeholders.
        features: as :func:`flatten` takes them.
        shape: ``(B, S, D)`` of the embeddings.

    Raises:
        PlaceholderMismatchError: names modality, sample, item, expected and got.
        CompositionError: the projector gives another width.
    """
    features_ND = flatten(features)  # noqa: N806
    if len(features_ND) != len(positions_P):
        raise PlaceholderMismatchError(_describe_mismatch(key, positions_P, features, shape))
    if features_ND.shape[-1] != shape[2]:
        raise CompositionError(
            f"{key}: the projector gives features of width {features_ND.shape[-1]}, the language model's embeddings "
            f"have {shape[2]}. Build the projector for {shape[2]}."
        )
    return features_ND


def place_features(
    embeds_BSD: torch.Tensor,  # noqa: N803
    positions_P: torch.Tensor,  # noqa: N803
    features_ND: torch.Tensor,  # noqa: N803
) -> torch.Tensor:
    """New embeddings ``(B, S, D)`` with feature ``i`` at position ``positions_P[i]``.

    By index, not ``masked_scatter``: that one drops surplus features silently, and its backward costs a device sync.

    Raises:
        InputError: a position lies outside the batch. On a device this is an assertion on the device.
    """
    features_ND = features_ND.to(embeds_BSD.device, embeds_BSD.dtype)  # noqa: N806
    try:
        return embeds_BSD.flatten(0, 1).index_copy(0, positions_P, features_ND).view_as(embeds_BSD)
    except IndexError as error:
        raise InputError(
            f"positions point outside the {tuple(embeds_BSD.shape[:2])} batch ({error}); was input_ids cut or "
            "re-batched after processing? Process again, with max_length= if it has to be shorter."
        ) from error


def mask_labels(labels: torch.Tensor, positions_P: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """New labels with :data:`IGNORE_INDEX` at every position: nothing is learned from a placeholder.

    Args:
        labels: ``(B, S)``, or the ``(S,)`` of one sample.
        positions_P: positions in them, as one row.
    """
    return labels.flatten().index_fill(0, positions_P.to(labels.device), IGNORE_INDEX).view_as(labels)


def _describe_mismatch(key: str, positions: torch.Tensor, features: Features, shape: Sequence[int]) -> str:
    """Name the first sample and item that do not fit. Only runs when an error is certain, so a sync is fine."""
    advice = (
        "Let MultimodalProcessor expand the placeholders, and pass the media of a batch in the order of its samples. "
        "Of streamed data accelerate cuts batches up: then set accelerator_config={'dispatch_batches': False}."
    )
    lengths = item_lengths(features)
    got = len(features) if lengths is None else sum(lengths)
    total = f"{key}: the batch has {len(positions)} placeholder tokens, the encoder gives {got} features"
    if lengths is None:
        return f"{total}. {advice}"
    item = 0
    for sample, expected in enumerate(torch.bincount(positions.cpu() // shape[1], minlength=shape[0]).tolist()):
        first, filled = item, 0
        while filled < expected and item < len(lengths):
            filled, item = filled + lengths[item], item + 1
        if filled != expected:
            where = f"{key}: sample {sample}, item {max(item - first - 1, 0)}"
            return (
                f"{where}: the prompt has {expected} placeholder tokens in this sample, the encoder gives {filled} "
                f"features for its items. In all: {len(positions)} placeholders, {got} features. {advice}"
            )
    return f"{total}: {len(lengths) - item} of {len(lengths)} items have no placeholder in the prompt. {advice}"
