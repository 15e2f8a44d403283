"""Arguments of ``from_pretrained`` that say where to load from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["hub_options"]

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def hub_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``kwargs`` that say where to load from."""
    return {name: kwargs[name] for name in _HUB if name in kwargs}
