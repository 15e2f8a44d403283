"""Counts against what the encoders give."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cornstarch_core.errors import MediaError

ANY_SIZE = {"beit", "dinov2", "dinov2_with_registers", "dinov3_vit"}
REGISTERS = {"dinov2_with_registers", "dinov3_vit"}
SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}


def outcome(run, refusals):
    """What ``run`` gives, or ``None`` if it refuses with one of these errors."""
    try:
        return run()
    except refusals:
        return None


def tokens(model, inputs):
    """Tokens per image that the encoder really gives."""
    with torch.no_grad():
        features = model(**inputs).last_hidden_state
    return [features.shape[1]] * features.shape[0]


@st.composite
def cases(draw, registers):
    """Config settings, and the height and width of an image."""
    patch = draw(st.integers(2, 6))
    config = {
        "patch_size": patch,
        "image_size": draw(st.integers(patch, 4 * patch)),
        "num_channels": draw(st.integers(1, 4)),
    }
    if registers:
        config["num_register_tokens"] = draw(st.integers(0, 5))
    native = (config["image_size"],) * 2
    size = draw(st.one_of(st.just(native), st.tuples(*[st.integers(1, 6 * patch)] * 2)))
    return config, size


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_count_is_what_the_encoder_gives(tiny, target, specs, family, data):
    """For any size, with and without interpolation: the same count as the encoder's, or both refuse."""
    config, size = data.draw(cases(family in REGISTERS))
    inputs = {"pixel_values": torch.zeros(data.draw(st.integers(1, 3)), config["num_channels"], *size)}
    if "interpolate_pos_encoding" in specs[family].input_names:
        inputs["interpolate_pos_encoding"] = data.draw(st.booleans())
    model = tiny(family, **SMALL, **config)

    counted = outcome(lambda: target(specs[family]).num_tokens(model.config, inputs), MediaError)
    given_by_encoder = outcome(lambda: tokens(model, inputs), (ValueError, RuntimeError))
    if family == "siglip" and counted is None:
        return  # stricter than the encoder, see test_siglip_refuses_what_the_encoder_miscounts
    assert counted == given_by_encoder


@pytest.mark.parametrize("positions", ["use_absolute_position_embeddings", "use_relative_position_bias"])
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (35, 60)])
def test_beit_takes_any_size_with_every_kind_of_positions(tiny, target, specs, positions, size):
    """BEiT interpolates absolute positions and relative biases by itself."""
    model = tiny("beit", **{positions: True})
    inputs = {"pixel_values": torch.zeros(2, 3, *size)}
    assert target(specs["beit"]).num_tokens(model.config, inputs) == tokens(model, inputs)


@pytest.mark.parametrize("name", ["vit", "deit", "beit", "dinov3_vit"])
def test_image_sizes_may_be_pairs(tiny, target, specs, name):
    """An encoder for images that are not square is counted by its grid."""
    if name == "dinov3_vit":  # transformers 5.17 takes one number only
        pytest.importorskip("transformers", minversion="5.23")
    model = tiny(name, image_size=(16, 40))
    inputs = {"pixel_values": torch.zeros(1, 3, 16, 40)}
    assert target(specs[name]).num_tokens(model.config, inputs) == tokens(model, inputs)


@pytest.mark.parametrize("name", ["dinov2", "dinov2_with_registers"])
def test_positions_that_can_not_be_interpolated_are_refused(tiny, target, specs, name):
    """DINOv2 interpolates square grids only: the encoder fails, and the count says why."""
    model = tiny(name, image_size=(16, 40))
    inputs = {"pixel_values": torch.zeros(1, 3, 16, 40)}
    assert outcome(lambda: tokens(model, inputs), RuntimeError) is None
    with pytest.raises(MediaError, match=r"grid of 2x5.*only square grids.*\(16, 40\)"):
        target(specs[name]).num_tokens(model.config, inputs)


def test_siglip_refuses_what_the_encoder_miscounts(tiny, target, specs):
    """An image of one patch: SigLIP adds all 16 positions to it and gives 16 tokens; the count refuses it."""
    model = tiny("siglip")
    inputs = {"pixel_values": torch.zeros(1, 3, 8, 8)}
    assert tokens(model, inputs) == [16]
    with pytest.raises(MediaError, match=r"image 0 has 8x8 pixels; expected 32x32"):
        target(specs["siglip"]).num_tokens(model.config, inputs)


def test_a_wrong_size_names_item_expected_and_got(tiny, target, specs):
    """The message says which image, what was expected, what was got, and both ways out."""
    config = tiny("clip").config
    inputs = {"pixel_values": [torch.zeros(3, 32, 32), torch.zeros(3, 24, 40)]}
    with pytest.raises(MediaError, match=r"image 1 has 24x40 pixels; expected 32x32\. .*interpolate_pos_encoding=True"):
        target(specs["clip"]).num_tokens(config, inputs)


