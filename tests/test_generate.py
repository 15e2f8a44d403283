"""Generating delegates to the language model: every way of it works, and media are encoded once."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core._hf import out_of_table

LENGTH = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


def inputs(*images: int) -> dict:
    """A batch to generate from, without labels."""
    batch = tiny.prompt(*images)
    batch.pop("labels")
    return {**batch, "pixel_values": tiny.pixels(sum(images))}


def step_by_step(mllm, batch) -> torch.Tensor:
    """Greedy decoding by whole forward passes, without a cache."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for _ in range(LENGTH["max_new_tokens"]):
        logits = mllm(input_ids=ids, attention_mask=mask, pixel_values=batch["pixel_values"]).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids


def test_greedy_equals_forward_step_by_step(mllm):
    """The cache changes nothing; the prompt comes back with its placeholder ids, which lie outside the vocabulary."""
    batch = inputs(2)
    generated = mllm.generate(**batch, do_sample=False, **LENGTH)
    assert torch.equal(generated, step_by_step(mllm, batch))
    assert (generated == tiny.IMAGE_TOKEN).sum() == 34


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 5, "temperature": 0.7},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=lambda how: next(iter(how)),
)
def test_every_way_of_generating_works(mllm, how):
    """Beams, sampling, penalties (which index by token id), static cache, no cache, scores."""
    batch = inputs(1, 1)
    result = mllm.generate(**batch, **LENGTH, **how)
    sequences = getattr(result, "sequences", result)
    rows = 2 * how.get("num_return_sequences", 1)
    assert sequences.shape == (rows, batch["input_ids"].shape[1] + 6)
    assert torch.equal(
        sequences[:, : batch["input_ids"].shape[1]], batch["input_ids"].repeat_interleave(rows // 2, dim=0)
    )


def test_static_cache_gives_the_same_ids(mllm):
    """It is a matter of memory only."""
    batch = inputs(1)
    expected = mllm.generate(**batch, do_sample=False, **LENGTH)
    assert torch.equal(mllm.generate(**batch, do_sample=False, cache_implementation="static", **LENGTH), expected)


def test_media_are_encoded_once(mllm):
    """Six new tokens and three beams still run the encoder a single time."""
    runs = []
    mllm.vision_encoder.module.register_forward_hook(lambda *_: runs.append(1))
    mllm.generate(**inputs(1, 1), num_beams=3, **LENGTH)
    assert len(runs) == 1


def test_streaming_sees_every_token(mllm):
    """A streamer gets the prompt, then each token."""

    class Collect:
        def __init__(self):
            self.pieces, self.ended = [], False

        def put(self, value):
            self.pieces.append(value.flatten())

        def end(self):
            self.ended = True

    streamer = Collect()
    generated = mllm.generate(**inputs(1), do_sample=False, streamer=streamer, **LENGTH)
    assert streamer.ended
    assert torch.equal(torch.cat(streamer.pieces[1:]), generated[0, -6:])


def test_text_alone_and_positional_ids(mllm):
    """Without media it is the language model's own generate; the ids may come first, as there."""
    ids = tiny.prompt(0)["input_ids"]
    expected = mllm.language_model.generate(ids, do_sample=False, attention_mask=torch.ones_like(ids), **LENGTH)
    assert torch.equal(mllm.generate(ids, do_sample=False, attention_mask=torch.ones_like(ids), **LENGTH), expected)


def test_from_embeddings_only_new_tokens_come_back(mllm):
    """As in transformers: without input_ids there is no prompt to return."""
    embeds = mllm.get_input_embeddings()(tiny.prompt(0)["input_ids"])
    assert mllm.generate(inputs_embeds=embeds, do_sample=False, **LENGTH).shape == (1, 6)


def test_generation_config_is_the_language_models(mllm):
    """One object, whoever sets it."""
    assert mllm.generation_config is mllm.language_model.generation_config
    mllm.generation_config.max_new_tokens = 2
    assert mllm.generate(**inputs(1), eos_token_id=None).shape[1] == inputs(1)["input_ids"].shape[1] + 2


def test_a_language_model_that_refuses_embeddings_says_so():
    """Falcon H1 can't generate from embeddings (transformers 5.23): its own error, no silent fallback."""
    config = AutoConfig.for_model(
        "falcon_h1", vocab_size=100, hidden_size=64, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, num_hidden_layers=1, head_dim=16,
    )  # fmt: skip
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=AutoModelForCausalLM.from_config(config)
    )
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    with pytest.raises(ValueError, match=r"inputs_embeds.*FalconH1ForCausalLM"):
        model.generate(**inputs(1), max_new_tokens=1)


@pytest.mark.parametrize("how", [{"assistant_model": tiny.llama(seed=3)}, {"prompt_lookup_num_tokens": 3}])
def test_assisted_generation_with_media_is_refused(mllm, how):
    """transformers (5.23) runs it from token ids alone, which would leave the image out; text alone is fine."""
    with pytest.raises(ValueError, match="is not possible with media"):
        mllm.generate(**inputs(1), do_sample=False, **LENGTH, **how)
    ids = tiny.prompt(0)["input_ids"]
    expected = mllm.generate(input_ids=ids, do_sample=False, **LENGTH)
    assert torch.equal(mllm.generate(input_ids=ids, do_sample=False, **LENGTH, **how), expected)


@pytest.mark.parametrize("given", [{"pad_token_id": 0}, {"generation_config": GenerationConfig(pad_token_id=0)}, {}])
@pytest.mark.parametrize(("vocabulary", "token_id"), [(101, 100), (100, 100), (100, -200)])
def test_without_a_mask_it_is_that_of_the_ids(given, vocabulary, token_id):
    """As in transformers; a placeholder outside the table (also LLaVA's -200) is never taken for padding."""
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


def test_what_stands_in_for_a_placeholder_never_ends_or_pads():
    """Penalties look at ids: the stand-in is BOS, or another id that means nothing."""
    for ids in ({"eos_token_id": 0, "pad_token_id": None}, {"eos_token_id": [0, 1], "pad_token_id": 2}):
        model = tiny.llama(bos_token_id=None, **ids)
        replaced = out_of_table(model, torch.tensor([[5, 100]]), [100])
        assert replaced[0, 1].item() == {1: 1, 2: 3}[1 if ids["eos_token_id"] == 0 else 2]
    assert out_of_table(tiny.llama(bos_token_id=7), torch.tensor([[100]]), [100]).item() == 7


def test_right_padding_is_warned_of(mllm, caplog):
    """transformers warns of ids that are padded on the right, but not of embeddings."""
    import logging

    logging.getLogger("transformers").propagate = True
    mllm.generate(**inputs(1, 2), **LENGTH)
    assert "sample 0 is padded on the right" in caplog.text
    caplog.clear()
    mllm.generate(**inputs(1), **LENGTH)
    assert "padded on the right" not in caplog.text
