"""The ``"llava-next"`` callbacks: an image's crops go through the encoder, their features are packed into one row.

Must not know any encoder family or language model: the context tells sizes and widths. How the encoder is run, and
which of its features are taken, is left to cornstarch-vision's ``"llava"``.

Source: https://llava-vl.github.io/blog/2024-01-30-llava-next/, and ``LlavaNextModel`` of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from cornstarch_vision.llava import llava
from torch import nn

from cornstarch_core.errors import CompositionError, InputError, MediaError
from cornstarch_core.specs import EncoderContext, ModalCallbacks

from .anyres import Tiler, Tiling
from .packing import pack, packing_index

__all__ = ["INDEX", "SIZES", "AnyResolution", "PackFeatures", "llava_next"]

INDEX = "packing_index"  # (F,) int64, from packing_index()
SIZES = "packing_sizes"  # (crops, features) of each image, numbers of the host


def llava_next(
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
        context: the encoder; its ``config`` gives ``image_size`` (a crop's) and ``patch_size``.
        image_grid_pinpoints: sizes ``(height, width)`` that an image may be scaled into, multiples of ``image_size``;
            default: 1x2, 2x1, 2x2, 3x1 and 1x3 crops, which for 336 pixels are LLaVA-NeXT's own.
        vision_feature_layer: as in :func:`cornstarch_vision.llava.llava`.
        vision_feature_select_strategy: ``"default"`` leaves out CLS, distillation and registers; ``"full"`` is for
            encoders that have none, since they would have no place in the grid.
        use_image_newline: whether a learned newline ends each row of the grid.
        drop_tokens: as in :func:`cornstarch_vision.llava.llava`.
        tokens_per_crop: for a projector that changes how many tokens a crop has: how many there are after it.

    Returns:
        Callbacks whose features are a list of ``(features, text width)``, one for each image.

    Raises:
        CompositionError: an option makes no sense, or a crop's tokens form no square grid.

    Example:
        >>> from cornstarch_core.specs import EncoderContext
        >>> from transformers import CLIPVisionConfig
        >>> context = EncoderContext(
        ...     key="vision", config=CLIPVisionConfig(image_size=336, patch_size=14), hidden_size=768,
        ...     text_hidden_size=64, prefix_tokens=1, layers="encoder.layers",
        ... )
        >>> callbacks = llava_next(context)
        >>> callbacks.num_features({"image_sizes": [[200, 800], [300, 300]]}, [576] * 7)
        [1890, 1176]
        >>> callbacks.postprocess_projector.image_newline.shape
        torch.Size([64])
    """
    selection = llava(context, vision_feature_layer, vision_feature_select_strategy, drop_tokens)
    tiler = Tiler.of(context, image_grid_pinpoints, tokens_per_crop)
    anyres = AnyResolution(context.key, tiler, use_image_newline)
    if tokens_per_crop is None and selection.num_tokens is not None:
        anyres.check_tokens(selection.num_tokens({}, [context.prefix_tokens + tiler.side**2])[0])
    return replace(
        selection,
        preprocess=anyres.prepare,
        postprocess_projector=PackFeatures(anyres, context.text_hidden_size),
        process=anyres.prepare,
        dummy_inputs=anyres.dummy,
        num_features=anyres.num_features,
        input_names=("image_sizes", INDEX, SIZES),
    )


