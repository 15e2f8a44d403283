"""Convert settings of adapters, image processors and feature extractors to plain data."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["plain"]


def plain(value: object) -> Any:
    """Convert ``value`` to JSON types: enums to their values, arrays and tuples to lists, sets to sorted lists."""
    if isinstance(value, Mapping):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(entry) for entry in value)
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.value if isinstance(value, Enum) else value
