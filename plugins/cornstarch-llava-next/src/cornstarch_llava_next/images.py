"""The image processor: Hugging Face's own for LLaVA-NeXT, set to the encoder at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from cornstarch_vision import images as vision
from transformers import LlavaNextImageProcessorPil
from transformers.utils import is_torchvision_available

from cornstarch_core.specs import EncoderContext

from .anyres import Tiler

__all__ = ["GrayscaleLlavaNextImageProcessor", "image_processor"]


class GrayscaleLlavaNextImageProcessor(vision.GrayscaleImageProcessor, LlavaNextImageProcessorPil):
    """LLaVA-NeXT's tiling for encoders with one channel: colours become luminance (ITU-R 601-2)."""


def image_processor(
    context: EncoderContext, image_grid_pinpoints: Sequence[Sequence[int]] | None = None, **callback_options: Any
) -> Any:
    """Hugging Face's LLaVA-NeXT image processor with the crop size, mean, deviation and resampling of an encoder.

    Without torchvision it is the variant that uses PIL; for an encoder with one channel, a
    :class:`GrayscaleLlavaNextImageProcessor`.

    Args:
        context: the encoder; its ``config`` gives ``model_type``, ``image_size``, ``patch_size`` and ``num_channels``.
        image_grid_pinpoints: as in :func:`cornstarch_llava_next.callbacks.llava_next`.
        **callback_options: those that only the callbacks read.

    Returns:
        An image processor that gives ``pixel_values``, float32 ``(images, crops, channels, height, width)``, padded to
        the image with most crops, and ``image_sizes``, int64 ``(images, 2)``.

    Raises:
        CompositionError: the encoder's family or one of its sizes is not known, or a pinpoint is no multiple of it.

    Example:
        >>> from cornstarch_core.specs import EncoderContext
        >>> from PIL import Image
        >>> from transformers import SiglipVisionConfig
        >>> config = SiglipVisionConfig(image_size=384, patch_size=14)
        >>> context = EncoderContext(key="vision", config=config, hidden_size=768, text_hidden_size=64)
        >>> processor = image_processor(context)
        >>> processor.image_grid_pinpoints[0], processor(Image.new("RGB", (80, 60)), return_tensors="pt")["image_sizes"]
        ([384, 768], tensor([[60, 80]]))
    """
    family = vision.image_processor(context)
    tiler = Tiler.of(context, image_grid_pinpoints)
    grayscale = context.config.num_channels == 1
    return _processor_class(grayscale)(
        size={"shortest_edge": tiler.crop_size},
        crop_size={"height": tiler.crop_size, "width": tiler.crop_size},
        image_grid_pinpoints=[list(pinpoint) for pinpoint in tiler.pinpoints],
        resample=family.resample,
        image_mean=family.image_mean,
        image_std=family.image_std,
        do_convert_rgb=not grayscale,
    )


def _processor_class(grayscale: bool) -> type:
    if grayscale:
        return GrayscaleLlavaNextImageProcessor
    return transformers.LlavaNextImageProcessor if is_torchvision_available() else LlavaNextImageProcessorPil
