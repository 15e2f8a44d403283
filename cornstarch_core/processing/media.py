"""Media as users give them, sorted by sample: one list a sample, or a flat list that the placeholders divide.

Must not know what an item is: an image, an array of samples, a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from numbers import Number
from typing import Any

from ..errors import PlaceholderMismatchError

__all__ = ["arrange", "as_items"]


def arrange(key: str, value: Any, placeholders: Sequence[int], token: str) -> list[list[Any]]:
    """Items by sample.

    Args:
        key: modality, for messages.
        value: one item, a flat list of items, or a list with one entry a sample: a list of items, an item or ``None``.
            A list of numbers is an item.
        placeholders: how many the text of each sample has.
        token: the placeholder, for messages.

    Returns:
        One list a sample, as long as the sample has placeholders.

    Raises:
        PlaceholderMismatchError: the numbers differ; names modality, sample, expected and got.

    Example:
        >>> arrange("vision", ["a", "b", "c"], [1, 2], "<vision>")
        [['a'], ['b', 'c']]
        >>> arrange("vision", [None, "a"], [0, 1], "<vision>")
        [[], ['a']]
    """
    entries = list(value) if _is_many(value) else [value]
    if any(entry is None or _is_many(entry) for entry in entries):
        return _checked(key, [as_items(entry) for entry in entries], placeholders, token)
    return _divided(key, entries, placeholders, token)


def _is_many(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    return not value or not isinstance(value[0], Number)


def as_items(entry: Any) -> list[Any]:
    """The items of one sample, given as a list, an item or ``None``."""
    if entry is None:
        return []
    return list(entry) if _is_many(entry) else [entry]


def _checked(key: str, samples: list[list[Any]], placeholders: Sequence[int], token: str) -> list[list[Any]]:
    if len(samples) != len(placeholders):
        raise PlaceholderMismatchError(
            f"{key}: media are given for {len(samples)} samples, there are {len(placeholders)} texts. Give one list of "
            "items a text; [] for a text without any."
        )
    for sample, (items, count) in enumerate(zip(samples, placeholders, strict=True)):
        if len(items) != count:
            raise PlaceholderMismatchError(
                f"{key}: sample {sample}: expected {_number(count, 'item')}, because the text has "
                f"{_number(count, f'{token} placeholder')}; got {len(items)}. {_advice(token)}"
            )
    return samples


def _divided(key: str, items: list[Any], placeholders: Sequence[int], token: str) -> list[list[Any]]:
    rest = iter(items)
    samples = [list(islice(rest, count)) for count in placeholders]
    surplus = len(items) - sum(placeholders)
    if surplus == 0:
        return samples
    counts = zip(samples, placeholders, strict=True)
    sample = next((i for i, (got, count) in enumerate(counts) if len(got) != count), len(samples) - 1)
    raise PlaceholderMismatchError(
        f"{key}: sample {sample}: expected {_number(sum(placeholders), 'item')}, because the texts have "
        f"{', '.join(map(str, placeholders))} {token} placeholders; got {len(items)}, so that "
        + (f"{_number(surplus, 'item')} would be left over. " if surplus > 0 else "this sample has too few. ")
        + _advice(token)
    )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _advice(token: str) -> str:
    return f"Write one {token} for each item, where the item belongs in the text."
