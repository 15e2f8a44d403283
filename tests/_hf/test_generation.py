"""Generating from embeddings: the mask that belongs to the ids, the warning, and what can't be done."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import GenerationConfig

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core._hf.generation import check_generates_from_embeds, mask_of, warn_of_right_padding

LENGTH = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


def inputs(*images: int) -> dict:
    """A batch to generate from, without labels."""
    batch = tiny.prompt(*images)
    batch.pop("labels")
    return {**batch, "pixel_values": tiny.pixels(sum(images))}


# --- the attention mask -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        ({"pad_token_id": 0, "eos_token_id": 2}, {}, [0, 0, 1, 1]),
        ({"pad_token_id": 0, "eos_token_id": [2, 0]}, {}, [1, 1, 1, 1]),
        ({"pad_token_id": None, "eos_token_id": 2}, {}, [1, 1, 1, 1]),
        ({"pad_token_id": None, "eos_token_id": 2}, {"pad_token_id": 7}, [1, 1, 1, 0]),
        ({"pad_token_id": 0}, {"generation_config": GenerationConfig(pad_token_id=5)}, [1, 1, 0, 1]),
        ({}, {"generation_config": GenerationConfig(pad_token_id=5), "pad_token_id": 7}, [1, 1, 1, 0]),
        ({"pad_token_id": 0}, {"eos_token_id": 0}, [1, 1, 1, 1]),
    ],
)
def test_padding_is_masked_unless_its_id_may_end_a_text(config, given, expected):
    """An argument wins over ``generation_config=``, and that one over the model's own settings."""
    mask = mask_of(torch.tensor([[0, 0, 5, 7]]), GenerationConfig(**config), given)
    assert mask.tolist() == [expected]
    assert mask.dtype == torch.int64


@pytest.mark.parametrize("given", [{"pad_token_id": 0}, {"generation_config": GenerationConfig(pad_token_id=0)}, {}])
@pytest.mark.parametrize(("vocabulary", "token_id"), [(101, 100), (100, 100), (100, -200)])
def test_without_a_mask_it_is_that_of_the_ids(given, vocabulary, token_id):
    """A placeholder outside the table, also the -200 of the first LLaVA, is never taken for padding."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip())},
        language_model=tiny.llama(vocab_size=vocabulary, pad_token_id=None if given else 0, bos_token_id=None),
    ).eval()
    model.set_modality_token_ids({"vision": token_id})
    batch = tiny.prompt(1, 2, token_id=token_id)
    mask = batch.pop("attention_mask")
    batch.pop("labels")
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pixel_values": tiny.pixels(3)}
    expected = model.generate(**batch, attention_mask=mask, pad_token_id=0, **settings)
    if "generation_config" in given:
        settings["max_length"] = None
    assert torch.equal(model.generate(**batch, **given, **settings), expected)


# --- padding on the right ---------------------------------------------------------------------------------------------


def test_right_padding_is_warned_of(mllm, caplog):
    """transformers warns of ids that are padded on the right, but not of embeddings."""
    logging.getLogger("transformers").propagate = True
    mllm.generate(**inputs(1, 2), **LENGTH)
    assert "sample 0 is padded on the right" in caplog.text
    caplog.clear()
    mllm.generate(**inputs(1), **LENGTH)
    assert "padded on the right" not in caplog.text


@pytest.mark.parametrize(
    "mask",
    [torch.tensor([[0, 1], [1, 1]]), torch.tensor([[1, 0]]), torch.zeros(2, 1, 2, 2)],
    ids=["left", "one row", "a mask of its own"],
)
def test_nothing_is_said_where_rows_end_alike_or_the_mask_is_not_one_of_tokens(mask, caplog):
    """Left padding is right, one row is generated from as it is, and a mask of four dimensions is the user's."""
    logging.getLogger("transformers").propagate = True
    warn_of_right_padding(mask)
    assert caplog.text == ""


# --- assisted generation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"assistant_model": tiny.llama(seed=3)}, {"prompt_lookup_num_tokens": 3}])
def test_assisted_generation_with_media_is_refused(mllm, how):
    """transformers (5.23) runs it from token ids alone, which would leave the image out; text alone is fine."""
    with pytest.raises(ValueError, match="is not possible with media"):
        mllm.generate(**inputs(1), do_sample=False, **LENGTH, **how)
    ids = tiny.prompt(0)["input_ids"]
    expected = mllm.generate(input_ids=ids, do_sample=False, **LENGTH)
    assert torch.equal(mllm.generate(input_ids=ids, do_sample=False, **LENGTH, **how), expected)


@pytest.mark.parametrize("name", ["assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"])
def test_assisted_generation_is_refused_wherever_it_is_asked_for(name):
    """As an argument, in ``generation_config=`` or in the model's own settings; a value of ``None`` asks for nothing."""
    plain, asking = GenerationConfig(), SimpleNamespace(**{name: 3})
    check_generates_from_embeds(plain, {name: None, "generation_config": plain})
    for config, given in ((plain, {name: 3}), (plain, {"generation_config": asking}), (asking, {})):
        with pytest.raises(ValueError, match=f"{name}= is not possible with media"):
            check_generates_from_embeds(config, given)
