"""The processors ``"series"`` and ``"series_window"``: from series to the tensors that encoders take.

This module must not know about tokens or models. Each series is processed by itself, independently of the others.

Shapes: N items, T values over time, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from cornstarch_core.errors import MediaError
from cornstarch_core.specs import EncoderContext, ProcessorInterface

from .series import Scaled, prepare_series, standardize

__all__ = ["Series", "SeriesProcessor", "SeriesWindow", "WindowProcessor"]


class Series(ProcessorInterface[ArrayLike]):
    """Prepares series for a ``SeriesConvEncoder``."""

    def build(self, context: EncoderContext, **callback_options: object) -> Callable[..., dict[str, Any]]:
        """Make the processor of an encoder: a :class:`SeriesProcessor`.

        Args:
            context: the encoder.
            **callback_options: ignored: no callbacks change how series are prepared.
        """
        return SeriesProcessor(context.config.channels, context.config.max_steps)

    def prepare(self, item: ArrayLike) -> np.ndarray:
        """Check one series and convert it; arguments and errors are those of :func:`prepare_series`."""
        return prepare_series(item)


class SeriesWindow(Series):
    """Prepares series for a PatchTST."""

    def build(self, context: EncoderContext, **callback_options: object) -> Callable[..., dict[str, Any]]:
        """Make the processor of an encoder: a :class:`WindowProcessor`.

        It standardises series if the PatchTST does too. Otherwise the PatchTST was trained on values as they are.

        Args:
            context: the encoder.
            **callback_options: ignored: no callbacks change how series are prepared.
        """
        config = context.config
        return WindowProcessor(config.context_length, config.num_input_channels, config.scaling == "std")


# --- processors -------------------------------------------------------------------------------------------------------


class SeriesProcessor:
    """Standardises series of any length one by one, and keeps their means and deviations as levels.

    Args:
        channels: C, the number of channels that every series must have.
        max_steps: the largest number of values over time that a series may have.

    Example:
        >>> inputs = SeriesProcessor()([[1, 2, 3], [5.0] * 10])
        >>> [tuple(one.shape) for one in inputs["series"]], inputs["levels"].shape
        ([(3, 1), (10, 1)], torch.Size([2, 2]))
    """

    def __init__(self, channels: int = 1, max_steps: int = 16384) -> None:
        self.channels = channels
        self.max_steps = max_steps

    def __call__(self, items: Sequence[ArrayLike], return_tensors: str = "pt") -> dict[str, Any]:
        """Make the inputs of a :class:`~cornstarch_timeseries.conv.SeriesConvEncoder`.

        Args:
            items: series, as :func:`~cornstarch_timeseries.series.prepare_series` takes them.
            return_tensors: ``"pt"``.

        Returns:
            ``series``, a list of ``(T_i, C)`` float32, each channel with mean 0 and deviation 1; and ``levels``,
            ``(N, 2 * C)`` float32: of each channel's mean, then of each channel's deviation, the asinh, since they
            range over orders of magnitude.

        Raises:
            MediaError: a series is too long, or has another number of channels.
        """
        _check_tensors(return_tensors)
        scaled = [standardize(self._checked(prepare_series(item))) for item in items]
        return {
            "series": [torch.from_numpy(one.values.astype(np.float32)) for one in scaled],
            "levels": torch.stack([_level(one) for one in scaled]),
        }

    def _checked(self, values: np.ndarray) -> np.ndarray:
        _check_channels(values, self.channels)
        if len(values) > self.max_steps:
            raise MediaError(
                f"series: {len(values)} values over time, too long; this encoder takes at most {self.max_steps}. Cut "
                "the series, keep every n-th value, or build the encoder with a larger max_steps."
            )
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain data, which :meth:`from_dict` reads."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> SeriesProcessor:
        """Make a processor from what :meth:`to_dict` gives."""
        return cls(**settings)


class WindowProcessor:
    """Stacks series of one length, for PatchTST.

    Args:
        length: the number of values over time that every series must have.
        channels: C, the number of channels that every series must have.
        scale: whether to standardise them, as PatchTST itself does again.

    Example:
        >>> WindowProcessor(length=4)([[1, 2, 3, 4]])["past_values"].shape
        torch.Size([1, 4, 1])
    """

    def __init__(self, length: int, channels: int = 1, scale: bool = True) -> None:
        self.length = length
        self.channels = channels
        self.scale = scale

    def __call__(self, items: Sequence[ArrayLike], return_tensors: str = "pt") -> dict[str, Any]:
        """Make the inputs of a PatchTST.

        Args:
            items: series, as :func:`~cornstarch_timeseries.series.prepare_series` takes them.
            return_tensors: ``"pt"``.

        Returns:
            ``past_values``, ``(N, length, C)`` float32.

        Raises:
            MediaError: a series has another length, or another number of channels.
        """
        _check_tensors(return_tensors)
        checked = [self._checked(prepare_series(item)) for item in items]
        values = [standardize(one).values for one in checked] if self.scale else checked
        return {"past_values": torch.from_numpy(np.stack(values).astype(np.float32))}

    def _checked(self, values: np.ndarray) -> np.ndarray:
        _check_channels(values, self.channels)
        if len(values) != self.length:
            how = "long" if len(values) > self.length else "short"
            advice = f"its last {self.length} values" if how == "long" else "more of it"
            raise MediaError(
                f"series: {len(values)} values over time, too {how}; this encoder takes {self.length}. Give {advice}, "
                "resample it, or use an encoder of any length (SeriesConvEncoder)."
            )
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain data, which :meth:`from_dict` reads."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> WindowProcessor:
        """Make a processor from what :meth:`to_dict` gives."""
        return cls(**settings)


def _check_tensors(wanted: str) -> None:
    if wanted != "pt":
        raise ValueError(f"return_tensors={wanted!r}; series become PyTorch tensors: 'pt'.")


def _check_channels(values: np.ndarray, channels: int) -> None:
    if values.shape[1] != channels:
        transposed = len(values) == channels
        advice = "It looks transposed: give its transpose." if transposed else "Give as many as the encoder takes."
        raise MediaError(
            f"series: of shape {values.shape}, so {values.shape[1]} channels; this encoder takes {channels}, in the "
            f"last axis. {advice}"
        )


def _level(scaled: Scaled) -> torch.Tensor:
    return torch.from_numpy(np.arcsinh([*scaled.mean, *scaled.deviation]).astype(np.float32))
