"""The processor ``"image"``: the image processor that fits an encoder, and the check of one image before it.

This module must not know about tokens or models; it reads sizes and channels from the encoder's config.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.utils import is_torchvision_available

from cornstarch_core.errors import CompositionError, MediaError
from cornstarch_core.specs import EncoderContext, ProcessorInterface

__all__ = ["GrayscaleImageProcessor", "ImageItem", "Images", "prepare_image"]

ImageItem: TypeAlias = (
    Image.Image | np.ndarray | torch.Tensor | str | os.PathLike[str] | bytes | bytearray | Mapping[str, Any]
)
"""One image as :func:`prepare_image` takes it."""

MAX_ASPECT_RATIO = 200  # a 1x20000 image, scaled to a shortest edge of 224, would take 3 GB

_URL = re.compile(r"(https?|ftp|file|s3|gs|hf)://|data:", re.IGNORECASE)
_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}


# --- image processors -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """How a family prepares images.

    Args:
        name: what the image processor's class name starts with.
        pil_name: the same for the variant without torchvision.
        fit: ``"squash"``: resize to the encoder's size; ``"crop"``: resize the shorter edge to it, then crop the
            centre; ``"zoom"``: as ``"crop"`` but resize to 8/7 of it; ``"squash_zoom"``: squash to 8/7, then crop.
    """

    name: str
    pil_name: str
    fit: Literal["squash", "crop", "zoom", "squash_zoom"]
    resample: Image.Resampling
    mean: list[float]
    std: list[float]


def _recipe(
    name: str,
    fit: Literal["squash", "crop", "zoom", "squash_zoom"],
    resample: Image.Resampling,
    mean: Sequence[float],
    std: Sequence[float],
    pil_name: str | None = None,
) -> _Recipe:
    return _Recipe(name=name, pil_name=pil_name or name, fit=fit, resample=resample, mean=list(mean), std=list(std))


_BICUBIC, _BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
_DINOV2 = _recipe("Bit", "zoom", _BICUBIC, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

# means are those of the published checkpoints: for DeiT and DINOv2 they aren't the defaults of the processors' classes
_RECIPES = {
    "clip_vision_model": _recipe("CLIP", "crop", _BICUBIC, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "siglip_vision_model": _recipe("Siglip", "squash", _BICUBIC, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
    "vit": _recipe("ViT", "squash", _BILINEAR, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
    "deit": _recipe("DeiT", "squash_zoom", _BICUBIC, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "beit": _recipe("Beit", "squash", _BICUBIC, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    # transformers has no variant without torchvision; ViT's does the same but for rounding
    "dinov3_vit": _recipe("DINOv3ViT", "squash", _BILINEAR, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "ViT"),
}


class Images(ProcessorInterface[ImageItem]):
    """Prepares images with the Hugging Face image processor of the encoder's family."""

    def build(self, context: EncoderContext, **callback_options: Any) -> BaseImageProcessor:
        """Make the image processor of an encoder's family, set to the encoder's ``image_size``.

        Without torchvision it is the variant that uses PIL. For an encoder with one channel it is a
        :class:`GrayscaleImageProcessor` with the family's settings and the mean of its means.

        Args:
            context: the encoder; its ``config`` gives ``model_type``, ``image_size`` and ``num_channels``.
            **callback_options: ignored: no callbacks of this plugin change how images are prepared.

        Returns:
            An image processor whose ``pixel_values`` the encoder takes.

        Raises:
            CompositionError: the family is unknown, or the encoder has neither one nor three channels.

        Example:
            >>> from cornstarch_core.specs import EncoderContext
            >>> import numpy as np
            >>> from transformers import ViTConfig
            >>> config = ViTConfig(image_size=32, patch_size=8)
            >>> context = EncoderContext(key="vision", config=config, hidden_size=768, text_hidden_size=64)
            >>> image = prepare_image(np.zeros((60, 80, 3), np.uint8))
            >>> Images().build(context)(image, return_tensors="pt").pixel_values.shape
            torch.Size([1, 3, 32, 32])
        """
        config = context.config
        model_type = getattr(config, "model_type", "")
        recipe = _RECIPES.get(model_type)
        if recipe is None:
            raise CompositionError(
                f"{context.key}: no image processor is known for {model_type!r}, only for "
                f"{', '.join(_RECIPES)}. Give MultimodalProcessor(processors={{{context.key!r}: ...}}) yours."
            )
        if config.num_channels not in (1, 3):
            raise CompositionError(
                f"{context.key}: the encoder has {config.num_channels} channels; images have 1 or 3. Give "
                f"MultimodalProcessor(processors={{{context.key!r}: ...}}) your own image processor."
            )
        settings = _settings(recipe, config.image_size)
        return _grayscale(settings) if config.num_channels == 1 else _processor_class(recipe)(**settings)

    def prepare(self, item: ImageItem) -> Image.Image:
        """Check one image and convert it to RGB; arguments and errors are those of :func:`prepare_image`."""
        return prepare_image(item)


