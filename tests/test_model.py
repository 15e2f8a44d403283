"""Composing and running: the tree, inputs by name, errors, freezing."""

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
    """A model with these modules as encoders."""
    return MultimodalModel(
        encoders={key: ModalEncoderModule(module) for key, module in encoders.items()}, language_model=tiny.llama()
    ).eval()


def test_children_are_named_after_their_modality():
    """The tree of the seed: <key>_encoder with module and projector, beside language_model."""
    model = compose(vision=tiny.clip(), whatever=tiny.siglip())
    assert {name for name, _ in model.named_children()} == {"vision_encoder", "whatever_encoder", "language_model"}
    assert model.encoders == {"vision": model.vision_encoder, "whatever": model.whatever_encoder}
    prefixes = {".".join(name.split(".")[:2]) for name in model.state_dict() if not name.startswith("language_model")}
    assert prefixes == {f"{key}_encoder.{part}" for key in ("vision", "whatever") for part in ("module", "projector")}


def test_nothing_handed_in_is_changed():
    """Composing neither draws, renames nor edits; the parts are the very objects."""
    clip, llama = tiny.clip(), tiny.llama(tie_word_embeddings=True)
    before = [(part, tiny.copies(part), part.config.to_dict()) for part in (clip, llama)]
    model = MultimodalModel(encoders={"vision": ModalEncoderModule(clip)}, language_model=llama)
    assert model.vision_encoder.module is clip
    assert model.language_model is llama
    for part, weights, config in before:
        assert tiny.same(part, weights)
        assert part.config.to_dict() == config


@pytest.mark.parametrize("key", ["", "2d", "my-eyes", "class", 3])
def test_a_key_must_be_an_identifier(key):
    """It becomes an attribute."""
    with pytest.raises(CompositionError, match="identifier"):
        MultimodalModel(encoders={key: ModalEncoderModule(tiny.clip())}, language_model=tiny.llama())


def test_a_key_must_not_hide_a_method():
    """'get' would replace get_encoder()."""
    with pytest.raises(CompositionError, match="already has 'get_encoder'"):
        compose(get=tiny.clip())


def test_parts_of_the_wrong_kind_are_refused():
    """A bare module is not wrapped by itself, and one encoder is one modality."""
    with pytest.raises(TypeError, match=r"encoders\['vision'\] must be a ModalEncoderModule, not CLIPVisionModel"):
        MultimodalModel(encoders={"vision": tiny.clip()}, language_model=tiny.llama())
    with pytest.raises(TypeError, match="language_model= is missing"):
        MultimodalModel(encoders={"vision": ModalEncoderModule(tiny.clip())})
    shared = ModalEncoderModule(tiny.clip())
    with pytest.raises(CompositionError, match="b: this ModalEncoderModule is another modality's"):
        MultimodalModel(encoders={"a": shared, "b": shared}, language_model=tiny.llama())


def test_output_is_the_language_models_own(mllm):
    """Type and contents are what the language model returns for the merged embeddings."""
    batch, pixels = tiny.prompt(1, 2), tiny.pixels(3)
    output = mllm(**batch, pixel_values=pixels)
    embeds = mllm.language_model.get_input_embeddings()(batch["input_ids"].clamp(max=99)).clone()
    embeds[batch["input_ids"] == tiny.IMAGE_TOKEN] = mllm.vision_encoder(pixel_values=pixels)[0].flatten(0, 1)
    expected = mllm.language_model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"])
    assert type(output) is type(expected)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)


def test_flat_and_namespaced_inputs_are_the_same(mllm):
    """pixel_values=... goes to the one encoder that declares it."""
    batch, pixels = tiny.prompt(1), tiny.pixels(1)
    flat = mllm(**batch, pixel_values=pixels)
    nested = mllm(**batch, encoder_inputs={"vision": {"pixel_values": pixels}})
    assert torch.equal(flat.logits, nested.logits)


