"""Composing and running a model: its parts, modality keys, outputs, errors, and which parts train."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from cornstarch_core import ModalEncoderModule, MultimodalConfig, MultimodalModel
from cornstarch_core.errors import CompositionError, InputError, PlaceholderMismatchError


def compose(**encoders) -> MultimodalModel:
    """Compose a model with these modules as encoders."""
    return MultimodalModel(
        encoders={key: ModalEncoderModule(module) for key, module in encoders.items()}, language_model=tiny.llama()
    ).eval()


def test_composing_does_not_change_the_parts():
    """The model holds the given objects, and their weights and configs stay the same."""
    clip, llama = tiny.clip(), tiny.llama(tie_word_embeddings=True)
    before = [(part, tiny.copies(part), part.config.to_dict()) for part in (clip, llama)]
    model = MultimodalModel(encoders={"vision": ModalEncoderModule(clip)}, language_model=llama)
    assert model.vision_encoder.module is clip
    assert model.language_model is llama
    for part, weights, config in before:
        assert tiny.same(part, weights)
        assert part.config.to_dict() == config


@pytest.mark.parametrize("key", ["", "2d", "my-eyes", "class", 3])
def test_a_modality_key_must_be_an_identifier(key):
    """The key becomes part of an attribute's name, so other keys are refused."""
    with pytest.raises(CompositionError, match="identifier"):
        MultimodalModel(encoders={key: ModalEncoderModule(tiny.clip())}, language_model=tiny.llama())


def test_a_modality_key_must_not_hide_a_method():
    """The key 'get' is refused, because it would replace the method get_encoder()."""
    with pytest.raises(CompositionError, match="already has 'get_encoder'"):
        compose(get=tiny.clip())


def test_parts_of_the_wrong_kind_are_refused():
    """An encoder must be a ModalEncoderModule, the language model is required, and an encoder serves one modality only."""
    with pytest.raises(TypeError, match=r"encoders\['vision'\] must be a ModalEncoderModule, not CLIPVisionModel"):
        MultimodalModel(encoders={"vision": tiny.clip()}, language_model=tiny.llama())
    with pytest.raises(TypeError, match="language_model= is missing"):
        MultimodalModel(encoders={"vision": ModalEncoderModule(tiny.clip())})
    shared = ModalEncoderModule(tiny.clip())
    with pytest.raises(CompositionError, match="b: this ModalEncoderModule is another modality's"):
        MultimodalModel(encoders={"a": shared, "b": shared}, language_model=tiny.llama())


def test_forward_returns_the_output_of_the_language_model(mllm):
    """The type and the values of the output are those of the language model for the merged embeddings."""
    batch, pixels = tiny.prompt(1, 2), tiny.pixels(3)
    output = mllm(**batch, pixel_values=pixels)
    embeds = mllm.language_model.get_input_embeddings()(batch["input_ids"].clamp(max=99)).clone()
    embeds[batch["input_ids"] == tiny.IMAGE_TOKEN] = mllm.vision_encoder(pixel_values=pixels)[0].flatten(0, 1)
    expected = mllm.language_model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"])
    assert type(output) is type(expected)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)


def test_labels_are_optional_and_ignored_at_placeholders(mllm):
    """Without labels there is no loss, and labels at placeholders do not change the loss."""
    batch, pixels = tiny.prompt(1), tiny.pixels(1)
    expected = mllm(**batch, pixel_values=pixels).loss
    everywhere = torch.where(batch["labels"] == -100, 7, batch["labels"])
    everywhere[batch["attention_mask"] == 0] = -100
    assert torch.equal(mllm(**{**batch, "labels": everywhere}, pixel_values=pixels).loss, expected)
    batch.pop("labels")
    assert mllm(**batch, pixel_values=pixels).loss is None


def test_a_batch_without_media_gives_the_logits_of_the_language_model(mllm):
    """Text alone and an empty batch of images both give the language model's own logits."""
    batch = tiny.prompt(0, 0)
    expected = mllm.language_model(**batch)
    assert torch.equal(mllm(**batch).logits, expected.logits)
    assert torch.equal(mllm(**batch, pixel_values=torch.zeros(0, 3, 32, 32)).logits, expected.logits)


def test_arguments_of_the_language_model_are_passed_on(mllm):
    """num_items_in_batch scales the loss as in the language model, and output_hidden_states returns hidden states."""
    batch, pixels = tiny.prompt(1), tiny.pixels(1)
    loss = mllm(**batch, pixel_values=pixels).loss
    counted = mllm(**batch, pixel_values=pixels, num_items_in_batch=1000, output_hidden_states=True)
    supervised = (batch["labels"][:, 1:] != -100).sum()
    assert torch.allclose(counted.loss * 1000, loss * supervised)
    assert len(counted.hidden_states) == 3
    assert mllm.accepts_loss_kwargs


