"""The ``"pixel_shuffle"`` projector: squares of neighbouring patches become one wide token, then an MLP.

Space-to-depth as in Idefics3 and SmolVLM (https://arxiv.org/abs/2408.12637) and InternVL 1.5
(https://arxiv.org/abs/2404.16821); the MLP (layer norm, linear, activation, linear) is InternVL's.

Shapes: T tokens, D width, f scale factor.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2CLS, ACT2FN

from cornstarch_core.errors import CompositionError, InputError
from cornstarch_core.specs import CountTokens, ProjectorInterface

__all__ = ["PixelShuffle", "PixelShuffleProjector", "pixel_shuffle"]


class PixelShuffle(ProjectorInterface):
    """The projection type ``"pixel_shuffle"``."""

    def build(self, config: PreTrainedConfig) -> PixelShuffleProjector:
        """Make a :class:`PixelShuffleProjector`, which describes the config and the errors."""
        return PixelShuffleProjector(config)

    def num_tokens(self, config: PreTrainedConfig, counts: list[int]) -> list[int]:
        """Count the tokens of each image after the projector.

        Args:
            config: the projector's config.
            counts: tokens of each image before the projector.

        Raises:
            CompositionError: a count is not the square of a multiple of the scale factor.

        Example:
            >>> from cornstarch_core import MultimodalProjectorConfig
            >>> PixelShuffle().num_tokens(MultimodalProjectorConfig(scale_factor=2), [16, 576])
            [4, 144]
        """
        factor = _scale_factor(config)
        return [(_side(count, factor) // factor) ** 2 for count in counts]

    def dummy_inputs(
        self, config: PreTrainedConfig, encoder_inputs: dict[str, Any], count: CountTokens
    ) -> dict[str, Any]:
        """Enlarge the smallest inputs of an encoder until their tokens form a grid that the factor divides.

        Args:
            config: the projector's config; ``scale_factor``, default 2.
            encoder_inputs: ``pixel_values`` ``(..., height, width)``, repeated along both edges; or ready-made
                ``embeds`` ``(items, tokens, width)``, whose tokens are repeated.
            count: tells how many tokens of each image would reach the projector.

        Returns:
            The inputs with as few repetitions as possible; unchanged if no number of repetitions fits, as with an
            encoder of a fixed size.

        Example:
            >>> import torch
            >>> from cornstarch_core import MultimodalProjectorConfig
            >>> one_patch = {"pixel_values": torch.zeros(1, 3, 14, 14)}
            >>> def count(inputs):
            ...     return [(inputs["pixel_values"].shape[-1] // 14) ** 2]
            >>> config = MultimodalProjectorConfig(scale_factor=2)
            >>> PixelShuffle().dummy_inputs(config, one_patch, count)["pixel_values"].shape
            torch.Size([1, 3, 28, 28])
        """
        factor = _scale_factor(config)
        for times in range(1, factor + 1):
            enlarged = {**encoder_inputs, **_repeated(encoder_inputs, times)}
            try:
                counts = count(enlarged)
            except InputError:  # the encoder takes no other size
                break
            if all(_fits(tokens, factor) for tokens in counts):
                return enlarged
        return encoder_inputs


class PixelShuffleProjector(nn.Module):
    """Projects ``(..., T, in_features)`` to ``(..., T / f**2, out_features)``, dtype unchanged.

    The T tokens are the patches of one image, row by row, in a square grid. Leave out CLS and registers, for example
    with ``callbacks="llava"``.

    Args:
        config: ``in_features``, ``out_features``, ``activation`` (a name from ``ACT2CLS``), and ``scale_factor``,
            default 2.

    Raises:
        CompositionError: a width is missing, or the activation or the factor is not valid.

    Example:
        >>> import torch
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> config = MultimodalProjectorConfig(in_features=8, out_features=32, scale_factor=2)
        >>> PixelShuffleProjector(config)(torch.zeros(1, 16, 8)).shape
        torch.Size([1, 4, 32])
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        if config.in_features is None or config.out_features is None:
            raise CompositionError(
                f"pixel_shuffle: in_features={config.in_features}, out_features={config.out_features}; give both."
            )
        if config.activation not in ACT2CLS:
            raise CompositionError(
                f"pixel_shuffle: unknown activation {config.activation!r}; choose one of {', '.join(sorted(ACT2CLS))}."
            )
        self.scale_factor = _scale_factor(config)
        width = config.in_features * self.scale_factor**2
        self.layer_norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, config.out_features)
        self.act = ACT2FN[config.activation]
        self.linear_2 = nn.Linear(config.out_features, config.out_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Shuffle, then project."""
        wide = self.layer_norm(pixel_shuffle(features, self.scale_factor))
        return self.linear_2(self.act(self.linear_1(wide)))


def pixel_shuffle(features: torch.Tensor, scale_factor: int = 2) -> torch.Tensor:
    """Space-to-depth on a square grid of tokens.

    Args:
        features: ``(..., T, D)``, any dtype; T is the square of a multiple of ``scale_factor``.
        scale_factor: edge f of the squares that are joined.

    Returns:
        ``(..., T / f**2, D * f**2)``: each token holds the tokens of one square, row by row.

    Raises:
        CompositionError: the tokens don't form such a grid.

    Example:
        >>> import torch
        >>> pixel_shuffle(torch.arange(16).reshape(16, 1))[0].tolist()
        [0, 1, 4, 5]
    """
    tokens, width = features.shape[-2:]
    f = scale_factor
    side = _side(tokens, f) // f
    squares = features.reshape(*features.shape[:-2], side, f, side, f, width).transpose(-4, -3)
    return squares.reshape(*features.shape[:-2], side * side, f * f * width)


def _repeated(inputs: dict[str, Any], times: int) -> dict[str, torch.Tensor]:
    pixels, embeds = inputs.get("pixel_values"), inputs.get("embeds")
    if isinstance(pixels, torch.Tensor):
        return {"pixel_values": pixels.repeat(*[1] * (pixels.dim() - 2), times, times)}
    return {"embeds": embeds.repeat(1, times**2, 1)} if isinstance(embeds, torch.Tensor) else {}


def _scale_factor(config: PreTrainedConfig) -> int:
    factor = getattr(config, "scale_factor", 2)
    if type(factor) is not int or factor < 1:
        raise CompositionError(f"pixel_shuffle: scale_factor={factor!r}; expected a positive integer.")
    return factor


def _side(tokens: int, factor: int) -> int:
    """Edge of the grid."""
    if not _fits(tokens, factor):
        raise CompositionError(
            f"pixel_shuffle: {tokens} tokens per image are not the square of a multiple of scale_factor={factor}. Drop "
            "CLS and registers (callbacks='llava'), or choose an image size or factor that fits."
        )
    return isqrt(tokens)


def _fits(tokens: int, factor: int) -> bool:
    """Whether the tokens form a square grid whose edge the factor divides."""
    side = isqrt(max(tokens, 0))
    return 0 < tokens == side * side and side % factor == 0
