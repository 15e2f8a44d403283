"""One modality: what it accepts, the order of its steps, and what each callback sees."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from cornstarch_core import ModalCallbacks, ModalEncoderModule
from cornstarch_core.errors import CompositionError, InputError, UnknownNameError


def completed(*args, **kwargs) -> ModalEncoderModule:
    """An encoder as it is inside a model."""
    encoder = ModalEncoderModule(*args, **kwargs)
    encoder.complete("vision", tiny.WIDTH)
    return encoder


def test_module_and_model_are_two_spellings():
    """``module=`` and ``model=`` are one argument; both, or neither, is a TypeError."""
    clip = tiny.clip()
    assert ModalEncoderModule(model=clip).module is ModalEncoderModule(module=clip).module is clip
    with pytest.raises(TypeError, match="two spellings"):
        ModalEncoderModule(module=clip, model=clip)
    with pytest.raises(TypeError, match="module= is missing"):
        ModalEncoderModule()


def test_only_modules_are_encoders_and_projectors():
    """An object of another type is refused, and the error names its type."""
    with pytest.raises(TypeError, match="not str"):
        ModalEncoderModule("clip")
    with pytest.raises(TypeError, match="not str"):
        ModalEncoderModule(tiny.clip(), "linear")


def test_steps_run_in_the_seeds_order_with_the_seeds_arguments():
    """The order is preprocess, module, postprocess_module, projector, postprocess_projector."""
    seen = []

    def preprocess(inputs):
        seen.append(("preprocess", sorted(inputs)))
        return {**inputs, "pixel_values": inputs["pixel_values"] * 2}

    def after_module(inputs, output):
        seen.append(("module", inputs["pixel_values"].max().item(), output[0] is output.last_hidden_state))
        output.last_hidden_state = output.last_hidden_state[:, 1:]
        return output

    def after_projector(inputs, output):
        seen.append(("projector", output[0].shape, inputs["note"]))
        return output

    encoder = completed(
        tiny.clip(),
        preprocess_callback=preprocess,
        postprocess_module_callback=after_module,
        postprocess_projector_callback=after_projector,
    )
    pixels = torch.ones(1, 3, 32, 32)
    output = encoder(pixel_values=pixels, note="seen by callbacks only")
    assert seen == [
        ("preprocess", ["note", "pixel_values"]),
        ("module", 2.0, True),
        ("projector", (1, 16, 64), "seen by callbacks only"),
    ]
    expected = encoder.projector(encoder.module(pixel_values=pixels * 2).last_hidden_state[:, 1:])
    assert torch.equal(output.last_hidden_state, expected)


def test_the_seeds_other_name_of_a_callback_works():
    """postprocess_encoder_callback is postprocess_module_callback; both together are refused."""
    assert ModalEncoderModule(tiny.clip(), postprocess_encoder_callback=max).postprocess_module_callback is max
    with pytest.raises(TypeError, match="one argument"):
        ModalEncoderModule(tiny.clip(), postprocess_encoder_callback=max, postprocess_module_callback=max)


def test_callbacks_can_not_change_the_callers_dictionary(mllm):
    """Each callback gets a copy of the inputs."""

    def preprocess(inputs):
        inputs["pixel_values"] = inputs.pop("pixel_values") * 0
        return inputs

    def after_module(inputs, output):
        inputs.clear()
        return output

    mllm.vision_encoder.preprocess_callback = preprocess
    mllm.vision_encoder.postprocess_module_callback = after_module
    mllm.vision_encoder.postprocess_projector_callback = lambda inputs, output: output if inputs else None
    given = {"vision": {"pixel_values": tiny.pixels(1)}}
    mllm(**tiny.prompt(1), encoder_inputs=given)
    assert list(given["vision"]) == ["pixel_values"]
    assert given["vision"]["pixel_values"].abs().max() > 0


def test_a_callback_that_returns_nothing_is_named():
    """A callback without a return statement is refused by its name."""
    encoder = completed(tiny.clip(), postprocess_module_callback=lambda inputs, output: None)
    with pytest.raises(TypeError, match="postprocess_module_callback returned None; it must return the .* output"):
        encoder(pixel_values=tiny.pixels(1))


def test_keyword_callbacks_override_parts_of_a_set():
    """The three keyword arguments win over ``callbacks=``."""
    first, second = (lambda inputs: inputs), (lambda inputs: inputs)
    callbacks = ModalCallbacks(preprocess=first, postprocess_module=max)
    encoder = ModalEncoderModule(tiny.clip(), callbacks=callbacks, preprocess_callback=second)
    assert encoder.preprocess_callback is second
    assert encoder.postprocess_module_callback is max


def test_options_without_a_name_are_refused():
    """``callback_options=`` is for callbacks that are given by their registered name."""
    with pytest.raises(TypeError, match="callbacks='name'"):
        ModalEncoderModule(tiny.clip(), callback_options={"a": 1})


def test_an_unknown_callback_name_is_refused_when_the_model_is_composed():
    """The name is looked up when the model is composed, as the projector is made then too."""
    encoder = ModalEncoderModule(tiny.clip(), callbacks="no-such-thing")
    with pytest.raises(UnknownNameError, match="no-such-thing"):
        encoder.complete("vision", tiny.WIDTH)


def test_nothing_is_attached_that_was_not_named():
    """A bare CLIP projects its whole last hidden state, CLS included."""
    encoder = completed(tiny.clip())
    output = encoder(pixel_values=tiny.pixels(2))
    assert output.last_hidden_state.shape == (2, 17, 64)


class Newline(nn.Module):
    """A callback with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.newline = nn.Parameter(torch.full((64,), 2.0))

    def forward(self, inputs, output):
        """Append the newline to every item."""
        rows = self.newline.expand(len(output[0]), 1, 64)
        return BaseModelOutput(last_hidden_state=torch.cat([output[0], rows], dim=1))

    append = forward


