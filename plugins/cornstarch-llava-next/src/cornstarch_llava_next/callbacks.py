"""The ``"llava-next"`` callbacks: the encoder encodes an image's crops, and their features are packed into one row.

This module must not know any encoder family or language model: the context gives sizes and widths. cornstarch-vision's
``"llava"`` callbacks run the encoder and select its features.

Source: https://llava-vl.github.io/blog/2024-01-30-llava-next/, and ``LlavaNextModel`` of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from cornstarch_vision.llava import Llava, Output
from torch import nn

from cornstarch_core.errors import CompositionError, InputError, MediaError
from cornstarch_core.specs import CallbacksInterface, EncoderContext, ModalCallbacks

from .anyres import Tiler, Tiling
from .packing import pack, packing_index

__all__ = ["INDEX", "SIZES", "AnyResolution", "LlavaNext", "PackFeatures"]

INDEX = "packing_index"  # (F,) int64, from packing_index()
SIZES = "packing_sizes"  # (crops, features) of each image, numbers on the host


class LlavaNext(CallbacksInterface):
    """Makes the ``"llava-next"`` callbacks."""

    def build(
        self,
        context: EncoderContext,
        image_grid_pinpoints: Sequence[Sequence[int]] | None = None,
        vision_feature_layer: int | Sequence[int] = -2,
        vision_feature_select_strategy: str = "default",
        use_image_newline: bool = True,
        drop_tokens: int | None = None,
        tokens_per_crop: int | None = None,
    ) -> ModalCallbacks:
        """Tile images and pack their features as LLaVA-NeXT does.

        Args:
            context: the encoder; its ``config`` gives ``image_size`` (the size of a crop) and ``patch_size``.
            image_grid_pinpoints: sizes ``(height, width)`` that an image may be scaled into, multiples of
                ``image_size``; default: 1x2, 2x1, 2x2, 3x1 and 1x3 crops, which for 336 pixels are LLaVA-NeXT's own.
            vision_feature_layer: as in :meth:`cornstarch_vision.llava.Llava.build`.
            vision_feature_select_strategy: ``"default"`` leaves out CLS, distillation and registers; ``"full"`` is for
                encoders that have none, since those tokens have no place in the grid.
            use_image_newline: whether a learned newline ends each row of the grid.
            drop_tokens: as in :meth:`cornstarch_vision.llava.Llava.build`.
            tokens_per_crop: the number of tokens of a crop after the projector, if the projector changes it.

        Returns:
            Callbacks whose features are a list of ``(features, text width)``, one for each image.

        Raises:
            CompositionError: an option is not valid, or a crop's tokens don't form a square grid.

        Example:
            >>> from cornstarch_core.specs import EncoderContext
            >>> from transformers import CLIPVisionConfig
            >>> context = EncoderContext(
            ...     key="vision", config=CLIPVisionConfig(image_size=336, patch_size=14), hidden_size=768,
            ...     text_hidden_size=64, prefix_tokens=1, layers="encoder.layers",
            ... )
            >>> callbacks = LlavaNext().build(context)
            >>> callbacks.num_tokens_after_projector({"image_sizes": [[200, 800], [300, 300]]}, [576] * 7)
            [1890, 1176]
            >>> callbacks.postprocess_projector.image_newline.shape
            torch.Size([64])
        """
        selection = Llava().build(context, vision_feature_layer, vision_feature_select_strategy, drop_tokens)
        tiler = Tiler.of(context, image_grid_pinpoints, tokens_per_crop)
        anyres = AnyResolution(context.key, tiler, use_image_newline)
        if tokens_per_crop is None and selection.num_tokens_before_projector is not None:
            tokens = context.prefix_tokens + tiler.side**2
            anyres.check_tokens(selection.num_tokens_before_projector({}, [tokens])[0])
        return replace(
            selection,
            preprocess=anyres.prepare,
            postprocess_projector=PackFeatures(anyres, context.text_hidden_size),
            prepare_on_host=anyres.prepare,
            dummy_inputs=anyres.dummy,
            num_tokens_after_projector=anyres.num_features,
            input_names=("image_sizes", INDEX, SIZES),
        )


@dataclass(frozen=True)
class AnyResolution:
    """The part of ``"llava-next"`` that runs on the host and has no weights.

    Args:
        key: modality, for messages.
        tiler: how images are tiled.
        newline: whether each row of the grid ends with a newline.
    """

    key: str
    tiler: Tiler
    newline: bool

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Remove the padding from ``pixel_values``, and compute how the crops are packed.

        Args:
            inputs: ``image_sizes``, ``(N, 2)`` heights and widths in pixels, as a tensor (reading it costs one transfer
                from its device) or a list; and ``pixel_values``, float: ``(N, crops, channels, height, width)`` padded
                to the image with most crops, ``(C, channels, height, width)``, or a list with one ``(crops, channels,
                height, width)`` for each image. Inputs that are already prepared are returned unchanged.

        Returns:
            The inputs with ``pixel_values`` ``(C, channels, height, width)``, ``packing_index`` ``(F,)`` int64 on the
            same device, and ``packing_sizes``, a list of ``(crops, features)`` of each image.

        Raises:
            InputError: an input is missing, or crops and sizes don't fit.
            MediaError: an image has a size that can't be tiled.
        """
        if INDEX in inputs:
            return inputs
        tilings = self._tilings(inputs)
        pixels = self._crops(inputs.get("pixel_values"), [tiling.crops for tiling in tilings])
        index = packing_index(tilings, self.tiler.side, self.newline)
        return {
            **inputs,
            "pixel_values": pixels,
            INDEX: index.to(pixels.device, non_blocking=True),
            SIZES: [(tiling.crops, self._features(tiling)) for tiling in tilings],
        }

    def dummy(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Make the inputs of one black image of the size of a crop, for as many channels as ``inputs`` have."""
        size = (self.tiler.crop_size, self.tiler.crop_size)
        channels = inputs["pixel_values"].shape[1]
        return {"pixel_values": torch.zeros(self.tiler.tile(size).crops, channels, *size), "image_sizes": [size]}

    def num_features(self, encoder_inputs: dict[str, Any], counts: list[int]) -> list[int]:
        """Count the packed features of each image.

        Args:
            encoder_inputs: prepared inputs, or inputs with ``image_sizes``.
            counts: tokens of each crop after the projector.

        Raises:
            CompositionError: a crop has another number of tokens than its grid.
        """
        for count in set(counts):
            self.check_tokens(count)
        sizes = encoder_inputs.get(SIZES)
        if sizes is not None:
            return [features for _, features in sizes]
        return [self._features(tiling) for tiling in self._tilings(encoder_inputs)]

    def check_tokens(self, tokens: int) -> None:
        """Raise ``CompositionError`` unless ``tokens`` is the number of tokens in the grid of a crop."""
        side = self.tiler.side
        if tokens != side * side:
            raise CompositionError(
                f"{self.key}: a crop has {tokens} tokens, but packing needs {side * side}, a grid of {side}x{side}. "
                "Leave out CLS and registers with vision_feature_select_strategy='default'; if the projector changes "
                "the number of tokens, give the number after it as tokens_per_crop=."
            )

    def check_crops(self, features: object, sizes: Sequence[tuple[int, int]]) -> None:
        """Raise unless ``features`` are the tokens of as many crops as ``sizes`` says."""
        if not isinstance(features, torch.Tensor) or features.dim() != 3:
            raise CompositionError(f"{self.key}: packing needs features of shape (crops, tokens, width).")
        self.check_tokens(features.shape[1])
        crops = sum(crops for crops, _ in sizes)
        if features.shape[0] != crops:
            raise InputError(
                f"{self.key}: {features.shape[0]} crops were encoded, but the {len(sizes)} images of this batch have "
                f"{crops}; were pixel_values re-batched without {SIZES} and {INDEX}?"
            )

    def _features(self, tiling: Tiling) -> int:
        return tiling.features(self.tiler.side, self.newline)

    def _tilings(self, inputs: dict[str, Any]) -> list[Tiling]:
        sizes = inputs.get("image_sizes")
        if sizes is None:
            raise InputError(
                f"{self.key}: image_sizes are missing, from which the tiling of each image is computed; pass what "
                "MultimodalProcessor or LLaVA-NeXT's own image processor returns, together with pixel_values."
            )
        sizes = sizes.tolist() if hasattr(sizes, "tolist") else sizes
        return [self._tile(item, size) for item, size in enumerate(sizes)]

    def _tile(self, item: int, size: Sequence[int]) -> Tiling:
        try:
            height, width = map(int, size)
            return self.tiler.tile((height, width))
        except (TypeError, ValueError) as error:
            raise MediaError(f"{self.key}: image {item}: {error}.") from error

    def _crops(self, pixels: torch.Tensor | Sequence[torch.Tensor] | None, crops: list[int]) -> torch.Tensor:
        """The crops without padding, ``(C, channels, height, width)``."""
        if pixels is None:
            raise InputError(f"{self.key}: pixel_values are missing.")
        if not isinstance(pixels, torch.Tensor):
            return self._joined([torch.as_tensor(one) for one in pixels], crops)
        if pixels.dim() == 5 and len(pixels) == len(crops) and pixels.shape[1] >= max(crops, default=0):
            return _without_padding(pixels, crops)
        if pixels.dim() == 4 and len(pixels) == sum(crops):
            return pixels
        raise InputError(
            f"{self.key}: pixel_values of shape {tuple(pixels.shape)} don't fit image_sizes, by which {len(crops)} "
            f"images have {', '.join(map(str, crops))} crops. Was the image processor set to other "
            "image_grid_pinpoints than the model?"
        )

    def _joined(self, pixels: list[torch.Tensor], crops: list[int]) -> torch.Tensor:
        if len(pixels) != len(crops):
            raise InputError(f"{self.key}: pixel_values have {len(pixels)} images, image_sizes {len(crops)}.")
        for item, (one, count) in enumerate(zip(pixels, crops, strict=True)):
            if one.dim() != 4 or len(one) < count:
                raise InputError(
                    f"{self.key}: image {item}: pixel_values of shape {tuple(one.shape)}; expected {count} crops: "
                    f"({count}, channels, height, width)."
                )
        return torch.cat([one[:count] for one, count in zip(pixels, crops, strict=True)])


class PackFeatures(nn.Module):
    """Packs projected features; holds the newline.

    ``image_newline``, ``(width,)``, has the distribution that transformers uses; it is ``None`` if rows end without a
    newline.

    Args:
        anyres: checks that crops and features fit.
        width: width of the language model's embeddings.
    """

    image_newline: nn.Parameter | None

    def __init__(self, anyres: AnyResolution, width: int) -> None:
        super().__init__()
        self.anyres = anyres
        newline = nn.Parameter(torch.randn(width) / sqrt(width)) if anyres.newline else None
        self.register_parameter("image_newline", newline)

    def forward(self, inputs: dict[str, Any], output: Output) -> Output | tuple[Any, ...]:
        """Replace the features ``(C, T, width)`` by a list with one ``(features, width)`` for each image.

        Args:
            inputs: as :meth:`AnyResolution.prepare` returns them.
            output: what the projector gives.

        Returns:
            The output with the list, whose entries are views of one tensor.

        Raises:
            InputError: the inputs are not prepared, or crops and features don't fit.
        """
        if INDEX not in inputs or SIZES not in inputs:
            raise InputError(
                f"{self.anyres.key}: {INDEX} and {SIZES} are missing. Your preprocess_callback replaces the one that "
                "makes them; it has to pass on those that MultimodalProcessor makes."
            )
        sizes = inputs[SIZES]
        self.anyres.check_crops(output[0], sizes)
        index = inputs[INDEX].to(output[0].device, non_blocking=True)
        packed = pack(output[0], index, self.image_newline)
        features = list(packed.split([length for _, length in sizes]))
        if isinstance(output, tuple):
            return (features, *output[1:])
        return replace(output, last_hidden_state=features)  # type: ignore[arg-type]  # a list is fine here


def _without_padding(pixels: torch.Tensor, crops: list[int]) -> torch.Tensor:
    """The first ``crops[i]`` crops of each image i, by one gather; a view if there is no padding."""
    most = pixels.shape[1]
    flat = pixels.flatten(0, 1)
    kept = [item * most + crop for item, count in enumerate(crops) for crop in range(count)]
    if len(kept) == len(flat):
        return flat
    return flat.index_select(0, torch.tensor(kept).to(flat.device, non_blocking=True))
