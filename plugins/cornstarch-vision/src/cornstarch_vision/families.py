"""The encoder families, and how many tokens each gives for an image: arithmetic on shapes.

The plugin's entry point imports this module, so that it must not import torch at the top. It reads no pixels and no
weights.

Counts are those of ``last_hidden_state``: the prefix (CLS, distillation, registers), then one token for each whole
patch. Families differ in their prefix and in the image sizes that they take. Checked with transformers 5.17 and 5.23.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cornstarch_core.errors import MediaError
from cornstarch_core.specs import EncoderInterface, EncoderSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = [
    "ENCODERS",
    "Beit",
    "Clip",
    "Deit",
    "Dinov2",
    "Dinov2WithRegisters",
    "Dinov3",
    "Siglip",
    "native_image",
]

Grid = tuple[int, int]  # rows and columns, of pixels or of patches


# --- families with one image size -------------------------------------------------------------------------------------


class Clip(EncoderInterface["PreTrainedConfig"]):
    """CLIP and ViT: CLS and the patches of an image of ``config.image_size``.

    With ``interpolate_pos_encoding=True`` they take any size of at least one patch.
    """

    def num_tokens(self, config: PreTrainedConfig, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the tokens of each image: the prefix and the patches.

        Args:
            config: the encoder's config; ``image_size`` and ``patch_size`` may be pairs.
            encoder_inputs: ``pixel_values`` of shape ``(images, channels, height, width)``, or a list of
                ``(channels, height, width)``; and ``interpolate_pos_encoding``, default ``False``.

        Returns:
            One count for each image.

        Raises:
            MediaError: the pixels are missing, have the wrong number of channels, or a size that the encoder refuses.

        Example:
            >>> import torch
            >>> from transformers import CLIPVisionConfig
            >>> config = CLIPVisionConfig(image_size=336, patch_size=14)
            >>> Clip().num_tokens(config, {"pixel_values": torch.zeros(2, 3, 336, 336)})
            [577, 577]
        """
        sizes = _sizes(config, encoder_inputs)
        if encoder_inputs.get("interpolate_pos_encoding"):
            _check_interpolates(config)
        else:
            for item, size in enumerate(sizes):
                if not self.takes(config, size):
                    raise _wrong_size(config, item, size)
        return _counts(config, sizes, self.prefix_tokens(config))

    def takes(self, config: PreTrainedConfig, size: Grid) -> bool:
        """Whether the encoder takes images of a size without interpolating its positions.

        Args:
            config: the encoder's config.
            size: height and width in pixels.
        """
        return size == _pair(config.image_size)

    def prefix_tokens(self, config: PreTrainedConfig) -> int:
        """One: CLS."""
        return 1

    def dummy_inputs(self, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Make the smallest valid inputs: :func:`native_image`."""
        return native_image(config)


class Deit(Clip):
    """DeiT: as :class:`Clip`, with a distillation token after CLS."""

    def prefix_tokens(self, config: PreTrainedConfig) -> int:
        """Two: CLS and distillation."""
        return 2


class Siglip(Clip):
    """SigLIP: the patches and no prefix.

    It takes every size that has as many rows and columns of whole patches as ``config.image_size``. For other sizes it
    needs ``interpolate_pos_encoding=True``. transformers 5.23 does not refuse all of them: it gives an image of a
    single patch as many tokens as there are positions.
    """

    def takes(self, config: PreTrainedConfig, size: Grid) -> bool:
        """Whether the grid of patches is that of ``config.image_size``; arguments as in :meth:`Clip.takes`."""
        return _grid(config, size) == _native_grid(config)

    def prefix_tokens(self, config: PreTrainedConfig) -> int:
        """None."""
        return 0


# --- families that take any size --------------------------------------------------------------------------------------


class Dinov2(EncoderInterface["PreTrainedConfig"]):
    """DINOv2: CLS and the patches of an image of any size of at least one patch."""

    def num_tokens(self, config: PreTrainedConfig, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the tokens of each image: the prefix and the patches.

        Args:
            config: the encoder's config.
            encoder_inputs: ``pixel_values``, as :meth:`Clip.num_tokens` takes them.

        Returns:
            One count for each image.

        Raises:
            MediaError: the pixels are missing or have the wrong number of channels, an image is smaller than a patch,
                or the encoder's positions form a grid that is not square and can't be interpolated.
        """
        sizes = _sizes(config, encoder_inputs)
        _check_interpolates(config)
        return _counts(config, sizes, self.prefix_tokens(config))

    def prefix_tokens(self, config: PreTrainedConfig) -> int:
        """One: CLS."""
        return 1

    def dummy_inputs(self, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Make the smallest valid inputs: one black image of one patch, float32 on the CPU."""
        return _black_image(config, _pair(config.patch_size))


class Beit(Dinov2):
    """BEiT: as :class:`Dinov2`, but its positions need no square grid unless they are absolute."""

    def num_tokens(self, config: PreTrainedConfig, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the tokens of each image; arguments and errors are those of :meth:`Dinov2.num_tokens`."""
        if config.use_absolute_position_embeddings:
            return super().num_tokens(config, encoder_inputs)
        return _counts(config, _sizes(config, encoder_inputs), self.prefix_tokens(config))


class Dinov2WithRegisters(Dinov2):
    """DINOv2 with registers: as :class:`Dinov2`, with registers after CLS."""

    def prefix_tokens(self, config: PreTrainedConfig) -> int:
        """CLS and ``config.num_register_tokens`` registers."""
        return 1 + config.num_register_tokens


class Dinov3(Dinov2WithRegisters):
    """DINOv3's ViT: as :class:`Dinov2WithRegisters`, but its positions are rotary and need no grid."""

    def num_tokens(self, config: PreTrainedConfig, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the tokens of each image; arguments and errors are those of :meth:`Dinov2.num_tokens`."""
        return _counts(config, _sizes(config, encoder_inputs), self.prefix_tokens(config))


# --- specs ------------------------------------------------------------------------------------------------------------


def _spec(name: str, model: str, target: type, layers: str, *more_inputs: str) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        modality="vision",
        classes=(f"transformers.models.{model}",),
        input_names=("pixel_values", *more_inputs),
        target=f"{__name__}:{target.__name__}",
        layers=layers,
        processor="image",
    )


_INTERPOLATE = "interpolate_pos_encoding"

ENCODERS: tuple[EncoderSpec, ...] = (
    _spec("clip", "clip.modeling_clip:CLIPVisionModel", Clip, "encoder.layers", _INTERPOLATE),
    # SigLIP 2 checkpoints of a fixed size load as this class too
    _spec("siglip", "siglip.modeling_siglip:SiglipVisionModel", Siglip, "encoder.layers", _INTERPOLATE),
    _spec("vit", "vit.modeling_vit:ViTModel", Clip, "layers", _INTERPOLATE),
    _spec("deit", "deit.modeling_deit:DeiTModel", Deit, "layers", _INTERPOLATE),
    _spec("beit", "beit.modeling_beit:BeitModel", Beit, "layers", _INTERPOLATE),
    _spec("dinov2", "dinov2.modeling_dinov2:Dinov2Model", Dinov2, "encoder.layer"),
    _spec(
        "dinov2_with_registers",
        "dinov2_with_registers.modeling_dinov2_with_registers:Dinov2WithRegistersModel",
        Dinov2WithRegisters,
        "encoder.layer",
    ),
    _spec("dinov3_vit", "dinov3_vit.modeling_dinov3_vit:DINOv3ViTModel", Dinov3, "model.layer"),
)
"""What :func:`cornstarch_vision.plugin.cornstarch_register_encoders` registers."""


# --- arithmetic -------------------------------------------------------------------------------------------------------


def native_image(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Make one black image of the size that the config names.

    Args:
        config: an encoder's config with ``image_size`` and ``num_channels``.

    Returns:
        ``{"pixel_values": zeros of shape (1, channels, height, width)}``, float32 on the CPU.
    """
    return _black_image(config, _pair(config.image_size))


def _black_image(config: PreTrainedConfig, size: Grid) -> dict[str, torch.Tensor]:
    import torch

    return {"pixel_values": torch.zeros(1, config.num_channels, *size)}


def _sizes(config: PreTrainedConfig, encoder_inputs: dict[str, Any]) -> list[Grid]:
    """Height and width of every image, from shapes alone."""
    pixels = encoder_inputs.get("pixel_values")
    if pixels is None:
        raise MediaError(f"vision: pixel_values are missing; got {', '.join(encoder_inputs) or 'no inputs'}.")
    # no iteration over a tensor: that would make one view for each image
    shapes = [pixels.shape[1:]] * pixels.shape[0] if hasattr(pixels, "shape") else [item.shape for item in pixels]
    for item, shape in enumerate(shapes):
        if len(shape) < 3 or shape[-3] != config.num_channels:
            raise MediaError(
                f"vision: image {item} has pixel_values of shape {tuple(shape)}; expected "
                f"({config.num_channels} channels, height, width)."
            )
    return [(int(shape[-2]), int(shape[-1])) for shape in shapes]


def _counts(config: PreTrainedConfig, sizes: list[Grid], prefix: int) -> list[int]:
    counts = []
    for item, size in enumerate(sizes):
        rows, columns = _grid(config, size)
        if rows * columns == 0:
            raise MediaError(
                f"vision: image {item} has {_by(size)} pixels, less than one patch of {_by(_pair(config.patch_size))}."
            )
        counts.append(prefix + rows * columns)
    return counts


def _check_interpolates(config: PreTrainedConfig) -> None:
    rows, columns = _native_grid(config)
    if rows != columns:
        raise MediaError(
            f"vision: the encoder's positions form a grid of {rows}x{columns}, and only square grids can be "
            f"interpolated to other image sizes. Use an encoder with a square image_size, not {config.image_size}."
        )


def _wrong_size(config: PreTrainedConfig, item: int, got: Grid) -> MediaError:
    return MediaError(
        f"vision: image {item} has {_by(got)} pixels; expected {_by(_pair(config.image_size))}. Prepare images with "
        "the encoder's image processor, or pass interpolate_pos_encoding=True."
    )


def _native_grid(config: PreTrainedConfig) -> Grid:
    return _grid(config, _pair(config.image_size))


def _grid(config: PreTrainedConfig, size: Grid) -> Grid:
    """Rows and columns of whole patches; a convolution drops what remains at the edges, too."""
    patch = _pair(config.patch_size)
    return size[0] // patch[0], size[1] // patch[1]


def _pair(value: int | Iterable[int]) -> Grid:
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


def _by(size: Grid) -> str:
    return f"{size[0]}x{size[1]}"
