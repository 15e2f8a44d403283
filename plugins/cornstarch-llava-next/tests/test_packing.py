"""The packing index and the gather, against transformers' loop over tensors."""

import random
from types import SimpleNamespace

import pytest
import torch
from cornstarch_llava_next.anyres import Tiler, Tiling
from cornstarch_llava_next.packing import pack, packing_index
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

ENCODERS = {"clip": (336, 14), "siglip": (384, 14), "dinov2": (518, 14)}
GRIDS = {
    "own": ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
    "one": ((1, 1),),
    "many": tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7) if rows * columns <= 6),
    "odd": ((4, 1), (1, 4), (2, 3), (3, 2)),
}
NEWLINE = -1


def random_sizes(count, seed=0):
    """From one pixel to 4096, as often small as large."""
    generator = random.Random(seed)
    return [tuple(int(2 ** generator.uniform(0, 12)) for _ in range(2)) for _ in range(count)]


def packed_by_transformers(sizes, pinpoints, edge, patch, newline=True):
    """Numbers of tokens as Hugging Face's model packs them; -1 is a newline."""
    side, start, features = edge // patch, 0, []
    for size in sizes:
        crops = image_size_to_num_patches(size, pinpoints, edge)
        features.append(torch.arange(start, start + crops * side**2).view(crops, side**2, 1))
        start += crops * side**2
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=edge, patch_size=patch), image_grid_pinpoints=pinpoints
    )
    mark = torch.tensor([NEWLINE]) if newline else None
    packed, _ = LlavaNextModel.pack_image_features(SimpleNamespace(config=config), features, sizes, "full", mark)
    return [one[:, 0] for one in packed]


def marked(index):
    """An index with -1 for newlines."""
    return torch.where(index < 0, NEWLINE, index)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("grids", GRIDS)
def test_counts_and_features_of_2000_sizes_are_those_of_transformers(encoder, grids):
    """The count is the number of packed features, and each of them is the one of Hugging Face's model."""
    edge, patch = ENCODERS[encoder]
    pinpoints = [[rows * edge, columns * edge] for rows, columns in GRIDS[grids]]
    tiler = Tiler(crop_size=edge, side=edge // patch, pinpoints=tuple(map(tuple, pinpoints)))
    for size in random_sizes(2000):
        tiling = tiler.tile(size)
        index = packing_index([tiling], tiler.side)
        (expected,) = packed_by_transformers([size], pinpoints, edge, patch)
        assert tiling.features(tiler.side, newline=True) == len(index) == len(expected), size
        assert torch.equal(marked(index), expected), size


SIZES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, newline=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_images_of_a_batch_are_packed_one_after_another(sizes, newline, dtype):
    """Values, dtype and gradient, with newlines and without."""
    pinpoints = [[32 * rows, 32 * columns] for rows, columns in GRIDS["own"]]
    tiler = Tiler(crop_size=32, side=4, pinpoints=tuple(map(tuple, pinpoints)))
    tilings = [tiler.tile(size) for size in sizes]
    expected = packed_by_transformers(sizes, pinpoints, 32, 8, newline)
    index = packing_index(tilings, 4, newline)
    assert torch.equal(marked(index), torch.cat(expected))

    features = torch.randn(sum(tiling.crops for tiling in tilings), 16, 3).to(dtype).requires_grad_()
    vector = torch.randn(3, requires_grad=True) if newline else None
    packed = pack(features, index, vector)
    assert packed.dtype == dtype
    by_hand = [features.flatten(0, 1)[i] if i >= 0 else vector.to(dtype) for i in marked(index).tolist()]
    assert torch.equal(packed, torch.stack(by_hand))
    packed.sum().backward()
    assert features.grad.sum() == 3 * (index >= 0).sum()
    if vector is not None:
        assert torch.equal(vector.grad, torch.full((3,), float((index < 0).sum())))


def test_an_image_thinner_than_a_token_has_its_whole_view_only():
    """No row of the grid shows it; if no column does, the newlines remain, as in Hugging Face's model."""
    flat, thin = Tiling((1, 3), range(2, 2), range(12)), Tiling((3, 1), range(12), range(2, 2))
    assert packing_index([flat], 4).tolist() == list(range(16))
    assert packing_index([thin], 4, newline=False).tolist() == list(range(16))
    index = packing_index([thin], 4)
    assert len(index) == thin.features(4, newline=True) == 28
    assert (index[16:] < 0).all()
    assert pack(torch.zeros(4, 16, 1), index, torch.ones(1)).sum() == 12


def test_an_index_of_no_image_is_empty():
    """Its dtype is the same."""
    index = packing_index([], 4)
    assert (index.shape, index.dtype) == ((0,), torch.int64)


@pytest.mark.parametrize("newline", [True, False])
def test_packing_64_images_takes_the_same_operations_as_packing_one(operations, newline):
    """Forward and backward, views aside; and never a wait for the device."""
    counts = []
    tiler = Tiler(crop_size=32, side=4, pinpoints=((32, 64), (64, 32), (64, 64)))
    for images in (1, 64):
        tilings = [tiler.tile(size) for size in random_sizes(images)]
        index = packing_index(tilings, 4, newline)
        features = torch.randn(sum(tiling.crops for tiling in tilings), 16, 3, requires_grad=True)
        vector = torch.randn(3, requires_grad=True) if newline else None
        operations.names.clear()
        with operations:
            pack(features, index, vector).backward(torch.ones(len(index), 3))
        counts.append(sorted(operations.names))
    assert operations.syncs == []
    assert counts[0] == counts[1]
    assert 0 < len(counts[0]) < 20


def test_the_newlines_gradient_is_a_sum():
    """Nothing is scattered but the gathered features, whose tokens occur once each, or twice with a newline's zero."""
    index = packing_index([Tiling((2, 2), range(8), range(1, 7))], 4)
    sources = torch.where(index < 0, ~index, index)
    assert sources.bincount().max() == 2
    assert sources[index >= 0].bincount().max() == 1


def test_packing_compiles_without_a_break():
    """Nothing in it depends on values, so it is one graph, whatever the number of features."""
    run = torch.compile(pack, fullgraph=True, backend="eager", dynamic=True)
    for rows in (2, 5):
        index = packing_index([Tiling((2, 2), range(rows), range(8))], 4)
        features, newline = torch.randn(5, 16, 3), torch.randn(3)
        assert torch.equal(run(features, index, newline), pack(features, index, newline))
