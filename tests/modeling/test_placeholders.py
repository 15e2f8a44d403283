"""Placing features: exact values, and every way the counts can disagree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cornstarch_core.errors import InputError, PlaceholderMismatchError
from cornstarch_core.modeling import placeholders


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
def test_features_land_on_their_placeholders_and_nothing_else_moves(rows):
    """Feature i is found at the i-th placeholder; every other embedding is untouched."""
    ids = torch.tensor(rows).long() * 9
    embeds = torch.arange(ids.numel() * 2.0).reshape(*ids.shape, 2)
    positions = placeholders.find_positions(ids, 9)
    features = -1 - torch.arange(len(positions) * 2.0).reshape(-1, 2)
    placed = placeholders.place_features(embeds, positions, features)
    assert torch.equal(placed[ids == 9], features)
    assert torch.equal(placed[ids != 9], embeds[ids != 9])


def test_features_are_placed_as_masked_scatter_does():
    """Values and gradients equal those of ``masked_scatter``, which other libraries use."""
    ids = torch.tensor([[1, 9, 9, 2], [9, 3, 4, 9]])
    for ours in (True, False):
        embeds = torch.arange(24.0).reshape(2, 4, 3).requires_grad_()
        features = torch.arange(100.0, 112.0).reshape(4, 3).requires_grad_()
        if ours:
            placed = placeholders.place_features(embeds, placeholders.find_positions(ids, 9), features)
            (placed * torch.arange(24.0).reshape(2, 4, 3)).sum().backward()
            got = placed.detach(), embeds.grad, features.grad
        else:
            placed = embeds.masked_scatter((ids == 9).unsqueeze(-1), features)
            (placed * torch.arange(24.0).reshape(2, 4, 3)).sum().backward()
            assert all(
                torch.equal(a, b) for a, b in zip(got, (placed.detach(), embeds.grad, features.grad), strict=True)
            )


def test_placing_casts_to_the_dtype_of_the_embeddings():
    """Half-precision features are placed among float32 embeddings, and the result is float32."""
    placed = placeholders.place_features(
        torch.zeros(1, 2, 2), torch.tensor([1]), torch.ones(1, 2, dtype=torch.bfloat16)
    )
    assert placed.dtype == torch.float32
    assert placed.tolist() == [[[0, 0], [1, 1]]]


def test_positions_outside_the_batch_are_refused():
    """Positions of a batch that was cut after processing are an InputError that says what to do."""
    with pytest.raises(InputError, match=r"outside the \(1, 2\) batch.*Process again"):
        placeholders.place_features(torch.zeros(1, 2, 2), torch.tensor([2]), torch.ones(1, 2))


def test_labels_at_placeholders_are_ignored_and_the_given_ones_stay():
    """A new tensor holds -100 at the positions; the caller's labels are not changed."""
    labels = torch.tensor([[5, 6], [7, 8]])
    assert placeholders.mask_labels(labels, torch.tensor([1, 2])).tolist() == [[5, -100], [-100, 8]]
    assert labels.tolist() == [[5, 6], [7, 8]]


@pytest.mark.parametrize(
    ("features", "lengths"),
    [
        (torch.zeros(5, 2), None),
        (torch.zeros(2, 3, 2), [3, 3]),
        ([torch.zeros(1, 2), torch.zeros(4, 2)], [1, 4]),
    ],
)
def test_features_of_all_three_forms_flatten_to_one(features, lengths):
    """``(N, D)``, ``(items, tokens, D)`` and lists of ``(tokens_i, D)`` become ``(N, D)``; lengths are known but for the first."""
    assert placeholders.flatten(features).shape == (5 if lengths != [3, 3] else 6, 2)
    assert placeholders.item_lengths(features) == lengths


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
    """The error names modality, sample and item, and how many were expected and given."""
    with pytest.raises(PlaceholderMismatchError, match=message):
        placeholders.checked_features("vision", torch.tensor(positions), features, (2, 4, 1))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(2, 4), st.data())
def test_the_sample_with_a_placeholder_too_many_or_too_few_is_named(images, tokens, data):
    """Samples hold some images of equal length, one after the other; one placeholder is added or taken away."""
    sample = data.draw(st.sampled_from([index for index, count in enumerate(images) if count] or [None]))
    if sample is None:
        return
    counts = [count * tokens for count in images]
    length = max(counts) + 1
    features = torch.zeros(sum(images), tokens, 2)

    def check():
        places = [row * length + column for row, count in enumerate(counts) for column in range(count)]
        return placeholders.checked_features("vision", torch.tensor(places), features, (len(images), length, 2))

    assert check().shape == (sum(counts), 2)
    expected = counts[sample] = counts[sample] + data.draw(st.sampled_from([-1, 1]))
    with pytest.raises(PlaceholderMismatchError, match=rf"^vision: sample {sample}, item \d: .*has {expected} place"):
        check()


def test_a_count_that_agrees_is_silent():
    """As many features as placeholders come back as one tensor."""
    features = [torch.zeros(2, 1), torch.ones(1, 1)]
    checked = placeholders.checked_features("vision", torch.tensor([0, 1, 4]), features, (2, 4, 1))
    assert checked.tolist() == [[0], [0], [1]]
