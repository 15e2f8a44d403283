"""The ``"frame_stack"`` projector."""

import pytest
import torch
from cornstarch_audio.frame_stack import FrameStack, FrameStackProjector, stack_frames
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from cornstarch_core import MultimodalProjector, MultimodalProjectorConfig
from cornstarch_core.errors import CompositionError


def describe(**settings):
    """A small config."""
    return MultimodalProjectorConfig(
        **{"projection_type": "frame_stack", "in_features": 6, "out_features": 10, **settings}
    )


# --- values -----------------------------------------------------------------------------------------------------------


def test_five_frames_by_hand():
    """Frames follow one another in a token; zeros fill up the last token."""
    frames = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]])
    assert stack_frames(frames, 2).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]
    assert stack_frames(frames[None], 5).tolist() == [[[*range(1, 11)]]]
    assert torch.equal(stack_frames(frames, 1), frames)


def test_identity_weights_give_the_stacked_frames():
    """With identity matrices, no activation and no norm, what comes out is what was stacked."""
    projector = FrameStackProjector(
        describe(in_features=2, out_features=4, stack_factor=2, norm=False, activation="linear")
    )
    with torch.no_grad():
        for layer in (projector.linear_1, projector.linear_2):
            layer.weight.copy_(torch.eye(4))
    frames = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    assert projector(frames).tolist() == [[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, 0.0]]]


def test_swiglu_gates_the_first_half_by_the_second():
    """As in Ultravox: values first, then gates, which go through SiLU."""
    projector = FrameStackProjector(
        describe(in_features=4, out_features=2, hidden_features=4, stack_factor=1, norm=False, activation="swiglu")
    )
    with torch.no_grad():
        projector.linear_1.weight.copy_(torch.eye(4))
        projector.linear_2.weight.copy_(torch.eye(2))
    assert projector.linear_2.in_features == 2
    gates = functional.silu(torch.tensor([3.0, -4.0]))
    assert torch.equal(projector(torch.tensor([[1.0, 2.0, 3.0, -4.0]])), torch.tensor([[1.0, 2.0]]) * gates)


def test_norms_stand_before_and_after():
    """The output has a root mean square of one, and the scale of the input doesn't matter."""
    projector = FrameStackProjector(describe(stack_factor=2))
    frames = torch.rand(3, 8, 6) + 1
    projected = projector(frames)
    torch.testing.assert_close(projected.square().mean(-1), torch.ones(3, 4), rtol=1e-3, atol=0)
    torch.testing.assert_close(projector(100 * frames), projected, rtol=1e-4, atol=1e-5)


def test_projection_equals_that_of_voxtral():
    """Bit-equal to Hugging Face's Voxtral for the same weights: stacking and projector."""
    from transformers import VoxtralConfig
    from transformers.models.voxtral.modeling_voxtral import VoxtralMultiModalProjector

    theirs = VoxtralMultiModalProjector(
        VoxtralConfig(
            audio_config={"model_type": "voxtral_encoder", "hidden_size": 6, "intermediate_size": 24},
            text_config={"model_type": "llama", "hidden_size": 10, "num_attention_heads": 1, "num_key_value_heads": 1},
        )
    )
    ours = FrameStackProjector(describe(stack_factor=4, norm=False))
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(2, 12, 6)
    expected = theirs(features.reshape(-1, 24))
    assert torch.equal(ours(features).reshape(-1, 10), expected)
    assert torch.equal(ours(features.reshape(-1, 6)), expected)


def test_projection_equals_that_of_glm_asr():
    """Bit-equal to Hugging Face's GLM-ASR for the same weights: stacking and projector."""
    from transformers import GlmAsrConfig
    from transformers.models.glmasr.modeling_glmasr import GlmAsrMultiModalProjector

    theirs = GlmAsrMultiModalProjector(
        GlmAsrConfig(
            audio_config={"model_type": "glmasr_encoder", "hidden_size": 6, "intermediate_size": 24},
            text_config={"model_type": "llama", "hidden_size": 10, "num_attention_heads": 1, "num_key_value_heads": 1},
        )
    )
    ours = FrameStackProjector(describe(stack_factor=4, norm=False, bias=True, hidden_features=20))
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(2, 12, 6)
    assert torch.equal(ours(features), theirs(features.reshape(2, -1, 24)))


# --- lengths ----------------------------------------------------------------------------------------------------------


