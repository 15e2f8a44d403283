"""The processor: placeholders, padding, truncation, and batches for the model. All real and tiny."""

from __future__ import annotations

import pytest
import torch
import words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPImageProcessor, LlavaProcessor

from cornstarch_core import MultimodalProcessor
from cornstarch_core.errors import (
    CompositionError,
    InputError,
    TruncatedSpanError,
)

ITEM = 17  # features of one image: CLS and 16 patches


@pytest.fixture(scope="module")
def processor():
    """For one CLIP encoder; tests must not change it."""
    return words.processor()


# --- placeholders -----------------------------------------------------------------------------------------------------


def test_a_placeholder_is_expanded_to_its_items_token_count(processor):
    """Exact ids: the text's own, with the placeholder repeated; positions point at the repetitions."""
    before, after = (processor.tokenizer(text)["input_ids"] for text in ("a ", " cat"))
    batch = processor(text="a <vision> cat", vision=words.image())
    token_id = processor.token_ids["vision"]
    assert batch["input_ids"].tolist() == [[*before, *[token_id] * ITEM, *after]]
    assert batch["attention_mask"].tolist() == [[1] * (len(before) + ITEM + len(after))]
    vision = batch["encoder_inputs"]["vision"]
    assert vision["positions"].tolist() == list(range(len(before), len(before) + ITEM))
    assert vision["positions"].dtype == batch["input_ids"].dtype == torch.int64
    assert vision["pixel_values"].shape == (1, 3, 32, 32)


def test_the_default_placeholder_is_the_key_and_the_model_is_told():
    """``<vision>`` becomes a special token, its id goes into the model's config, nothing is resized."""
    tokenizer, model = words.tokenizer(), words.model()
    known = len(tokenizer)
    processor = MultimodalProcessor(tokenizer=tokenizer, model=model)
    assert processor.tokens == {"vision": "<vision>"}
    assert processor.token_ids == model.config.modality_token_ids == {"vision": known}
    assert "<vision>" in tokenizer.all_special_tokens
    assert model.get_input_embeddings().num_embeddings == 400


def test_adding_placeholders_keeps_the_other_special_tokens():
    """The tokenizer's own extra special tokens stay special."""
    tokenizer = words.tokenizer()
    words.processor(tokenizer=tokenizer)
    assert {"<|im_start|>", "<|im_end|>", "<vision>"} <= set(tokenizer.all_special_tokens)


def test_the_models_own_placeholder_is_found_by_its_id():
    """An id that the model has already is kept if the tokenizer knows it."""
    tokenizer, model = words.tokenizer(extra_special_tokens=["<img>"]), words.model()
    model.set_modality_token_ids({"vision": tokenizer.convert_tokens_to_ids("<img>")})
    assert MultimodalProcessor(tokenizer=tokenizer, model=model).tokens == {"vision": "<img>"}


def test_an_id_that_the_tokenizer_does_not_know_gives_way():
    """An id beyond the tokenizer's vocabulary can't be written, so the default takes its place."""
    model = words.model()
    model.set_modality_token_ids({"vision": 99_999})
    processor = words.processor(model=model)
    assert processor.tokens == {"vision": "<vision>"}
    assert model.config.modality_token_ids == processor.token_ids


def test_the_tokens_argument_wins_over_the_models_id():
    """What is given is used, and the model follows."""
    tokenizer, model = words.tokenizer(), words.model()
    model.set_modality_token_ids({"vision": 5})
    processor = MultimodalProcessor(tokenizer=tokenizer, model=model, tokens={"vision": "<image>"})
    assert processor.tokens == {"vision": "<image>"}
    assert model.config.modality_token_ids == {"vision": tokenizer.convert_tokens_to_ids("<image>")}


@pytest.mark.parametrize("tokens", [{"left": "<x>", "right": "<x>"}, {"left": "<pad>"}, {"right": "</s>"}])
def test_a_placeholder_belongs_to_one_modality_alone(tokens):
    """Not to two, and not to padding or the end of a text."""
    with pytest.raises(CompositionError, match="already"):
        words.processor(keys=("left", "right"), tokens=tokens)


