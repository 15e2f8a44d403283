"""One series: its check and conversion, and its standardisation.

This module must not know about encoders, patches or tokens.

Shapes: T values over time, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from cornstarch_core.errors import MediaError

__all__ = ["Scaled", "prepare_series", "standardize"]

_LARGEST = float(np.finfo(np.float32).max)
_RESOLUTION = float(np.finfo(np.float32).eps)


def prepare_series(item: ArrayLike) -> np.ndarray:
    """Check one series and convert it.

    Args:
        item: numbers over time, ``(T,)`` or ``(T, C)``: a numpy array, a list or tuple, a tensor of any device and
            dtype, a pandas Series or DataFrame, or anything else that numpy makes an array of. Integers and booleans
            are converted without scaling.

    Returns:
        ``(T, C)`` float64; it may share memory with the item.

    Raises:
        MediaError: the item has no numbers, another shape, no values, or values that are NaN, infinite or beyond
            float32.

    Example:
        >>> prepare_series([1, 2, 4]).tolist()
        [[1.0], [2.0], [4.0]]
        >>> prepare_series(np.zeros((5, 3))).shape
        (5, 3)
    """
    array = _as_array(item)
    if array.ndim not in (1, 2):
        raise MediaError(
            f"series: values of shape {array.shape}; expected (time,) or (time, channels). Give the series of a batch "
            "one by one."
        )
    if array.size == 0:
        raise MediaError(f"series: empty, of shape {array.shape}; leave this item out, or give at least one value.")
    values = array.astype(np.float64, copy=False).reshape(len(array), -1)
    _check_values(values)
    return values


def _as_array(item: object) -> np.ndarray:
    if isinstance(item, (str, bytes, Mapping)):
        raise MediaError(f"series: a {type(item).__name__} is no series; read it first, and give its numbers.")
    try:
        if isinstance(item, torch.Tensor):
            item = item.detach().cpu().double().numpy()  # numpy has no bfloat16
        array = np.asarray(item)
        if array.dtype.kind == "O":  # pandas' nullable numbers; numpy's error names an entry that is no number
            array = array.astype(np.float64)
    except Exception as error:  # numpy, pandas and torch raise all kinds of errors
        raise MediaError(f"series: this {type(item).__name__} is no array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise MediaError(f"series: values of dtype {array.dtype}; expected numbers. Convert them, or leave them out.")
    return array


def _check_values(values: np.ndarray) -> None:
    wrong = ~(np.abs(values) <= _LARGEST)  # NaN compares as false
    if wrong.any():
        step, channel = np.argwhere(wrong)[0].tolist()
        where = f"step {step}" if values.shape[1] == 1 else f"step {step}, channel {channel}"
        raise MediaError(
            f"series: {np.count_nonzero(wrong)} of {values.size} values are NaN, infinite or beyond float32, the first "
            f"at {where}; fill them in, for example by interpolation, or leave this item out."
        )


@dataclass(frozen=True, eq=False)  # arrays have no equality that is true or false
class Scaled:
    """A standardised series.

    Args:
        values: ``(T, C)`` float64: each channel has mean 0 and deviation 1, or only zeros if it is constant.
        mean: ``(C,)`` float64, the means before.
        deviation: ``(C,)`` float64, the deviations before; 0 for a constant channel.
    """

    values: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def standardize(values: np.ndarray) -> Scaled:
    """Standardise each channel of one series by its own mean and deviation, so that only its shape is left.

    This is done in float64, and not inside the model: a model in bfloat16 keeps 8 bits of a value, and would lose the
    shape of a series around 1000 before it subtracts the mean. A channel whose deviation is below float32's resolution
    counts as constant.

    Args:
        values: ``(T, C)`` float64.

    Example:
        >>> scaled = standardize(np.array([[1001.0, 7.0], [999.0, 7.0]]))
        >>> scaled.values.tolist(), scaled.mean.tolist(), scaled.deviation.tolist()
        ([[1.0, 0.0], [-1.0, 0.0]], [1000.0, 7.0], [1.0, 0.0])
    """
    mean = values.mean(axis=0)
    deviation = values.std(axis=0)
    deviation = np.where(deviation > _RESOLUTION * np.abs(values).max(axis=0), deviation, 0.0)
    centred = (values - mean) * (deviation > 0)
    return Scaled(centred / np.where(deviation > 0, deviation, 1.0), mean, deviation)
