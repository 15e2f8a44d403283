"""Image processors, and the check of one image."""

import io

import numpy as np
import pytest
import torch
import transformers
from cornstarch_vision.images import GrayscaleImageProcessor, Images, prepare_image
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from transformers.utils import is_torchvision_available

from cornstarch_core.errors import CompositionError, MediaError
from cornstarch_core.specs import EncoderContext

MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "I",
    "I;16",
    "I;16B",
    "F",
]


def context(config):
    """As much of a context as an image processor needs."""
    return EncoderContext(key="vision", config=config, hidden_size=16, text_hidden_size=24)


def picture(size=(9, 7)):
    """A colourful RGB image."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 20, columns * 20, rows * columns], -1).astype(np.uint8))


def encoded(image, file_format="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def prepared_or_refused(item):
    """The prepared image, or ``None`` if it is refused; any other error is the test's failure."""
    try:
        return prepare_image(item)
    except MediaError:
        return None


# --- processors -------------------------------------------------------------------------------------------------------


def test_pixels_fit_the_encoder(tiny, context_of, target, specs, family):
    """What the processor makes of any photo, the family's encoder takes and counts."""
    model = tiny(family)
    processor = Images().build(context_of(family, model))
    images = [prepare_image(picture(size)) for size in ((9, 7), (300, 40), (1, 1))]
    inputs = processor(images, return_tensors="pt")
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)
    with torch.no_grad():
        features = model(**inputs).last_hidden_state
    assert target(specs[family]).num_tokens(model.config, inputs) == [features.shape[1]] * 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [8, 32])
def test_vit_on_digit_scans(tiny, context_of, channels, image_size):
    """Scans of 8x8 gray pixels go into a ViT with one channel or three."""
    model = tiny("vit", image_size=image_size, patch_size=4, num_channels=channels)
    digits = np.arange(64).reshape(1, 8, 8).repeat(2, 0) / 63
    inputs = Images().build(context_of("vit", model))([prepare_image(digit) for digit in digits], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, channels, image_size, image_size)
    assert model(**inputs).last_hidden_state.isfinite().all()


def test_grayscale_encoders_of_every_family(tiny, context_of, family):
    """One channel works everywhere, also for colour photos; values lie about where the colours' do."""
    pixels = {}
    for channels in (1, 3):
        model = tiny(family, num_channels=channels)
        processor = Images().build(context_of(family, model))
        gray = prepare_image(picture((40, 40)).convert("L"))
        pixels[channels] = processor(gray, return_tensors="pt")["pixel_values"]
        model(pixel_values=pixels[channels])
    assert pixels[1].shape == (1, 1, 32, 32)
    torch.testing.assert_close(pixels[1], pixels[3].mean(1, keepdim=True), atol=0.06, rtol=0)


def test_grayscale_values_are_luminance():
    """Colours are weighed as ITU-R 601-2 does, gray stays as it is."""
    config = transformers.ViTConfig(image_size=1, patch_size=1, num_channels=1)
    processor = Images().build(context(config))
    assert isinstance(processor, GrayscaleImageProcessor)
    values = [processor(Image.new("RGB", (1, 1), colour))["pixel_values"][0].item() for colour in ("#808080", "#00f")]
    assert values == pytest.approx([(128 / 255 - 0.5) / 0.5, (29 / 255 - 0.5) / 0.5], abs=1e-6)


def test_grayscale_processors_are_saved_and_loaded(tmp_path):
    """Their settings survive ``save_pretrained``."""
    processor = Images().build(context(transformers.CLIPVisionConfig(image_size=48, patch_size=8, num_channels=1)))
    processor.save_pretrained(tmp_path)
    loaded = GrayscaleImageProcessor.from_pretrained(tmp_path)
    image = picture((50, 60))
    assert np.array_equal(loaded(image)["pixel_values"], processor(image)["pixel_values"])


def test_settings_are_those_of_the_published_checkpoints(tiny, context_of):
    """Means, resampling and fit, one family of each kind."""
    clip, dinov2, deit = (
        Images().build(context_of(name, tiny(name, image_size=224))) for name in ("clip", "dinov2", "deit")
    )
    assert list(clip.image_mean) == [0.48145466, 0.4578275, 0.40821073]
    assert dict(clip.size)["shortest_edge"] == 224
    assert (clip.resample, dinov2.resample, deit.resample) == (3, 3, 3)
    for zoomed, size in ((dinov2, {"shortest_edge": 256}), (deit, {"height": 256, "width": 256})):
        assert list(zoomed.image_mean) == [0.485, 0.456, 0.406]
        assert size.items() <= dict(zoomed.size).items()
        assert {"height": 224, "width": 224}.items() <= dict(zoomed.crop_size).items()