def test_labels_are_optional_and_ignored_at_placeholders(mllm):
    """No labels, no loss; a label at a placeholder doesn't count."""
    batch, pixels = tiny.prompt(1), tiny.pixels(1)
    expected = mllm(**batch, pixel_values=pixels).loss
    everywhere = torch.where(batch["labels"] == -100, 7, batch["labels"])
    everywhere[batch["attention_mask"] == 0] = -100
    assert torch.equal(mllm(**{**batch, "labels": everywhere}, pixel_values=pixels).loss, expected)
    batch.pop("labels")
    assert mllm(**batch, pixel_values=pixels).loss is None


def test_a_batch_without_media_is_the_language_models_business(mllm):
    """Text alone gives the language model's own logits; an empty batch of images is none."""
    batch = tiny.prompt(0, 0)
    expected = mllm.language_model(**batch)
    assert torch.equal(mllm(**batch).logits, expected.logits)
    assert torch.equal(mllm(**batch, pixel_values=torch.zeros(0, 3, 32, 32)).logits, expected.logits)


def test_arguments_of_the_language_model_pass_through(mllm):
    """num_items_in_batch changes the loss as it does in the language model; hidden states can be asked for."""
    batch, pixels = tiny.prompt(1), tiny.pixels(1)
    loss = mllm(**batch, pixel_values=pixels).loss
    counted = mllm(**batch, pixel_values=pixels, num_items_in_batch=1000, output_hidden_states=True)
    supervised = (batch["labels"][:, 1:] != -100).sum()
    assert torch.allclose(counted.loss * 1000, loss * supervised)
    assert len(counted.hidden_states) == 3
    assert mllm.accepts_loss_kwargs


def test_a_name_that_nobody_takes_is_refused(mllm):
    """A misspelt argument is never dropped."""
    with pytest.raises(TypeError, match="nothing takes pixel_vlaues: neither LlamaForCausalLM nor .*pixel_values"):
        mllm(**tiny.prompt(0), pixel_vlaues=tiny.pixels(1))
    with pytest.raises(ValueError, match="pixel_vlaues"):
        mllm.generate(input_ids=tiny.prompt(0)["input_ids"], pixel_vlaues=tiny.pixels(1), max_new_tokens=1)


def test_two_encoders_that_declare_one_name_need_namespaces():
    """A flat name is refused with the way out; encoder_inputs works, and no input vanishes."""
    model = compose(left=tiny.clip(0), right=tiny.clip(7))
    model.set_modality_token_ids({"left": 100, "right": 101})
    left, right = tiny.prompt(1, token_id=100), tiny.prompt(1, token_id=101)
    ids = torch.cat([left["input_ids"], right["input_ids"]], dim=1)
    with pytest.raises(TypeError, match=r"any of left, right; pass encoder_inputs=\{'left': \{'pixel_values'"):
        model(input_ids=ids, pixel_values=tiny.pixels(1))
    a, b = tiny.pixels(1, 1), tiny.pixels(1, 2)

    def run(one, other):
        return model(input_ids=ids, encoder_inputs={"left": {"pixel_values": one}, "right": {"pixel_values": other}})

    base = run(a, b).logits
    assert not torch.equal(run(a, a).logits, base)
    assert not torch.equal(run(b, b).logits, base)


def test_the_attention_mask_is_the_language_models(mllm):
    """Also in generate, and also where an encoder declares an input of that name: its own goes into encoder_inputs."""
    seen = []

    def ear(signal, attention_mask=None):
        seen.append(attention_mask)
        return signal

    toy = tiny.ToyEncoder()
    toy.forward = ear
    encoder = ModalEncoderModule(toy, hidden_size=5, input_names=["signal", "attention_mask"])
    model = MultimodalModel(encoders={"ear": encoder}, language_model=tiny.llama()).eval()
    model.set_modality_token_ids({"ear": tiny.IMAGE_TOKEN})
    batch = {**tiny.prompt(1, tokens=4), "signal": torch.randn(1, 4, 5)}
    batch.pop("labels")
    model(**batch)
    model.generate(**batch, max_new_tokens=1)
    assert seen == [None, None]
    model(**batch, encoder_inputs={"ear": {"attention_mask": torch.ones(1, 4)}})
    assert seen[-1].shape == (1, 4)


