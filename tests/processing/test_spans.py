"""Placeholder arithmetic: properties on random rows, exact values on small ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cornstarch_core.processing.spans import (
    ADDED,
    Row,
    Span,
    covered,
    expand,
    lost_span,
    needed_room,
    stretches,
    surround,
    truncate,
)

TOKENS = {"vision": 100, "audio": 101}
SIDES = ["left", "right"]


@st.composite
def texts(draw):
    """Ids of a text with placeholders, and a count for each."""
    ids = draw(st.lists(st.sampled_from([1, 2, 3, 100, 101]), max_size=12))
    counts = {
        key: draw(st.lists(st.integers(0, 5), min_size=ids.count(token), max_size=ids.count(token)))
        for key, token in TOKENS.items()
    }
    return ids, counts


@given(texts())
def test_every_item_gets_its_count_and_the_rest_stays(text):
    """Expanding changes nothing but the number of placeholders, and each span is as long as its item's count."""
    ids, counts = text
    row = expand(ids, TOKENS, counts)
    assert len(row.ids) == len(ids) + sum(count - 1 for one in counts.values() for count in one)
    assert [i for i in row.ids if i < 100] == [i for i in ids if i < 100]
    for key, token in TOKENS.items():
        spans = [span for span in row.spans if span.key == key]
        assert [span.stop - span.start for span in spans] == counts[key]
        assert [span.item for span in spans] == list(range(len(spans)))
        assert all(row.ids[span.start : span.stop] == [token] * (span.stop - span.start) for span in spans)


@given(texts())
def test_origin_leads_back_to_the_text(text):
    """Each id stands at its origin in the text, and origins never go back."""
    ids, counts = text
    row = expand(ids, TOKENS, counts)
    assert [ids[origin] for origin in row.origin] == row.ids
    assert row.origin == sorted(row.origin)


@given(texts(), st.lists(st.just(7), max_size=2), st.lists(st.just(8), max_size=2))
def test_special_tokens_move_the_spans(text, prefix, suffix):
    """Tokens put around a row shift spans along, and have no origin."""
    row = expand(text[0], TOKENS, text[1])
    outer = surround(row, prefix, suffix)
    assert outer.ids == [*prefix, *row.ids, *suffix]
    assert outer.origin.count(ADDED) == len(prefix) + len(suffix)
    assert [outer.ids[s.start : s.stop] for s in outer.spans] == [row.ids[s.start : s.stop] for s in row.spans]


@given(texts(), st.integers(-2, 40), st.sampled_from(SIDES))
def test_truncation_keeps_spans_whole_or_says_which_is_lost(text, room, side):
    """No span is lost exactly if there is room for what is needed; then every span still covers its placeholders."""
    row = expand(text[0], TOKENS, text[1])
    spans = tuple(span for span in row.spans if span.stop > span.start)
    row = Row(row.ids, spans, row.origin)
    lost = lost_span(row, room, side)
    assert (lost is None) == (room >= needed_room(row, side) or not spans)
    short = truncate(row, room, side)
    assert short.ids == (row.ids[: max(room, 0)] if side == "right" else row.ids[max(len(row.ids) - max(room, 0), 0) :])
    if lost is None:
        assert all(set(short.ids[s.start : s.stop]) == {TOKENS[s.key]} and s.start >= 0 for s in short.spans)
        assert [(s.key, s.item) for s in short.spans] == [(s.key, s.item) for s in row.spans]


@given(st.lists(texts(), min_size=1, max_size=4), st.sampled_from(SIDES))
def test_positions_point_at_placeholders(samples, side):
    """In the flat, padded batch the positions hold the modality's id, all of them, in order, on either side."""
    rows = [expand(ids, TOKENS, counts) for ids, counts in samples]
    width = max(len(row.ids) for row in rows)
    free = [width - len(row.ids) for row in rows]
    lead = free if side == "left" else [0] * len(rows)
    flat = [i for row, before, gap in zip(rows, lead, free, strict=True) for i in _padded(row.ids, before, gap)]
    starts = [index * width + before for index, before in enumerate(lead)]
    for key, token in TOKENS.items():
        positions = [place for one in stretches(rows, starts, key) for place in one]
        assert positions == [index for index, token_id in enumerate(flat) if token_id == token]


@given(st.lists(texts(), min_size=1, max_size=4))
def test_left_and_right_padding_differ_by_a_shift(samples):
    """Padding on the left moves a row's positions by as much as the row lacks."""
    rows = [expand(ids, TOKENS, counts) for ids, counts in samples]
    width = max(len(row.ids) for row in rows)
    for index, row in enumerate(rows):
        gap = width - len(row.ids)
        right = [list(one) for one in stretches([row], [index * width], "vision")]
        left = [list(one) for one in stretches([row], [index * width + gap], "vision")]
        assert left == [[place + gap for place in one] for one in right]


def _padded(ids, before, gap):
    return [0] * before + ids + [0] * (gap - before)


def test_two_modalities_share_a_row():
    """Spans come in the order of the text, each with its own item number."""
    row = expand([1, 100, 101, 100], TOKENS, {"vision": [2, 1], "audio": [3]})
    assert row.ids == [1, 100, 100, 101, 101, 101, 100]
    assert row.spans == (Span("vision", 0, 1, 3), Span("audio", 0, 3, 6), Span("vision", 1, 6, 7))


@pytest.mark.parametrize(("side", "room"), [("right", 4), ("left", 5)])
def test_needed_room_reaches_to_the_last_span_from_the_kept_end(side, room):
    """On the right all spans must end within; on the left they must begin within."""
    row = expand([1, 100, 3, 3], TOKENS, {"vision": [3]})
    assert needed_room(row, side) == room
    assert lost_span(row, room - 1, side) == Span("vision", 0, 1, 4)


def test_a_token_that_straddles_the_border_is_covered():
    """A token of which a single character lies in a span counts; its neighbours do not."""
    assert covered([(0, 3), (3, 7), (7, 9)], [(6, 7)]) == [False, True, False]


def test_tokens_of_nothing_but_spaces_are_covered():
    """Byte-level tokenizers can give spaces an empty range at their end; they still belong to what is around them."""
    assert covered([(0, 2), (4, 4), (4, 6), (8, 8), (8, 9)], [(2, 6)]) == [False, True, True, False, False]


def test_both_halves_of_a_split_character_are_covered():
    """Two tokens of one character have the same range, so both are in or out."""
    assert covered([(0, 1), (1, 2), (1, 2), (2, 3)], [(1, 2)]) == [False, True, True, False]


def test_what_comes_after_dropped_characters_is_not_covered():
    """A span whose last characters no token holds does not reach into the next token."""
    assert covered([(0, 3), (4, 8)], [(0, 4)]) == [True, False]
