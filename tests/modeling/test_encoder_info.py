"""What is known of an encoder without its weights: how many features it gives, and for which inputs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import tiny
import torch
from torch import nn

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel
from cornstarch_core.config import EncoderRecord, read_record
from cornstarch_core.errors import CompositionError, UnknownNameError
from cornstarch_core.modeling.encoder_info import EncoderInfo
from cornstarch_core.specs import EncoderContext


def completed(*args, projector_type: str = "linear", **kwargs) -> ModalEncoderModule:
    """An encoder as it is inside a model."""
    encoder = ModalEncoderModule(*args, **kwargs)
    encoder.complete("vision", tiny.WIDTH, projector_type)
    return encoder


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callbacks", "projector_type", "expected"),
    [(None, "linear", 17), ("llava", "mlp", 16), ("llava", "pixel_shuffle", 4)],
)
def test_as_many_features_are_counted_as_the_encoder_gives(callbacks, projector_type, expected):
    """CLS and 16 patches; callbacks drop CLS, and the projector joins four patches."""
    encoder = completed(tiny.clip(), callbacks=callbacks, projector_type=projector_type)
    inputs = {"pixel_values": tiny.pixels(3)}
    assert encoder.info.num_tokens(inputs) == [expected] * 3
    assert [len(item) for item in encoder(**inputs)[0]] == [expected] * 3


def test_counts_chain_through_callbacks():
    """The callbacks before the projector change the encoder's counts, those after it the projector's."""
    callbacks = ModalCallbacks(
        num_tokens_before_projector=lambda inputs, counts: [len(inputs["signal"])],
        num_tokens_after_projector=lambda inputs, counts: [counts[0] + 1],
    )
    encoder = completed(tiny.ToyEncoder(), hidden_size=32, input_names=["signal"], callbacks=callbacks)
    assert encoder.info.num_tokens({"signal": torch.zeros(4, 2, 5)}) == [5]


def test_the_projector_counts_between_the_callbacks():
    """Four features of the callbacks become one of the projector, to which the last callback adds one."""
    callbacks = ModalCallbacks(
        num_tokens_before_projector=lambda inputs, counts: [count - 1 for count in counts],
        num_tokens_after_projector=lambda inputs, counts: [count + 1 for count in counts],
    )
    info = completed(tiny.clip(), callbacks=callbacks, projector_type="pixel_shuffle").info
    inputs = {"pixel_values": tiny.pixels(2)}
    assert info.num_tokens_before_projector(inputs) == [16, 16]
    assert info.num_tokens(inputs) == [5, 5]


def test_an_unknown_count_says_how_to_give_it():
    """The processor can't expand placeholders for an encoder that no plugin describes."""
    encoder = completed(tiny.ToyEncoder(), hidden_size=32, input_names=["signal"])
    with pytest.raises(CompositionError, match="vision: .*ModalCallbacks\\(num_tokens_before_projector="):
        encoder.info.num_tokens({"signal": torch.zeros(1, 2, 5)})
    assert not encoder.info.can_count


@pytest.mark.parametrize(
    ("embeds", "expected"),
    [
        (torch.zeros(2, 3, 12), [3, 3]),
        (torch.zeros(4, 12), [1, 1, 1, 1]),
        ([torch.zeros(2, 12), torch.zeros(5, 12)], [2, 5]),
        ([], []),
    ],
    ids=["items of one length", "one token each", "items of any length", "none"],
)
def test_ready_made_embeddings_are_counted_in_every_form(embeds, expected):
    """Without an encoder, the embeddings themselves are the features."""
    assert completed(None, hidden_size=12).info.num_tokens({"embeds": embeds}) == expected


# --- dummy inputs -----------------------------------------------------------------------------------------------------


def test_dummy_inputs_are_one_item_that_every_step_takes():
    """The encoder makes them, the callbacks complete them, and the projector enlarges them until they fit."""
    shape = {name: value.shape for name, value in completed(tiny.clip()).info.dummy_inputs().items()}
    assert shape == {"pixel_values": (1, 3, 32, 32)}
    callbacks = ModalCallbacks(dummy_inputs=lambda inputs: {**inputs, "note": 1}, input_names=("note",))
    ready_made = completed(None, hidden_size=12, callbacks=callbacks, projector_type="pixel_shuffle")
    inputs = ready_made.info.dummy_inputs()
    assert inputs["note"] == 1
    assert inputs["embeds"].shape == (1, 4, 12)  # four tokens become one
    assert ready_made(**inputs)[0].shape == (1, 1, tiny.WIDTH)


