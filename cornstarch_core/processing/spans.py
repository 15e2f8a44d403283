"""Expand, truncate and locate placeholders in lists of token ids.

One placeholder in the tokenised text stands for one media item. Expansion replaces it by a *span*: as many consecutive
placeholders as the item has features. This file works on Python lists, and must not depend on tokenizers, tensors or
particular modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

__all__ = ["ADDED", "Row", "Span", "covered", "expand", "lost_span", "needed_room", "stretches", "surround", "truncate"]

ADDED = -1  # origin of a token that does not come from the text


@dataclass(frozen=True)
class Span:
    """The placeholders of one media item.

    Args:
        key: modality key of the item.
        item: index of the item among the sample's items of this modality, from 0.
        start: index in the row of the first placeholder.
        stop: index in the row after the last placeholder.
    """

    key: str
    item: int
    start: int
    stop: int


@dataclass(frozen=True)
class Row:
    """The token ids of one sample.

    Args:
        ids: token ids after expansion.
        spans: spans of all media items, sorted by ``start``.
        origin: for each token id, the index of the token in the tokenised text that it comes from, or :data:`ADDED`.
    """

    ids: list[int]
    spans: tuple[Span, ...]
    origin: list[int]


def expand(ids: Sequence[int], token_ids: Mapping[str, int], counts: Mapping[str, Sequence[int]]) -> Row:
    """Repeat every placeholder as often as its item has features.

    Args:
        ids: token ids of the tokenised text.
        token_ids: token id of each modality's placeholder.
        counts: for each modality, the number of features of each of its items.

    Example:
        >>> row = expand([1, 9, 2], {"vision": 9}, {"vision": [3]})
        >>> row.ids, row.origin
        ([1, 9, 9, 9, 2], [0, 1, 1, 1, 2])
    """
    keys = {token_id: key for key, token_id in token_ids.items()}
    items = {key: iter(enumerate(lengths)) for key, lengths in counts.items()}
    expanded: list[int] = []
    origin: list[int] = []
    spans, done = [], 0
    for place in [index for index, token_id in enumerate(ids) if token_id in keys]:
        key = keys[ids[place]]
        item, length = next(items[key])
        expanded += [*ids[done:place], *[ids[place]] * length]
        origin += [*range(done, place), *[place] * length]
        spans.append(Span(key, item, len(expanded) - length, len(expanded)))
        done = place + 1
    return Row([*expanded, *ids[done:]], tuple(spans), [*origin, *range(done, len(ids))])


def surround(row: Row, prefix: Sequence[int], suffix: Sequence[int]) -> Row:
    """Add the special tokens ``prefix`` before a row, and ``suffix`` after it."""
    return Row(
        [*prefix, *row.ids, *suffix],
        _moved(row.spans, len(prefix)),
        [*[ADDED] * len(prefix), *row.origin, *[ADDED] * len(suffix)],
    )


def _moved(spans: Sequence[Span], by: int) -> tuple[Span, ...]:
    return tuple(replace(span, start=span.start + by, stop=span.stop + by) for span in spans)


def truncate(row: Row, room: int, side: str = "right") -> Row:
    """Cut tokens on one side to keep at most ``room``. The caller checks with :func:`lost_span` that no span is cut.

    Example:
        >>> truncate(Row([5, 6, 7], (), [0, 1, 2]), 2, "left").ids
        [6, 7]
    """
    cut = max(len(row.ids) - max(room, 0), 0)
    if side == "right":
        return Row(row.ids[: len(row.ids) - cut], row.spans, row.origin[: len(row.origin) - cut])
    return Row(row.ids[cut:], _moved(row.spans, -cut), row.origin[cut:])


def lost_span(row: Row, room: int, side: str = "right") -> Span | None:
    """Return the first span that :func:`truncate` would cut or remove, or ``None``."""
    first, last = (0, room) if side == "right" else (len(row.ids) - room, len(row.ids))
    return next((span for span in row.spans if span.start < first or span.stop > last), None)


def needed_room(row: Row, side: str = "right") -> int:
    """Return the smallest ``room`` for which :func:`truncate` cuts no span."""
    reach = [span.stop if side == "right" else len(row.ids) - span.start for span in row.spans]
    return max(reach, default=0)


def stretches(rows: Sequence[Row], starts: Sequence[int], key: str) -> Iterator[range]:
    """Yield the range of positions of each item's placeholders in one modality; row ``i`` begins at ``starts[i]``."""
    for row, start in zip(rows, starts, strict=True):
        for span in row.spans:
            if span.key == key:
                yield range(start + span.start, start + span.stop)


def covered(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Return for each token whether it contains a character of one of ``spans``.

    Args:
        offsets: for each token, the indices of its first character and of the one after its last character.
        spans: for each piece of the text, the indices of its first character and of the one after its last character.

    Example:
        >>> covered([(0, 4), (4, 6), (6, 9)], [(5, 6)])
        [False, True, False]
    """
    marked, before = [], 0
    for start, stop in offsets:
        # Byte-level tokenizers exclude spaces from the offsets, so that a token of only spaces seems empty.
        begin = start if start < stop else min(before, start)
        marked.append(any(begin < last and stop > first for first, last in spans))
        before = max(before, stop)
    return marked
