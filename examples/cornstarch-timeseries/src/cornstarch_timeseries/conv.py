"""An encoder of this package: patches of a series, and convolutions over them. It is a plain ``nn.Module``.

Shapes: N items, T values over time, C channels, L values in a patch, P patches, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig

from cornstarch_core.errors import CompositionError
from cornstarch_core.specs import EncoderInterface

__all__ = ["SeriesConv", "SeriesConvConfig", "SeriesConvEncoder"]


class SeriesConvConfig(PreTrainedConfig):
    """Describes a :class:`SeriesConvEncoder`. It is saved with the model, and enough to build the encoder again.

    Args:
        channels: C, the number of channels of every series.
        patch_length: L, the number of values over time that become one token.
        hidden_size: D.
        num_layers: number of convolutions; each has twice the dilation of the one before.
        kernel_size: patches that each convolution reads, odd.
        max_steps: the longest series that the processor takes; the encoder itself has no limit.

    Raises:
        CompositionError: a value is not a positive integer, or ``kernel_size`` is even.
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

    Up to rounding, the features of an item don't depend on the other items in its batch: before every convolution, what
    lies beyond the end of the item is set to zero, which is what the convolution pads a single series with.

    Args:
        config: the sizes.

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
            series: one standardised ``(T_i, C)`` for each item.
            levels: ``(N, 2 * C)``, the means and deviations before standardising.

        Returns:
            One ``(1 + P_i, D)`` for each item; ``P_i`` is ``ceil(T_i / L)``.
        """
        counts = [num_patches(self.config, one) for one in series]
        hidden = self.patch(self._patches(series))
        mask = _mask(counts, hidden.shape[1], hidden)
        for block in self.blocks:
            hidden = block(hidden, mask)
        hidden = self.norm(torch.cat([self.level(levels)[:, None], hidden], dim=1))
        return [row[: 1 + count] for row, count in zip(hidden.unbind(), counts, strict=True)]

    def _patches(self, series: list[torch.Tensor]) -> torch.Tensor:
        """``(N, P, L * (C + 1))``: the values, and a mask, since the last patch may lack some values."""
        values = pad_sequence(list(series), batch_first=True)
        mask = _mask([len(one) for one in series], values.shape[1], values)
        known = torch.cat([values, mask], dim=2)
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

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``mask`` ``(N, P, 1)`` is 1 at patches, 0 beyond the end of a series."""
        masked = (self.norm(hidden) * mask).transpose(1, 2)
        return hidden + self.linear(self.act(self.conv(masked).transpose(1, 2)))


def _mask(lengths: list[int], longest: int, like: torch.Tensor) -> torch.Tensor:
    """``(N, longest, 1)``: 1 within each length, 0 beyond. Made from lengths on the host, so without a device sync."""
    ends = torch.tensor(lengths).to(like.device, non_blocking=True)
    return (torch.arange(longest, device=like.device) < ends[:, None]).to(like.dtype)[..., None]


# --- what the core asks about it --------------------------------------------------------------------------------------


class SeriesConv(EncoderInterface[SeriesConvConfig]):
    """Counts the tokens of a :class:`SeriesConvEncoder`, and builds it."""

    def num_tokens(self, config: SeriesConvConfig, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the tokens of each item: one for the level, and one for each patch.

        Args:
            config: the encoder's config.
            encoder_inputs: ``series`` and ``levels``.

        Example:
            >>> inputs = {"series": [torch.zeros(1, 1), torch.zeros(16, 1)]}
            >>> SeriesConv().num_tokens(SeriesConvConfig(patch_length=8), inputs)
            [2, 3]
        """
        return [self.prefix_tokens(config) + num_patches(config, one) for one in encoder_inputs["series"]]

    def prefix_tokens(self, config: SeriesConvConfig) -> int:
        """One: the token of the level comes before those of patches."""
        return 1

    def dummy_inputs(self, config: SeriesConvConfig) -> dict[str, Any]:
        """Make the smallest valid inputs: a series of one value.

        Args:
            config: the encoder's config.
        """
        return {"series": [torch.zeros(1, config.channels)], "levels": torch.zeros(1, 2 * config.channels)}

    def build(self, config: Mapping[str, Any]) -> SeriesConvEncoder:
        """Build the encoder with fresh weights, when a saved model is loaded.

        Args:
            config: a :class:`SeriesConvConfig` as plain data.
        """
        return SeriesConvEncoder(SeriesConvConfig.from_dict(dict(config)))


def num_patches(config: SeriesConvConfig, series: torch.Tensor) -> int:
    """``ceil(T / L)``."""
    return -(-len(series) // config.patch_length)