def test_dummy_inputs_of_an_unknown_encoder_are_those_of_its_callbacks():
    """They are made from nothing, and without callbacks they are not known."""
    arguments = {"hidden_size": 32, "input_names": ["signal"]}
    assert completed(tiny.ToyEncoder(), **arguments).info.dummy_inputs() is None
    callbacks = ModalCallbacks(dummy_inputs=lambda inputs: {**inputs, "signal": torch.zeros(1, 2, 5)})
    assert list(completed(tiny.ToyEncoder(), callbacks=callbacks, **arguments).info.dummy_inputs()) == ["signal"]


# --- what it is -------------------------------------------------------------------------------------------------------


def test_plugins_are_told_both_widths_and_the_tokens_before_the_first_patch():
    """CLIP's spec says that there is one such token, and where its blocks are."""
    clip = tiny.clip()
    assert completed(clip).info.context == EncoderContext(
        key="vision",
        config=clip.config,
        hidden_size=32,
        text_hidden_size=64,
        prefix_tokens=1,
        layers="encoder.layers",
    )
    toy = completed(tiny.ToyEncoder(), hidden_size=32, input_names=["signal"])
    assert toy.info.context == EncoderContext(key="vision", config=None, hidden_size=32, text_hidden_size=64)


def test_callbacks_add_to_the_inputs_and_may_change_the_width():
    """Names are listed once, the encoder's first; the projector takes the width that the callbacks give."""
    callbacks = ModalCallbacks(hidden_size=48, input_names=("sizes", "signal"))
    module = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names=["signal", "rate"], callbacks=callbacks)
    assert module.info.all_input_names == ("signal", "rate", "sizes")
    assert (module.info.hidden_size, module.info.feature_size) == (32, 48)
    assert module.info.context.hidden_size == 32


def test_registrations_are_what_plugins_offer_for_this_encoder():
    """The encoder, its callbacks and its projector; a part that was handed in is not among them."""

    def names(*args, **kwargs):
        return [one.qualified_name for one in completed(*args, **kwargs).info.registrations]

    assert names(tiny.clip(), callbacks="llava", projector_type="mlp") == [
        "cornstarch-vision/clip",
        "cornstarch-vision/llava",
        "cornstarch-core/mlp",
    ]
    assert names(tiny.clip(), nn.Linear(32, 64), callbacks=ModalCallbacks()) == ["cornstarch-vision/clip"]


# --- from a saved record ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callbacks", "projector_type"), [(None, "linear"), ("llava", "pixel_shuffle"), ("llava-next", "mlp")]
)
def test_a_saved_record_tells_the_same_as_the_encoder(callbacks, projector_type):
    """A processor counts and prepares from the record alone, after it was JSON."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(), callbacks=callbacks)},
        language_model=tiny.llama(),
        init_projector_type=projector_type,
    )
    saved = json.loads(json.dumps(asdict(model.config.encoders["vision"])))
    record = read_record(EncoderRecord, saved, "encoders.vision")
    info = model.vision_encoder.info
    restored = EncoderInfo.from_record("vision", record, model.config.vision_config)
    assert restored.context == info.context
    assert restored.registrations == info.registrations
    assert restored.projector_config.to_dict() == info.projector_config.to_dict()
    assert (restored.all_input_names, restored.feature_size) == (info.all_input_names, info.feature_size)
    inputs = info.dummy_inputs()
    assert restored.dummy_inputs().keys() == inputs.keys()
    assert restored.num_tokens(inputs) == info.num_tokens(inputs)


def test_a_record_of_something_that_no_plugin_offers_is_refused(mllm):
    """Each of the encoder, its callbacks and its projector is looked up by its name."""
    record = mllm.config.encoders["vision"]
    with pytest.raises(UnknownNameError, match="no encoder for 'cornstarch-vision/lens'"):
        EncoderInfo.from_record("vision", replace(record, encoder="cornstarch-vision/lens"), None)
    config = {**record.projector.config, "projection_type": "spline"}
    with pytest.raises(UnknownNameError, match="no projector for 'spline'"):
        EncoderInfo.from_record("vision", replace(record, projector=replace(record.projector, config=config)), None)
