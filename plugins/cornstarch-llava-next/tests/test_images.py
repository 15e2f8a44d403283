"""The image processor."""

import numpy as np
import pytest
import torch
import transformers
from cornstarch_llava_next.callbacks import LlavaNext
from cornstarch_llava_next.images import AnyResolutionImages, GrayscaleLlavaNextImageProcessor
from cornstarch_vision.images import Images
from transformers.utils import is_torchvision_available

from cornstarch_core.errors import CompositionError

FAMILIES = ["clip", "siglip", "dinov2", "registers", "vit"]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_set_to_the_encoder(context, family):
    """Crop size and pinpoints from its image size; mean, deviation and resampling of its family."""
    one = context(family)
    processor, own = AnyResolutionImages().build(one), Images().build(one)
    assert dict(processor.size)["shortest_edge"] == 32
    assert {"height": 32, "width": 32}.items() <= dict(processor.crop_size).items()
    assert processor.image_grid_pinpoints == [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    for name in ("image_mean", "image_std", "resample"):
        assert getattr(processor, name) == getattr(own, name)


@pytest.mark.parametrize("size", [(336, 14), (384, 14), (518, 14)])
def test_published_sizes_give_crops_of_that_size(context, image, size):
    """CLIP's, SigLIP's and DINOv2's."""
    processor = AnyResolutionImages().build(context(image_size=size[0], patch_size=size[1]))
    inputs = processor([image((20, 30)), image((400, 1200))], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 4, 3, size[0], size[0])
    assert inputs["image_sizes"].tolist() == [[20, 30], [400, 1200]]


def test_at_clips_size_pixels_are_those_of_the_published_checkpoints(context, image):
    """LLaVA-NeXT's own settings: 336 pixels, CLIP's mean."""
    suffix = "" if is_torchvision_available() else "Pil"
    theirs = getattr(transformers, f"LlavaNextImageProcessor{suffix}")(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    ours = AnyResolutionImages().build(context(image_size=336, patch_size=14))
    photos = [image((40, 90)), image((500, 400))]
    assert type(ours) is type(theirs)
    assert torch.equal(*(one(photos, return_tensors="pt")["pixel_values"] for one in (ours, theirs)))


@pytest.mark.parametrize("pinpoints", [None, [[32, 32]], ((64, 96), (96, 64))])
def test_pinpoints_are_those_of_the_callbacks(context, image, pinpoints):
    """The options of the callbacks reach it, so both tile alike."""
    options = {"image_grid_pinpoints": pinpoints, "vision_feature_layer": -1, "use_image_newline": False}
    inputs = AnyResolutionImages().build(context(), **options)([image((40, 90))], return_tensors="pt")
    callbacks = LlavaNext().build(context(), **options)
    sizes = callbacks.prepare_on_host(dict(inputs))["packing_sizes"]
    assert [crops for crops, _ in sizes] == [inputs["pixel_values"].shape[1]]


def test_it_does_not_depend_on_torchvision(context, monkeypatch):
    """Without it, it is the variant that uses PIL."""
    monkeypatch.setattr("cornstarch_llava_next.images.is_torchvision_available", lambda: False)
    assert AnyResolutionImages().build(context()).backend == "pil"
    if is_torchvision_available():
        monkeypatch.undo()
        assert AnyResolutionImages().build(context()).backend == "torchvision"


def test_it_is_saved_and_loaded_by_transformers(context, image, tmp_path):
    """It is a class of transformers and nothing else."""
    processor = AnyResolutionImages().build(context("siglip"), [[64, 64]])
    processor.save_pretrained(tmp_path)
    assert type(processor) is getattr(transformers, type(processor).__name__)
    loaded = type(processor).from_pretrained(tmp_path)
    photo = image((50, 60))
    assert torch.equal(*(one(photo, return_tensors="pt")["pixel_values"] for one in (processor, loaded)))


def test_encoders_with_one_channel_get_luminance(context, image):
    """Their crops are those of a gray image, with the mean of the family's means."""
    processor = AnyResolutionImages().build(context("vit", num_channels=1))
    assert isinstance(processor, GrayscaleLlavaNextImageProcessor)
    gray = image((40, 90)).convert("L")
    inputs = processor([gray, image((40, 90))], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 4, 1, 32, 32)
    assert torch.equal(*inputs["pixel_values"])
    colours = AnyResolutionImages().build(context("vit"))(gray.convert("RGB"), return_tensors="pt")["pixel_values"]
    assert np.allclose(inputs["pixel_values"][0], colours[0, :, :1], atol=1e-6)


def test_an_unknown_family_is_refused():
    """The message lists the known ones and the way out."""
    from cornstarch_core.specs import EncoderContext

    one = EncoderContext(key="vision", config=transformers.LlamaConfig(), hidden_size=16, text_hidden_size=24)
    with pytest.raises(CompositionError, match=r"only for clip_vision_model, .*processors=\{'vision': \.\.\.\}"):
        AnyResolutionImages().build(one)