def test_parameters_of_a_callback_module_train_and_move_with_the_model():
    """They are in the state dict, get gradients, and follow the dtype of the encoder."""
    encoder = completed(tiny.clip(), postprocess_projector_callback=Newline())
    assert "postprocess_projector_callback.newline" in encoder.state_dict()
    encoder(pixel_values=tiny.pixels(1))[0].sum().backward()
    assert torch.equal(encoder.postprocess_projector_callback.newline.grad, torch.ones(64))
    assert encoder.to(torch.bfloat16).postprocess_projector_callback.newline.dtype == torch.bfloat16


def test_a_bound_method_that_would_lose_parameters_is_refused():
    """The parameters of a method's module would neither train nor save, so the module itself must be passed."""
    with pytest.raises(TypeError, match="Pass the module itself"):
        ModalEncoderModule(tiny.clip(), postprocess_projector_callback=Newline().append)


def test_width_and_inputs_of_a_plain_module_must_be_given():
    """Without a plugin that knows it, the error says which argument to give."""
    with pytest.raises(CompositionError, match="ToyEncoder.*hidden_size="):
        ModalEncoderModule(tiny.ToyEncoder())
    with pytest.raises(CompositionError, match="ToyEncoder.*input_names="):
        ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32)


def test_a_plain_modules_tensor_is_projected():
    """An encoder may return a tensor in place of a ModelOutput."""
    toy = tiny.ToyEncoder()
    encoder = completed(toy, hidden_size=32, input_names=["signal"])
    signal = torch.randn(2, 9, 5)
    assert torch.equal(encoder(signal=signal)[0], encoder.projector(toy(signal)))


class Tuple(nn.Module):
    """Returns a tuple, as an encoder with return_dict=False does."""

    config = PreTrainedConfig()
    config.hidden_size = 5

    def forward(self, signal):
        """The signal and something else."""
        return signal, "rest"


def test_a_tuple_stays_a_tuple():
    """Callbacks see what the encoder returned; only its first entry is projected."""
    kinds = []

    def note(inputs, output):
        kinds.append(type(output))
        return output

    encoder = completed(
        Tuple(), input_names=["signal"], postprocess_module_callback=note, postprocess_projector_callback=note
    )
    output = encoder(signal=torch.randn(1, 4, 5))
    assert kinds == [tuple, tuple]
    assert output[0].shape == (1, 4, 64)
    assert output[1] == "rest"


class Ragged(nn.Module):
    """Returns a list of tensors of different lengths."""

    def forward(self, lengths):
        """A feature of ones for every step."""
        return [torch.ones(length, 8) for length in lengths]


def test_a_list_of_different_lengths_is_projected():
    """Items may differ in length; each is projected."""
    encoder = completed(Ragged(), hidden_size=8, input_names=["lengths"])
    output = encoder(lengths=[2, 5])
    assert [tuple(item.shape) for item in output[0]] == [(2, 64), (5, 64)]


def test_ready_made_embeddings_need_no_module():
    """module=None takes ``embeds`` and projects them."""
    encoder = completed(None, hidden_size=12)
    embeds = torch.randn(2, 3, 12)
    assert torch.equal(encoder(embeds=embeds)[0], encoder.projector(embeds))
    assert encoder.info.num_tokens({"embeds": embeds}) == [3, 3]
    with pytest.raises(CompositionError, match="ready-made embeddings.*hidden_size="):
        ModalEncoderModule(None)


def test_a_missing_main_input_says_what_is_taken_and_what_came():
    """The error shows the names that are taken and those that were given."""
    with pytest.raises(InputError, match="takes pixel_values.*; got pixel_vlaues"):
        completed(tiny.clip())(pixel_vlaues=tiny.pixels(1))


def test_a_surplus_input_is_refused_where_no_callback_could_read_it():
    """Without callbacks, a name that the encoder doesn't take is a mistake."""
    with pytest.raises(TypeError, match="nothing takes image_sizes"):
        completed(tiny.clip())(pixel_values=tiny.pixels(1), image_sizes=[(1, 1)])


