"""The ``"pixel_shuffle"`` projector."""

import pytest
import torch
from cornstarch_vision.pixel_shuffle import PixelShuffleProjector, num_tokens, pixel_shuffle
from hypothesis import given
from hypothesis import strategies as st

from cornstarch_core.errors import CompositionError


class Config:
    """As much of a ``MultimodalProjectorConfig`` as is read."""

    def __init__(self, **settings):
        self.in_features, self.out_features, self.activation = 6, 10, "gelu"
        self.__dict__.update(settings)


def test_a_grid_of_four_by_four_by_hand():
    """Each token holds its 2x2 square, row by row; squares go row by row too."""
    grid = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]])
    features = torch.stack([grid.flatten(), grid.flatten() + 100], dim=-1)  # two channels
    assert pixel_shuffle(features, 2).tolist() == [
        [0, 100, 1, 101, 4, 104, 5, 105],
        [2, 102, 3, 103, 6, 106, 7, 107],
        [8, 108, 9, 109, 12, 112, 13, 113],
        [10, 110, 11, 111, 14, 114, 15, 115],
    ]


@given(side=st.integers(1, 4), factor=st.integers(1, 4), width=st.integers(1, 5), items=st.integers(0, 3))
def test_shuffle_equals_that_of_idefics3(side, factor, width, items):
    """Bit-equal to Hugging Face's ``Idefics3Connector.pixel_shuffle`` for any grid and factor."""
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    features = torch.rand(items, (side * factor) ** 2, width)
    expected = Idefics3Connector.pixel_shuffle(None, features, factor)
    assert torch.equal(pixel_shuffle(features, factor), expected)


def test_projection_equals_that_of_internvl():
    """Bit-equal to Hugging Face's InternVL for the same weights: shuffle and projector."""
    from transformers import InternVLConfig
    from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

    config = InternVLConfig(
        vision_config={"hidden_size": 6, "model_type": "internvl_vision"},
        text_config={"hidden_size": 10, "model_type": "qwen2"},
        downsample_ratio=0.5,
    )
    theirs = InternVLMultiModalProjector(config)
    ours = PixelShuffleProjector(Config())
    ours.load_state_dict(theirs.state_dict())
    features = torch.rand(2, 16, 6)
    shuffled = InternVLModel.pixel_shuffle(None, features.reshape(2, 4, 4, 6), scale_factor=0.5).reshape(2, 4, -1)
    assert torch.equal(ours(features), theirs(shuffled))


@given(side=st.integers(1, 5), factor=st.integers(1, 4))
def test_count_is_what_comes_out(side, factor):
    """The declared length is the length of the features, for a batch and for one image."""
    config = Config(scale_factor=factor)
    tokens = (side * factor) ** 2
    projector = PixelShuffleProjector(config)
    assert num_tokens(config, [tokens, tokens]) == [side**2, side**2] == [tokens // factor**2] * 2
    assert projector(torch.rand(2, tokens, 6)).shape == (2, side**2, 10)
    assert projector(torch.rand(tokens, 6)).shape == (side**2, 10)


@pytest.mark.parametrize(("tokens", "factor"), [(17, 2), (8, 2), (9, 2), (16, 3)])
def test_grids_that_do_not_fit_are_refused(tokens, factor):
    """Not square, or not divisible: the message has both numbers, when counted and when run."""
    config = Config(scale_factor=factor)
    with pytest.raises(CompositionError, match=rf"{tokens} tokens .*scale_factor={factor}\. .*callbacks='llava'"):
        num_tokens(config, [tokens])
    with pytest.raises(CompositionError, match=f"{tokens} tokens"):
        PixelShuffleProjector(config)(torch.rand(1, tokens, 6))


@pytest.mark.parametrize("factor", [0, -2, 1.5, "2", None, True])
def test_a_factor_that_makes_no_sense_is_refused(factor):
    """Only positive integers are factors."""
    with pytest.raises(CompositionError, match="scale_factor="):
        PixelShuffleProjector(Config(scale_factor=factor))


def test_an_unknown_activation_is_refused():
    """The message lists those there are."""
    with pytest.raises(CompositionError, match=r"unknown activation 'gelo'; choose one of .*gelu"):
        PixelShuffleProjector(Config(activation="gelo"))


def test_a_missing_width_is_refused():
    """Both widths are needed."""
    with pytest.raises(CompositionError, match="in_features=None"):
        PixelShuffleProjector(Config(in_features=None))


def test_gradients_reach_every_token():
    """Each input token influences the output."""
    features = torch.rand(1, 16, 6, requires_grad=True)
    PixelShuffleProjector(Config())(features).square().sum().backward()
    assert (features.grad.abs().sum(-1) > 0).all()


def test_dtype_is_kept():
    """A projector in bfloat16 gives bfloat16."""
    projector = PixelShuffleProjector(Config()).to(torch.bfloat16)
    assert projector(torch.rand(1, 4, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
