"""Settings of adapters, image processors and feature extractors as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["plain"]


def plain(value: object) -> Any:
    """What JSON has for ``value``: enums become their values, arrays, tuples and sets become lists, sets are sorted."""
    if isinstance(value, Mapping):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(entry) for entry in value)
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.value if isinstance(value, Enum) else value
