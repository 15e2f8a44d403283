"""The ``"pixel_shuffle"`` projector."""

import pickle
from dataclasses import replace

import pytest
import tiny as tiny_models
import torch
from cornstarch_vision.pixel_shuffle import PixelShuffle, PixelShuffleProjector, pixel_shuffle
from hypothesis import given
from hypothesis import strategies as st

from cornstarch_core import (
    ModalCallbacks,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProjector,
    MultimodalProjectorConfig,
)
from cornstarch_core.errors import CompositionError
from cornstarch_core.modeling.distributed import dummy_forward


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
    assert PixelShuffle().num_tokens(config, [tokens, tokens]) == [side**2, side**2] == [tokens // factor**2] * 2
    assert projector(torch.rand(2, tokens, 6)).shape == (2, side**2, 10)
    assert projector(torch.rand(tokens, 6)).shape == (side**2, 10)


@pytest.mark.parametrize(("tokens", "factor"), [(17, 2), (8, 2), (9, 2), (16, 3)])
def test_grids_that_do_not_fit_are_refused(tokens, factor):
    """Not square, or not divisible: the message has both numbers, when counted and when run."""
    config = Config(scale_factor=factor)
    with pytest.raises(CompositionError, match=rf"{tokens} tokens .*scale_factor={factor}\. .*callbacks='llava'"):
        PixelShuffle().num_tokens(config, [tokens])
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


# --- dummy inputs -----------------------------------------------------------------------------------------------------


def compose(encoder, **options):
    """A model of one vision encoder whose patches are shuffled."""
    options = {"callbacks": "llava", **options}
    part = ModalEncoderModule(encoder, **options)
    return MultimodalModel(
        encoders={"vision": part}, language_model=tiny_models.llama(), init_projector_type="pixel_shuffle"
    )


def edges(encoder):
    """Height and width of an encoder's dummy image."""
    return tuple(encoder.info.dummy_inputs()["pixel_values"].shape[-2:])


def gradients(encoder, output):
    """Of each weight that ``output`` depends on."""
    encoder.zero_grad()
    output.backward()
    return {name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", ["beit", "dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_a_rank_without_images_runs_encoders_of_any_size(tiny, name):
    """One patch is too small to be shuffled, so the image grows; the zero depends on what a real image's features do."""
    encoder = compose(tiny(name)).vision_encoder
    assert edges(encoder) == (16, 16)  # two patches of 8
    output = dummy_forward(encoder)
    assert output == 0
    idle = gradients(encoder, output)
    real = gradients(encoder, encoder(pixel_values=torch.rand(1, 3, 32, 32))[0].sum())
    assert idle.keys() == real.keys()
    assert any("projector" in weight for weight in idle)
    assert not any(gradient.any() for gradient in idle.values())


@pytest.mark.parametrize(("factor", "edge"), [(1, 8), (2, 16), (3, 24), (4, 32)])
def test_dummies_grow_no_more_than_needed(tiny, factor, edge):
    """To as many patches as the factor has."""
    config = MultimodalProjectorConfig(
        projection_type="pixel_shuffle", in_features=16, out_features=64, scale_factor=factor
    )
    encoder = compose(tiny("dinov2"), projector=MultimodalProjector(config)).vision_encoder
    assert edges(encoder) == (edge, edge)
    assert encoder(**encoder.info.dummy_inputs())[0].shape == (1, 1, 64)


@pytest.mark.parametrize(("side", "factor", "expected"), [(2, 2, 2), (2, 3, 6), (4, 6, 12), (6, 4, 12)])
def test_a_grid_that_does_not_fit_grows_to_one_that_does(side, factor, expected):
    """Its smallest multiple that the factor divides; rows and columns are repeated."""
    pixels = torch.rand(1, 3, side, side)
    inputs = {"pixel_values": pixels, "other": 1}
    enlarged = PixelShuffle().dummy_inputs(
        Config(scale_factor=factor),
        inputs,
        lambda given: [given["pixel_values"].shape[-1] * given["pixel_values"].shape[-2]],
    )
    assert enlarged["other"] == 1
    assert enlarged["pixel_values"].shape[-2:] == (expected, expected)
    assert torch.equal(enlarged["pixel_values"][..., -side:, -side:], pixels)
    assert inputs["pixel_values"] is pixels


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "deit"])
def test_encoders_of_a_fixed_size_keep_their_dummies(tiny, name):
    """A grid that fits is left as it is; one that does not fit real images is refused as those are."""
    encoder = compose(tiny(name)).vision_encoder
    assert edges(encoder) == (32, 32)
    assert dummy_forward(encoder) == 0
    odd = compose(tiny(name, image_size=24)).vision_encoder
    assert edges(odd) == (24, 24)
    with pytest.raises(CompositionError, match="9 tokens per image"):
        dummy_forward(odd)


@pytest.mark.parametrize("name", ["beit", "dinov2"])
def test_real_images_that_do_not_fit_are_still_refused(tiny, name):
    """Only dummies grow."""
    encoder = compose(tiny(name)).vision_encoder
    with pytest.raises(CompositionError, match="9 tokens per image"):
        encoder(pixel_values=torch.rand(1, 3, 24, 24))
    with pytest.raises(CompositionError, match="9 tokens per image"):
        encoder.info.num_tokens({"pixel_values": torch.rand(1, 3, 24, 24)})


def test_with_cls_nothing_fits(tiny):
    """Dummies are refused as every real image is, and the message says what to do."""
    encoder = compose(tiny("dinov2"), callbacks=None).vision_encoder
    assert edges(encoder) == (8, 8)
    with pytest.raises(CompositionError, match=r"2 tokens per image .*callbacks='llava'"):
        dummy_forward(encoder)


def test_ready_made_embeddings_grow_as_well():
    """From one token to the four of a square."""
    encoder = compose(None, callbacks=None, hidden_size=16).vision_encoder
    assert encoder.info.dummy_inputs()["embeds"].shape == (1, 4, 16)
    assert dummy_forward(encoder) == 0


def test_dummies_of_ones_own_are_left_as_they_are():
    """Where nobody counts the encoder's tokens, or there is nothing to repeat."""
    encoder = tiny_models.ToyEncoder()
    callbacks = ModalCallbacks(dummy_inputs=lambda inputs: {"signal": torch.zeros(1, 16, 5)})
    own = {"hidden_size": 32, "input_names": "signal"}
    one = compose(encoder, callbacks=callbacks, **own).vision_encoder
    assert dummy_forward(one) == 0
    other = compose(
        encoder, callbacks=replace(callbacks, num_tokens_before_projector=lambda inputs, counts: [3]), **own
    ).vision_encoder
    assert other.info.dummy_inputs()["signal"].shape == (1, 16, 5)


def test_a_model_with_larger_dummies_can_be_sent_to_other_processes(tiny):
    """As those that train it need it."""
    model = pickle.loads(pickle.dumps(compose(tiny("dinov2"))))
    assert dummy_forward(model.vision_encoder) == 0


def test_any_resolution_keeps_its_dummies(tiny):
    """Crops of the encoder's own size fit; sizes and crops stay in step."""
    pytest.importorskip("cornstarch_llava_next")
    options = {"callbacks": "llava-next", "callback_options": {"tokens_per_crop": 4}}
    encoder = compose(tiny("dinov2"), **options).vision_encoder
    assert edges(encoder) == (32, 32)
    assert dummy_forward(encoder) == 0