@given(frames=st.integers(0, 30), factor=st.integers(1, 9), items=st.integers(0, 3), norm=st.booleans())
def test_count_is_what_comes_out(frames, factor, items, norm):
    """The declared length is the length of the features, for a batch and for one item, and only nothing gives nothing."""
    config = describe(stack_factor=factor, norm=norm)
    projector = FrameStackProjector(config)
    (count,) = FrameStack().num_tokens(config, [frames])
    assert bool(count) == bool(frames)
    assert projector(torch.rand(items, frames, 6)).shape == (items, count, 10)
    assert projector(torch.rand(frames, 6)).shape == (count, 10)


def test_the_default_factor_is_eight():
    """It is Ultravox's."""
    assert FrameStack().num_tokens(describe(), [0, 1, 8, 9, 1500]) == [0, 1, 1, 2, 188]


def test_an_item_alone_equals_itself_in_a_batch():
    """Items don't touch one another."""
    projector = FrameStackProjector(describe(stack_factor=4))
    items = torch.randn(3, 10, 6)
    for item, projected in zip(items, projector(items), strict=True):
        torch.testing.assert_close(projector(item), projected, rtol=0, atol=1e-6)


# --- training, dtypes, saving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "prelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_reach_every_parameter_and_every_frame(activation, bias):
    """Nothing is left out of the graph."""
    projector = FrameStackProjector(describe(activation=activation, bias=bias, stack_factor=4))
    features = torch.randn(2, 7, 6, requires_grad=True)
    (projector(features) * torch.randn(10)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in projector.parameters())
    assert (features.grad.abs().sum(-1) > 0).all()


def test_dtype_is_kept():
    """Built under a default of bfloat16, it takes and gives bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        projector = FrameStackProjector(describe(activation="swiglu"))
    finally:
        torch.set_default_dtype(before)
    assert {parameter.dtype for parameter in projector.parameters()} == {torch.bfloat16}
    assert projector(torch.rand(1, 4, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_it_is_built_without_memory():
    """On the meta device all parameters are there, and shapes can be tried."""
    with torch.device("meta"):
        projector = FrameStackProjector(describe(activation="swiglu"))
    assert all(parameter.is_meta for parameter in projector.parameters())
    assert projector(torch.empty(2, 9, 6, device="meta")).shape == (2, 2, 10)


def test_it_comes_back_from_a_folder(tmp_path):
    """Options and weights survive saving; norms start at one under the core too."""
    built = MultimodalProjector(describe(activation="swiglu", stack_factor=3, bias=True, hidden_features=8))
    assert torch.equal(built.projection.norm_before.weight, torch.ones(18))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_()
    built.save_pretrained(tmp_path)
    loaded = MultimodalProjector.from_pretrained(tmp_path)
    features = torch.randn(2, 7, 6)
    assert torch.equal(loaded(features), built(features))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["stack_factor", "hidden_features", "in_features", "out_features"])
@pytest.mark.parametrize("value", [0, -2, 1.5, "2", True])
def test_a_number_that_makes_no_sense_is_refused(option, value):
    """Only positive integers count something."""
    with pytest.raises(CompositionError, match=rf"frame_stack: .*{option}={value!r}.*expected .*positive integer"):
        FrameStackProjector(describe(**{option: value}))


def test_counting_refuses_a_factor_that_makes_no_sense():
    """The same error as when it is built."""
    with pytest.raises(CompositionError, match="stack_factor=0; expected a positive integer; .* leave it out for 8"):
        FrameStack().num_tokens(describe(stack_factor=0), [4])


@pytest.mark.parametrize("option", ["bias", "norm"])
@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_a_switch_is_true_or_false(option, value):
    """Nothing else is."""
    with pytest.raises(CompositionError, match=f"frame_stack: {option}={value!r}; expected True or False"):
        FrameStackProjector(describe(**{option: value}))


@pytest.mark.parametrize("activation", ["gelo", None, ["gelu"]])
def test_an_unknown_activation_is_refused(activation):
    """The message lists those there are."""
    with pytest.raises(CompositionError, match=r"frame_stack: unknown activation .*; choose one of .*gelu.*swiglu"):
        FrameStackProjector(describe(activation=activation))


def test_a_missing_width_is_refused():
    """Both widths are needed."""
    with pytest.raises(CompositionError, match="frame_stack: in_features=None, out_features=10; .*give both"):
        FrameStackProjector(describe(in_features=None))


def test_swiglu_needs_an_even_width():
    """An odd one can't be halved; the message says what to set."""
    with pytest.raises(CompositionError, match="hidden_features=7 .*expected an even number.*hidden_features=8"):
        FrameStackProjector(describe(activation="swiglu", hidden_features=7))
