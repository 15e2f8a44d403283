"""An encoder of our own: patches of a series, and convolutions over them. A plain ``nn.Module``.

Shapes: N items, T values over time, C channels, L values in a patch, P patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig

from cornstarch_core.errors import CompositionError

__all__ = ["SeriesConvConfig", "SeriesConvEncoder", "build_encoder", "dummy_inputs", "num_tokens", "prefix_tokens"]


class SeriesConvConfig(PreTrainedConfig):
    """Describes a :class:`SeriesConvEncoder`. Saved with the model, and all that is needed to make it again.

    Args:
        channels: C of every series.
        patch_length: L, values over time that become one token.
        hidden_size: D.
        num_layers: convolutions; each sees twice as far as the one before.
        kernel_size: patches that each of them sees, odd.
        max_steps: longest series that the processor takes; the encoder itself has no limit.

    Raises:
        CompositionError: a value is no positive integer, or ``kernel_size`` is even.
    """

    model_type = "cornstarch_series_conv"

    def __init__(
        self,
        channels: int = 1,
        patch_length: int = 8,
        hidden_size: int = 64,
        num_layers: int = 2,
        kernel_size: int = 3,
        max_steps: int = 16384,
        **kwargs: Any,
    ) -> None:
        sizes = {
            "channels": channels,
            "patch_length": patch_length,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "kernel_size": kernel_size,
            "max_steps": max_steps,
        }
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CompositionError(f"series_conv: {name}={value!r}; expected a positive integer.")
            setattr(self, name, value)
        if kernel_size % 2 == 0:
            raise CompositionError(
                f"series_conv: kernel_size={kernel_size}; expected an odd number: as many patches before one as after."
            )
        super().__init__(**kwargs)


class SeriesConvEncoder(nn.Module):
    """Encodes series of any length: one token for the level, then one for every patch.

    An item's features are the same whatever it is batched with, up to rounding: in front of every convolution what lies
    beyond its end is set to zero, as the convolution takes it for a series alone.

    Args:
        config: sizes.

    Example:
        >>> encoder = SeriesConvEncoder(SeriesConvConfig(patch_length=4, hidden_size=16))
        >>> features = encoder([torch.zeros(9, 1), torch.zeros(4, 1)], torch.zeros(2, 2))
        >>> [tuple(one.shape) for one in features]
        [(4, 16), (2, 16)]
    """

    config_class = SeriesConvConfig

    def __init__(self, config: SeriesConvConfig) -> None:
        super().__init__()
        self.config = config
        self.level = nn.Linear(2 * config.channels, config.hidden_size)
        self.patch = nn.Linear(config.patch_length * (config.channels + 1), config.hidden_size)
        self.blocks = nn.ModuleList(
            ConvBlock(config.hidden_size, config.kernel_size, dilation=2**depth) for depth in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, series: list[torch.Tensor], levels: torch.Tensor) -> list[torch.Tensor]:
        """Encode a batch.

        Args:
            series: of each item ``(T_i, C)``, standardised.
            levels: ``(N, 2 * C)``, what that took away.

        Returns:
            Of each item ``(1 + P_i, D)``; ``P_i`` is ``ceil(T_i / L)``.
        """
        counts = [num_patches(self.config, one) for one in series]
        hidden = self.patch(self._patches(series))
        there = _mask(counts, hidden.shape[1], hidden)
        for block in self.blocks:
            hidden = block(hidden, there)
        hidden = self.norm(torch.cat([self.level(levels)[:, None], hidden], dim=1))
        return [row[: 1 + count] for row, count in zip(hidden.unbind(), counts, strict=True)]

    def _patches(self, series: list[torch.Tensor]) -> torch.Tensor:
        """``(N, P, L * (C + 1))``: values, and beside them whether there is one, as the last patch may lack some."""
        values = pad_sequence(list(series), batch_first=True)
        there = _mask([len(one) for one in series], values.shape[1], values)
        known = torch.cat([values, there], dim=2)
        missing = -known.shape[1] % self.config.patch_length
        return functional.pad(known, (0, 0, 0, missing)).unflatten(1, (-1, self.config.patch_length)).flatten(2)


class ConvBlock(nn.Module):
    """A residual convolution over patches, ``(N, P, D)``."""

    def __init__(self, width: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel_size, padding="same", dilation=dilation)
        self.act = nn.GELU()
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """``there`` ``(N, P, 1)`` is 1 at patches, 0 beyond the end of a series."""
        seen = (self.norm(hidden) * there).transpose(1, 2)
        return hidden + self.linear(self.act(self.conv(seen).transpose(1, 2)))


def _mask(lengths: list[int], longest: int, like: torch.Tensor) -> torch.Tensor:
    """``(N, longest, 1)``: 1 within each length, 0 beyond. From the host, so that no device is waited for."""
    ends = torch.tensor(lengths).to(like.device, non_blocking=True)
    return (torch.arange(longest, device=like.device) < ends[:, None]).to(like.dtype)[..., None]


# --- what the plugin says of it ---------------------------------------------------------------------------------------


def num_patches(config: SeriesConvConfig, series: torch.Tensor) -> int:
    """``ceil(T / L)``."""
    return -(-len(series) // config.patch_length)


def num_tokens(config: SeriesConvConfig, encoder_inputs: dict[str, Any]) -> list[int]:
    """Tokens of each item.

    Example:
        >>> num_tokens(SeriesConvConfig(patch_length=8), {"series": [torch.zeros(1, 1), torch.zeros(16, 1)]})
        [2, 3]
    """
    return [prefix_tokens(config) + num_patches(config, one) for one in encoder_inputs["series"]]


def prefix_tokens(config: SeriesConvConfig) -> int:
    """The token of the level stands before those of patches."""
    return 1


def dummy_inputs(config: SeriesConvConfig) -> dict[str, Any]:
    """A series of one value."""
    return {"series": [torch.zeros(1, config.channels)], "levels": torch.zeros(1, 2 * config.channels)}


def build_encoder(config: dict[str, Any]) -> SeriesConvEncoder:
    """The encoder that a saved model describes, with fresh weights."""
    return SeriesConvEncoder(SeriesConvConfig.from_dict(dict(config)))
