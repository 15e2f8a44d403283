"""The ``"frame_stack"`` projector: neighbouring frames become one wide token, then an MLP.

Stacking and MLP (norm, linear, SwiGLU, linear, norm) as in Ultravox up to 0.4.1 (https://github.com/fixie-ai/ultravox,
``UltravoxProjector``). Without norms it is the projector of Voxtral (https://arxiv.org/abs/2507.13264) and, with biases
too, that of GLM-ASR.

This module must not know what the frames are, or which of them were padding before the encoder.

Shapes: T frames, D width, k stack factor.
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

__all__ = ["FrameStack", "FrameStackProjector", "stack_frames"]

_NAME = "frame_stack"


class FrameStack(ProjectorInterface):
    """The projection type ``"frame_stack"``."""

    def build(self, config: PreTrainedConfig) -> FrameStackProjector:
        """Make a :class:`FrameStackProjector`, which describes the config and the errors."""
        return FrameStackProjector(config)

    def num_tokens(self, config: PreTrainedConfig, counts: list[int]) -> list[int]:
        """Count the tokens of each item after the projector: ``ceil(count / stack_factor)``.

        Args:
            config: the projector's config.
            counts: frames of each item.

        Raises:
            CompositionError: the stack factor is not valid.

        Example:
            >>> from cornstarch_core import MultimodalProjectorConfig
            >>> FrameStack().num_tokens(MultimodalProjectorConfig(stack_factor=4), [1500, 5, 0])
            [375, 2, 0]
        """
        factor = _stack_factor(config)
        return [-(-count // factor) for count in counts]


class FrameStackProjector(nn.Module):
    """Projects ``(..., T, in_features)`` to ``(..., ceil(T / k), out_features)``, dtype unchanged.

    Args:
        config: ``in_features``, ``out_features`` and

            - ``stack_factor``: frames k that become one token, default 8;
            - ``activation``: a name from ``ACT2CLS``, default ``"gelu"``, or ``"swiglu"``: the first half of
              ``linear_1``'s output times SiLU of the second;
            - ``hidden_features``: the width after ``linear_1`` (for ``"swiglu"``, of both halves), default
              ``out_features``;
            - ``bias``: whether the two linear layers have biases, default False;
            - ``norm``: whether there is an RMSNorm before and after, default True.

    Raises:
        CompositionError: a width is missing, or an option is not valid.

    Example:
        >>> import torch
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> config = MultimodalProjectorConfig(in_features=8, out_features=32, stack_factor=4, activation="swiglu")
        >>> FrameStackProjector(config)(torch.zeros(1, 10, 8)).shape
        torch.Size([1, 3, 32])
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        in_features, out_features = options.widths(_NAME, config)
        activation = options.activation(_NAME, config, "swiglu")
        bias, norm = options.flag(_NAME, config, "bias", False), options.flag(_NAME, config, "norm", True)
        hidden = options.positive(_NAME, config, "hidden_features", out_features)
        self.stack_factor = _stack_factor(config)
        wide = in_features * self.stack_factor
        self.norm_before = nn.RMSNorm(wide, eps=1e-6) if norm else nn.Identity()
        self.linear_1 = nn.Linear(wide, hidden, bias=bias)
        self.act = SwiGLU() if activation == "swiglu" else ACT2FN[activation]
        self.linear_2 = nn.Linear(_after_activation(activation, hidden), out_features, bias=bias)
        self.norm_after = nn.RMSNorm(out_features, eps=1e-6) if norm else nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Stack, then project."""
        wide = self.norm_before(stack_frames(features, self.stack_factor))
        return self.norm_after(self.linear_2(self.act(self.linear_1(wide))))


class SwiGLU(nn.Module):
    """``(..., 2 * D)`` to ``(..., D)``: the first half gated by the second, Ultravox's order (Llama's is the other)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """First half times SiLU of the second."""
        values, gates = features.chunk(2, dim=-1)
        return values * functional.silu(gates)


def stack_frames(features: torch.Tensor, stack_factor: int = 8) -> torch.Tensor:
    """Join each run of ``stack_factor`` frames; the last run is padded with zeros.

    Args:
        features: ``(..., T, D)``, any dtype.
        stack_factor: number of frames k in a run.

    Returns:
        ``(..., ceil(T / k), k * D)``: each token holds its frames one after another.

    Example:
        >>> import torch
        >>> stack_frames(torch.arange(1, 6).reshape(5, 1), 2).tolist()
        [[1, 2], [3, 4], [5, 0]]
    """
    frames, width = features.shape[-2:]
    missing = -frames % stack_factor
    if missing:
        features = functional.pad(features, (0, 0, 0, missing))
    return features.reshape(*features.shape[:-2], (frames + missing) // stack_factor, stack_factor * width)


def _stack_factor(config: PreTrainedConfig) -> int:
    return options.positive(_NAME, config, "stack_factor", 8)


def _after_activation(activation: str, hidden: int) -> int:
    """The width that ``linear_2`` takes."""
    if activation != "swiglu":
        return hidden
    if hidden % 2:
        raise CompositionError(
            f"{_NAME}: hidden_features={hidden} (default: out_features) can't be halved; expected an even number for "
            f"activation='swiglu'; set hidden_features={hidden + 1}, or choose another activation."
        )
    return hidden // 2
