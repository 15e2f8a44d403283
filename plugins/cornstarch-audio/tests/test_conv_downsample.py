"""The ``"conv_downsample"`` projector."""

import pytest
import torch
from cornstarch_audio.conv_downsample import ConvDownsample, ConvDownsampleProjector
from hypothesis import given
from hypothesis import strategies as st

from cornstarch_core import MultimodalProjector, MultimodalProjectorConfig
from cornstarch_core.errors import CompositionError


def describe(**settings):
    """A small config."""
    return MultimodalProjectorConfig(
        **{"projection_type": "conv_downsample", "in_features": 6, "out_features": 10, **settings}
    )


# --- values -----------------------------------------------------------------------------------------------------------


def test_one_convolution_by_hand():
    """A kernel of ones sums each second frame and its two neighbours; beyond the ends there are zeros."""
    config = describe(in_features=1, out_features=1, num_layers=1, activation="linear")
    projector = ConvDownsampleProjector(config)
    with torch.no_grad():
        projector.convs[0].weight.fill_(1.0)
        projector.convs[0].bias.zero_()
        projector.linear.weight.fill_(1.0)
        projector.linear.bias.zero_()
    frames = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])[:, None]
    assert projector(frames).flatten().tolist() == [11.0, 1110.0, 11000.0]


def test_each_convolution_is_followed_by_the_activation():
    """With ReLU and a negative bias on both layers, only the last linear layer's bias is left."""
    projector = ConvDownsampleProjector(describe(activation="relu"))
    with torch.no_grad():
        for conv in projector.convs:
            conv.weight.zero_()
            conv.bias.fill_(-1.0)
    assert torch.equal(projector(torch.rand(1, 4, 6)), projector.linear.bias.expand(1, 1, 10))


def test_widths_of_the_layers():
    """The first convolution goes from the features to the hidden width, the others keep it, the linear leaves it."""
    projector = ConvDownsampleProjector(describe(num_layers=3, hidden_features=8, kernel_size=5))
    assert [tuple(conv.weight.shape) for conv in projector.convs] == [(8, 6, 5), (8, 8, 5), (8, 8, 5)]
    assert tuple(projector.linear.weight.shape) == (10, 8)


# --- lengths ----------------------------------------------------------------------------------------------------------


@given(
    frames=st.integers(0, 40),
    layers=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 5),
    items=st.integers(0, 3),
)
def test_count_is_what_comes_out(frames, layers, kernel, stride, items):
    """The declared length is the length of the features, for a batch and for one item, and only nothing gives nothing."""
    config = describe(num_layers=layers, kernel_size=kernel, stride=stride)
    projector = ConvDownsampleProjector(config)
    (count,) = ConvDownsample().num_tokens(config, [frames])
    assert bool(count) == bool(frames)
    assert projector(torch.rand(items, frames, 6)).shape == (items, count, 10)
    assert projector(torch.rand(frames, 6)).shape == (count, 10)


@given(
    frames=st.integers(0, 10_000),
    layers=st.integers(1, 5),
    kernel=st.sampled_from([1, 3, 5, 31]),
    stride=st.integers(1, 9),
)
def test_count_follows_the_general_formula(frames, layers, kernel, stride):
    """Layer by layer, it is the length of a padded convolution."""
    length = frames
    for _ in range(layers):
        length = (length + 2 * (kernel // 2) - kernel) // stride + 1
    assert ConvDownsample().num_tokens(describe(num_layers=layers, kernel_size=kernel, stride=stride), [frames]) == [
        length
    ]


def test_by_default_it_shortens_by_four():
    """Two convolutions of stride two."""
    counts = [0, 1, 4, 5, 1500]
    assert ConvDownsample().num_tokens(describe(), counts) == [0, 1, 1, 2, 375]
    assert counts == [0, 1, 4, 5, 1500]


def test_an_item_alone_equals_itself_in_a_batch():
    """Items don't touch one another."""
    projector = ConvDownsampleProjector(describe())
    items = torch.randn(3, 10, 6)
    for item, projected in zip(items, projector(items), strict=True):
        torch.testing.assert_close(projector(item), projected, rtol=0, atol=1e-6)


# --- training, dtypes, saving -----------------------------------------------------------------------------------------


def test_gradients_reach_every_parameter_and_every_frame():
    """Nothing is left out of the graph."""
    projector = ConvDownsampleProjector(describe())
    features = torch.randn(2, 7, 6, requires_grad=True)
    projector(features).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in projector.parameters())
    assert (features.grad.abs().sum(-1) > 0).all()


def test_an_item_without_frames_keeps_the_graph():
    """Its gradients are zeros, not missing: ranks that wait for them don't hang."""
    projector = ConvDownsampleProjector(describe())
    projector(torch.zeros(1, 0, 6)).sum().backward()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in projector.parameters())


def test_dtype_is_kept():
    """Built under a default of bfloat16, it takes and gives bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        projector = ConvDownsampleProjector(describe())
    finally:
        torch.set_default_dtype(before)
    assert {parameter.dtype for parameter in projector.parameters()} == {torch.bfloat16}
    assert projector(torch.rand(1, 4, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_it_is_built_without_memory():
    """On the meta device all parameters are there, and shapes can be tried."""
    with torch.device("meta"):
        projector = ConvDownsampleProjector(describe())
    assert all(parameter.is_meta for parameter in projector.parameters())
    assert projector(torch.empty(2, 9, 6, device="meta")).shape == (2, 3, 10)


def test_it_comes_back_from_a_folder(tmp_path):
    """Options and weights survive saving."""
    built = MultimodalProjector(describe(num_layers=3, kernel_size=5, hidden_features=8))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_()
    built.save_pretrained(tmp_path)
    loaded = MultimodalProjector.from_pretrained(tmp_path)
    features = torch.randn(2, 17, 6)
    assert torch.equal(loaded(features), built(features))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["num_layers", "kernel_size", "stride", "hidden_features", "out_features"])
@pytest.mark.parametrize("value", [0, -2, 1.5, "2", True])
def test_a_number_that_makes_no_sense_is_refused(option, value):
    """Only positive integers count something."""
    with pytest.raises(CompositionError, match=rf"conv_downsample: .*{option}={value!r}.*expected .*positive integer"):
        ConvDownsampleProjector(describe(**{option: value}))


@pytest.mark.parametrize("option", ["num_layers", "stride"])
def test_counting_refuses_options_that_make_no_sense(option):
    """The same error as when it is built."""
    with pytest.raises(CompositionError, match=f"{option}=0; expected a positive integer; .* leave it out for 2"):
        ConvDownsample().num_tokens(describe(**{option: 0}), [4])


def test_an_even_kernel_is_refused():
    """It has no middle; the message says what to use."""
    with pytest.raises(CompositionError, match="kernel_size=4; expected an odd number.* use 5"):
        ConvDownsampleProjector(describe(kernel_size=4))


@pytest.mark.parametrize("activation", ["gelo", "swiglu", None])
def test_an_unknown_activation_is_refused(activation):
    """The message lists those there are."""
    with pytest.raises(CompositionError, match=r"conv_downsample: unknown activation .*; choose one of .*gelu"):
        ConvDownsampleProjector(describe(activation=activation))


def test_a_missing_width_is_refused():
    """Both widths are needed."""
    with pytest.raises(CompositionError, match="conv_downsample: in_features=6, out_features=None; .*give both"):
        ConvDownsampleProjector(describe(out_features=None))