@pytest.mark.parametrize(
    ("images", "given", "message"),
    [
        ((1, 2), 2, "sample 1, item 0: the prompt has 34 placeholder tokens in this sample, the encoder gives 17"),
        ((1, 1), 3, "1 of 3 items have no placeholder"),
        ((1, 0), 0, "the prompt has 17 placeholder tokens, but no media are given"),
    ],
)
def test_placeholders_and_features_must_agree(mllm, images, given, message):
    """Too many media and too many placeholders are refused, and the error names the sample and the item."""
    media = {"pixel_values": tiny.pixels(given)} if given else {}
    with pytest.raises(PlaceholderMismatchError, match=f"vision: .*{message}"):
        mllm(**tiny.prompt(*images), **media)


def test_check_finite_reports_features_with_nan(mllm):
    """check_finite is off by default, because it costs a sync; when it is on, the error names the modality."""
    pixels = tiny.pixels(1) * float("nan")
    assert mllm(**tiny.prompt(1), pixel_values=pixels).logits.isnan().any()
    mllm.check_finite = True
    with pytest.raises(InputError, match="vision: the features hold NaN"):
        mllm(**tiny.prompt(1), pixel_values=pixels)


def test_train_and_eval_switch_every_part(mllm):
    """train() and eval() return the model and set the mode of all its modules."""
    assert mllm.train() is mllm
    assert all(module.training for module in mllm.modules())
    assert mllm.eval() is mllm
    assert mllm.train(False) is mllm
    assert not any(module.training for module in mllm.modules())


@given(st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=8, deadline=None)
def test_set_trainable_sets_the_named_parts(module, projector, language_model):
    """Each named part trains or is frozen according to its flag."""
    model = compose(vision=tiny.clip())
    model.set_trainable(encoders={"vision": (module, projector)}, language_model=language_model)
    for part, flag in (
        (model.vision_encoder.module, module),
        (model.vision_encoder.projector, projector),
        (model.language_model, language_model),
    ):
        assert {parameter.requires_grad for parameter in part.parameters()} == {flag}


def test_set_trainable_leaves_other_parts_and_refuses_unknown_keys(mllm):
    """Parts that are not named stay as they are; an unknown key raises a ValueError that lists the known keys."""
    mllm.set_trainable(language_model=False)
    assert all(parameter.requires_grad for parameter in mllm.vision_encoder.parameters())
    with pytest.raises(ValueError, match="no encoder for audio; this model has vision"):
        mllm.set_trainable(encoders={"audio": (True, True)})
    with pytest.raises(ValueError, match="no encoder for audio"):
        mllm.set_modality_token_ids({"audio": 1})


def test_auto_classes_load_a_saved_model(mllm, tmp_path):
    """AutoConfig and AutoModelForCausalLM return the config and the model that were saved."""
    mllm.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MultimodalConfig)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), MultimodalModel)


def test_new_projectors_follow_the_models_arguments():
    """init_projector_type and init_activation apply to projectors that composing creates; given projectors stay."""
    given = torch.nn.Linear(32, 64)
    model = MultimodalModel(
        encoders={"a": ModalEncoderModule(tiny.clip()), "b": ModalEncoderModule(tiny.clip(), given)},
        language_model=tiny.llama(),
        init_projector_type="mlp",
        init_activation="relu",
    )
    assert model.a_encoder.projector.config.projection_type == "mlp"
    assert isinstance(model.a_encoder.projector.projection.act, torch.nn.ReLU)
    assert model.b_encoder.projector.projection is given


@pytest.mark.parametrize("key", ["text", "quantization"])
def test_a_modality_key_must_not_hide_a_config(key):
    """The keys 'text' and 'quantization' are refused, because 'text_config' and 'quantization_config' have a meaning."""
    with pytest.raises(CompositionError, match=f"'{key}_config' means something else"):
        compose(**{key: tiny.clip()})


def test_two_modalities_cannot_share_a_placeholder():
    """The same token id for two modalities is refused, because the features of one would overwrite the other's."""
    model = compose(left=tiny.clip(), right=tiny.clip())
    with pytest.raises(ValueError, match="left, right would share a placeholder's token id"):
        model.set_modality_token_ids({"left": 100, "right": 100})


def test_encoders_must_be_a_dictionary_by_modality():
    """A list of encoders is refused, because it names no modality."""
    with pytest.raises(TypeError, match="encoders= must be a dictionary by modality key, not list"):
        MultimodalModel(encoders=[ModalEncoderModule(tiny.clip())], language_model=tiny.llama())


@pytest.mark.parametrize("encoders", [False, {"vision": False}, {"vision": (True,)}])
def test_set_trainable_refuses_flags_that_are_no_pairs(mllm, encoders):
    """A single flag in place of a pair raises a TypeError that shows the expected form."""
    with pytest.raises(TypeError, match=r"\{'vision': \(False, True\)\}; got"):
        mllm.set_trainable(encoders)
