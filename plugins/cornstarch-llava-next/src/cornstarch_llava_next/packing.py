"""Packing: the tokens of an image's crops as one row of features, by an index made on the host and one gather.

The features of an image are the tokens of the whole image, then the rows of the grid, each across all of its crops,
without the padding and with a newline at the end. This module must not know pixels or models.

Shapes: C crops of all images, T tokens a crop, D width, F packed features of all images.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .anyres import Tiling

__all__ = ["pack", "packing_index"]


def packing_index(tilings: Iterable[Tiling], side: int, newline: bool = True) -> torch.Tensor:
    """Compute where each packed feature comes from.

    Args:
        tilings: how the images are tiled, in order.
        side: edge of a crop in tokens; T is its square.
        newline: whether each row of the grid ends with a newline.

    Returns:
        ``(F,)`` int64 on the CPU: an index into the ``C * T`` tokens of all crops. A newline is ``-1 - i``, where ``i``
        is the row's last token; :func:`pack` reads that token in its place and discards it.

    Example:
        >>> from cornstarch_llava_next.anyres import Tiling
        >>> packing_index([Tiling(grid=(1, 2), rows=range(1), columns=range(1, 3))], side=2).tolist()
        [0, 1, 2, 3, 5, 8, -9]
    """
    parts, start = [torch.empty(0, dtype=torch.int64)], 0
    for tiling in tilings:
        parts += [torch.arange(start, start + side * side), _grid_index(tiling, start, side, newline)]
        start += tiling.crops * side * side
    return torch.cat(parts)


def _grid_index(tiling: Tiling, start: int, side: int, newline: bool) -> torch.Tensor:
    last = max(tiling.columns.stop - 1, 0)
    rows = torch.arange(tiling.rows.start, tiling.rows.stop)[:, None]
    columns = torch.arange(tiling.columns.start, tiling.columns.stop + newline).clamp(max=last)
    crops = 1 + rows // side * tiling.grid[1] + columns // side
    index = start + crops * side * side + rows % side * side + columns % side
    if newline:
        index[:, -1] = ~index[:, -1]
    return index.flatten()


def pack(
    features_CTD: torch.Tensor,  # noqa: N803
    index_F: torch.Tensor,  # noqa: N803
    newline_D: torch.Tensor | None = None,  # noqa: N803
) -> torch.Tensor:
    """Pack the features of all images at once, without a device sync; the number of operations is always the same.

    The newline is broadcast, so that its gradient is a sum and not a scatter of duplicates.

    Args:
        features_CTD: ``(C, T, D)`` of any dtype.
        index_F: ``(F,)`` int64 on the same device, from :func:`packing_index`.
        newline_D: ``(D,)``; needed if the index has newlines.

    Returns:
        ``(F, D)`` in the dtype of ``features_CTD``.

    Example:
        >>> import torch
        >>> features = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
        >>> pack(features, torch.tensor([0, 3, -4]), torch.tensor([9.0])).tolist()
        [[1.0], [4.0], [9.0]]
    """
    flat = features_CTD.flatten(0, 1)
    if newline_D is None:
        return flat.index_select(0, index_F)
    is_newline = index_F < 0
    gathered = flat.index_select(0, torch.where(is_newline, ~index_F, index_F))
    return torch.where(is_newline[:, None], newline_D.to(gathered.dtype), gathered)
