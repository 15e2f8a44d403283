"""The ``"llava-next"`` callbacks by themselves."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from cornstarch_llava_next.callbacks import INDEX, SIZES, LlavaNext
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from cornstarch_core import ModalCallbacks
from cornstarch_core.errors import CompositionError, InputError, MediaError

IMAGES = [(40, 90), (30, 60), (200, 10)]
CROPS = [4, 3, 4]  # 1x3, 1x2 and 3x1, and the whole view of each


def prepared(callbacks: ModalCallbacks, **inputs: object) -> dict:
    """What the processor would make of these inputs."""
    assert callbacks.prepare_on_host is not None
    return callbacks.prepare_on_host(inputs)


@pytest.fixture
def crops():
    """Random crops of each image."""
    return [torch.randn(count, 3, 32, 32) for count in CROPS]


@pytest.fixture
def padded(crops):
    """The same as Hugging Face's image processor gives them."""
    return torch.stack([torch.cat([one, torch.zeros(4 - len(one), 3, 32, 32)]) for one in crops])


# --- preparing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["prepare_on_host", "preprocess"])
def test_crops_come_padded_flat_or_as_a_list(context, crops, padded, part):
    """Only those that count are left, in order; on the host and in the model."""
    prepare = getattr(LlavaNext().build(context()), part)
    expected = torch.cat(crops)
    forms = [padded, expected, crops, list(padded), [one.numpy() for one in crops], tuple(crops)]
    results = [prepare({"pixel_values": form, "image_sizes": torch.tensor(IMAGES)}) for form in forms]
    results.append(prepare({"pixel_values": padded, "image_sizes": IMAGES}))
    results.append(prepare({"pixel_values": padded, "image_sizes": np.array(IMAGES)}))
    for result in results:
        assert torch.equal(result["pixel_values"], expected)
        assert torch.equal(result[INDEX], results[0][INDEX])
        assert result[SIZES] == results[0][SIZES]
    assert [count for count, _ in results[0][SIZES]] == CROPS
    assert sum(length for _, length in results[0][SIZES]) == len(results[0][INDEX])


def test_without_padding_nothing_is_copied(context):
    """Images of as many crops each stay where they are."""
    pixels = torch.randn(2, 3, 3, 32, 32)
    result = prepared(LlavaNext().build(context()), pixel_values=pixels, image_sizes=[(30, 60), (60, 30)])
    assert result["pixel_values"].data_ptr() == pixels.data_ptr()


def test_inputs_that_are_prepared_go_through(context, padded):
    """So that a batch from the processor costs nothing here; and nothing given is changed."""
    callbacks = LlavaNext().build(context())
    given = {"pixel_values": padded, "image_sizes": torch.tensor(IMAGES)}
    once = callbacks.prepare_on_host(dict(given))
    assert given["pixel_values"] is padded
    assert callbacks.preprocess(once) is once


def test_sizes_are_read_from_their_device_once(context, padded):
    """However many images there are."""

    class Sizes:
        reads = 0

        def tolist(self):
            self.reads += 1
            return IMAGES

    sizes = Sizes()
    prepared(LlavaNext().build(context()), pixel_values=padded, image_sizes=sizes)
    assert sizes.reads == 1


@pytest.mark.parametrize(
    ("pixels", "sizes", "message"),
    [
        (torch.zeros(3, 4, 3, 32, 32), None, "vision: image_sizes are missing"),
        (None, IMAGES, "vision: pixel_values are missing"),
        (torch.zeros(2, 4, 3, 32, 32), IMAGES, r"shape \(2, 4, 3, 32, 32\) don't fit.*3 images have 4, 3, 4 crops"),
        (torch.zeros(3, 3, 3, 32, 32), IMAGES, r"don't fit image_sizes.*other image_grid_pinpoints"),
        (torch.zeros(10, 3, 32, 32), IMAGES, r"shape \(10, 3, 32, 32\) don't fit"),
        (torch.zeros(3, 32, 32), IMAGES, r"shape \(3, 32, 32\) don't fit"),
        ([torch.zeros(4, 3, 32, 32)], IMAGES, "pixel_values have 1 images, image_sizes 3"),
        ([torch.zeros(4, 3, 32, 32)] * 2, [(30, 60), (64, 64)], r"image 1: .*\(4, 3, 32, 32\); expected 5 crops"),
        ([torch.zeros(3, 32, 32)], [(30, 60)], r"image 0: pixel_values of shape \(3, 32, 32\); expected 3 crops"),
    ],
)
def test_crops_that_do_not_fit_are_refused(context, pixels, sizes, message):
    """By modality, with both numbers, and by the image where that is known."""
    with pytest.raises(InputError, match=message):
        prepared(LlavaNext().build(context()), pixel_values=pixels, image_sizes=sizes)