def test_attention_can_be_chosen_for_the_whole(mllm):
    """Projectors have none, and don't stand in the way."""
    mllm.set_attn_implementation("eager")
    assert mllm.vision_encoder.module.config._attn_implementation == "eager"
    assert mllm.language_model.config._attn_implementation == "eager"
    mllm.set_attn_implementation("sdpa")
    assert mllm.vision_encoder.module.config._attn_implementation == "sdpa"
    assert mllm(**tiny.prompt(1), pixel_values=tiny.pixels(1)).loss.isfinite()


def test_inputs_for_an_encoder_that_is_not_there(mllm):
    """The error lists what there is."""
    with pytest.raises(InputError, match="inputs for audio.*it has vision"):
        mllm(**tiny.prompt(0), encoder_inputs={"audio": {"input_features": torch.zeros(1)}})


def test_an_input_given_twice_is_refused(mllm):
    """Flat and namespaced at once is ambiguous."""
    with pytest.raises(TypeError, match="given twice"):
        mllm(**tiny.prompt(1), pixel_values=tiny.pixels(1), encoder_inputs={"vision": {"pixel_values": tiny.pixels(1)}})


@pytest.mark.parametrize(
    ("images", "given", "message"),
    [
        ((1, 2), 2, "sample 1, item 0: the prompt has 34 placeholder tokens in this sample, the encoder gives 17"),
        ((1, 1), 3, "1 of 3 items have no placeholder"),
        ((1, 0), 0, "the prompt has 17 placeholder tokens, but no media are given"),
    ],
)
def test_placeholders_and_features_must_agree(mllm, images, given, message):
    """Surplus media and surplus placeholders are refused; the error says where."""
    media = {"pixel_values": tiny.pixels(given)} if given else {}
    with pytest.raises(PlaceholderMismatchError, match=f"vision: .*{message}"):
        mllm(**tiny.prompt(*images), **media)


def test_without_token_id_or_positions_the_error_says_how_to_tell():
    """The model can't guess what the placeholder is."""
    with pytest.raises(InputError, match=r"vision: .*set_modality_token_ids\(\{\"vision\": token_id\}\)"):
        compose(vision=tiny.clip())(**tiny.prompt(1), pixel_values=tiny.pixels(1))


