"""Waveforms: the check of one audio item, its conversion to mono samples, and resampling.

This module must not know about encoders, features or tokens, nor how files are read (``files.py``). Resampling needs
soxr, which is optional (``cornstarch-audio[io]``) and imported only when it is needed.

Shapes: n samples, C channels.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from cornstarch_core.errors import MediaError

from .files import INSTALL, read_content, read_path

__all__ = ["AudioItem", "Waveform", "at_rate", "prepare_audio"]

MAX_CHANNELS = 8  # 7.1 surround has 8; more are the bins of a spectrogram, or a batch
MAX_MAGNITUDE = 10  # floats somewhat outside of [-1, 1] are common; larger ones are integers that were not scaled


@dataclass(frozen=True, eq=False)  # arrays have no equality that is true or false
class Waveform:
    """One audio item as :func:`prepare_audio` leaves it.

    Args:
        samples: ``(n,)`` float32, mono, C-contiguous, full scale is [-1, 1]. It may share memory with the item.
        rate: samples per second, in hertz; ``None``: unknown.
    """

    samples: np.ndarray
    rate: int | None


class Decoder(Protocol):
    """As much of torchcodec's ``AudioDecoder`` as is used."""

    def get_all_samples(self) -> Any:
        """The samples, with ``data`` and ``sample_rate``."""
        ...


AudioItem: TypeAlias = (
    Waveform
    | np.ndarray
    | torch.Tensor
    | list[float]
    | tuple[float, ...]
    | Mapping[str, Any]
    | Decoder
    | str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
)
"""One clip as :func:`prepare_audio` takes it."""


def prepare_audio(item: AudioItem) -> Waveform:
    """Check one audio item and convert it to mono float32.

    Args:
        item: one of

            - an array or tensor ``(n,)``, ``(C, n)`` or ``(n, C)``; the shorter axis holds the channels, at most 8,
              which are averaged. Values are floats in [-1, 1]; or int8, int16, int32 or uint8 (128 is zero), which are
              scaled by the dtype's range;
            - a list or tuple of n numbers in [-1, 1];
            - what the ``Audio`` feature of Hugging Face datasets gives: ``{"array": ..., "sampling_rate": ...}``,
              ``{"bytes": ..., "path": ...}``, or torchcodec's ``AudioDecoder``;
            - the path of an audio file, a ``file://`` URL, or the file's content as ``bytes`` or as
              ``data:audio/...;base64,...``. This needs soundfile. A truncated wav or mp3 gives the samples that are
              left;
            - a :class:`Waveform`, which is returned unchanged.

    Returns:
        The waveform, at the rate of the item.

    Raises:
        MediaError: the item is not audio, can't be read, is empty, has NaN or infinite values, floats beyond a
            magnitude of 10, or an unclear axis of channels; or soundfile is missing.

    Example:
        >>> import numpy as np
        >>> stereo = np.array([[16384, 0, -32768], [0, 0, -32768]], np.int16)
        >>> waveform = prepare_audio({"array": stereo, "sampling_rate": 8000})
        >>> waveform.samples.tolist(), waveform.rate
        ([0.25, 0.0, -1.0], 8000)
    """
    try:
        return _open(item)
    except MediaError:
        raise
    except Exception as error:  # tensors of an odd layout or device, decoders of torchcodec
        reason = str(error).rstrip(".")
        raise MediaError(
            f"audio: this {type(item).__name__} can't be read: {reason}. Give the samples as a numpy array (n,)."
        ) from error


def at_rate(waveform: Waveform, wanted: int, given: int | None = None) -> np.ndarray:
    """The samples of a waveform at the rate an encoder wants.

    Args:
        waveform: what :func:`prepare_audio` gives.
        wanted: rate of the result, in hertz.
        given: rate of a waveform without one; default: ``wanted``. It is ignored if the waveform has a rate.

    Returns:
        ``(m,)`` float32, m about ``n * wanted / rate``; ``waveform.samples`` itself if the rate is right.

    Raises:
        MediaError: soxr is needed and missing, the waveform is too short to be resampled, or a rate is not a positive
            integer.

    Example:
        >>> waveform = prepare_audio([0.0, 0.5, -0.5])
        >>> at_rate(waveform, 16000) is waveform.samples
        True
    """
    wanted = _checked_rate(wanted)
    rate = waveform.rate or _checked_rate(wanted if given is None else given)
    if rate == wanted:
        return waveform.samples
    try:
        import soxr
    except ImportError as error:
        raise MediaError(
            f"audio: a waveform at {rate} Hz where {wanted} Hz are wanted, and soxr can't be imported: "
            f"{INSTALL}, or resample it yourself."
        ) from error
    samples = soxr.resample(waveform.samples, rate, wanted, quality="HQ")
    if samples.size == 0:
        raise MediaError(
            f"audio: {waveform.samples.size} samples at {rate} Hz are too few to resample them to {wanted} Hz. Leave "
            "this item out, or give a longer one."
        )
    return samples


def _checked_rate(rate: object) -> int:
    try:
        number = 0 if isinstance(rate, bool) else operator.index(rate)  # type: ignore[arg-type]  # integers of numpy and torch too
    except TypeError:
        number = 0
    if number < 1:
        raise MediaError(f"audio: sampling_rate={rate!r}; expected a positive integer, in hertz. Give the true rate.")
    return number


# --- kinds of items ---------------------------------------------------------------------------------------------------