class GrayscaleImageProcessor(PilBackend):
    """An image processor for encoders with one channel: colours become luminance (ITU-R 601-2).

    It takes what :func:`prepare_image` takes, and gives ``pixel_values`` of shape ``(images, 1, height, width)``,
    float32.
    """

    def process_image(  # type: ignore[override]  # the base's type has lists too, but it is called with one image
        self, image: ImageItem, *args: object, **kwargs: object
    ) -> np.ndarray:
        """One image as an array ``(1, height, width)`` of uint8."""
        return np.asarray(prepare_image(image).convert("L"))[None]


def _settings(recipe: _Recipe, image_size: int | tuple[int, int] | list[int]) -> dict[str, Any]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    crop = recipe.fit != "squash"
    zoom = 8 / 7 if recipe.fit.endswith("zoom") else 1  # 224 is cropped out of 256
    size = {"height": round(height * zoom), "width": round(width * zoom)}
    return {
        "do_resize": True,
        "size": size if "squash" in recipe.fit else {"shortest_edge": max(size.values())},
        "resample": recipe.resample,
        "do_center_crop": crop,
        "crop_size": {"height": height, "width": width} if crop else None,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": recipe.mean,
        "image_std": recipe.std,
        "do_convert_rgb": True,
        "default_to_square": "squash" in recipe.fit,
    }


def _grayscale(settings: dict[str, Any]) -> GrayscaleImageProcessor:
    averages = {name: [sum(settings[name]) / 3] for name in ("image_mean", "image_std")}
    return GrayscaleImageProcessor(**{**settings, **averages, "do_convert_rgb": False})


def _processor_class(recipe: _Recipe) -> type[BaseImageProcessor]:
    if is_torchvision_available():
        return getattr(transformers, f"{recipe.name}ImageProcessor")
    return getattr(transformers, f"{recipe.pil_name}ImageProcessorPil")


# --- one image --------------------------------------------------------------------------------------------------------


def prepare_image(item: ImageItem) -> Image.Image:
    """Check one image and convert it to RGB.

    Args:
        item: one of

            - a PIL image of any mode; transparent pixels are blended with white, and 16-bit images (``I;16``, ``I``)
              are scaled by 1/257;
            - an array or tensor ``(height, width)``, or with 1, 3 or 4 channels on the first or the last axis. If both
              axes could hold the channels, those of an array are last, those of a tensor first. Values are integers in
              [0, 255], floats in [0, 1], or booleans;
            - the path of an image file, or its content as ``bytes``; it is rotated as its EXIF data say;
            - what the ``Image`` feature of Hugging Face datasets gives with ``decode=False``:
              ``{"bytes": ..., "path": ...}``. The path is read if the bytes are ``None`` or missing.

    Returns:
        A PIL image of mode ``"RGB"``.

    Raises:
        MediaError: it is not an image, can't be read, is empty, has values out of range, or one of its edges is more
            than 200 times as long as the other.

    Example:
        >>> import numpy as np
        >>> image = prepare_image(np.array([[0.0, 0.5, 1.0]]))
        >>> image.mode, image.size, image.getpixel((1, 0))
        ('RGB', (3, 1), (128, 128, 128))
    """
    try:
        image = _open(item)
        _check_size(image)
        return _to_rgb(image)
    except MediaError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors on a broken file
        reason = str(error).rstrip(".")
        raise MediaError(f"vision: {_called(item)} can't be read: {reason}. Check it, or convert it to RGB.") from error