def test_positions_stand_in_for_the_token_id(mllm):
    """With positions nothing is looked for, and inputs_embeds will do."""
    batch, pixels = tiny.prompt(1, 1), tiny.pixels(2)
    expected = mllm(**batch, pixel_values=pixels).logits
    positions = (batch["input_ids"].flatten() == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
    inputs = {"vision": {"pixel_values": pixels, "positions": positions}}
    embeds = mllm.get_input_embeddings()(batch.pop("input_ids").clamp(max=99))
    assert torch.equal(mllm(inputs_embeds=embeds, **batch, encoder_inputs=inputs).logits, expected)


def test_neither_ids_nor_embeddings():
    """There is nothing to run on."""
    with pytest.raises(InputError, match="input_ids or inputs_embeds is missing"):
        compose(vision=tiny.clip())()


def test_labels_of_another_shape(mllm):
    """Both shapes are named."""
    batch = tiny.prompt(0)
    batch["labels"] = batch["labels"][:, :-1]
    with pytest.raises(InputError, match=r"labels are \(1, 5\), the batch is \(1, 6\)"):
        mllm(**batch)


def test_nan_features_are_named_when_asked_for(mllm):
    """check_finite costs a sync, so it is off; on, it names the modality."""
    pixels = tiny.pixels(1) * float("nan")
    assert mllm(**tiny.prompt(1), pixel_values=pixels).logits.isnan().any()
    mllm.check_finite = True
    with pytest.raises(InputError, match="vision: the features hold NaN"):
        mllm(**tiny.prompt(1), pixel_values=pixels)


def test_train_and_eval_keep_their_meaning(mllm):
    """They return the model and reach every part."""
    assert mllm.train() is mllm
    assert all(module.training for module in mllm.modules())
    assert mllm.eval() is mllm
    assert mllm.train(False) is mllm
    assert not any(module.training for module in mllm.modules())


@given(st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=8, deadline=None)
def test_set_trainable_freezes_what_it_names(module, projector, language_model):
    """Exactly the named parts follow."""
    model = compose(vision=tiny.clip())
    model.set_trainable(encoders={"vision": (module, projector)}, language_model=language_model)
    for part, flag in (
        (model.vision_encoder.module, module),
        (model.vision_encoder.projector, projector),
        (model.language_model, language_model),
    ):
        assert {parameter.requires_grad for parameter in part.parameters()} == {flag}


def test_set_trainable_leaves_the_rest_and_knows_its_keys(mllm):
    """What is not named stays; an unknown key is a ValueError that lists the known ones."""
    mllm.set_trainable(language_model=False)
    assert all(parameter.requires_grad for parameter in mllm.vision_encoder.parameters())
    with pytest.raises(ValueError, match="no encoder for audio; this model has vision"):
        mllm.set_trainable(encoders={"audio": (True, True)})
    with pytest.raises(ValueError, match="no encoder for audio"):
        mllm.set_modality_token_ids({"audio": 1})


def test_auto_classes_know_the_model_type(mllm, tmp_path):
    """AutoConfig and AutoModelForCausalLM load what was saved."""
    mllm.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MultimodalConfig)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), MultimodalModel)


def test_resizing_the_vocabulary_is_the_language_models_business(mllm):
    """Embedding, head and config follow, and the composed config sees it."""
    mllm.resize_token_embeddings(120)
    assert mllm.get_input_embeddings().weight.shape == (120, 64)
    assert mllm.get_output_embeddings().weight.shape == (120, 64)
    assert mllm.config.get_text_config().vocab_size == 120


def test_lazy_projectors_follow_the_models_arguments():
    """init_projector_type and init_activation describe what is made; given projectors stay."""
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
def test_a_key_must_not_hide_a_config(key):
    """'text_config' is the language model's, 'quantization_config' transformers'."""
    with pytest.raises(CompositionError, match=f"'{key}_config' means something else"):
        compose(**{key: tiny.clip()})


def test_language_models_of_the_wrong_kind_are_refused():
    """An encoder-decoder, a model without a head, and a plain module: each is named."""
    from transformers import LlamaModel, T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    headless = LlamaModel(tiny.llama().config)
    for model, message in (
        (t5, "T5ForConditionalGeneration is an encoder-decoder"),
        (headless, "LlamaModel can't generate"),
        (torch.nn.Linear(1, 1), "Linear is no PreTrainedModel"),
    ):
        with pytest.raises(CompositionError, match=f"language_model: {message}"):
            MultimodalModel(encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=model)


def test_two_modalities_never_share_a_placeholder():
    """One of them would be overwritten by the other."""
    model = compose(left=tiny.clip(), right=tiny.clip())
    with pytest.raises(ValueError, match="left, right would share a placeholder's token id"):
        model.set_modality_token_ids({"left": 100, "right": 100})


@pytest.mark.parametrize(
    "positions", [torch.zeros(2, 2).long(), torch.zeros(3), torch.zeros(3).bool(), [1, 2]], ids=str
)
def test_positions_of_another_kind_are_refused(mllm, positions):
    """Shape and dtype are checked without looking at values."""
    with pytest.raises(InputError, match=r"vision: positions must be a tensor \(P,\) of int64"):
        mllm(**tiny.prompt(1), encoder_inputs={"vision": {"pixel_values": tiny.pixels(1), "positions": positions}})