def test_tokens_and_processors_must_be_for_modalities_of_the_model():
    """A key that the model lacks is an error that lists the ones it has."""
    with pytest.raises(ValueError, match="processors= for audio, but this model has vision"):
        words.processor(processors={"audio": object()})


# --- padding, truncation, special tokens ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.sampled_from(["left", "right"]))
def test_positions_hold_the_placeholders_on_either_side(processor, counts, side):
    """Whatever the numbers of images, positions are exactly where the placeholder's id stands."""
    texts = [f"a cat {'<vision> dog ' * count}{'!' * index}" for index, count in enumerate(counts)]
    images = [[words.image(i) for i in range(count)] for count in counts]
    batch = processor(text=texts, vision=images, padding_side=side)
    positions = batch["encoder_inputs"]["vision"]["positions"]
    expected = (batch["input_ids"].flatten() == processor.token_ids["vision"]).nonzero().squeeze(1)
    assert torch.equal(positions, expected)
    assert len(positions) == ITEM * sum(counts)
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == processor.tokenizer.pad_token_id)


def test_every_modality_has_an_entry():
    """A batch with none of a modality says so by empty positions, so that the model need not look."""
    processor = words.processor(keys=("left", "right"))
    batch = processor(text="<left>", left=words.image())
    assert list(batch["encoder_inputs"]["right"]) == ["positions"]
    assert batch["encoder_inputs"]["right"]["positions"].shape == (0,)
    assert batch["encoder_inputs"]["right"]["positions"].dtype == torch.int64


def test_truncation_cuts_text_as_the_tokenizer_does():
    """The text's tail goes; the tokenizer's own special tokens stay around it."""
    tokenizer = words.tokenizer(bos=True, eos=True)
    processor = words.processor(tokenizer=tokenizer)
    for side in ("right", "left"):
        tokenizer.truncation_side = side
        expected = tokenizer("a cat and a dog", truncation=True, max_length=5)["input_ids"]
        assert processor(text="a cat and a dog", truncation=True, max_length=5)["input_ids"].tolist() == [expected]


def test_truncation_inside_a_span_is_refused(processor):
    """The error names modality, sample, item and the length that it takes; with that length it works."""
    texts, images = ["a", "<vision> a <vision> a cat"], [[], [words.image(0), words.image(1)]]
    with pytest.raises(TruncatedSpanError, match=r"vision: sample 1, item 1: max_length=30 .*max_length=(\d+)") as info:
        processor(text=texts, vision=images, truncation=True, max_length=30)
    needed = int(str(info.value).split("at least max_length=")[1].split()[0])
    batch = processor(text=texts, vision=images, truncation=True, max_length=needed)
    assert batch["input_ids"].shape[1] == needed == batch["encoder_inputs"]["vision"]["positions"][-1] - needed + 1
    with pytest.raises(TruncatedSpanError):
        processor(text=texts, vision=images, truncation=True, max_length=needed - 1)


def test_truncation_without_a_length_is_refused_unless_the_tokenizer_has_one():
    """``model_max_length`` is the default."""
    with pytest.raises(InputError, match="needs max_length="):
        words.processor()(text="a", truncation=True)
    processor = words.processor(tokenizer=words.tokenizer(model_max_length=2))
    assert processor(text="a cat and a dog", truncation=True)["input_ids"].shape == (1, 2)