@pytest.mark.parametrize(
    ("size", "reason"), [((0, 5), "it is empty"), ((5,), "not enough values"), (("a", 5), "invalid"), (7, "not iter")]
)
def test_sizes_that_make_no_sense_are_refused(context, size, reason):
    """By the image's number."""
    with pytest.raises(MediaError, match=f"vision: image 1: .*{reason}"):
        prepared(LlavaNext().build(context()), pixel_values=torch.zeros(2, 3, 3, 32, 32), image_sizes=[(30, 60), size])


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", [True, False])
def test_features_are_counted_from_sizes_alone_or_as_prepared(context, padded, newline):
    """The same numbers, and they are the packed features'."""
    callbacks = LlavaNext().build(context(), use_image_newline=newline)
    inputs = prepared(callbacks, pixel_values=padded, image_sizes=IMAGES)
    counts = callbacks.num_tokens_after_projector(inputs, [16] * 11)
    assert counts == callbacks.num_tokens_after_projector({"image_sizes": IMAGES}, [16] * 11)
    output = BaseModelOutput(last_hidden_state=torch.randn(11, 16, 48))
    packed = callbacks.postprocess_projector(inputs, output)
    assert [len(one) for one in packed.last_hidden_state] == counts
    assert (callbacks.postprocess_projector.image_newline is not None) == newline


def test_tuples_stay_tuples(context, padded):
    """With ``return_dict=False`` the features are the first entry of a tuple."""
    callbacks = LlavaNext().build(context())
    inputs = prepared(callbacks, pixel_values=padded, image_sizes=IMAGES)
    packed = callbacks.postprocess_projector(inputs, (torch.randn(11, 16, 48), "more"))
    assert isinstance(packed, tuple)
    assert packed[1:] == ("more",)


def test_a_crop_with_another_number_of_tokens_is_refused(context, padded):
    """When it is counted, and when it is packed; the message says what to do."""
    callbacks = LlavaNext().build(context())
    with pytest.raises(CompositionError, match=r"a crop has 17 tokens, but packing needs 16, a grid of 4x4.*default"):
        callbacks.num_tokens_after_projector({"image_sizes": IMAGES}, [16, 17])
    inputs = prepared(callbacks, pixel_values=padded, image_sizes=IMAGES)
    with pytest.raises(CompositionError, match=r"a crop has 4 tokens.*tokens_per_crop="):
        callbacks.postprocess_projector(inputs, (torch.randn(11, 4, 48),))


def test_crops_that_were_lost_on_the_way_are_noticed(context, padded):
    """A batch whose pixels were cut but not its index, or that was not prepared."""
    callbacks = LlavaNext().build(context())
    inputs = prepared(callbacks, pixel_values=padded, image_sizes=IMAGES)
    with pytest.raises(InputError, match=r"10 crops were encoded, but the 3 images of this batch have 11"):
        callbacks.postprocess_projector(inputs, (torch.randn(10, 16, 48),))
    with pytest.raises(InputError, match=r"packing_index and packing_sizes are missing"):
        callbacks.postprocess_projector({"pixel_values": padded}, (torch.randn(11, 16, 48),))
    with pytest.raises(CompositionError, match=r"packing needs features of shape \(crops, tokens, width\)"):
        callbacks.postprocess_projector(inputs, ([torch.randn(16, 48)],))


# --- building ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2", "registers", "vit"])
def test_only_what_forms_a_grid_is_taken(context, family):
    """CLS and registers have no place in it: ``"full"`` is for encoders without them."""
    one = context(family)
    assert LlavaNext().build(one).num_tokens_before_projector({}, [16 + one.prefix_tokens]) == [16]
    if one.prefix_tokens == 0:
        LlavaNext().build(one, vision_feature_select_strategy="full")
        return
    with pytest.raises(CompositionError, match=rf"a crop has {16 + one.prefix_tokens} tokens.*'default'"):
        LlavaNext().build(one, vision_feature_select_strategy="full")


def test_a_patch_less_forms_no_grid(context):
    """Hugging Face's model leaves out one of SigLIP's, and fails."""
    with pytest.raises(CompositionError, match="a crop has 15 tokens"):
        LlavaNext().build(context("siglip"), drop_tokens=1)


def test_encoders_that_no_plugin_knows_tell_their_prefix(context):
    """With ``drop_tokens``, since the context has none."""
    callbacks = LlavaNext().build(replace(context(), prefix_tokens=0), tokens_per_crop=16, drop_tokens=1)
    assert callbacks.num_tokens_before_projector({}, [17]) == [16]


def test_several_layers_are_joined(context):
    """As with ``"llava"``."""
    assert LlavaNext().build(context(), vision_feature_layer=[-2, -1]).hidden_size == 64


def test_the_newline_is_drawn_as_transformers_draws_it(context):
    """From a normal distribution of deviation one over the root of the width."""
    newline = LlavaNext().build(replace(context(), text_hidden_size=4096)).postprocess_projector.image_newline
    assert isinstance(newline, nn.Parameter)
    assert newline.shape == (4096,)
    assert newline.std().item() == pytest.approx(1 / 64, rel=0.1)


def test_what_the_processor_holds_has_no_weights(context):
    """It is sent to workers."""
    callbacks = LlavaNext().build(replace(context(), text_hidden_size=100_000))
    parts = [
        pickle.dumps(getattr(callbacks, name))
        for name in ("prepare_on_host", "num_tokens_before_projector", "num_tokens_after_projector")
    ]
    assert sum(map(len, parts)) < 5_000
