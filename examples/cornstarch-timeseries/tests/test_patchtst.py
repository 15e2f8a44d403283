"""PatchTST: its counts, held against the model itself, and the callback that makes one sequence of its channels."""

import pytest
import torch
from cornstarch_timeseries.patchtst import PatchTST, SeriesCallbacks
from cornstarch_timeseries.processors import WindowProcessor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PatchTSTForPretraining, PatchTSTModel

from cornstarch_core import ModalEncoderModule
from cornstarch_core.errors import CompositionError
from cornstarch_core.specs import EncoderContext

LIGHT = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def composed(module, **options):
    """The encoder with the callback and a projector to width 32, in eval mode."""
    encoder = ModalEncoderModule(module, callbacks="series", callback_options=options)
    encoder.complete("series", 32)
    return encoder.eval()


@LIGHT
@given(
    patch=st.integers(1, 9),
    stride=st.integers(1, 9),
    more=st.integers(1, 30),
    channels=st.integers(1, 3),
    cls=st.booleans(),
    items=st.integers(1, 3),
    joined=st.sampled_from(["apart", "joined"]),
)
def test_counts_are_the_tokens(patchtst, patch, stride, more, channels, cls, items, joined):
    """For random configs and batches, also where patches don't fit exactly."""
    module = patchtst(
        context_length=patch + more, patch_length=patch, patch_stride=stride, num_input_channels=channels,
        use_cls_token=cls, num_hidden_layers=1,
    )  # fmt: skip
    encoder = composed(module, channels=joined)
    inputs = {"past_values": torch.randn(items, patch + more, channels)}
    with torch.no_grad():
        features = encoder(**inputs)[0]
    assert [len(one) for one in features] == encoder.info.num_tokens(inputs)


def test_bare_counts_are_those_of_the_model(patchtst):
    """Without the callback the features are four-dimensional, and as many."""
    module = patchtst(num_input_channels=3)
    target = PatchTST()
    hidden = module(**target.dummy_inputs(module.config)).last_hidden_state
    assert hidden.shape == (1, 3, 7, 16)
    assert target.num_tokens(module.config, target.dummy_inputs(module.config)) == [21]


@pytest.mark.parametrize("norm", ["batchnorm", "layernorm"])
@pytest.mark.parametrize("return_dict", [True, False])
def test_tokens_stand_where_they_should(patchtst, norm, return_dict):
    """Apart: channel after channel. Joined: all channels of a patch side by side. Nothing but the order is changed."""
    module = patchtst(num_input_channels=3, norm_type=norm, return_dict=return_dict)
    inputs = {"past_values": torch.randn(2, 32, 3)}
    with torch.no_grad():
        hidden = module(**inputs)[0]
        apart, joined = (
            ModalEncoderModule(module, torch.nn.Identity(), callbacks="series", callback_options={"channels": how})
            for how in ("apart", "joined")
        )
        for encoder, width in ((apart, 16), (joined, 48)):
            encoder.complete("series", width)
        assert torch.equal(apart(**inputs)[0][1, 7 * 2 + 4], hidden[1, 2, 4])
        assert torch.equal(joined(**inputs)[0][1, 4], hidden[1, :, 4].flatten())


def test_level_and_scale_are_lost(patchtst):
    """A PatchTST standardises, so that the same shape elsewhere is the same to it: the README says so."""
    module = patchtst()
    wave = torch.sin(torch.arange(32.0)).reshape(1, 32, 1)
    process = WindowProcessor(32)
    with torch.no_grad():
        one, other, different = (
            module(**process([values]))[0] for values in (wave[0], 50 + 3 * wave[0], wave[0].cumsum(0))
        )
    assert (one - other).abs().max() < 1e-4
    assert (one - different).abs().max() > 0.1


def test_bfloat16_keeps_the_shape_of_a_series_far_from_zero(patchtst):
    """What is standardised before the cast comes near the features in float32; values as they are do not."""
    wave = 1000 + torch.sin(torch.arange(32.0))[:, None]
    module = patchtst()
    inputs = WindowProcessor(32)([wave])
    with torch.no_grad():
        expected = composed(module)(**inputs)[0]
        half = composed(patchtst().bfloat16())
        near, far = (half(past_values=values)[0].float() for values in (inputs["past_values"], wave[None]))
    size = expected.norm()
    assert (near - expected).norm() / size < 0.05
    assert (far - expected).norm() / size > 0.2


def test_hiding_patches_is_refused_and_can_be_turned_off(patchtst, tmp_path):
    """As a checkpoint for pretraining says; loaded as the message says, it has the same weights and hides nothing."""
    PatchTSTForPretraining(patchtst().config).save_pretrained(tmp_path)
    with pytest.raises(CompositionError, match="series: this PatchTST masks patches .* do_mask_input=False"):
        composed(PatchTSTModel.from_pretrained(tmp_path))
    encoder = composed(PatchTSTModel.from_pretrained(tmp_path, do_mask_input=False))
    inputs = {"past_values": torch.randn(1, 32, 1)}
    with torch.no_grad():
        assert torch.equal(encoder(**inputs)[0], encoder(**inputs)[0])


def test_what_makes_no_sense_is_refused(patchtst, conv):
    """Another encoder, another option: with what there is to choose."""
    with pytest.raises(CompositionError, match="'series' is for PatchTST.* leave it out for a SeriesConvConfig"):
        composed(conv())
    context = EncoderContext(key="load", config=patchtst().config, hidden_size=16, text_hidden_size=32)
    with pytest.raises(CompositionError, match="load: channels='mixed'; choose 'apart' or 'joined'"):
        SeriesCallbacks().build(context, channels="mixed")
