"""The encoder of this package: its counts, and that an item's features are its own."""

import numpy as np
import pytest
import torch
from cornstarch_timeseries.conv import SeriesConv, SeriesConvConfig
from cornstarch_timeseries.processors import SeriesProcessor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cornstarch_core.errors import CompositionError

LIGHT = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
LENGTHS = st.lists(st.integers(1, 150), min_size=1, max_size=5)


def inputs_of(lengths, channels=1, seed=0):
    """Random walks of these lengths, processed."""
    rng = np.random.default_rng(seed)
    return SeriesProcessor(channels)([rng.normal(size=(length, channels)).cumsum(0) for length in lengths])


@LIGHT
@given(lengths=LENGTHS, channels=st.integers(1, 3), patch=st.integers(1, 9), layers=st.integers(1, 3))
def test_counts_are_the_features(conv, lengths, channels, patch, layers):
    """For random sizes: a level, and a token for every patch or what is left of one."""
    encoder = conv(channels=channels, patch_length=patch, num_layers=layers)
    inputs = inputs_of(lengths, channels)
    with torch.no_grad():
        features = encoder(**inputs)
    assert [tuple(one.shape) for one in features] == [(1 + -(-length // patch), 16) for length in lengths]
    assert [len(one) for one in features] == SeriesConv().num_tokens(encoder.config, inputs)


@LIGHT
@given(lengths=LENGTHS, kernel=st.sampled_from([1, 3, 7]))
def test_features_do_not_depend_on_the_batch(conv, lengths, kernel):
    """Of each item alone they are the same, to rounding, however much longer another one is."""
    encoder = conv(kernel_size=kernel)
    inputs = inputs_of(lengths)
    with torch.no_grad():
        for index, together in enumerate(encoder(**inputs)):
            (alone,) = encoder(inputs["series"][index : index + 1], inputs["levels"][index : index + 1])
            torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_every_value_and_every_level_counts(conv):
    """A change of any value changes the features of its patch; one of the mean or the deviation those of the level."""
    encoder = conv(channels=2)
    inputs = inputs_of([10], channels=2)
    (before,) = encoder(**inputs)
    for step in range(10):
        changed = [inputs["series"][0].clone()]
        changed[0][step, 1] += 1
        assert not torch.equal(encoder(changed, inputs["levels"])[0][1 + step // 4], before[1 + step // 4])
    for place in range(4):
        levels = inputs["levels"].clone()
        levels[0, place] += 1
        assert not torch.equal(encoder(inputs["series"], levels)[0][0], before[0])


def test_a_series_of_zeros_is_not_the_filling_of_a_patch(conv):
    """What is missing at the end is told apart from values that are 0."""
    encoder = conv()
    levels = torch.zeros(1, 2)
    short, long = (encoder([torch.zeros(steps, 1)], levels)[0] for steps in (5, 8))
    assert short.shape == long.shape
    assert not torch.allclose(short[2], long[2])


def test_gradients_reach_every_weight(conv):
    """Nothing is left out, also in a batch of several lengths; none of them is NaN."""
    encoder = conv().train()
    sum(one.square().sum() for one in encoder(**inputs_of([3, 50, 8]))).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in encoder.parameters())
    assert all(weight.grad.any() for name, weight in encoder.named_parameters())


def test_dummy_inputs_are_one_item(conv):
    """The smallest there is: one step."""
    encoder = conv(channels=3)
    (features,) = encoder(**SeriesConv().dummy_inputs(encoder.config))
    assert len(features) == 2
    assert features.isfinite().all()


def test_it_is_built_again_from_plain_data(conv):
    """As a saved model has it: the same tree, and every setting."""
    encoder = conv(channels=2, kernel_size=5, max_steps=9)
    again = SeriesConv().build(encoder.config.to_dict())
    again.load_state_dict(encoder.state_dict())
    assert again.config.to_dict() == encoder.config.to_dict()


@pytest.mark.parametrize("name", ["channels", "patch_length", "hidden_size", "num_layers", "kernel_size", "max_steps"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, None])
def test_sizes_that_make_no_sense_are_refused(name, value):
    """Only positive integers are sizes."""
    with pytest.raises(CompositionError, match=f"series_conv: {name}={value!r}; expected a positive integer"):
        SeriesConvConfig(**{name: value})


def test_kernels_are_odd():
    """An even one would have no middle."""
    with pytest.raises(CompositionError, match="kernel_size=4; expected an odd number"):
        SeriesConvConfig(kernel_size=4)
