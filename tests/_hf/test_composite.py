"""A composed model is a ``PreTrainedModel`` whose parts keep their weights, ties, embeddings and declarations."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core._hf.composite import CompositeModel


def compose(vision=None, language_model=None) -> MultimodalModel:
    """CLIP and Llama, either of them perhaps another one."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(vision or tiny.clip())}, language_model=language_model or tiny.llama()
    )
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    return model.eval()


def lora(module, *targets: str):
    """The module with LoRA adapters in it."""
    return get_peft_model(module, LoraConfig(target_modules=list(targets)))


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_parts_declare_is_gathered(wrapped):
    """Blocks that must not be split are found in the parts, also inside PEFT, and only those that are there."""
    parts = (tiny.clip(), tiny.llama())
    model = compose(*(lora(part, "q_proj") for part in parts) if wrapped else parts)
    assert {"CLIPEncoderLayer", "LlamaDecoderLayer"} <= model._no_split_modules
    assert model._no_split_modules <= {type(part).__name__ for part in model.modules()}
    assert "CLIPTextEmbeddings" in tiny.clip()._no_split_modules  # declared, but a vision tower has none
    assert "past_key_values" in model._skip_keys_device_placement


def test_a_tied_head_is_known_by_its_place_in_the_whole():
    """Saving leaves it out; a head that is not tied is saved."""
    ties = {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}
    assert compose(language_model=tiny.llama(tie_word_embeddings=True)).all_tied_weights_keys == ties
    assert compose().all_tied_weights_keys == {}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("targets", [["q_proj"], ["embed_tokens"], ["lm_head"]], ids=str)
def test_a_tie_is_found_again_after_peft_has_renamed_a_layer(targets):
    """Both names of every tie are weights of the model, and the same tensor."""
    model = compose(language_model=tiny.llama(tie_word_embeddings=True))
    model.language_model = lora(model.language_model, *targets)
    model.find_ties()
    weights = dict(model.named_parameters(remove_duplicate=False))
    assert len(model.all_tied_weights_keys) == 1
    for target, source in model.all_tied_weights_keys.items():
        assert weights[target] is weights[source]
    assert model._tied_weights_keys == model.all_tied_weights_keys


def test_inputs_that_require_gradients_are_the_token_embeddings_alone(mllm):
    """A frozen vision tower stays out of backward, which PEFT's gradient checkpointing would run through it."""
    mllm.set_trainable(encoders={"vision": (False, False)}, language_model=False)
    mllm.enable_input_require_grads()
    seen = {}
    mllm.get_input_embeddings().register_forward_hook(lambda _, __, output: seen.update(text=output.requires_grad))
    patches = mllm.vision_encoder.module.get_input_embeddings()
    patches.register_forward_hook(lambda _, __, output: seen.update(vision=output.requires_grad))
    batch = {**tiny.prompt(1), "pixel_values": tiny.pixels(1)}
    mllm(**batch)
    assert seen == {"text": True, "vision": False}
    mllm.disable_input_require_grads()
    mllm(**batch)
    assert seen == {"text": False, "vision": False}


def test_embeddings_and_head_are_the_language_models(mllm):
    """They are got and set through the composed model."""
    llama = mllm.language_model
    assert mllm.get_input_embeddings() is llama.model.embed_tokens
    assert mllm.get_output_embeddings() is llama.lm_head
    table, head = torch.nn.Embedding(7, 64), torch.nn.Linear(64, 7)
    mllm.set_input_embeddings(table)
    mllm.set_output_embeddings(head)
    assert (llama.model.embed_tokens, llama.lm_head) == (table, head)


def test_resizing_the_vocabulary_resizes_the_language_model(mllm):
    """Embedding, head and config follow, and the composed config sees it."""
    mllm.resize_token_embeddings(120)
    assert mllm.get_input_embeddings().weight.shape == (120, 64)
    assert mllm.get_output_embeddings().weight.shape == (120, 64)
    assert mllm.config.get_text_config().vocab_size == 120


def test_generation_config_is_the_language_models(mllm):
    """There is one object, and setting it on either model sets it on both."""
    assert mllm.generation_config is mllm.language_model.generation_config
    mllm.generation_config.max_new_tokens = 2
    batch = tiny.prompt(1)
    batch.pop("labels")
    inputs = {**batch, "pixel_values": tiny.pixels(1)}
    assert mllm.generate(**inputs, eos_token_id=None).shape[1] == inputs["input_ids"].shape[1] + 2


def test_the_backbone_gives_what_the_head_turns_into_logits(mllm):
    """``base_model`` runs everything but the head, and is no module, so that no weight has two names."""
    batch = {**tiny.prompt(1, 2), "pixel_values": tiny.pixels(3)}
    expected = mllm(**batch).logits
    batch.pop("labels")
    hidden = mllm.base_model(**batch).last_hidden_state
    assert torch.equal(mllm.get_output_embeddings()(hidden), expected)
    assert not isinstance(mllm.base_model, torch.nn.Module)
    with pytest.raises(NotImplementedError):
        CompositeModel.forward_without_head(mllm)


def test_a_buffer_that_is_not_saved_keeps_its_values_when_a_model_is_loaded(tmp_path):
    """transformers (5.23) would put empty memory in place of every buffer that no file has."""
    toys = [tiny.ToyEncoder(), tiny.ToyEncoder()]
    encoders = [ModalEncoderModule(toy, hidden_size=32, input_names="signal") for toy in toys]
    MultimodalModel(encoders={"eeg": encoders[0]}, language_model=tiny.llama()).save_pretrained(tmp_path)
    toys[1].offset += 1
    loaded = MultimodalModel.from_pretrained(tmp_path, encoders={"eeg": encoders[1]})
    assert loaded.eeg_encoder.module.offset.tolist() == [8, 9]
    assert torch.equal(loaded.eeg_encoder.module.linear.weight, toys[0].linear.weight)