@pytest.mark.parametrize("config", ["CLIPVisionConfig", "SiglipVisionConfig", "ViTConfig"])
def test_pixels_equal_those_of_the_familys_own_processor(config):
    """At the family's usual size nothing differs from the class's defaults but that gray images are converted."""
    name = config.removesuffix("Config").removesuffix("Vision")
    suffix = "ImageProcessor" if is_torchvision_available() else "ImageProcessorPil"
    theirs = getattr(transformers, f"{name}{suffix}")()
    ours = Images().build(context(getattr(transformers, config)(image_size=224)))
    image = picture((300, 260))
    assert np.array_equal(ours(image)["pixel_values"], theirs(image)["pixel_values"])


def test_processors_do_not_depend_on_torchvision(family, tiny, context_of, monkeypatch):
    """Each family has a processor with and without torchvision; no warning tells of a fallback."""
    monkeypatch.setattr("cornstarch_vision.images.is_torchvision_available", lambda: False)
    processor = Images().build(context_of(family, tiny(family)))
    assert processor.backend == "pil"
    if not is_torchvision_available():
        return
    monkeypatch.undo()
    assert Images().build(context_of(family, tiny(family))).backend == "torchvision"


def test_processors_are_saved_and_loaded_by_transformers(family, tiny, context_of, tmp_path):
    """With three channels they are classes of transformers and nothing else; their settings survive."""
    processor = Images().build(context_of(family, tiny(family)))
    processor.save_pretrained(tmp_path)
    assert type(processor) is getattr(transformers, type(processor).__name__)
    loaded = type(processor).from_pretrained(tmp_path)
    image = prepare_image(picture((50, 60)))
    assert np.array_equal(loaded(image)["pixel_values"], processor(image)["pixel_values"])


def test_callback_options_are_ignored(tiny, context_of):
    """The core passes a callback's options; none of this plugin's changes how images are prepared."""
    processor = Images().build(context_of("clip", tiny("clip")), vision_feature_layer=-1, anything="else")
    assert processor.to_dict() == Images().build(context_of("clip", tiny("clip"))).to_dict()


@pytest.mark.parametrize("config", [None, transformers.LlamaConfig()])
def test_an_unknown_family_is_refused(config):
    """The message lists the known ones and the way out."""
    with pytest.raises(CompositionError, match=r"only for clip_vision_model, .*processors=\{'vision': \.\.\.\}"):
        Images().build(context(config))


def test_other_numbers_of_channels_are_refused():
    """Images have one or three."""
    with pytest.raises(CompositionError, match="has 4 channels; images have 1 or 3"):
        Images().build(context(transformers.ViTConfig(num_channels=4)))


# --- PIL images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    """Whatever PIL holds."""
    assert prepare_image(Image.new(mode, (3, 2))).mode == "RGB"


def test_a_mode_that_pillow_can_not_convert_is_refused(monkeypatch):
    """``LAB`` before Pillow 11, or one that is yet to come."""
    image = Image.new("LAB", (1, 1))

    def convert(mode):
        raise ValueError(f"conversion from LAB to {mode} not supported")

    monkeypatch.setattr(image, "convert", convert)
    with pytest.raises(MediaError, match=r"can't be read: conversion from LAB to RGB not supported\. .*convert it"):
        prepare_image(image)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "P"])
def test_opaque_images_are_converted_as_pillow_does(mode):
    """Nothing but ``convert("RGB")``."""
    image = picture().convert(mode)
    assert prepare_image(image).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["LA", "RGBA", "RGBa", "La", "PA"])
def test_transparency_is_laid_on_white(mode):
    """A transparent pixel is white, whatever its hidden colour; an opaque one stays."""
    image = Image.new("LA" if mode in ("LA", "La") else "RGBA", (2, 1), 0)
    image.putpixel((1, 0), (0, 255) if image.mode == "LA" else (0, 0, 0, 255))
    image = image.convert(mode)
    if mode == "PA":  # before Pillow 12 the conversion to it makes every pixel opaque
        image.putpixel((0, 0), (0, 0))
    rgb = prepare_image(image)
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_a_transparent_palette_is_laid_on_white():
    """The transparent colour of a GIF or PNG palette is not painted."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 0
    rgb = prepare_image(image)
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_not_clipped(mode):
    """Pillow's own conversion clips values above 255, so a 16-bit scan would come out white."""
    image = Image.new(mode, (3, 1))
    for x, value in enumerate((0, 257 * 100, 65535)):
        image.putpixel((x, 0), value)
    assert np.asarray(prepare_image(image))[0, :, 0].tolist() == [0, 100, 255]


