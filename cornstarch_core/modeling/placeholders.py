"""Find the placeholders, check the number of features, place the features at the placeholders, and mask the labels.

This module contains tensor code only. It uses no model and no plugin, and changes no attention mask.

In the shapes, ``B`` is the number of samples, ``S`` the number of tokens of a sample, ``D`` the width of the
embeddings, ``P`` the number of placeholders and ``N`` the number of features. A *position* is an index, from 0, into
the ``B * S`` tokens of a batch, row by row.
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

IGNORE_INDEX = -100  # the label that a loss ignores


def find_positions(input_ids_BS: torch.Tensor, token_id: int) -> torch.Tensor:  # noqa: N803
    """Return the positions ``(P,)`` of ``token_id``. This costs a device sync.

    A batch from ``MultimodalProcessor`` contains its positions, and does not need this function.
    """
    return (input_ids_BS.reshape(-1) == token_id).nonzero().squeeze(1)


def flatten(features: Features) -> torch.Tensor:
    """Reshape ``(N, D)``, ``(items, tokens, D)`` or a list of ``(tokens_i, D)`` to ``(N, D)``."""
    if isinstance(features, torch.Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat(list(features))


def item_lengths(features: Features) -> list[int] | None:
    """Return the number of features of each media item, or ``None`` for features ``(N, D)``, which are not per item."""
    if not isinstance(features, torch.Tensor):
        return [len(item) for item in features]
    return [features.shape[1]] * features.shape[0] if features.dim() == 3 else None


def checked_features(
    key: str,
    positions_P: torch.Tensor,  # noqa: N803
    features: Features,
    shape: Sequence[int],
) -> torch.Tensor:
    """Check the number and the width of features, and return the features as ``(N, D)``.

    The check compares shapes only, and therefore costs no device sync.

    Args:
        key: modality key, for error messages.
        positions_P: positions of the modality's placeholders.
        features: features in one of the forms that :func:`flatten` accepts.
        shape: shape ``(B, S, D)`` of the embeddings.

    Raises:
        PlaceholderMismatchError: the numbers of placeholders and features differ. The message names the modality, the
            sample, the item and both numbers.
        CompositionError: the features have another width than the embeddings.
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
    """Return new embeddings ``(B, S, D)`` with feature ``i`` at position ``positions_P[i]``.

    The function uses ``index_copy`` and not ``masked_scatter``, because ``masked_scatter`` ignores surplus features
    silently, and its backward costs a device sync.

    Raises:
        InputError: a position lies outside the batch. For tensors on a device, an assertion fails on the device
            instead.
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
    """Return new labels with :data:`IGNORE_INDEX` at every position, so that placeholders do not add to the loss.

    Args:
        labels: labels ``(B, S)`` of a batch, or labels ``(S,)`` of one sample.
        positions_P: positions of the placeholders, as indices into the flattened labels.
    """
    return labels.flatten().index_fill(0, positions_P.to(labels.device), IGNORE_INDEX).view_as(labels)


def _describe_mismatch(key: str, positions: torch.Tensor, features: Features, shape: Sequence[int]) -> str:
    """Write the message that names the first sample and item with a wrong number of features.

    This function costs a device sync. It runs only if the numbers differ.
    """
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
