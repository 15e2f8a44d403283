"""generate() delegates to the language model: all its options work, and media are encoded once."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cornstarch_core import ModalEncoderModule, MultimodalModel

LENGTH = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


def inputs(*images: int) -> dict:
    """Make a batch without labels to generate from."""
    batch = tiny.prompt(*images)
    batch.pop("labels")
    return {**batch, "pixel_values": tiny.pixels(sum(images))}


def step_by_step(mllm, batch) -> torch.Tensor:
    """Decode greedily with complete forward passes, without a cache."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for _ in range(LENGTH["max_new_tokens"]):
        logits = mllm(input_ids=ids, attention_mask=mask, pixel_values=batch["pixel_values"]).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids


def test_greedy_equals_forward_step_by_step(mllm):
    """The cache does not change the ids, and the returned prompt keeps its placeholder ids, which are outside the vocabulary."""
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
def test_every_option_of_generate_works(mllm, how):
    """Beams, sampling, penalties (which index by token id), a static cache, no cache, and scores all work."""
    batch = inputs(1, 1)
    result = mllm.generate(**batch, **LENGTH, **how)
    sequences = getattr(result, "sequences", result)
    rows = 2 * how.get("num_return_sequences", 1)
    assert sequences.shape == (rows, batch["input_ids"].shape[1] + 6)
    assert torch.equal(
        sequences[:, : batch["input_ids"].shape[1]], batch["input_ids"].repeat_interleave(rows // 2, dim=0)
    )


def test_static_cache_gives_the_same_ids(mllm):
    """A static cache generates the same ids as the default cache."""
    batch = inputs(1)
    expected = mllm.generate(**batch, do_sample=False, **LENGTH)
    assert torch.equal(mllm.generate(**batch, do_sample=False, cache_implementation="static", **LENGTH), expected)


def test_media_are_encoded_once(mllm):
    """The encoder runs once for six new tokens and three beams."""
    runs = []
    mllm.vision_encoder.module.register_forward_hook(lambda *_: runs.append(1))
    mllm.generate(**inputs(1, 1), num_beams=3, **LENGTH)
    assert len(runs) == 1


def test_a_streamer_gets_every_token(mllm):
    """A streamer receives the prompt, and then each new token."""

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


def test_text_alone_generates_as_the_language_model(mllm):
    """Without media, generate() returns the language model's ids, and input_ids may be its first positional argument."""
    ids = tiny.prompt(0)["input_ids"]
    expected = mllm.language_model.generate(ids, do_sample=False, attention_mask=torch.ones_like(ids), **LENGTH)
    assert torch.equal(mllm.generate(ids, do_sample=False, attention_mask=torch.ones_like(ids), **LENGTH), expected)


def test_generating_from_embeddings_returns_only_new_tokens(mllm):
    """Without input_ids there is no prompt to return, as in transformers."""
    embeds = mllm.get_input_embeddings()(tiny.prompt(0)["input_ids"])
    assert mllm.generate(inputs_embeds=embeds, do_sample=False, **LENGTH).shape == (1, 6)


def test_the_error_of_a_language_model_that_refuses_embeddings_is_raised():
    """Falcon H1 can't generate from embeddings (transformers 5.23); its own error is raised, without a silent fallback."""
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
