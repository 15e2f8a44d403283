"""The arguments of ``from_pretrained`` that select the files to load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["hub_options"]

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def hub_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``kwargs`` that select the files to load."""
    return {name: kwargs[name] for name in _HUB if name in kwargs}