@dataclass(frozen=True)
class AnyResolution:
    """The part of ``"llava-next"`` that runs on the host and has no weights.

    Args:
        key: modality, for messages.
        tiler: how images are tiled.
        newline: whether each row of the grid ends with one.
    """

    key: str
    tiler: Tiler
    newline: bool

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Take the crops that count out of ``pixel_values``, and compute how they are packed.

        Args:
            inputs: ``image_sizes``, ``(N, 2)`` heights and widths in pixels, as tensor (reading it costs one transfer
                from its device) or list; ``pixel_values``, float: ``(N, crops, channels, height, width)`` padded to
                the image with most crops, ``(C, channels, height, width)``, or a list of one ``(crops, channels,
                height, width)`` an image. Inputs that were prepared before go through as they are.

        Returns:
            The inputs with ``pixel_values`` ``(C, channels, height, width)``, ``packing_index`` ``(F,)`` int64 on the
            same device, and ``packing_sizes``, a list of ``(crops, features)`` of each image.

        Raises:
            InputError: something is missing, or crops and sizes don't fit.
            MediaError: an image of a size that can't be tiled.
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
        """One black image of the size of a crop, with as many crops as it is cut into."""
        size = (self.tiler.crop_size, self.tiler.crop_size)
        channels = inputs["pixel_values"].shape[1]
        return {"pixel_values": torch.zeros(self.tiler.tile(size).crops, channels, *size), "image_sizes": [size]}

    def num_features(self, encoder_inputs: dict[str, Any], counts: list[int]) -> list[int]:
        """Packed features of each image.

        Args:
            encoder_inputs: prepared, or with ``image_sizes``.
            counts: tokens of each crop.

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
        """Raise ``CompositionError`` unless a crop has the tokens of its grid."""
        side = self.tiler.side
        if tokens != side * side:
            raise CompositionError(
                f"{self.key}: a crop has {tokens} tokens, but packing needs {side * side}, a grid of {side}x{side}. "
                "Leave out CLS and the like with vision_feature_select_strategy='default'; if the projector changes "
                "the number of tokens, say with tokens_per_crop= how many come out of it."
            )

    def check_crops(self, features: Any, sizes: Sequence[tuple[int, int]]) -> None:
        """Raise unless ``features`` are the tokens of the crops that ``sizes`` tells."""
        if not isinstance(features, torch.Tensor) or features.dim() != 3:
            raise CompositionError(f"{self.key}: packing needs features (crops, tokens, width) of equally many tokens.")
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
                f"{self.key}: image_sizes are missing, which tell how each image was tiled; pass what "
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

    def _crops(self, pixels: Any, crops: list[int]) -> torch.Tensor:
        """The crops that count, ``(C, channels, height, width)``."""
        if pixels is None:
            raise InputError(f"{self.key}: pixel_values are missing.")
        if isinstance(pixels, (list, tuple)):
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
            raise InputError(f"{self.key}: pixel_values of {len(pixels)} images, image_sizes of {len(crops)}.")
        for item, (one, count) in enumerate(zip(pixels, crops, strict=True)):
            if one.dim() != 4 or len(one) < count:
                raise InputError(
                    f"{self.key}: image {item}: pixel_values of shape {tuple(one.shape)}; expected {count} crops: "
                    f"({count}, channels, height, width)."
                )
        return torch.cat([one[:count] for one, count in zip(pixels, crops, strict=True)])


class PackFeatures(nn.Module):
    """Packs projected features; holds the newline.

    Args:
        anyres: checks that crops and features fit.
        width: of the language model's embeddings.

    ``image_newline``, ``(width,)``, is drawn as transformers draws it; without newlines it is ``None``.
    """

    image_newline: nn.Parameter | None

    def __init__(self, anyres: AnyResolution, width: int) -> None:
        super().__init__()
        self.anyres = anyres
        newline = nn.Parameter(torch.randn(width) / sqrt(width)) if anyres.newline else None
        self.register_parameter("image_newline", newline)

    def forward(self, inputs: dict[str, Any], output: Any) -> Any:
        """``output`` with a list of one ``(features, width)`` an image, views of one tensor, for ``(C, T, width)``.

        Raises:
            InputError: the inputs weren't prepared, or crops and features don't fit.
        """
        if INDEX not in inputs or SIZES not in inputs:
            raise InputError(
                f"{self.anyres.key}: {INDEX} and {SIZES} are missing. A preprocess_callback in place of this one's has "
                "to pass on those that MultimodalProcessor makes."
            )
        sizes = inputs[SIZES]
        self.anyres.check_crops(output[0], sizes)
        index = inputs[INDEX].to(output[0].device, non_blocking=True)
        packed = pack(output[0], index, self.image_newline)
        features = list(packed.split([length for _, length in sizes]))
        return (features, *output[1:]) if isinstance(output, tuple) else replace(output, last_hidden_state=features)


def _without_padding(pixels: torch.Tensor, crops: list[int]) -> torch.Tensor:
    """The first ``crops[i]`` of each image's crops, by one gather; a view if there is no padding."""
    most = pixels.shape[1]
    flat = pixels.flatten(0, 1)
    kept = [item * most + crop for item, count in enumerate(crops) for crop in range(count)]
    if len(kept) == len(flat):
        return flat
    return flat.index_select(0, torch.tensor(kept).to(flat.device, non_blocking=True))