def test_what_preprocess_adds_reaches_the_module():
    """The encoder is called with the entries that preprocess adds to the dictionary."""
    encoder = completed(tiny.clip(), preprocess_callback=lambda inputs: {**inputs, "output_hidden_states": True})
    seen = []
    encoder.postprocess_module_callback = lambda inputs, output: seen.append(len(output.hidden_states)) or output
    encoder(pixel_values=tiny.pixels(1))
    assert seen == [4]


def test_what_only_callbacks_read_never_reaches_the_module():
    """The encoder would refuse such an input, also if preprocess adds it."""
    seen = {}

    def after(inputs, output):
        seen.update(inputs)
        return output

    callbacks = ModalCallbacks(
        preprocess=lambda inputs: {**inputs, "note": 1}, postprocess_projector=after, input_names=("note",)
    )
    completed(tiny.clip(), callbacks=callbacks)(pixel_values=tiny.pixels(1))
    assert seen["note"] == 1


def test_a_peft_wrapped_encoder_is_seen_through():
    """Its width and its inputs are those of the model inside the wrapper."""
    wrapped = get_peft_model(tiny.clip(), LoraConfig(target_modules=["q_proj"]))
    encoder = ModalEncoderModule(wrapped)
    assert (encoder.hidden_size, encoder.input_names[0]) == (32, "pixel_values")


@pytest.mark.parametrize("family", ["clip", "beit"])
def test_a_bfloat16_encoder_takes_float32_pixels_and_feeds_a_float32_projector(family):
    """Inputs and features are cast to the dtype of the weights; BEiT does not cast by itself (transformers 5.23)."""
    if family == "beit":
        from transformers import BeitConfig, BeitModel

        module = BeitModel(BeitConfig(**tiny.VISION), add_pooling_layer=False)
    else:
        module = tiny.clip()
    encoder = completed(module.to(torch.bfloat16))
    output = encoder(pixel_values=tiny.pixels(1))
    assert output[0].dtype == torch.float32
    output[0].sum().backward()
    assert encoder.projector.projection.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("callbacks", [max, {"preprocess": max}, nn.Identity()], ids=["function", "dict", "module"])
def test_callbacks_of_another_kind_are_refused(callbacks):
    """Another object would never run; the error says where a single function goes."""
    with pytest.raises(
        TypeError, match="callbacks= must be a ModalCallbacks or the name .*postprocess_module_callback="
    ):
        ModalEncoderModule(tiny.clip(), callbacks=callbacks)


@pytest.mark.parametrize(
    "result", [torch.zeros(1, 17, 32), {"last_hidden_state": 1}, [1]], ids=["tensor", "dict", "list"]
)
def test_a_callback_returns_an_output_not_a_tensor(result):
    """A tensor is refused, since ``output[0]`` would be its first item."""
    encoder = completed(tiny.clip(), postprocess_module_callback=lambda inputs, output: result)
    with pytest.raises(TypeError, match="vision: postprocess_module_callback returned a .*a ModelOutput or a tuple"):
        encoder(pixel_values=tiny.pixels(1))


def test_an_encoder_that_returns_a_dictionary_is_named():
    """A dictionary has no first entry to project, so it is refused by its type."""

    class Dictionary(nn.Module):
        def forward(self, signal):
            return {"features": signal}

    encoder = completed(Dictionary(), hidden_size=5, input_names=["signal"])
    with pytest.raises(TypeError, match="vision: Dictionary returned a dict"):
        encoder(signal=torch.zeros(1, 2, 5))


def test_a_two_tower_model_is_pointed_at_its_tower():
    """A whole CLIPModel is refused, and the error names the part of it that is an encoder."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with pytest.raises(CompositionError, match="did you mean its vision_model, a CLIPVision"):
        ModalEncoderModule(CLIPModel(CLIPConfig(vision_config=tiny.VISION, text_config=text)))


def test_a_model_with_a_decoder_is_refused_with_a_hint_at_its_encoder():
    """A whole Whisper model is refused, and the error names its encoder, which is accepted."""
    import sounds
    from transformers import WhisperForConditionalGeneration

    sizes = {"decoder_attention_heads": 4, "decoder_ffn_dim": 48, "decoder_layers": 1, "vocab_size": 60}
    whole = WhisperForConditionalGeneration(sounds.whisper(**sizes).config)
    with pytest.raises(
        CompositionError, match="has a decoder, too.*Or did you mean its model.encoder, a WhisperEncoder"
    ):
        ModalEncoderModule(whole)
    assert ModalEncoderModule(whole.get_encoder()).hidden_size == 32


def test_a_plain_module_may_share_the_config_of_the_encoder_inside():
    """A plain module has no decoder, even if the config that it shares with its encoder describes one."""
    import sounds

    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = sounds.whisper()
            self.config = self.encoder.config

        def forward(self, input_features):
            return self.encoder(input_features).last_hidden_state

    encoder = ModalEncoderModule(Mine(), hidden_size=32, input_names="input_features")
    encoder.complete("audio", 8)
    assert encoder(input_features=torch.zeros(1, 16, 96))[0].shape == (1, 48, 8)
