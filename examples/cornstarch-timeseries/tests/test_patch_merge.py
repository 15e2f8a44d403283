"""The projector of this package."""

import pytest
import torch
from cornstarch_timeseries.patch_merge import PatchMerge, PatchMergeProjector
from hypothesis import given, settings
from hypothesis import strategies as st

from cornstarch_core import MultimodalProjector, MultimodalProjectorConfig
from cornstarch_core.errors import CompositionError


def describe(**changes):
    """A config of the type, from width 6 to 10."""
    return MultimodalProjectorConfig(
        **{"projection_type": "patch_merge", "in_features": 6, "out_features": 10, **changes}
    )


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 30), factor=st.integers(1, 9))
def test_counts_are_the_tokens(count, factor):
    """Of one item, of a batch, of a list of items of different lengths."""
    config = describe(merge_factor=factor)
    projector = MultimodalProjector(config)
    expected = PatchMerge().num_tokens(config, [count, 3])
    assert projector(torch.randn(2, count, 6)).shape == (2, expected[0], 10)
    assert [tuple(one.shape) for one in projector([torch.randn(count, 6), torch.randn(3, 6)])] == [
        (tokens, 10) for tokens in expected
    ]


def test_a_token_is_made_of_its_run_alone():
    """Three patches, two a token: the second token is the third patch and zeros."""
    projector = PatchMergeProjector(describe())
    features = torch.randn(3, 6)
    with torch.no_grad():
        first, second = projector(features)
        runs = torch.stack([features[:2].flatten(), torch.cat([features[2], torch.zeros(6)])])
        torch.testing.assert_close(torch.stack([first, second]), projector.linear(projector.norm(runs)))


@pytest.mark.parametrize("factor", [0, -2, 1.5, "2", True, None])
def test_factors_that_make_no_sense_are_refused(factor):
    """Both by the projector and by its count, with what to do."""
    config = describe(merge_factor=factor)
    message = f"patch_merge: merge_factor={factor!r}; expected a positive integer; .* leave it out for 2"
    with pytest.raises(CompositionError, match=message):
        PatchMergeProjector(config)
    with pytest.raises(CompositionError, match=message):
        PatchMerge().num_tokens(config, [4])


def test_a_missing_width_is_refused():
    """Built by hand; the core says the same before it gets here."""
    with pytest.raises(CompositionError, match="patch_merge: in_features=None, out_features=10; give both"):
        PatchMergeProjector(describe(in_features=None))