def _open(item: AudioItem) -> Waveform:
    if isinstance(item, Waveform):
        return item
    if isinstance(item, (np.ndarray, torch.Tensor, list, tuple)):
        return _from_array(_as_array(item))
    if isinstance(item, Mapping):
        return _from_mapping(item)
    if isinstance(item, (bytes, bytearray, memoryview)):
        return _from_array(*read_content(bytes(item)), channel_axis=1)
    if isinstance(item, (str, os.PathLike)):
        return _from_array(*read_path(os.fsdecode(item)), channel_axis=1)
    if hasattr(item, "get_all_samples"):  # torchcodec's AudioDecoder, which datasets gives since version 4
        decoded = item.get_all_samples()
        return _from_array(_as_array(decoded.data), _checked_rate(decoded.sample_rate), channel_axis=0)
    raise MediaError(
        f"audio: {type(item).__name__} is not audio; give an array or tensor, a dict with 'array' and "
        "'sampling_rate', a path, or bytes."
    )


def _from_mapping(item: Mapping[str, Any]) -> Waveform:
    kind = next((key for key in ("array", "bytes", "path") if item.get(key) is not None), None)
    if kind is None:
        raise MediaError(
            f"audio: a dict with {', '.join(map(repr, item)) or 'nothing'}; expected 'array' and 'sampling_rate', or "
            "'bytes', or 'path'."
        )
    if kind != "array":
        return _open(item[kind])
    if "sampling_rate" not in item:
        raise MediaError("audio: a dict with 'array' but no 'sampling_rate'; add it, or give the array alone.")
    return _from_array(_as_array(item["array"]), _checked_rate(item["sampling_rate"]))


# --- arrays -----------------------------------------------------------------------------------------------------------


def _as_array(item: object) -> np.ndarray:
    if isinstance(item, torch.Tensor):
        tensor = item.detach().cpu()
        narrow = tensor.is_floating_point() and tensor.itemsize < 4  # numpy has no bfloat16
        return (tensor.float() if narrow else tensor).numpy()
    if isinstance(item, (list, tuple)):
        return _from_numbers(item)
    if isinstance(item, np.ndarray):
        return np.asarray(item)
    raise MediaError(f"audio: 'array' is a {type(item).__name__}; expected an array, a tensor or a list of numbers.")


def _from_numbers(numbers: list[Any] | tuple[Any, ...]) -> np.ndarray:
    try:
        array = np.asarray(numbers)
    except Exception:  # ragged, or (samples, rate) as torchaudio.load gives
        array = np.empty((), object)
    if array.ndim != 1:
        raise MediaError(
            f"audio: a {type(numbers).__name__} with entries that are no numbers; give channels as one array, samples "
            "with their rate as {'array': ..., 'sampling_rate': ...}, and several items one by one."
        )
    return array.astype(np.float64) if array.dtype.kind in "iu" else array  # as in [0, 1, 0]


def _from_array(array: np.ndarray, rate: int | None = None, channel_axis: int | None = None) -> Waveform:
    _check_dtype(array)
    if array.ndim not in (1, 2):
        raise MediaError(
            f"audio: samples of shape {array.shape}; expected (n,), or (n, channels), or (channels, n). Give the items "
            "of a batch one by one."
        )
    if array.size == 0:
        raise MediaError(f"audio: empty, of shape {array.shape}; leave this item out, or give one with samples.")
    if array.ndim == 2:
        channel_axis = _checked_channels(array.shape, channel_axis)
    if array.dtype.kind == "f":
        _check_values(array)
    samples = _scaled(array)
    if samples.ndim == 2:
        samples = samples.mean(axis=channel_axis, dtype=np.float32)
    return Waveform(np.ascontiguousarray(samples), rate)


def _check_dtype(array: np.ndarray) -> None:
    if array.dtype.kind != "f" and array.dtype.str[1:] not in ("i1", "i2", "i4", "u1"):
        raise MediaError(
            f"audio: samples of dtype {array.dtype}; expected floats in [-1, 1], or int8, int16, int32 or uint8 (128 "
            "is zero). Convert them; for 16-bit samples in a wider dtype: .astype('int16')."
        )


def _checked_channels(shape: tuple[int, ...], axis: int | None) -> int:
    """The axis of the channels: ``axis`` if given, or else the shorter axis."""
    if axis is None and shape[0] == shape[1] != 1:
        raise MediaError(
            f"audio: samples of shape {shape}: it is unclear which axis holds the channels. Average over it, and give "
            "shape (n,)."
        )
    if axis is None:
        axis = 0 if shape[0] < shape[1] else 1
    if shape[axis] > MAX_CHANNELS:
        raise MediaError(
            f"audio: samples of shape {shape}, so {shape[axis]} channels; expected at most {MAX_CHANNELS}. Mix them to "
            "shape (n,). Give the items of a batch one by one, and samples in place of a spectrogram."
        )
    return axis


def _check_values(array: np.ndarray) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        first = np.argwhere(~finite)[0].tolist()
        raise MediaError(
            f"audio: {np.count_nonzero(~finite)} of {array.size} values are NaN or infinite, the first at index "
            f"{first[0] if array.ndim == 1 else tuple(first)}; clean or leave out this item."
        )
    peak = np.abs(array).max()
    if peak > MAX_MAGNITUDE:
        raise MediaError(
            f"audio: floats of a magnitude up to {peak:g}; expected [-1, 1]. It looks like unscaled integers: divide "
            "by 32768 or give int16."
        )


def _scaled(array: np.ndarray) -> np.ndarray:
    """As float32; integers are scaled from their dtype's range to [-1, 1). The 64 largest int32 values round to 1."""
    samples = array.astype(np.float32, copy=False)
    if array.dtype.kind == "f":
        return samples
    if array.dtype.kind == "u":
        samples = samples - 128
    return samples / np.float32(2 ** (8 * array.itemsize - 1))
