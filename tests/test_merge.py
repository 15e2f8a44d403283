"""Placing features: exact values, and every way the counts can disagree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cornstarch_core import merge
from cornstarch_core.errors import InputError, PlaceholderMismatchError


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
def test_features_land_on_their_placeholders_and_nothing_else_moves(rows):
    """Feature i is found at the i-th placeholder; every other embedding is untouched."""
    ids = torch.tensor(rows).long() * 9
    embeds = torch.arange(ids.numel() * 2.0).reshape(*ids.shape, 2)
    positions = merge.find_positions(ids, 9)
    features = -1 - torch.arange(len(positions) * 2.0).reshape(-1, 2)
    placed = merge.place(embeds, positions, features)
    assert torch.equal(placed[ids == 9], features)
    assert torch.equal(placed[ids != 9], embeds[ids != 9])


def test_place_is_what_masked_scatter_does():
    """Values and gradients are those of the usual masked_scatter."""
    ids = torch.tensor([[1, 9, 9, 2], [9, 3, 4, 9]])
    for ours in (True, False):
        embeds = torch.arange(24.0).reshape(2, 4, 3).requires_grad_()
        features = torch.arange(100.0, 112.0).reshape(4, 3).requires_grad_()
        if ours:
            placed = merge.place(embeds, merge.find_positions(ids, 9), features)
            (placed * torch.arange(24.0).reshape(2, 4, 3)).sum().backward()
            got = placed.detach(), embeds.grad, features.grad
        else:
            placed = embeds.masked_scatter((ids == 9).unsqueeze(-1), features)
            (placed * torch.arange(24.0).reshape(2, 4, 3)).sum().backward()
            assert all(
                torch.equal(a, b) for a, b in zip(got, (placed.detach(), embeds.grad, features.grad), strict=True)
            )


def test_place_casts_to_the_embeddings_dtype():
    """Half-precision features go among float32 embeddings without a word."""
    placed = merge.place(torch.zeros(1, 2, 2), torch.tensor([1]), torch.ones(1, 2, dtype=torch.bfloat16))
    assert placed.dtype == torch.float32
    assert placed.tolist() == [[[0, 0], [1, 1]]]


def test_positions_outside_the_batch_are_refused():
    """Positions of a batch that was cut later do not fit it any more."""
    with pytest.raises(InputError, match=r"outside the \(1, 2\) batch.*Process again"):
        merge.place(torch.zeros(1, 2, 2), torch.tensor([2]), torch.ones(1, 2))


def test_labels_at_placeholders_are_ignored_and_the_given_ones_stay():
    """A new tensor holds -100 at the positions; the caller's labels are not changed."""
    labels = torch.tensor([[5, 6], [7, 8]])
    assert merge.mask_labels(labels, torch.tensor([1, 2])).tolist() == [[5, -100], [-100, 8]]
    assert labels.tolist() == [[5, 6], [7, 8]]


@pytest.mark.parametrize(
    ("features", "lengths"),
    [
        (torch.zeros(5, 2), None),
        (torch.zeros(2, 3, 2), [3, 3]),
        ([torch.zeros(1, 2), torch.zeros(4, 2)], [1, 4]),
    ],
)
def test_three_forms_of_features_flatten_to_one(features, lengths):
    """(N, D), (items, tokens, D) and a list of (tokens_i, D)."""
    assert merge.flatten(features).shape == (5 if lengths != [3, 3] else 6, 2)
    assert merge.item_lengths(features) == lengths


@pytest.mark.parametrize(
    ("positions", "features", "message"),
    [
        ([0, 1, 2, 4, 5], torch.zeros(2, 3, 2), r"vision: sample 1, item 0: the prompt has 2 .* the encoder gives 3"),
        (
            [0, 1, 2],
            torch.zeros(2, 3, 2),
            r"vision: the batch has 3 .*gives 6 features: 1 of 2 items have no placeholder",
        ),
        ([0, 1, 2, 3], [torch.zeros(4, 2), torch.zeros(1, 2)], r"1 of 2 items have no placeholder"),
        ([0, 1, 4, 5], [torch.zeros(2, 2)], r"vision: sample 1, item 0: the prompt has 2 .*gives 0 features"),
        ([0], torch.zeros(2, 2), r"vision: the batch has 1 placeholder tokens, the encoder gives 2 features"),
    ],
)
def test_a_count_that_disagrees_is_named(positions, features, message):
    """The error says modality, sample, item, expected and got."""
    with pytest.raises(PlaceholderMismatchError, match=message):
        merge.check_count("vision", torch.tensor(positions), features, (2, 4))


def test_a_count_that_agrees_is_silent():
    """As many features as placeholders: nothing happens."""
    assert merge.check_count("vision", torch.tensor([0, 1, 4]), [torch.zeros(2, 1), torch.zeros(1, 1)], (2, 4)) is None
