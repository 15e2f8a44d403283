"""Settings as plain data: what JSON has for them."""

from __future__ import annotations

import json
from enum import Enum, IntEnum

import numpy as np
import pytest

from cornstarch_core._hf.plain import plain


class Task(str, Enum):
    """A setting of PEFT."""

    TEXT = "text"


class Resample(IntEnum):
    """A setting of an image processor."""

    BICUBIC = 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({Task.TEXT: {"b", "a"}}, {"text": ["a", "b"]}),
        ((1, (2.5, frozenset({3}))), [1, [2.5, [3]]]),
        (Resample.BICUBIC, 3),
        (np.arange(2), [0, 1]),
        (np.float32(0.5), 0.5),
        ({"a": None, "b": True, "c": "text"}, {"a": None, "b": True, "c": "text"}),
    ],
)
def test_every_value_becomes_what_json_has_for_it(value, expected):
    """Also deep inside: the types are those that reading the JSON again gives."""
    result = plain(value)
    assert result == expected
    assert type(result) is type(expected)
    assert json.loads(json.dumps(result)) == result