def test_images_given_are_not_changed():
    """The caller's image stays what it was."""
    image = Image.new("RGBA", (2, 2), (1, 2, 3, 4))
    prepare_image(image)
    assert (image.mode, image.getpixel((0, 0))) == ("RGBA", (1, 2, 3, 4))


def test_one_pixel_is_an_image():
    """Nothing is too small, but nothing at all."""
    assert prepare_image(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("item", [Image.new("RGB", (0, 5)), np.zeros((0, 5, 3)), torch.zeros(3, 5, 0), np.zeros(0)])
def test_empty_images_are_refused(item):
    """Zero pixels are no image, in any form."""
    with pytest.raises(MediaError, match="empty image"):
        prepare_image(item)


def test_very_long_images_are_refused():
    """Scaled to a shortest edge of 224 they would fill the memory."""
    assert prepare_image(Image.new("L", (1, 200))).size == (1, 200)
    with pytest.raises(MediaError, match="1 pixels wide and 201 high; at most 200:1"):
        prepare_image(Image.new("L", (1, 201)))


# --- arrays and tensors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_layouts_are_recognised(as_tensor, layout):
    """Channels first or last, arrays or tensors: the same image."""
    image = picture()
    array = np.asarray(image) if layout == "HWC" else np.asarray(image).transpose(2, 0, 1)
    item = torch.from_numpy(array.copy()) if as_tensor else array
    assert prepare_image(item).tobytes() == image.tobytes()


def test_an_ambiguous_layout_is_read_as_is_usual():
    """Of three rows and three channels an array has its channels last, a tensor first."""
    array = np.zeros((3, 5, 3), np.uint8)
    array[0] = 255
    assert prepare_image(array).getpixel((0, 0)) == (255, 255, 255)
    assert prepare_image(array).size == (5, 3)
    assert prepare_image(torch.from_numpy(array)).size == (3, 5)
    assert prepare_image(torch.from_numpy(array)).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint16", "float16", "float32", "float64", "bool"])
def test_dtypes_mean_the_same_image(dtype):
    """Integers count to 255, floats and booleans to one."""
    array = (
        np.array([[0, 1]]).astype(dtype) if dtype == "bool" or "float" in dtype else np.array([[0, 255]]).astype(dtype)
    )
    assert np.asarray(prepare_image(array))[0, :, 0].tolist() == [0, 255]
    if dtype != "uint16":
        assert np.asarray(prepare_image(torch.from_numpy(array)))[0, :, 0].tolist() == [0, 255]


def test_bfloat16_tensors_with_gradients_are_images():
    """What numpy can't hold is converted first."""
    tensor = torch.full((3, 2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert prepare_image(tensor).getpixel((0, 0)) == (128, 128, 128)


def test_arrays_with_alpha_are_laid_on_white():
    """Four channels are RGBA."""
    assert prepare_image(np.zeros((2, 2, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[-1.5, 2.5]]), r"float64 with values from -1\.5 to 2\.5; expected 0 to 1\."),
        (np.array([[0, 256]]), r"values from 0 to 256; expected 0 to 255\."),
        (np.array([[-1, 3]]), r"values from -1 to 3; expected 0 to 255\."),
        (np.array([[0.5, np.nan]]), "NaN"),
        (np.array([[0.5, np.inf]]), "from 0.5 to inf"),
        (np.array([[1j]]), "dtype complex128"),
        (np.array([["a"]]), "dtype <U1"),
        (np.array([[None]]), "dtype object"),
        (np.zeros((2, 5, 5)), r"shape \(2, 5, 5\); expected \(height, width\)"),
        (np.zeros((1, 3, 5, 5)), r"shape \(1, 3, 5, 5\)"),
        (np.zeros(5), r"shape \(5,\)"),
        (np.array(1.0), r"shape \(\)"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message):
    """The message has the range, dtype or shape, and what was expected."""
    with pytest.raises(MediaError, match=message):
        prepare_image(array)


@settings(deadline=None)
@given(
    array=arrays.arrays(
        st.sampled_from([np.uint8, np.int32, np.float32, np.float64, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    as_tensor=st.booleans(),
)
def test_any_array_is_an_image_or_a_clear_error(array, as_tensor):
    """Never a crash deep inside: an RGB image that a processor takes, or a ``MediaError``."""
    image = prepared_or_refused(torch.from_numpy(array) if as_tensor else array)
    if image is None:
        return
    assert image.mode == "RGB"
    processor = Images().build(context(transformers.SiglipVisionConfig(image_size=8, patch_size=4)))
    pixels = torch.as_tensor(np.asarray(processor(image)["pixel_values"]))
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.abs().max() <= 1.001


@settings(deadline=None)
@given(mode=st.sampled_from(MODES), width=st.integers(1, 40), height=st.integers(1, 40))
def test_any_prepared_image_goes_through_every_processor(mode, width, height):
    """Each kind of fit takes each mode and size."""
    image = prepare_image(Image.new(mode, (width, height)))
    for config in (transformers.CLIPVisionConfig, transformers.Dinov2Config, transformers.DeiTConfig):
        processor = Images().build(context(config(image_size=14, patch_size=7)))
        assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 14, 14)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["str", "path", "bytes", "bytearray"])
def test_files_are_opened(tmp_path, kind):
    """By path, or by content."""
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture()))
    items = {"str": str(path), "path": path, "bytes": path.read_bytes(), "bytearray": bytearray(path.read_bytes())}
    assert prepare_image(items[kind]).tobytes() == picture().tobytes()


@pytest.mark.parametrize("path", [None, "gone.png"])
def test_what_datasets_give_undecoded_is_opened(path):
    """Bytes win over the path, which need not exist here."""
    item = {"bytes": encoded(picture()), "path": path}
    assert prepare_image(item).tobytes() == picture().tobytes()


@pytest.mark.parametrize("item", [{"bytes": None}, {}])
def test_a_path_without_bytes_is_read(tmp_path, item):
    """As datasets have it that were made of paths."""
    path = tmp_path / "picture.png"
    picture().save(path)
    assert prepare_image({**item, "path": str(path)}).tobytes() == picture().tobytes()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"url": "x"}, r"a dict with 'url'; expected 'bytes' or 'path' with a value\. Give"),
        ({"bytes": None, "path": None}, r"a dict with 'bytes', 'path'; expected"),
        ({}, r"a dict with nothing; expected"),
        ({"bytes": None, "path": "gone.png"}, r"there is no image file 'gone\.png'"),
        ({"bytes": b"abc", "path": "a.png"}, r"image file 'a\.png' can't be read: .*\. Check it"),
        ({"bytes": b"abc"}, r"this image can't be read: "),
        ({"bytes": "Hi"}, r"there is no image file 'Hi'"),
    ],
)
def test_dictionaries_without_an_image_are_refused(item, message):
    """The message has what is there, what was expected, and the file if there is a name."""
    with pytest.raises(MediaError, match=message):
        prepare_image(item)


