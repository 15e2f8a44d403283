"""The encoder families, and how many tokens each gives for an image: arithmetic on shapes.

Must not import torch at the top (the plugin's light module imports this table), nor look at pixels or weights.

Counts are those of ``last_hidden_state``: the prefix (CLS, distillation, registers), then one token per whole patch.
Families differ in their prefix and in the sizes they take. Checked on transformers 5.17 and 5.23.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cornstarch_core.errors import MediaError
from cornstarch_core.specs import EncoderSpec

if TYPE_CHECKING:
    import torch

__all__ = [
    "ENCODERS",
    "beit_num_tokens",
    "clip_num_tokens",
    "cls_prefix_tokens",
    "deit_num_tokens",
    "deit_prefix_tokens",
    "dinov2_num_tokens",
    "dinov2_with_registers_num_tokens",
    "dinov3_num_tokens",
    "native_dummy_inputs",
    "one_patch_dummy_inputs",
    "register_prefix_tokens",
    "siglip_num_tokens",
]

Grid = tuple[int, int]  # rows and columns, of pixels or of patches


def _family(
    name: str, model: str, *, count: str, prefix: str | None, dummy: str, layers: str, inputs: str
) -> EncoderSpec:
    here = f"{__name__}:"
    return EncoderSpec(
        name=name,
        modality="vision",
        classes=(f"transformers.models.{model}",),
        input_names=tuple(inputs.split()),
        num_tokens=here + count,
        dummy_inputs=here + dummy,
        prefix_tokens=here + prefix if prefix else None,
        layers=layers,
        processor="image",
    )


_RESIZABLE = "pixel_values interpolate_pos_encoding"

ENCODERS: tuple[EncoderSpec, ...] = (
    _family(
        "clip",
        "clip.modeling_clip:CLIPVisionModel",
        count="clip_num_tokens",
        prefix="cls_prefix_tokens",
        dummy="native_dummy_inputs",
        layers="encoder.layers",
        inputs=_RESIZABLE,
    ),
    _family(  # SigLIP 2 checkpoints of a fixed size load as this class too
        "siglip",
        "siglip.modeling_siglip:SiglipVisionModel",
        count="siglip_num_tokens",
        prefix=None,
        dummy="native_dummy_inputs",
        layers="encoder.layers",
        inputs=_RESIZABLE,
    ),
    _family(
        "vit",
        "vit.modeling_vit:ViTModel",
        count="clip_num_tokens",
        prefix="cls_prefix_tokens",
        dummy="native_dummy_inputs",
        layers="layers",
        inputs=_RESIZABLE,
    ),
    _family(
        "deit",
        "deit.modeling_deit:DeiTModel",
        count="deit_num_tokens",
        prefix="deit_prefix_tokens",
        dummy="native_dummy_inputs",
        layers="layers",
        inputs=_RESIZABLE,
    ),
    _family(
        "beit",
        "beit.modeling_beit:BeitModel",
        count="beit_num_tokens",
        prefix="cls_prefix_tokens",
        dummy="one_patch_dummy_inputs",
        layers="layers",
        inputs=_RESIZABLE,
    ),
    _family(
        "dinov2",
        "dinov2.modeling_dinov2:Dinov2Model",
        count="dinov2_num_tokens",
        prefix="cls_prefix_tokens",
        dummy="one_patch_dummy_inputs",
        layers="encoder.layer",
        inputs="pixel_values",
    ),
    _family(
        "dinov2_with_registers",
        "dinov2_with_registers.modeling_dinov2_with_registers:Dinov2WithRegistersModel",
        count="dinov2_with_registers_num_tokens",
        prefix="register_prefix_tokens",
        dummy="one_patch_dummy_inputs",
        layers="encoder.layer",
        inputs="pixel_values",
    ),
    _family(
        "dinov3_vit",
        "dinov3_vit.modeling_dinov3_vit:DINOv3ViTModel",
        count="dinov3_num_tokens",
        prefix="register_prefix_tokens",
        dummy="one_patch_dummy_inputs",
        layers="model.layer",
        inputs="pixel_values",
    ),
)
"""What :func:`cornstarch_vision.plugin.cornstarch_register_encoders` registers."""


# --- tokens per image -------------------------------------------------------------------------------------------------


def clip_num_tokens(config: Any, encoder_inputs: dict[str, Any]) -> list[int]:
    """Tokens per image of CLIP and ViT: CLS and the patches.

    Args:
        config: the encoder's config; ``image_size`` and ``patch_size`` may be pairs for ViT.
        encoder_inputs: ``pixel_values`` of shape ``(images, channels, height, width)``, or a list of
            ``(channels, height, width)``; ``interpolate_pos_encoding`` (default ``False``) lifts the fixed size.

    Returns:
        One count per image.

    Raises:
        MediaError: no pixels, wrong channels, or a size that the encoder refuses.

    Example:
        >>> import torch
        >>> from transformers import CLIPVisionConfig
        >>> config = CLIPVisionConfig(image_size=336, patch_size=14)
        >>> clip_num_tokens(config, {"pixel_values": torch.zeros(2, 3, 336, 336)})
        [577, 577]
    """
    return _exact_counts(config, encoder_inputs, prefix=1)


def deit_num_tokens(config: Any, encoder_inputs: dict[str, Any]) -> list[int]:
    """Tokens per image of DeiT: CLS, distillation and the patches; the rest as in :func:`clip_num_tokens`."""
    return _exact_counts(config, encoder_inputs, prefix=2)


def siglip_num_tokens(config: Any, encoder_inputs: dict[str, Any]) -> list[int]:
    """Tokens per image of SigLIP: the patches; the rest as in :func:`clip_num_tokens`.

    A size with another patch grid than the config's needs ``interpolate_pos_encoding=True``. transformers itself
    lets some through: it gives an image of one patch as many tokens as there are positions.
    """
    sizes = _sizes(config, encoder_inputs)
    if encoder_inputs.get("interpolate_pos_encoding"):
        return _interpolated_counts(config, sizes, prefix=0)
    native = _native_grid(config)
    for item, size in enumerate(sizes):
        if _grid(config, size) != native:
            raise _wrong_size(config, item, size)
    return _counts(config, sizes, prefix=0)


def beit_num_tokens(config: Any, encoder_inputs: dict[str, Any]) -> list[int]:
    """Tokens per image of BEiT: CLS and the patches; any size of at least one patch.

    Raises:
        MediaError: as :func:`dinov2_num_tokens`, the last only if the config has absolute position embeddings.
    """
    counts = _interpolated_counts if config.use_absolute_position_embeddings else _counts
    return counts(config, _sizes(config, encoder_inputs), prefix=1)


def dinov2_num_tokens(config: Any, encoder_inputs: dict[str, Any]) -> list[int]:
    """Tokens per image of DINOv2: CLS and the patches; any size of at least one patch.

    Raises:
        MediaError: no pixels, wrong channels, an image smaller than a patch, or a config whose positions form a grid
            that is not square and so can't be interpolated.
    """
    return _interpolated_counts(config, _sizes(config, encoder_inputs), prefix=1)


def dinov2_with_registers_num_tokens(config: Any, encoder_inputs: dict[str, Any]) -> list[int]:
    """Tokens per image of DINOv2 with registers: CLS, registers and the patches; see :func:`dinov2_num_tokens`."""
    return _interpolated_counts(config, _sizes(config, encoder_inputs), prefix=register_prefix_tokens(config))


def dinov3_num_tokens(config: Any, encoder_inputs: dict[str, Any]) -> list[int]:
    """Tokens per image of DINOv3's ViT: CLS, registers and the patches; any size of at least one patch.

    Raises:
        MediaError: no pixels, wrong channels, or an image smaller than a patch.
    """
    return _counts(config, _sizes(config, encoder_inputs), prefix=register_prefix_tokens(config))


# --- prefix -----------------------------------------------------------------------------------------------------------


def cls_prefix_tokens(config: Any) -> int:
    """One token before the patches: CLS."""
    return 1


def deit_prefix_tokens(config: Any) -> int:
    """Two tokens before the patches: CLS and distillation."""
    return 2


def register_prefix_tokens(config: Any) -> int:
    """CLS and ``config.num_register_tokens`` registers before the patches."""
    return 1 + config.num_register_tokens


# --- dummy inputs -----------------------------------------------------------------------------------------------------


def native_dummy_inputs(config: Any) -> dict[str, torch.Tensor]:
    """One black image of the size that the config fixes.

    Returns:
        ``{"pixel_values": zeros of shape (1, channels, height, width)}``, float32 on the CPU.
    """
    return _black_image(config, _pair(config.image_size))


def one_patch_dummy_inputs(config: Any) -> dict[str, torch.Tensor]:
    """One black image of one patch, for families that take any size; otherwise as :func:`native_dummy_inputs`."""
    return _black_image(config, _pair(config.patch_size))


def _black_image(config: Any, size: Grid) -> dict[str, torch.Tensor]:
    import torch

    return {"pixel_values": torch.zeros(1, config.num_channels, *size)}


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _exact_counts(config: Any, encoder_inputs: dict[str, Any], *, prefix: int) -> list[int]:
    """Counts of a family that takes one size, unless it is asked to interpolate its positions."""
    sizes = _sizes(config, encoder_inputs)
    if encoder_inputs.get("interpolate_pos_encoding"):
        return _interpolated_counts(config, sizes, prefix=prefix)
    for item, size in enumerate(sizes):
        if size != _pair(config.image_size):
            raise _wrong_size(config, item, size)
    return _counts(config, sizes, prefix=prefix)


def _interpolated_counts(config: Any, sizes: list[Grid], *, prefix: int) -> list[int]:
    rows, columns = _native_grid(config)
    if rows != columns:
        raise MediaError(
            f"vision: the encoder's positions form a grid of {rows}x{columns}, and only square grids can be "
            f"interpolated to other image sizes. Use an encoder with a square image_size, not {config.image_size}."
        )
    return _counts(config, sizes, prefix=prefix)


def _counts(config: Any, sizes: list[Grid], *, prefix: int) -> list[int]:
    counts = []
    for item, size in enumerate(sizes):
        rows, columns = _grid(config, size)
        if rows * columns == 0:
            raise MediaError(
                f"vision: image {item} has {_by(size)} pixels, less than one patch of {_by(_pair(config.patch_size))}."
            )
        counts.append(prefix + rows * columns)
    return counts


def _sizes(config: Any, encoder_inputs: dict[str, Any]) -> list[Grid]:
    """Height and width of every image, from shapes alone."""
    pixels = encoder_inputs.get("pixel_values")
    if pixels is None:
        raise MediaError(f"vision: pixel_values are missing; got {', '.join(encoder_inputs) or 'no inputs'}.")
    # no iteration over a tensor: that would make one view per image
    shapes = [pixels.shape[1:]] * pixels.shape[0] if hasattr(pixels, "shape") else [item.shape for item in pixels]
    for item, shape in enumerate(shapes):
        if len(shape) < 3 or shape[-3] != config.num_channels:
            raise MediaError(
                f"vision: image {item} has pixel_values of shape {tuple(shape)}; expected "
                f"({config.num_channels} channels, height, width)."
            )
    return [(int(shape[-2]), int(shape[-1])) for shape in shapes]


def _wrong_size(config: Any, item: int, got: Grid) -> MediaError:
    return MediaError(
        f"vision: image {item} has {_by(got)} pixels; expected {_by(_pair(config.image_size))}. Prepare images with "
        "the encoder's image processor, or pass interpolate_pos_encoding=True."
    )


def _native_grid(config: Any) -> Grid:
    return _grid(config, _pair(config.image_size))


def _grid(config: Any, size: Grid) -> Grid:
    """Rows and columns of whole patches: as a convolution, it drops what remains at the edges."""
    patch = _pair(config.patch_size)
    return size[0] // patch[0], size[1] // patch[1]


def _pair(value: int | Iterable[int]) -> Grid:
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


def _by(size: Grid) -> str:
    return f"{size[0]}x{size[1]}"