@pytest.mark.parametrize(
    ("change", "where", "found"),
    [
        (lambda ids: ids[:, 1:], "sample 0, token 19", 58),
        (lambda ids: torch.cat([ids, ids[:, :1]], dim=1), "sample 1, token 2", 22),
    ],
    ids=["cut", "padded"],
)
def test_a_batch_that_was_changed_after_processing_is_refused(mllm, change, where, found):
    """Features would land beside the placeholders; on the host that is seen, and said with the place and the token."""
    batch = tiny.prompt(1, 1)
    positions = (batch["input_ids"].flatten() == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
    inputs = {"vision": {"pixel_values": tiny.pixels(2), "positions": positions}}
    with pytest.raises(InputError, match=f"vision: {where}: .* instead of the placeholder 100 there is token {found}"):
        mllm(change(batch["input_ids"]), encoder_inputs=inputs)


def located(mllm):
    """Two samples with an image each, with positions in place of the token id."""
    batch = tiny.prompt(1, 1)
    positions = (batch["input_ids"].flatten() == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
    return batch["input_ids"], {"vision": {"pixel_values": tiny.pixels(2), "positions": positions}}


def test_one_other_id_at_all_placeholders_is_fine(mllm):
    """As of another processor, or put there because the placeholder's lies outside the table."""
    ids, inputs = located(mllm)
    expected = mllm(ids, encoder_inputs=inputs).logits
    for other in (0, 7, 999):
        changed = ids.masked_fill(ids == tiny.IMAGE_TOKEN, other)
        if other < tiny.VOCABULARY:
            assert torch.equal(mllm(changed, encoder_inputs=inputs).logits, expected)
        else:  # the language model's own table has no such row; the check is not what stops it
            with pytest.raises(IndexError):
                mllm(changed, encoder_inputs=inputs)


def test_transforms_and_traces_of_torch_are_not_looked_into(mllm):
    """Gradients as a function, fake tensors and functionalisation hold no values to compare."""
    from torch._subclasses import FakeTensorMode

    ids, inputs = located(mllm)
    weights = dict(mllm.named_parameters())

    def loss(weights, ids):
        return torch.func.functional_call(mllm, weights, (ids,), {"encoder_inputs": inputs, "labels": ids % 100}).loss

    mllm(ids, labels=ids % 100, encoder_inputs=inputs).loss.backward()
    gradients = torch.func.grad(loss)(weights, ids)
    name = "vision_encoder.projector.projection.weight"
    torch.testing.assert_close(gradients[name], weights[name].grad)
    with torch.no_grad():
        assert torch.allclose(torch.func.functionalize(loss)(weights, ids), loss(weights, ids))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert loss(weights, ids).shape == ()


@pytest.mark.parametrize("index", [-1, -997, 10**6])
def test_positions_outside_of_the_batch_are_refused(mllm, index):
    """Before the beginning as after the end."""
    ids, inputs = located(mllm)
    inputs["vision"]["positions"][0] = index
    with pytest.raises(InputError, match=r"positions point outside the \(2, 60\) batch"):
        mllm(ids, encoder_inputs=inputs)


def test_arguments_of_the_wrong_shape_or_kind(mllm):
    """Lists in place of dictionaries, and ids without a batch dimension, are named."""
    with pytest.raises(TypeError, match="encoder_inputs= must be a dictionary of dictionaries"):
        mllm(**tiny.prompt(0), encoder_inputs={"vision": tiny.pixels(1)})
    with pytest.raises(InputError, match=r"expected a tensor of shape \(batch, tokens\), got \(6,\)"):
        mllm(input_ids=tiny.prompt(0)["input_ids"][0])
    with pytest.raises(TypeError, match="encoders= must be a dictionary by modality key, not list"):
        MultimodalModel(encoders=[ModalEncoderModule(tiny.clip())], language_model=tiny.llama())


@pytest.mark.parametrize("encoders", [False, {"vision": False}, {"vision": (True,)}])
def test_set_trainable_says_what_it_takes(mllm, encoders):
    """A bare flag is no pair, and must not be ignored."""
    with pytest.raises(TypeError, match=r"\{'vision': \(False, True\)\}; got"):
        mllm.set_trainable(encoders)
