"""Placing features among token embeddings. Pure tensor code: knows no model, no plugin, and touches no mask.

Shapes: B samples, S tokens a sample, D embedding width, P placeholders, N features.
A *position* is an index into the flat ``(B * S)`` grid of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .errors import InputError, PlaceholderMismatchError

__all__ = ["check_count", "find_positions", "flatten", "item_lengths", "mask_labels", "place"]

Features = torch.Tensor | Sequence[torch.Tensor]


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


def place(embeds_BSD: torch.Tensor, positions_P: torch.Tensor, features_ND: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """New embeddings ``(B, S, D)`` with feature ``i`` at position ``positions_P[i]``.

    By index, not ``masked_scatter``: that one drops surplus features silently, and its backward costs a device sync.
    """
    features_ND = features_ND.to(embeds_BSD.device, embeds_BSD.dtype)  # noqa: N806
    try:
        return embeds_BSD.flatten(0, 1).index_copy(0, positions_P, features_ND).view_as(embeds_BSD)
    except IndexError as error:  # on a GPU this is an assertion on the device
        raise InputError(
            f"positions point outside the {tuple(embeds_BSD.shape[:2])} batch ({error}); was input_ids cut or "
            "re-batched after processing? Process again, with max_length= if it has to be shorter."
        ) from error


def mask_labels(
    labels_BS: torch.Tensor,  # noqa: N803
    positions_P: torch.Tensor,  # noqa: N803
    ignore_index: int = -100,
) -> torch.Tensor:
    """New labels with ``ignore_index`` at every position: nothing is learned from a placeholder."""
    return labels_BS.flatten().index_fill(0, positions_P.to(labels_BS.device), ignore_index).view_as(labels_BS)


def check_count(key: str, positions_P: torch.Tensor, features: Features, batch: tuple[int, int]) -> None:  # noqa: N803
    """Raise unless there are as many features as positions. Compares shapes only, so it costs no sync.

    Args:
        key: modality, for the message.
        positions_P: positions of the modality's placeholders.
        features: as :func:`flatten` takes them.
        batch: ``(B, S)``.

    Raises:
        PlaceholderMismatchError: names modality, sample, item, expected and got.
    """
    lengths = item_lengths(features)
    got = sum(lengths) if lengths is not None else len(features)
    if got != len(positions_P):
        raise PlaceholderMismatchError(_describe(key, positions_P, lengths, got, batch))


def _describe(key: str, positions: torch.Tensor, lengths: list[int] | None, got: int, batch: tuple[int, int]) -> str:
    """Find the first sample and item that do not fit. Only runs when an error is certain, so a sync is fine."""
    advice = (
        "Let MultimodalProcessor expand the placeholders, and pass the media of a batch in the order of its samples. "
        "Of streamed data accelerate cuts batches up: then set accelerator_config={'dispatch_batches': False}."
    )
    total = f"{key}: the batch has {len(positions)} placeholder tokens, the encoder gives {got} features"
    if lengths is None:
        return f"{total}. {advice}"
    rows = torch.bincount(positions.cpu() // batch[1], minlength=batch[0]).tolist()
    item = 0
    for sample, expected in enumerate(rows):
        first, filled = item, 0
        while filled < expected and item < len(lengths):
            filled += lengths[item]
            item += 1
        if filled != expected:
            where = f"sample {sample}, item {max(item - first - 1, 0)}"
            return (
                f"{key}: {where}: the prompt has {expected} placeholder tokens in this sample, the encoder gives "
                f"{filled} features for its items. In all: {len(positions)} placeholders, {got} features. {advice}"
            )
    return f"{total}: {len(lengths) - item} of {len(lengths)} items have no placeholder in the prompt. {advice}"
