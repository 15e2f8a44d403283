"""The ``"resampler"`` projector."""

import math

import pytest
import torch
from cornstarch_audio.resampler import Resampler, ResamplerProjector, sinusoids
from hypothesis import given
from hypothesis import strategies as st

from cornstarch_core import MultimodalProjector, MultimodalProjectorConfig
from cornstarch_core.errors import CompositionError


def describe(**settings):
    """A small config."""
    defaults = {
        "projection_type": "resampler",
        "in_features": 6,
        "out_features": 16,
        "num_queries": 5,
        "num_heads": 4,
    }
    return MultimodalProjectorConfig(**{**defaults, **settings})


def build(**settings):
    """A small resampler whose every weight is random, also those that start at zero or one."""
    torch.manual_seed(0)
    projector = ResamplerProjector(describe(**settings))
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.normal_(std=0.5)
    return projector


# --- values -----------------------------------------------------------------------------------------------------------


def test_positions_by_hand():
    """All sines stand before all cosines; the second frequency of four columns is 1/100."""
    expected = [[math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in range(3)]
    torch.testing.assert_close(sinusoids(3, 4, like=torch.zeros(())), torch.tensor(expected))


@given(length=st.integers(0, 30), width=st.integers(1, 9))
def test_positions_of_any_shape(length, width):
    """Odd widths too; each position is told from the others."""
    table = sinusoids(length, width, like=torch.zeros(()))
    assert table.shape == (length, width)
    assert len(table.unique(dim=0)) == length


def test_positions_are_rounded_only_at_the_end():
    """In bfloat16 they are those of float32, rounded: also where bfloat16 can't count any more."""
    exact = sinusoids(1000, 8, like=torch.zeros(()))
    rounded = sinusoids(1000, 8, like=torch.zeros((), dtype=torch.bfloat16))
    assert torch.equal(rounded, exact.to(torch.bfloat16))


def test_one_layer_by_hand():
    """One head, one query, identity maps: softmax over feature and query, the residual, then the norm."""
    projector = ResamplerProjector(describe(in_features=2, out_features=2, num_queries=1, num_heads=1, num_layers=1))
    layer = projector.layers[0]
    with torch.no_grad():
        for linear in (projector.linear, layer.to_query, layer.to_key, layer.to_value, layer.to_output):
            linear.weight.copy_(torch.eye(2))
        projector.linear.bias.zero_()
        projector.queries.weight.copy_(torch.tensor([[0.0, 8.0]]))  # normed: (-1, 1)
        layer.feed_forward[-1].weight.zero_()
        projector.norm = torch.nn.Identity()
    feature = torch.tensor([[8.0, -1.0]])  # with position 0, (sin 0, cos 0) = (0, 1): (8, 0), normed (1, -1)
    to_query = 1 / (1 + math.exp(-4 / math.sqrt(2)))  # scores: -2 / sqrt(2) for the feature, 2 / sqrt(2) for the query
    read = 2 * to_query - 1  # along (-1, 1)
    torch.testing.assert_close(projector(feature), torch.tensor([[-read, 8 + read]]), rtol=1e-5, atol=1e-5)


def test_order_matters():
    """The same features in another order give other tokens."""
    projector, features = build(), torch.randn(2, 9, 6)
    difference = projector(features) - projector(features.flip(1))
    assert difference.abs().max() > 1e-2


def test_tokens_differ_from_one_another():
    """Each query reads for itself."""
    tokens = build()(torch.randn(9, 6))
    assert len(tokens.round(decimals=3).unique(dim=0)) == 5


# --- lengths ----------------------------------------------------------------------------------------------------------


@given(
    features=st.integers(0, 20),
    queries=st.integers(1, 8),
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4, 8, 16]),
    items=st.integers(0, 3),
)
def test_count_is_what_comes_out(features, queries, layers, heads, items):
    """The declared length is the length of the features, for a batch and for one item, and only nothing gives nothing."""
    config = describe(num_queries=queries, num_layers=layers, num_heads=heads)
    projector = ResamplerProjector(config)
    (count,) = Resampler().num_tokens(config, [features])
    assert count == (queries if features else 0)
    assert projector(torch.rand(items, features, 6)).shape == (items, count, 16)
    assert projector(torch.rand(features, 6)).shape == (count, 16)


def test_by_default_there_are_64_queries():
    """As in Flamingo, whatever the length."""
    config = MultimodalProjectorConfig(in_features=6, out_features=16)
    assert Resampler().num_tokens(config, [0, 1, 1500]) == [0, 64, 64]
    assert len(ResamplerProjector(config)(torch.rand(1, 6))) == 64


def test_an_item_alone_equals_itself_in_a_batch():
    """Items don't touch one another."""
    projector, items = build(), torch.randn(3, 10, 6)
    for item, projected in zip(items, projector(items), strict=True):
        torch.testing.assert_close(projector(item), projected, rtol=0, atol=1e-6)


