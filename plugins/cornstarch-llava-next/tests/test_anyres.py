"""The arithmetic of tiling, against transformers' own functions."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from cornstarch_llava_next.anyres import DEFAULT_GRIDS, Tiler, best_pinpoint, shown
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from cornstarch_core.errors import CompositionError

SIDES = st.integers(1, 5000)
SIZES = st.tuples(SIDES, SIDES)
GRIDS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8)
CROPS = st.sampled_from([(336, 14), (384, 14), (518, 14), (224, 16), (32, 8)])


def of(grids, crop):
    """Pinpoints in pixels."""
    return [[rows * crop, columns * crop] for rows, columns in grids]


@settings(max_examples=300, deadline=None)
@given(size=SIZES, grids=GRIDS, crop=CROPS)
def test_the_pinpoint_is_the_one_of_transformers(size, grids, crop):
    """Also where several are equally good, and where less than a pixel of the image is left in each."""
    pinpoints = of(grids, crop[0])
    assert tuple(best_pinpoint(size, pinpoints)) == select_best_resolution(size, pinpoints)


@settings(max_examples=300, deadline=None)
@given(size=SIZES, grids=GRIDS, crop=CROPS)
def test_the_tiling_is_the_one_of_transformers(size, grids, crop):
    """Crops, their grid, and the tokens that show the image."""
    (edge, patch), pinpoints = crop, of(grids, crop[0])
    side = edge // patch
    tiling = Tiler(crop_size=edge, side=side, pinpoints=tuple(map(tuple, pinpoints))).tile(size)
    assert tiling.crops == image_size_to_num_patches(size, pinpoints, edge)
    assert tiling.grid == tuple(get_anyres_image_grid_shape(size, pinpoints, edge))
    numbers = torch.arange(tiling.grid[0] * tiling.grid[1] * side**2).view(1, tiling.grid[0] * side, -1)
    rows, columns = tiling.rows, tiling.columns
    assert torch.equal(unpad_image(numbers, size), numbers[:, rows.start : rows.stop, columns.start : columns.stop])


@settings(max_examples=300, deadline=None)
@given(size=SIZES, grid=st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_what_is_shown_lies_in_the_middle_of_the_grid(size, grid):
    """As much padding before as after, and only in one direction."""
    for part, whole in zip(shown(size, grid), grid, strict=True):
        assert 0 <= part.start <= part.stop <= whole
        assert part.start == whole - part.stop
    assert grid[0] == len(shown(size, grid)[0]) or grid[1] == len(shown(size, grid)[1])


def test_defaults_are_those_of_llava_next(context):
    """In pixels for 336, and the same grids for any other encoder."""
    from transformers import LlavaNextConfig

    theirs = LlavaNextConfig().image_grid_pinpoints
    assert [list(pinpoint) for pinpoint in Tiler.of(context(image_size=336, patch_size=14)).pinpoints] == theirs
    assert Tiler.of(context()).pinpoints == tuple((32 * rows, 32 * columns) for rows, columns in DEFAULT_GRIDS)


def test_a_crops_tokens_are_those_of_the_encoder_unless_said_otherwise(context):
    """What remains of a crop and is smaller than a patch has none."""
    assert Tiler.of(context(image_size=384, patch_size=14)).side == 27
    assert Tiler.of(context("vit", image_size=[32, 32], patch_size=[8, 8])).side == 4
    assert Tiler.of(context(), tokens=4).side == 2


@pytest.mark.parametrize(
    "pinpoints",
    [[], [[32]], [[32, 0]], [[32, 33]], [[-32, 32]], [[32.0, 64]], "32", 5, [["32", "64"]], [[True, 32]], np.ones(2)],
)
def test_pinpoints_that_do_not_fit_are_refused(context, pinpoints):
    """With those that would."""
    with pytest.raises(
        CompositionError, match=r"vision: image_grid_pinpoints=.*multiples of .* image_size, 32, .*\[32, 64\]"
    ):
        Tiler.of(context(), pinpoints)


@pytest.mark.parametrize("config", [{"image_size": [32, 64]}, {"patch_size": [8, 4]}, None])
def test_encoders_without_square_crops_are_refused(context, config):
    """A crop has one edge, and so has a patch; without a config they aren't known."""
    one = context("vit", **config) if config else replace(context(), config=None)
    with pytest.raises(CompositionError, match="vision: the encoder's config has .*needs square crops"):
        Tiler.of(one)


@pytest.mark.parametrize("tokens", [0, -4, 5, 4.0, True, "4"])
def test_tokens_that_form_no_square_are_refused(context, tokens):
    """Rows and columns have to be known."""
    with pytest.raises(CompositionError, match="tokens_per_crop=.*expected a square number"):
        Tiler.of(context(), None, tokens)


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (10, -1)])
def test_empty_images_are_refused(context, size):
    """Where transformers would divide by zero."""
    with pytest.raises(ValueError, match=f"it is empty: {size[0]}x{size[1]} pixels"):
        Tiler.of(context()).tile(size)


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 10), (1, 1)])
def test_the_longest_images_are_tiled(context, size):
    """If they are thinner than a token, no token of the grid shows them."""
    tiling = Tiler.of(context()).tile(size)
    assert tiling.crops > 1
    assert (len(tiling.rows) * len(tiling.columns) == 0) == (max(size) > min(size))


def test_the_arithmetic_needs_no_torch():
    """So that it can be looked at, and used, by itself."""
    code = (
        "import sys, cornstarch_llava_next.anyres;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
