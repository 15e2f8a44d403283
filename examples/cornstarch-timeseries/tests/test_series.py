"""The check of one series, its conversion, and what is scaled out of it."""

import warnings

import numpy as np
import pytest
import torch
from cornstarch_timeseries.series import prepare_series, standardize
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cornstarch_core.errors import MediaError

NUMBERS = [1.0, -2.0, 4.0]


class Column:
    """What a table's library hands out: no array, but numpy can make one of it."""

    def __init__(self, values):
        self.values = np.array(values)

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


@pytest.mark.parametrize(
    "item",
    [
        NUMBERS,
        tuple(NUMBERS),
        [1, -2, 4],
        [np.float32(1), np.int64(-2), 4.0],
        np.array(NUMBERS),
        np.array(NUMBERS, np.float16),
        np.array([1, -2, 4], np.int16),
        np.array(NUMBERS)[:, None],
        np.array(NUMBERS, object),
        np.array([9.0, *NUMBERS, 9.0])[1:-1],
        torch.tensor(NUMBERS),
        torch.tensor(NUMBERS, dtype=torch.bfloat16, requires_grad=True),
        torch.tensor([1, -2, 4]),
        Column(NUMBERS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_channel_may_be_given_in_many_ways(item):
    """All of them are the same series, ``(T, 1)`` float64."""
    values = prepare_series(item)
    assert values.tolist() == [[1.0], [-2.0], [4.0]]
    assert values.dtype == np.float64


def test_booleans_are_zeros_and_ones():
    """A switch over time is a series."""
    assert prepare_series([True, False]).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("make", [np.array, torch.tensor, list])
def test_several_channels(make):
    """The last axis has them."""
    assert prepare_series(make([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).tolist() == [[1, 2], [3, 4], [5, 6]]


def test_pandas():
    """Series, also of numbers that may be missing, and frames, whatever their index; what is missing is refused."""
    pandas = pytest.importorskip("pandas")
    days = pandas.date_range("2024-01-01", periods=3)
    assert prepare_series(pandas.Series(NUMBERS, index=days)).tolist() == [[1.0], [-2.0], [4.0]]
    assert prepare_series(pandas.Series([1, -2, 4], dtype="Int64")).tolist() == [[1.0], [-2.0], [4.0]]
    assert prepare_series(pandas.DataFrame({"a": NUMBERS, "b": NUMBERS}, index=days)).shape == (3, 2)
    for missing in (pandas.Series([1.0, None]), pandas.Series([1, None], dtype="Int64")):
        with pytest.raises(MediaError, match="^series: "):
            prepare_series(missing)
    with pytest.raises(MediaError, match="^series: values of dtype datetime64"):
        prepare_series(pandas.Series(days))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([], r"empty, of shape \(0,\); leave this item out"),
        (np.zeros((5, 0)), r"empty, of shape \(5, 0\)"),
        (3.0, r"values of shape \(\); expected \(time,\) or \(time, channels\)"),
        (np.zeros((2, 3, 4)), r"values of shape \(2, 3, 4\); expected .*one by one"),
        ([1, np.nan, np.nan], "2 of 3 values are NaN, infinite or beyond float32, the first at step 1; fill them in"),
        ([[1, 2], [3, -np.inf]], "1 of 4 values .* at step 1, channel 1"),
        ([1e39, 1], "1 of 2 values .*beyond float32, the first at step 0"),
        (torch.tensor([float("inf")]), "1 of 1 values"),
        ("load.csv", "a str is no series; read it first"),
        (b"123", "a bytes is no series"),
        ({"values": [1]}, "a dict is no series"),
        (["a", "b"], "values of dtype <U1; expected numbers"),
        ([1j], "values of dtype complex128; expected numbers"),
        ([[1, 2], [3]], "this list is no array of numbers"),
        ([1, None], "1 of 2 values are NaN"),
        (None, r"values of shape \(\)"),
        (object(), "this object is no array of numbers"),
        (torch.zeros(3).to_sparse(), "this Tensor is no array of numbers"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_series_is_refused(item, message):
    """The message says what was found, and what to give."""
    with pytest.raises(MediaError, match=f"^series: {message}"):
        prepare_series(item)


FINITE = st.floats(-1e30, 1e30).map(lambda value: value if abs(value) > 1e-100 else 0.0)  # squares stay above 0
SERIES = arrays.arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=FINITE)


@given(SERIES)
def test_what_is_scaled_out_can_be_put_back(values):
    """Each channel has mean 0 and deviation 1, or is constant and all 0; nothing else was lost, and nothing warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled = standardize(values)
    size = np.abs(values).max(axis=0)
    restored = scaled.values * scaled.deviation + scaled.mean
    assert (np.abs(restored - values) <= 1e-6 * size).all()
    for channel, deviation in zip(scaled.values.T, scaled.deviation, strict=True):
        if deviation == 0:
            assert not channel.any()
        else:
            assert abs(channel.mean()) < 1e-6
            assert channel.std() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(("level", "scale"), [(0, 1), (1000, 1), (-3e5, 20), (2, 1e-3), (0, 1e-12), (0, 1e20)])
def test_level_and_scale_do_not_change_the_shape(level, scale):
    """Volts or millivolts, around zero or far from it: the same values, to float32's rounding."""
    wave = np.sin(np.arange(20.0))[:, None]
    assert np.abs(standardize(level + scale * wave).values - standardize(wave).values).max() < 1e-6


def test_rounding_is_no_signal():
    """A constant with noise in its last bits stays constant, and does not become noise of deviation 1."""
    values = np.full((50, 1), 0.1) + np.random.default_rng(0).normal(0, 1e-17, (50, 1)) + 2
    values[::2] = np.nextafter(values[::2], 3)
    assert len(np.unique(values)) > 1
    assert not standardize(values).values.any()