# --- training, dtypes, saving -----------------------------------------------------------------------------------------


def test_gradients_reach_every_parameter_and_every_feature():
    """Nothing is left out of the graph, from the start on."""
    projector = ResamplerProjector(describe())
    features = torch.randn(2, 7, 6, requires_grad=True)
    (projector(features) * torch.randn(16)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in projector.parameters())
    assert (features.grad.abs().sum(-1) > 0).all()


def test_an_item_without_features_keeps_the_graph():
    """Its gradients are zeros, not missing: ranks that wait for them don't hang."""
    projector = ResamplerProjector(describe())
    projector(torch.zeros(1, 0, 6)).sum().backward()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in projector.parameters())


def test_dtype_is_kept():
    """Built under a default of bfloat16, it takes and gives bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        projector = ResamplerProjector(describe())
    finally:
        torch.set_default_dtype(before)
    assert {parameter.dtype for parameter in projector.parameters()} == {torch.bfloat16}
    assert projector(torch.rand(1, 4, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_it_is_built_without_memory():
    """On the meta device all parameters are there, and shapes can be tried."""
    with torch.device("meta"):
        projector = ResamplerProjector(describe())
    assert all(parameter.is_meta for parameter in projector.parameters())
    assert projector(torch.empty(2, 9, 6, device="meta")).shape == (2, 5, 16)


def test_a_state_dict_is_all_there_is():
    """A resampler made on the meta device and filled from a state dict is the same: no buffer is left empty."""
    projector, features = build(), torch.randn(2, 9, 6)
    with torch.device("meta"):
        copy = ResamplerProjector(describe())
    copy.load_state_dict(projector.state_dict(), assign=True)
    assert not list(projector.buffers())
    assert torch.equal(copy(features), projector(features))


def test_weights_to_start_with():
    """By itself and under the core, queries are small normal numbers and norms do nothing."""
    torch.manual_seed(0)
    config = describe(num_queries=64, out_features=128)
    for projector in (ResamplerProjector(config), MultimodalProjector(config).projection):
        assert projector.queries.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert projector.queries.weight.mean().abs() < 1e-3
        assert torch.equal(projector.norm.weight, torch.ones(128))
        assert torch.equal(projector.layers[0].norm_queries.bias, torch.zeros(128))


def test_it_comes_back_from_a_folder(tmp_path):
    """Options and weights survive saving."""
    built = MultimodalProjector(describe(num_layers=3))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_()
    built.save_pretrained(tmp_path)
    loaded = MultimodalProjector.from_pretrained(tmp_path)
    features = torch.randn(2, 7, 6)
    assert torch.equal(loaded(features), built(features))


def test_queries_that_a_checkpoint_lacks_are_drawn(tmp_path):
    """They start as usual: they aren't whatever the memory held."""
    config = describe(num_queries=64, out_features=128)
    built = MultimodalProjector(config)
    weights = {name: weight for name, weight in built.state_dict().items() if "queries.weight" not in name}
    built.save_pretrained(tmp_path, state_dict=weights)
    loaded = MultimodalProjector.from_pretrained(tmp_path)
    assert torch.equal(loaded.projection.linear.weight, built.projection.linear.weight)
    assert loaded.projection.queries.weight.std().item() == pytest.approx(0.02, rel=0.05)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["num_queries", "num_layers", "num_heads", "in_features"])
@pytest.mark.parametrize("value", [0, -2, 1.5, "2", True])
def test_a_number_that_makes_no_sense_is_refused(option, value):
    """Only positive integers count something."""
    with pytest.raises(CompositionError, match=rf"resampler: .*{option}={value!r}.*expected .*positive integer"):
        ResamplerProjector(describe(**{option: value}))


def test_counting_refuses_a_number_of_queries_that_makes_no_sense():
    """The same error as when it is built."""
    with pytest.raises(CompositionError, match="num_queries=0; expected a positive integer; .* leave it out for 64"):
        Resampler().num_tokens(describe(num_queries=0), [4])


def test_heads_that_do_not_divide_the_width_are_refused():
    """The message lists the numbers that do."""
    with pytest.raises(CompositionError, match=r"num_heads=3 does not divide out_features=16; .* 1, 2, 4, 8, 16\."):
        ResamplerProjector(describe(num_heads=3))


@pytest.mark.parametrize("activation", ["gelo", "swiglu", None])
def test_an_unknown_activation_is_refused(activation):
    """The message lists those there are."""
    with pytest.raises(CompositionError, match=r"resampler: unknown activation .*; choose one of .*gelu"):
        ResamplerProjector(describe(activation=activation))


def test_a_missing_width_is_refused():
    """Both widths are needed."""
    with pytest.raises(CompositionError, match="resampler: in_features=None, out_features=None; .*give both"):
        ResamplerProjector(describe(in_features=None, out_features=None))
