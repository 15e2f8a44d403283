"""Series to the tensors that encoders take."""

import numpy as np
import pytest
import torch
from cornstarch_timeseries.processors import Series, SeriesProcessor, SeriesWindow, WindowProcessor

from cornstarch_core.errors import MediaError
from cornstarch_core.specs import EncoderContext


def context(module):
    """What the core tells of an encoder."""
    return EncoderContext(key="series", config=module.config, hidden_size=16, text_hidden_size=32)


def test_series_keep_their_lengths_and_tell_their_levels():
    """Shapes and values, exactly: mean and deviation as asinh, mean first."""
    inputs = SeriesProcessor()([[1, 3], [7.0] * 3])
    assert [one.tolist() for one in inputs["series"]] == [[[-1.0], [1.0]], [[0.0]] * 3]
    expected = np.arcsinh([[2, 1], [7, 0]]).astype(np.float32)
    assert inputs["levels"].tolist() == expected.tolist()
    assert {inputs["levels"].dtype, *(one.dtype for one in inputs["series"])} == {torch.float32}


def test_levels_of_several_channels_are_means_then_deviations():
    """For each item ``(2 * C,)``."""
    inputs = SeriesProcessor(channels=2)([np.array([[1.0, 10], [3, 30]])])
    assert np.sinh(inputs["levels"].numpy()) == pytest.approx(np.array([[2, 20, 1, 10]]), rel=1e-5)


def test_windows_are_stacked():
    """``(N, length, C)``, standardised one by one, or as they are."""
    one = np.array([[0.0, 5], [2, 5]])
    both = WindowProcessor(length=2, channels=2)([one, one * 100])["past_values"]
    assert both.tolist() == [[[-1, 0], [1, 0]]] * 2
    assert both.dtype == torch.float32
    raw = WindowProcessor(length=2, channels=2, scale=False)([one])["past_values"]
    assert raw.tolist() == [one.tolist()]


@pytest.mark.parametrize(
    ("processor", "item", "message"),
    [
        (WindowProcessor(length=4), np.zeros(5), "5 values over time, too long; this encoder takes 4. Give its last 4"),
        (
            WindowProcessor(length=4),
            np.zeros(3),
            "3 values over time, too short; this encoder takes 4. Give more of it",
        ),
        (SeriesProcessor(max_steps=8), np.zeros(9), "9 values over time, too long; this encoder takes at most 8"),
        (SeriesProcessor(), np.zeros((9, 2)), r"of shape \(9, 2\), so 2 channels; this encoder takes 1"),
        (WindowProcessor(4, 2), np.zeros(4), r"of shape \(4, 1\), so 1 channels; this encoder takes 2"),
        (SeriesProcessor(channels=2), np.zeros((2, 9)), "looks transposed: give its transpose"),
        (SeriesProcessor(), [1.0, float("nan")], "1 of 2 values are NaN"),
    ],
)
def test_series_that_an_encoder_can_not_take_are_refused(processor, item, message):
    """The message has what was given and what is expected; sample and item are named by the core."""
    with pytest.raises(MediaError, match=f"^series: .*{message}"):
        processor([item])


def test_only_tensors_are_made():
    """Another framework is refused by name."""
    for processor in (SeriesProcessor(), WindowProcessor(2)):
        with pytest.raises(ValueError, match="return_tensors='np'"):
            processor([[1, 2]], return_tensors="np")


def test_they_are_built_for_an_encoder(patchtst, conv):
    """Sizes are the encoder's; a PatchTST that does not standardise gets its values as they are."""
    assert vars(Series().build(context(conv(channels=3, max_steps=50)))) == {"channels": 3, "max_steps": 50}
    for scaling, scale in (("std", True), ("mean", False), (None, False)):
        built = SeriesWindow().build(context(patchtst(num_input_channels=2, scaling=scaling)))
        assert vars(built) == {"length": 32, "channels": 2, "scale": scale}


def test_they_are_plain_data_and_back():
    """A saved processor comes back with what was changed by hand."""
    for processor in (SeriesProcessor(2, 77), WindowProcessor(9, 2, False)):
        assert vars(type(processor).from_dict(processor.to_dict())) == vars(processor)
