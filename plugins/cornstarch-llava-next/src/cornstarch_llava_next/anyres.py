"""Any-resolution tiling in numbers: which grid of crops an image gets, and which tokens of the grid show it.

This module is arithmetic on integers, and must not know tensors, pixels or models.

An image is scaled into the best of several *pinpoints* (heights and widths, multiples of a crop), centred there and cut
into crops. The encoder gets the whole image, resized to one crop, and then each crop. Tokens of the padding around the
image are left out. All sizes are ``(height, width)``, all grids ``(rows, columns)``.

Source: https://llava-vl.github.io/blog/2024-01-30-llava-next/. The numbers equal those of transformers' LLaVA-NeXT. Its
results depend on floating-point rounding in a few cases, so the operations here have the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt

from cornstarch_core.errors import CompositionError
from cornstarch_core.specs import EncoderContext

__all__ = ["DEFAULT_GRIDS", "Tiler", "Tiling", "best_pinpoint", "shown"]

Size = tuple[int, int]

DEFAULT_GRIDS: tuple[Size, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""LLaVA-NeXT's own grids of crops, in its order; for crops of 336 pixels they are its ``image_grid_pinpoints``."""


def best_pinpoint(size: Size, pinpoints: Iterable[Size]) -> Size:
    """Choose the pinpoint that keeps most of an image's pixels; of equals the one with least padding, then the first.

    Args:
        size: size of the image in pixels.
        pinpoints: the sizes to choose from.

    Example:
        >>> best_pinpoint((400, 1200), [(336, 672), (672, 336), (336, 1008)])
        (336, 1008)
    """

    def rank(pinpoint: Size) -> tuple[int, int]:
        scale = min(pinpoint[1] / size[1], pinpoint[0] / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return kept, kept - pinpoint[0] * pinpoint[1]

    return max(pinpoints, key=rank)


def shown(size: Size, grid: Size) -> tuple[range, range]:
    """Tell which rows and columns of a grid of tokens show an image; the others show the padding around it.

    Args:
        size: size of the image in pixels.
        grid: grid of the tokens of all crops.

    Returns:
        ``(rows, columns)``. One of them is empty if the image is thinner than a token.

    Example:
        >>> shown((100, 300), (24, 72)), shown((100, 400), (24, 72))
        ((range(0, 24), range(0, 72)), (range(3, 21), range(0, 72)))
    """
    height, width = size
    rows, columns = grid
    if width / height > columns / rows:
        padding = _padding(rows, height * (columns / width))
        return range(padding, rows - padding), range(columns)
    padding = _padding(columns, width * (rows / height))
    return range(rows), range(padding, columns - padding)


def _padding(available: int, needed: float) -> int:
    return (available - int(round(needed, 7))) // 2


@dataclass(frozen=True)
class Tiling:
    """How one image is tiled.

    Args:
        grid: grid of crops.
        rows: rows of the grid's tokens that show the image.
        columns: columns of the grid's tokens that show the image.
    """

    grid: Size
    rows: range
    columns: range

    @property
    def crops(self) -> int:
        """Number of crops: those of the grid, and the whole image before them."""
        return 1 + self.grid[0] * self.grid[1]

    def features(self, side: int, newline: bool) -> int:
        """Number of features after packing.

        Args:
            side: a crop has ``side * side`` tokens.
            newline: whether each row ends with a newline.
        """
        return side * side + len(self.rows) * (len(self.columns) + newline)


@dataclass(frozen=True, kw_only=True)
class Tiler:
    """How the images of one encoder are tiled.

    Args:
        crop_size: edge of a crop in pixels: the encoder's image size.
        side: edge of a crop in tokens, after the projector.
        pinpoints: sizes in pixels that an image may be scaled into.

    Example:
        >>> tiler = Tiler(crop_size=336, side=24, pinpoints=((336, 672), (672, 672)))
        >>> tiling = tiler.tile((200, 800))
        >>> tiling.crops, tiling.features(tiler.side, newline=True)
        (3, 1164)
    """

    crop_size: int
    side: int
    pinpoints: tuple[Size, ...]

    @classmethod
    def of(
        cls, context: EncoderContext, pinpoints: Sequence[Sequence[int]] | None = None, tokens: int | None = None
    ) -> Tiler:
        """Read the encoder's config, and check the options.

        Args:
            context: the encoder; its ``config`` gives ``image_size`` and ``patch_size``.
            pinpoints: sizes that an image may be scaled into; default: :data:`DEFAULT_GRIDS` in crops of the encoder's
                ``image_size``.
            tokens: tokens of a crop after the projector; default: one for each patch.

        Raises:
            CompositionError: a size is missing or not square, or a pinpoint is not a multiple of the crop.
        """
        crop_size = _edge(context, "image_size")
        side = crop_size // _edge(context, "patch_size") if tokens is None else _root(context.key, tokens)
        return cls(crop_size=crop_size, side=side, pinpoints=_pinpoints(context.key, crop_size, pinpoints))

    def tile(self, size: Size) -> Tiling:
        """Tile one image.

        Args:
            size: size of the image in pixels.

        Raises:
            ValueError: the image is empty.
        """
        if min(size) < 1:
            raise ValueError(f"it is empty: {size[0]}x{size[1]} pixels")
        best = best_pinpoint(size, self.pinpoints)
        grid = best[0] // self.crop_size, best[1] // self.crop_size
        return Tiling(grid, *shown(size, (grid[0] * self.side, grid[1] * self.side)))


# --- reading the options ----------------------------------------------------------------------------------------------


def _edge(context: EncoderContext, name: str) -> int:
    value = getattr(context.config, name, None)
    edges = set(value) if isinstance(value, (list, tuple)) else {value}
    edge = edges.pop() if len(edges) == 1 else None
    if type(edge) is not int:
        raise CompositionError(
            f"{context.key}: the encoder's config has {name}={value!r}; tiling needs square crops, so one number. "
            "Use an encoder with a square image size."
        )
    return edge


def _root(key: str, tokens: object) -> int:
    if type(tokens) is not int or tokens < 1 or isqrt(tokens) ** 2 != tokens:
        raise CompositionError(f"{key}: tokens_per_crop={tokens!r}; expected a square number, such as 144.")
    return isqrt(tokens)


def _pinpoints(key: str, crop_size: int, given: object) -> tuple[Size, ...]:
    if given is None:
        return tuple((rows * crop_size, columns * crop_size) for rows, columns in DEFAULT_GRIDS)
    if not isinstance(given, (list, tuple)) or not given or not all(_fits(one, crop_size) for one in given):
        example = [[rows * crop_size, columns * crop_size] for rows, columns in DEFAULT_GRIDS]
        raise CompositionError(
            f"{key}: image_grid_pinpoints={given!r}; expected pairs (height, width) of multiples of the encoder's "
            f"image_size, {crop_size}, such as {example}."
        )
    return tuple((height, width) for height, width in given)


def _fits(pinpoint: object, crop_size: int) -> bool:
    if not isinstance(pinpoint, (list, tuple)) or len(pinpoint) != 2:
        return False
    return all(type(edge) is int and edge > 0 and edge % crop_size == 0 for edge in pinpoint)
