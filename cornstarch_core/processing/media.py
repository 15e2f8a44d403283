"""Sort the media that users pass by sample.

Users pass one list of items for each sample, or one list of all items, which is divided by the number of placeholders
of each sample. This file must not depend on the type of the items, such as images, arrays or paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from numbers import Number
from typing import Any, TypeGuard

from ..errors import PlaceholderMismatchError

__all__ = ["arrange", "as_items"]


def arrange(key: str, value: object, placeholders: Sequence[int], token: str) -> list[list[Any]]:
    """Sort items by sample.

    Args:
        key: modality key, for error messages.
        value: one item, a list of the items of all samples, or a list with one entry for each sample: a list of items,
            an item or ``None``. A list of numbers is one item. ``None`` means that there are no items.
        placeholders: number of placeholders in the text of each sample.
        token: placeholder token, for error messages.

    Returns:
        For each sample a list with as many items as the sample has placeholders.

    Raises:
        PlaceholderMismatchError: the number of items of a sample differs from its number of placeholders; the message
            names the modality, the sample and both numbers.

    Example:
        >>> arrange("vision", ["a", "b", "c"], [1, 2], "<vision>")
        [['a'], ['b', 'c']]
        >>> arrange("vision", [None, "a"], [0, 1], "<vision>")
        [[], ['a']]
    """
    entries = as_items(value)
    nested = any(entry is None or _is_many(entry) for entry in entries)
    rest = iter(entries)
    samples = [as_items(one) for one in entries] if nested else [list(islice(rest, count)) for count in placeholders]
    if len(samples) != len(placeholders):
        raise PlaceholderMismatchError(
            f"{key}: media are given for {len(samples)} samples, there are {len(placeholders)} texts. Give one list of "
            "items a text; [] for a text without any."
        )
    surplus = 0 if nested else len(entries) - sum(placeholders)
    counts = zip(samples, placeholders, strict=True)
    wrong = next((index for index, (items, count) in enumerate(counts) if len(items) != count), len(samples) - 1)
    if len(samples[wrong]) == placeholders[wrong] and surplus == 0:
        return samples
    if value is None:
        raise PlaceholderMismatchError(
            f"{key}: sample {wrong}: the text has {placeholders[wrong]} times the placeholder {token} and no items are "
            f"given. Pass {key}=..., or take the placeholders out of the text."
        )
    if nested:
        expected, got = placeholders[wrong], f"{len(samples[wrong])}"
        reason = f"the text has {_number(expected, f'{token} placeholder')}"
    else:
        expected = sum(placeholders)
        left = f"{_number(surplus, 'item')} would be left over" if surplus > 0 else "this sample has too few"
        got = f"{len(entries)}, so that {left}"
        reason = f"the texts have {', '.join(map(str, placeholders))} {token} placeholders"
    raise PlaceholderMismatchError(
        f"{key}: sample {wrong}: expected {_number(expected, 'item')}, because {reason}; got {got}. Write one {token} "
        "for each item, where the item belongs in the text."
    )


def as_items(entry: object) -> list[Any]:
    """Return the list of items of one sample, which are given as a list, an item or ``None``."""
    if entry is None:
        return []
    return list(entry) if _is_many(entry) else [entry]


def _is_many(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether the value is a list of items, not a single item such as a list of numbers."""
    return isinstance(value, (list, tuple)) and not (value and isinstance(value[0], Number))


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