def test_a_broken_file_is_named(tmp_path):
    """By its path, which Pillow itself leaves out where the end is missing."""
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture((50, 60)))[:-40])
    with pytest.raises(MediaError, match=r"vision: image file '.*picture\.png' can't be read: "):
        prepare_image(path)


def test_files_are_turned_upright():
    """Photos lie on their side with a note in the EXIF data, as ``transformers.image_utils.load_image`` reads them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert prepare_image(encoded(picture((9, 7)), "JPEG", exif=exif)).size == (7, 9)


@pytest.mark.parametrize("path", ["nowhere.png", ".", ""])
def test_missing_files_are_refused(tmp_path, monkeypatch, path):
    """A path where no file is, or a folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MediaError, match="there is no image file"):
        prepare_image(path)


@pytest.mark.parametrize(
    "url", ["https://example.org/a.png", "HTTP://example.org", "data:image/png;base64,AAAA", "s3://b/c"]
)
def test_urls_are_refused(url):
    """Nothing is downloaded; the message says to do it first."""
    with pytest.raises(MediaError, match="is a URL; nothing is downloaded here"):
        prepare_image(url)


@settings(deadline=None, max_examples=60)
@given(
    cut=st.integers(0, 400),
    flip=st.integers(0, 400),
    file_format=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF"]),
)
def test_broken_files_are_an_image_or_a_clear_error(cut, flip, file_format):
    """Truncated or with a byte flipped: whatever the decoder raises comes out as ``MediaError``."""
    content = bytearray(encoded(picture((20, 20)), file_format))
    content[flip % len(content)] ^= 0xFF
    image = prepared_or_refused(bytes(content[: max(0, len(content) - cut)]))
    assert image is None or image.mode == "RGB"


@pytest.mark.parametrize("item", [None, 3, [[1, 2]], object()])
def test_other_things_are_refused(item):
    """The message has the type, and what an image can be."""
    with pytest.raises(MediaError, match=f"{type(item).__name__} is not an image; give a PIL image"):
        prepare_image(item)
