"""The ``"conv_downsample"`` projector: strided convolutions over time, then one linear layer.

This module must not know what the frames are. All frames of an item are used, and zeros are added at its two ends only.

Shapes: T frames, D width, s stride.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from cornstarch_core.errors import CompositionError
from cornstarch_core.specs import ProjectorInterface

from . import options

__all__ = ["ConvDownsample", "ConvDownsampleProjector"]

_NAME = "conv_downsample"


class ConvDownsample(ProjectorInterface):
    """The projection type ``"conv_downsample"``."""

    def build(self, config: PreTrainedConfig) -> ConvDownsampleProjector:
        """Make a :class:`ConvDownsampleProjector`, which describes the config and the errors."""
        return ConvDownsampleProjector(config)

    def num_tokens(self, config: PreTrainedConfig, counts: list[int]) -> list[int]:
        """Count the tokens of each item after the projector.

        A convolution makes ``(T + 2 * padding - kernel_size) // stride + 1`` of T frames. The kernel is odd and padding
        is half of it, so this is ``ceil(T / stride)``.

        Args:
            config: the projector's config.
            counts: frames of each item.

        Raises:
            CompositionError: the number of layers or the stride is not valid.

        Example:
            >>> from cornstarch_core import MultimodalProjectorConfig
            >>> ConvDownsample().num_tokens(MultimodalProjectorConfig(num_layers=2, stride=2), [1500, 5, 0])
            [375, 2, 0]
        """
        layers, stride = _layers_and_stride(config)
        for _ in range(layers):
            counts = [-(-count // stride) for count in counts]
        return counts


class ConvDownsampleProjector(nn.Module):
    """Projects ``(T, in_features)`` or ``(items, T, in_features)``: one token for about ``s**num_layers`` frames.

    The dtype is unchanged; :meth:`ConvDownsample.num_tokens` tells the exact length.

    Args:
        config: ``in_features``, ``out_features``, ``activation`` (a name from ``ACT2CLS``, after each convolution,
            default ``"gelu"``) and

            - ``num_layers``: convolutions, default 2;
            - ``kernel_size``: frames that each convolution reads, odd, default 3; half of it is padding at both ends;
            - ``stride``: each convolution shortens T to ``ceil(T / stride)``, default 2;
            - ``hidden_features``: width of the convolutions, default ``in_features``.

    Raises:
        CompositionError: a width is missing, or an option is not valid.

    Example:
        >>> import torch
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> config = MultimodalProjectorConfig(in_features=8, out_features=32)
        >>> ConvDownsampleProjector(config)(torch.zeros(1, 10, 8)).shape
        torch.Size([1, 3, 32])
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        in_features, out_features = options.widths(_NAME, config)
        hidden = options.positive(_NAME, config, "hidden_features", in_features)
        kernel, (layers, stride) = _kernel_size(config), _layers_and_stride(config)
        self.convs = nn.ModuleList(
            nn.Conv1d(width, hidden, kernel, stride, padding=kernel // 2)
            for width in (in_features, *[hidden] * (layers - 1))
        )
        self.act = ACT2FN[options.activation(_NAME, config)]
        self.linear = nn.Linear(hidden, out_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve, then project."""
        is_empty = features.shape[-2] == 0
        if is_empty:  # Conv1d refuses it (torch 2.13); one frame, removed again, keeps every parameter in the graph
            features = functional.pad(features, (0, 0, 0, 1))
        channels_first = features.transpose(-1, -2)
        for conv in self.convs:
            channels_first = self.act(conv(channels_first))
        tokens = self.linear(channels_first.transpose(-1, -2))
        return tokens[..., :0, :] if is_empty else tokens


def _layers_and_stride(config: PreTrainedConfig) -> tuple[int, int]:
    return options.positive(_NAME, config, "num_layers", 2), options.positive(_NAME, config, "stride", 2)


def _kernel_size(config: PreTrainedConfig) -> int:
    kernel = options.positive(_NAME, config, "kernel_size", 3)
    if kernel % 2 == 0:
        raise CompositionError(
            f"{_NAME}: kernel_size={kernel}; expected an odd number, so that each output is centred on a frame; use "
            f"{kernel + 1}."
        )
    return kernel
