"""Audio files: read from a path, a URL of this machine, or bytes, with soundfile.

This module must not know what a waveform is, or which values are valid: it returns what is in the file. soundfile is
optional (``cornstarch-audio[io]``) and imported only when a file is read.
"""

from __future__ import annotations

import base64
import os
import re
from io import BytesIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from cornstarch_core.errors import MediaError

__all__ = ["INSTALL", "read_content", "read_path"]

INSTALL = 'pip install "cornstarch-audio[io]"'

_DATA_URL = re.compile(r"data:audio/[^,]*;base64,(.*)", re.IGNORECASE | re.DOTALL)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # one letter is a drive of Windows


def read_path(text: str) -> tuple[np.ndarray, int]:
    """Read an audio file.

    Args:
        text: its path, a ``file://`` URL, or a ``data:audio/...;base64,...`` URL with its content.

    Returns:
        Samples ``(n, channels)``, float32, n at least 1, and their rate in hertz.

    Raises:
        MediaError: there is no such file, the URL is of another machine, the file is not audio or has no samples; or
            soundfile is missing.
    """
    if data := _DATA_URL.fullmatch(text):
        return read_content(_decoded(data[1]))
    path = _path_of_url(text) if text.lower().startswith("file://") else text
    if path.lower().startswith("data:"):
        raise MediaError(f"audio: {path[:80]!r} is not a URL of audio; expected data:audio/...;base64,... Give that.")
    if _URL.match(path):
        raise MediaError(f"audio: {path[:80]!r} is a URL; nothing is downloaded here. Download it and give its path.")
    if os.path.isdir(path):
        raise MediaError(f"audio: {path[:200]!r} is a folder; give the path of one file.")
    if not os.path.isfile(path):
        raise MediaError(f"audio: there is no audio file {path[:200]!r}; check the path.")
    return _read(path, repr(path))


def read_content(content: bytes) -> tuple[np.ndarray, int]:
    """Read the content of an audio file; results and errors are those of :func:`read_path`.

    Args:
        content: the bytes of the file.
    """
    return _read(BytesIO(content), f"a file of {len(content)} bytes")


def _path_of_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise MediaError(f"audio: {url[:80]!r} is a URL of another machine; nothing is downloaded here. Copy it first.")
    return url2pathname(parts.path)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise MediaError(f"audio: a data: URL with broken base64: {error}. Encode the file again.") from error


def _read(file: str | BytesIO, name: str) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: soundfile is there, but libsndfile is not
        raise MediaError(
            f"audio: {name} can't be read, since soundfile can't be imported ({error}): {INSTALL}, or give the samples."
        ) from error
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except Exception as error:  # also TypeError for .raw, MemoryError for a broken header
        reason = str(getattr(error, "error_string", error)).rstrip(".")  # without the address of a BytesIO
        raise MediaError(
            f"audio: {name} can't be read as audio: {reason}. Check the file, or convert it to wav or flac."
        ) from error
    if samples.size == 0:
        raise MediaError(f"audio: {name} holds no audio, or is cut off before the audio starts. Check the file.")
    return samples, rate