def test_a_batch_that_needs_padding_needs_a_padding_token():
    """One sample, or equally long ones, don't; else the error says how to set one."""
    processor = words.processor(tokenizer=words.tokenizer(pad_token=None))
    assert processor(text=["a", "a"])["input_ids"].shape == (2, 1)
    with pytest.raises(InputError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        processor(text=["a", "a cat"])
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    assert processor(text=["a", "a cat"])["attention_mask"].tolist()[0][-1] == 0


def test_padding_as_the_tokenizer_pads(processor):
    """Lengths and sides are those of ``tokenizer(...)`` for a text without media."""
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
    """A text that begins with BOS, as a chat template writes it, gets no second one."""
    processor = words.processor(tokenizer=words.tokenizer(bos=True))
    assert processor(text="a cat")["input_ids"][0, 0] == 1
    assert words.same(processor(text="<s>a cat"), processor(text="a cat"))
    assert processor(text="a cat", add_special_tokens=False)["input_ids"][0, 0] != 1
    assert processor(text="<vision>a", vision=words.image())["encoder_inputs"]["vision"]["positions"][0] == 1


@pytest.mark.parametrize("text", [None, [], 5, ["a", 5], words.image()])
def test_text_must_be_text(processor, text):
    """Anything else is refused with an example."""
    with pytest.raises(InputError, match=r"text= must be a string or a list of strings.*<vision>"):
        processor(text=text)


def test_only_torch_tensors(processor):
    """A batch with positions makes no sense as lists."""
    with pytest.raises(InputError, match="'pt'"):
        processor(text="a", return_tensors="np")


def test_moving_a_batch_moves_the_encoder_inputs(processor):
    """``to`` reaches into the nested dictionaries; a dtype changes floats alone."""
    batch = processor(text="<vision>", vision=words.image())
    assert batch.to("meta", torch.bfloat16) is batch
    vision = batch["encoder_inputs"]["vision"]
    assert vision["pixel_values"].dtype == torch.bfloat16
    assert vision["positions"].dtype == torch.int64
    assert {tensor.device.type for tensor in (*vision.values(), batch["input_ids"])} == {"meta"}


# --- with the model ---------------------------------------------------------------------------------------------------


def test_mixed_batches_run():
    """Samples with no, one and two images in one batch: padded logits equal those of the samples alone."""
    model = words.model("llava")
    processor = words.processor(model=model)
    texts = ["<vision> a cat", "a dog", "<vision> and <vision>, please"]
    images = [[words.image(0)], [], [words.image(1), words.image(2)]]
    with torch.no_grad():
        for side in ("right", "left"):
            batch = processor(text=texts, vision=images, padding_side=side)
            together = model(**batch).logits
            for row, (text, media) in enumerate(zip(texts, images, strict=True)):
                alone = model(**processor(text=text, vision=[media])).logits[0]
                kept = together[row][batch["attention_mask"][row].bool()]
                assert torch.allclose(kept, alone, atol=1e-5)


def test_generating_from_a_left_padded_batch():
    """What comes out can be decoded; the prompt is part of it, as ever."""
    model = words.model("llava")
    processor = words.processor(model=model)
    batch = processor(text=["<vision> a cat", "a"], vision=words.image(), padding_side="left")
    ids = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert ids.shape == (2, batch["input_ids"].shape[1] + 3)
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    assert texts[0].startswith(" a cat")
    assert processor.decode(ids[1], skip_special_tokens=True) == texts[1]


def test_the_same_ids_as_hugging_faces_processor():
    """For the same texts, images and tokenizer, ``LlavaProcessor`` gives equal ids, masks and pixels."""
    size = {"shortest_edge": 32}
    images = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    tokenizer = words.tokenizer(bos=True, extra_special_tokens=["<image>"])
    theirs = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    ours = words.processor("llava", tokenizer=tokenizer, tokens={"vision": "<image>"}, processors={"vision": images})
    texts = ["USER: <image>\nWhat is this? ASSISTANT:", "<image><image> both", "no image at all"]
    media = [words.image(0), words.image(1, (50, 20)), words.image(2)]
    for side in ("left", "right"):
        expected = theirs(text=texts, images=media, padding=True, padding_side=side, return_tensors="pt")
        batch = ours(text=texts, images=media, padding_side=side)
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["attention_mask"], expected["attention_mask"])
        assert torch.equal(batch["encoder_inputs"]["vision"]["pixel_values"], expected["pixel_values"])
