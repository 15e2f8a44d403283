"""Rows of token ids: expanded placeholders and their positions, truncation, padding and special tokens."""

from __future__ import annotations

import pytest
import torch
import words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cornstarch_core.errors import InputError, TruncatedSpanError

ITEM = 17  # features of one image: CLS and 16 patches


@pytest.fixture(scope="module")
def processor():
    """For one CLIP encoder; tests must not change it."""
    return words.processor()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.sampled_from(["left", "right"]))
def test_positions_hold_the_placeholders_on_either_side(processor, counts, side):
    """For any number of images and either padding side, the positions are those of the placeholder's id."""
    texts = [f"a cat {'<vision> dog ' * count}{'!' * index}" for index, count in enumerate(counts)]
    images = [[words.image(i) for i in range(count)] for count in counts]
    batch = processor(text=texts, vision=images, padding_side=side)
    positions = batch["encoder_inputs"]["vision"]["positions"]
    expected = (batch["input_ids"].flatten() == processor.token_ids["vision"]).nonzero().squeeze(1)
    assert torch.equal(positions, expected)
    assert len(positions) == ITEM * sum(counts)
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == processor.tokenizer.pad_token_id)


def test_every_modality_has_an_entry():
    """A modality without media in the batch has empty positions, so the model does not have to search."""
    processor = words.processor(keys=("left", "right"))
    batch = processor(text="<left>", left=words.image())
    assert list(batch["encoder_inputs"]["right"]) == ["positions"]
    assert batch["encoder_inputs"]["right"]["positions"].shape == (0,)
    assert batch["encoder_inputs"]["right"]["positions"].dtype == torch.int64


def test_truncation_cuts_text_as_the_tokenizer_does():
    """The result equals the tokenizer's own, special tokens included, on either side."""
    tokenizer = words.tokenizer(bos=True, eos=True)
    processor = words.processor(tokenizer=tokenizer)
    for side in ("right", "left"):
        tokenizer.truncation_side = side
        expected = tokenizer("a cat and a dog", truncation=True, max_length=5)["input_ids"]
        assert processor(text="a cat and a dog", truncation=True, max_length=5)["input_ids"].tolist() == [expected]


def test_truncation_inside_a_span_is_refused(processor):
    """The error names modality, sample, item and the necessary length, and this length works."""
    texts, images = ["a", "<vision> a <vision> a cat"], [[], [words.image(0), words.image(1)]]
    with pytest.raises(TruncatedSpanError, match=r"vision: sample 1, item 1: max_length=30 .*max_length=(\d+)") as info:
        processor(text=texts, vision=images, truncation=True, max_length=30)
    needed = int(str(info.value).split("at least max_length=")[1].split()[0])
    batch = processor(text=texts, vision=images, truncation=True, max_length=needed)
    assert batch["input_ids"].shape[1] == needed == batch["encoder_inputs"]["vision"]["positions"][-1] - needed + 1
    with pytest.raises(TruncatedSpanError):
        processor(text=texts, vision=images, truncation=True, max_length=needed - 1)


def test_truncation_without_a_length_is_refused_unless_the_tokenizer_has_one():
    """The default length is ``model_max_length``; without either the error asks for ``max_length``."""
    with pytest.raises(InputError, match="needs max_length="):
        words.processor()(text="a", truncation=True)
    processor = words.processor(tokenizer=words.tokenizer(model_max_length=2))
    assert processor(text="a cat and a dog", truncation=True)["input_ids"].shape == (1, 2)


def test_a_batch_that_needs_padding_needs_a_padding_token():
    """Samples of equal length need none. Otherwise the error says how to set one."""
    processor = words.processor(tokenizer=words.tokenizer(pad_token=None))
    assert processor(text=["a", "a"])["input_ids"].shape == (2, 1)
    with pytest.raises(InputError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        processor(text=["a", "a cat"])
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    assert processor(text=["a", "a cat"])["attention_mask"].tolist()[0][-1] == 0


def test_padding_equals_the_tokenizers(processor):
    """For a text without media, every padding option gives the result of ``tokenizer(...)``."""
    texts = ["a cat", "a cat and a dog."]
    for options in (
        {"padding": "longest"},
        {"padding": "max_length", "max_length": 20},
        {"padding": True, "padding_side": "left"},
        {"padding": True, "pad_to_multiple_of": 8},
    ):
        expected = processor.tokenizer(texts, return_tensors="pt", **options)
        batch = processor(text=texts, **options)
        assert all(torch.equal(batch[name], expected[name]) for name in ("input_ids", "attention_mask"))
    with pytest.raises(InputError, match="padding=True"):
        processor(text=texts, padding=False)


def test_special_tokens_are_added_once():
    """A text that begins with BOS, such as a chat template's, gets no second one."""
    processor = words.processor(tokenizer=words.tokenizer(bos=True))
    assert processor(text="a cat")["input_ids"][0, 0] == 1
    assert words.same(processor(text="<s>a cat"), processor(text="a cat"))
    assert processor(text="a cat", add_special_tokens=False)["input_ids"][0, 0] != 1
    assert processor(text="<vision>a", vision=words.image())["encoder_inputs"]["vision"]["positions"][0] == 1