def test_pixels_without_a_whole_patch_are_refused(tiny, target, specs, family):
    """No family takes an image that is smaller than a patch."""
    inputs = {"pixel_values": torch.zeros(1, 3, 7, 32), "interpolate_pos_encoding": True}
    with pytest.raises(MediaError, match=r"image 0 has 7x32 pixels, less than one patch of 8x8"):
        target(specs[family]).num_tokens(tiny(family).config, inputs)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 32, 32, 3), (32, 32)])
def test_wrong_channels_are_refused(tiny, target, specs, family, shape):
    """Channels last, too few, or none at all: the message shows the shape."""
    with pytest.raises(MediaError, match=r"pixel_values of shape \(.*expected \(3 channels, height, width\)"):
        target(specs[family]).num_tokens(tiny(family).config, {"pixel_values": torch.zeros(shape)})


def test_missing_pixels_are_refused(tiny, target, specs, family):
    """The message names what was given instead."""
    with pytest.raises(MediaError, match="pixel_values are missing; got image_sizes"):
        target(specs[family]).num_tokens(tiny(family).config, {"image_sizes": torch.zeros(1, 2)})


def test_no_images_give_no_counts(tiny, target, specs, family):
    """An empty batch is counted as empty, as a tensor and as a list."""
    count = target(specs[family]).num_tokens
    config = tiny(family).config
    assert count(config, {"pixel_values": torch.zeros(0, 3, 32, 32)}) == []
    assert count(config, {"pixel_values": []}) == []


def test_counting_reads_shapes_only(tiny, target, specs, family):
    """Pixels on the meta device have no values: counting them is arithmetic on the host."""
    pixels = torch.empty(2, 3, 32, 32, device="meta")
    counts = target(specs[family]).num_tokens(tiny(family).config, {"pixel_values": pixels})
    assert len(counts) == 2
    assert all(type(count) is int for count in counts)


def test_prefix_tokens_do_not_depend_on_the_image(tiny, target, specs, family):
    """What is left of the count without the prefix is the number of patches."""
    model = tiny(family)
    prefix = target(specs[family]).prefix_tokens(model.config)
    assert tokens(model, {"pixel_values": torch.zeros(1, 3, 32, 32)}) == [prefix + 16]


def test_patch_tokens_follow_their_patch(tiny, target, specs, family):
    """Changing one patch changes its own token's embedding and none of the prefix: the prefix stands first."""
    model = tiny(family)
    prefix = target(specs[family]).prefix_tokens(model.config)
    black = torch.zeros(1, 3, 32, 32)
    marked = black.clone()
    marked[..., 8:16, 16:24] = 1  # row 1, column 2 of a 4x4 grid
    with torch.no_grad():
        one, other = (model(pixel_values=p, output_hidden_states=True).hidden_states[0] for p in (black, marked))
    assert (one != other).any(-1).nonzero()[:, 1].tolist() == [prefix + 6]


def test_dummy_inputs_are_one_valid_image(tiny, target, specs, family):
    """The encoder takes them, they are counted, and they are as small as the family allows."""
    model = tiny(family)
    inputs = target(specs[family]).dummy_inputs(model.config)
    assert inputs["pixel_values"].shape == ((1, 3, 8, 8) if family in ANY_SIZE else (1, 3, 32, 32))
    assert inputs.keys() <= set(specs[family].input_names)
    assert target(specs[family]).num_tokens(model.config, inputs) == tokens(model, inputs)


def test_a_dummy_image_reaches_every_parameter_that_a_real_one_does(tiny, target, specs, family):
    """0 x the output of dummy inputs gives gradients to the same parameters: what ranks without images rely on."""

    def touched(pixels):
        model = tiny(family)
        (0 * model(pixel_values=pixels).last_hidden_state.sum()).backward()
        return {name for name, parameter in model.named_parameters() if parameter.grad is not None}

    dummy = target(specs[family]).dummy_inputs(tiny(family).config)["pixel_values"]
    assert touched(dummy) == touched(torch.rand(1, 3, 32, 32))


def test_layers_is_the_list_of_blocks(tiny, specs, family):
    """The path leads to as many blocks as the config has layers."""
    assert len(tiny(family).get_submodule(specs[family].layers)) == 4


def test_width_is_the_configs(tiny, target, specs, family):
    """Features are as wide as the interface reads from the config."""
    model = tiny(family)
    with torch.no_grad():
        features = model(pixel_values=torch.zeros(1, 3, 32, 32)).last_hidden_state
    assert features.shape[-1] == target(specs[family]).hidden_size(model.config)


def test_input_names_are_taken_by_the_encoder(tiny, specs, family):
    """The encoder's forward has a parameter for each declared input, the pixels first."""
    names = inspect.signature(type(tiny(family)).forward).parameters
    assert specs[family].input_names[0] == "pixel_values" == tiny(family).main_input_name
    assert set(specs[family].input_names) <= set(names)


def test_clip_with_projection_puts_its_features_elsewhere(tiny):
    """Why ``CLIPVisionModelWithProjection`` is not registered: its first output is one pooled vector per image."""
    from transformers import CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection(tiny("clip").config)
    assert model(pixel_values=torch.zeros(1, 3, 32, 32))[0].dim() == 2