def _open(item: ImageItem) -> Image.Image:
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, torch.Tensor):
        return _from_array(_as_numpy(item), channels_first=True)
    if isinstance(item, np.ndarray):
        return _from_array(item, channels_first=False)
    if isinstance(item, Mapping):
        return _from_mapping(item)
    if isinstance(item, (bytes, bytearray)):
        return _from_file(BytesIO(item))
    if isinstance(item, (str, os.PathLike)):
        return _from_file(_checked_path(os.fspath(item)))
    raise MediaError(
        f"vision: {type(item).__name__} is not an image; give a PIL image, an array or tensor, a path, or bytes."
    )


def _from_mapping(item: Mapping[str, Any]) -> Image.Image:
    kind = next((key for key in ("bytes", "path") if item.get(key) is not None), None)
    if kind is None:
        raise MediaError(
            f"vision: a dict with {', '.join(map(repr, item)) or 'nothing'}; expected 'bytes' or 'path' with a "
            "value. Give one of them, or the image itself."
        )
    return _open(item[kind])


def _called(item: ImageItem) -> str:
    name = item.get("path") if isinstance(item, Mapping) else item
    return f"image file {os.fspath(name)!r}" if isinstance(name, (str, os.PathLike)) else "this image"


def _from_file(file: Path | BytesIO) -> Image.Image:
    with Image.open(file) as image:
        return ImageOps.exif_transpose(image)


def _checked_path(path: str) -> Path:
    if _URL.match(path):
        raise MediaError(f"vision: {path[:80]!r} is a URL; nothing is downloaded here. Download it and give its path.")
    if not Path(path).is_file():
        raise MediaError(f"vision: there is no image file {path!r}.")
    return Path(path)


def _check_size(image: Image.Image) -> None:
    short, long = sorted(image.size)
    if short == 0:
        raise MediaError(f"vision: an empty image, {image.width} pixels wide and {image.height} high.")
    if long > MAX_ASPECT_RATIO * short:
        raise MediaError(
            f"vision: an image {image.width} pixels wide and {image.height} high; at most "
            f"{MAX_ASPECT_RATIO}:1 is allowed. Cut it into pieces."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        image = Image.fromarray(_as_bytes(np.asarray(image)))
    elif image.mode.startswith("I"):
        image = Image.fromarray(_from_16_bits(np.asarray(image)))
    elif image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


# --- arrays -----------------------------------------------------------------------------------------------------------


def _as_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16


def _from_array(array: np.ndarray, *, channels_first: bool) -> Image.Image:
    if array.size == 0:
        raise MediaError(f"vision: an empty image, of shape {array.shape}.")
    array = _as_bytes(_channels_last(array, channels_first))
    return Image.fromarray(np.ascontiguousarray(array))


def _channels_last(array: np.ndarray, channels_first: bool) -> np.ndarray:
    """``(height, width)`` or ``(height, width, 3 or 4)``."""
    if array.ndim == 2:
        return array
    axes = [
        axis for axis in ((0, -1) if channels_first else (-1, 0)) if array.ndim == 3 and array.shape[axis] in (1, 3, 4)
    ]
    if not axes:
        raise MediaError(
            f"vision: an image of shape {array.shape}; expected (height, width), or with 1, 3 or 4 channels, "
            "first or last."
        )
    array = np.moveaxis(array, axes[0], -1)
    return array[..., 0] if array.shape[-1] == 1 else array


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """Values as uint8; floats are scaled from [0, 1]."""
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "uif":
        raise MediaError(f"vision: an image of dtype {array.dtype}; expected integers, floats or booleans.")
    is_float = array.dtype.kind == "f"
    _check_range(array, 1 if is_float else 255)
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8) if is_float else array.astype(np.uint8)


def _from_16_bits(array: np.ndarray) -> np.ndarray:
    _check_range(array, 65535)
    return ((array.astype(np.int64) + 128) // 257).astype(np.uint8)


def _check_range(array: np.ndarray, largest: int) -> None:
    low, high = array.min(), array.max()  # NaN if any value is NaN
    if np.isnan(low):
        raise MediaError("vision: an image with NaN among its values.")
    if low < 0 or high > largest:
        raise MediaError(
            f"vision: an image of {array.dtype} with values from {low} to {high}; expected 0 to {largest}. "
            "Scale it, or undo its normalisation."
        )
