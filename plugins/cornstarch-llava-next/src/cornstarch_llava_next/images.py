"""The processor ``"llava-next"``: Hugging Face's LLaVA-NeXT image processor, set to the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from cornstarch_vision.images import GrayscaleImageProcessor, Images
from transformers import LlavaNextImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import is_torchvision_available

from cornstarch_core.specs import EncoderContext

from .anyres import Tiler

__all__ = ["AnyResolutionImages", "GrayscaleLlavaNextImageProcessor"]


class AnyResolutionImages(Images):
    """Tiles images with Hugging Face's LLaVA-NeXT image processor."""

    def build(
        self,
        context: EncoderContext,
        image_grid_pinpoints: Sequence[Sequence[int]] | None = None,
        **callback_options: Any,
    ) -> BaseImageProcessor:
        """Make LLaVA-NeXT's image processor with the crop size, mean, deviation and resampling of an encoder.

        Without torchvision it is the variant that uses PIL. For an encoder with one channel it is a
        :class:`GrayscaleLlavaNextImageProcessor`.

        Args:
            context: the encoder; its ``config`` gives ``model_type``, ``image_size``, ``patch_size`` and
                ``num_channels``.
            image_grid_pinpoints: as in :meth:`cornstarch_llava_next.callbacks.LlavaNext.build`.
            **callback_options: ignored: only the callbacks read them.

        Returns:
            An image processor that gives ``pixel_values``, float32 ``(images, crops, channels, height, width)``, padded
            to the image with most crops, and ``image_sizes``, int64 ``(images, 2)``.

        Raises:
            CompositionError: the encoder's family or one of its sizes is unknown, or a pinpoint is not a multiple of
                the crop.

        Example:
            >>> from cornstarch_core.specs import EncoderContext
            >>> from PIL import Image
            >>> from transformers import SiglipVisionConfig
            >>> config = SiglipVisionConfig(image_size=384, patch_size=14)
            >>> context = EncoderContext(key="vision", config=config, hidden_size=768, text_hidden_size=64)
            >>> processor = AnyResolutionImages().build(context)
            >>> processor.image_grid_pinpoints[0]
            [384, 768]
            >>> processor(Image.new("RGB", (80, 60)), return_tensors="pt")["image_sizes"]
            tensor([[60, 80]])
        """
        family: Any = super().build(context)
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


class GrayscaleLlavaNextImageProcessor(GrayscaleImageProcessor, LlavaNextImageProcessorPil):
    """LLaVA-NeXT's tiling for encoders with one channel: colours become luminance (ITU-R 601-2)."""


def _processor_class(grayscale: bool) -> type[BaseImageProcessor]:
    if grayscale:
        return GrayscaleLlavaNextImageProcessor
    return transformers.LlavaNextImageProcessor if is_torchvision_available() else LlavaNextImageProcessorPil
