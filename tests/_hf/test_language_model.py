"""Causal language models of transformers: which ones are taken, and what is asked of them."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaForCausalLM, LlamaModel, OPTConfig, OPTForCausalLM

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core._hf.language_model import (
    accepted_names,
    check_language_model,
    embedding_width,
    ids_in_table,
    token_ids_of,
    without_head,
)
from cornstarch_core.errors import CompositionError

LLAMA = tiny.llama()


def test_language_models_of_the_wrong_kind_are_refused():
    """An encoder-decoder, a model without a head and a plain module are refused by name."""
    from transformers import T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    headless = LlamaModel(tiny.llama().config)
    for model, message in (
        (t5, "T5ForConditionalGeneration is an encoder-decoder"),
        (headless, "LlamaModel can't generate"),
        (torch.nn.Linear(1, 1), "Linear is not a PreTrainedModel"),
    ):
        with pytest.raises(CompositionError, match=f"language_model: {message}"):
            MultimodalModel(encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=model)


def test_a_causal_language_model_is_taken_wrapped_or_not():
    """PEFT's wrapper is looked through."""
    check_language_model(LLAMA)
    check_language_model(get_peft_model(tiny.llama(), LoraConfig(target_modules=["q_proj"])))


def test_the_width_is_that_of_the_embeddings_not_of_the_layers():
    """OPT has embeddings that are narrower than its hidden size; features have to fit the embeddings."""
    sizes = {"vocab_size": 40, "hidden_size": 32, "ffn_dim": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    opt = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16))
    assert embedding_width(opt) == 16
    assert embedding_width(get_peft_model(opt, LoraConfig(target_modules=["q_proj"]))) == 16
    with pytest.raises(CompositionError, match="language_model: Linear gives no input embeddings"):
        embedding_width(torch.nn.Linear(1, 1))


# --- ids --------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([0, 5, 99, 100, 3000, -200]), min_size=1), st.sets(st.sampled_from([5, 100, 3000, -200]))
)
@settings(deadline=None)
def test_only_placeholders_outside_the_table_are_replaced(ids, token_ids):
    """Every other id stays, also one that lies outside and is no placeholder: the language model refuses that one."""
    given_ids = torch.tensor([ids])
    found = ids_in_table(LLAMA, given_ids, token_ids)
    expected = [1 if one in token_ids and not 0 <= one < tiny.VOCABULARY else one for one in ids]  # 1 is BOS
    assert found.tolist() == [expected]
    assert given_ids.tolist() == [ids]


def test_what_stands_in_for_a_placeholder_never_ends_or_pads():
    """Penalties look at ids, so the stand-in is BOS, or another id that means nothing."""
    for ids in ({"eos_token_id": 0, "pad_token_id": None}, {"eos_token_id": [0, 1], "pad_token_id": 2}):
        model = tiny.llama(bos_token_id=None, **ids)
        replaced = ids_in_table(model, torch.tensor([[5, 100]]), [100])
        assert replaced[0, 1].item() == {1: 1, 2: 3}[1 if ids["eos_token_id"] == 0 else 2]
    assert ids_in_table(tiny.llama(bos_token_id=7), torch.tensor([[100]]), [100]).item() == 7


def test_special_tokens_are_a_list_however_a_config_has_them():
    """None, one or several ids; 0 is an id."""
    config = tiny.llama(pad_token_id=0, bos_token_id=None, eos_token_id=[2, 3]).config
    assert {name: token_ids_of(config, name) for name in ("pad", "bos", "eos", "sep")} == {
        "pad": [0],
        "bos": [],
        "eos": [2, 3],
        "sep": [],
    }
    assert token_ids_of(None, "eos") == []


# --- arguments and the head -------------------------------------------------------------------------------------------


def test_accepted_names_are_those_of_forward_and_of_what_it_passes_on():
    """``**kwargs`` stands for the names that transformers documents, not for any name."""

    def narrow(self, input_ids, labels=None):
        """Take two arguments."""

    wrappers = {"cache_position", "ignore_index", "return_dict", "shift_labels", "token_type_ids", "use_cache"}
    assert accepted_names(narrow) == wrappers | {"input_ids", "labels"}
    wide = accepted_names(LlamaForCausalLM.forward)
    assert wide > wrappers | {"input_ids", "position_ids", "num_items_in_batch", "output_hidden_states"}
    assert not {"self", "kwargs", "pixel_values"} & wide


def test_the_model_without_its_head_keeps_its_adapters():
    """It gives the hidden states that the head turns into the logits."""
    wrapped = get_peft_model(tiny.llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    ids = tiny.prompt(0)["input_ids"]
    for model in (LLAMA, wrapped):
        hidden = without_head(model)(input_ids=ids).last_hidden_state
        assert torch.equal(model.get_output_embeddings()(hidden), model(input_ids=ids).logits)
    assert not torch.equal(wrapped(input_ids=ids).logits, LLAMA(input_ids=ids).logits)


def test_a_model_that_can_not_run_without_its_head_says_so():
    """Prompts are put around the whole model, and a body has no head to leave out."""
    prompts = get_peft_model(tiny.llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(CompositionError, match="prompt-learning adapters run around the whole model.*own loss"):
        without_head(prompts)
    with pytest.raises(CompositionError, match="LlamaModel can't run without its head"):
        without_head(LLAMA.model)
