"""The collator: what is learned from, padded and packed batches, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import words
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizer

from cornstarch_core import MultimodalCollator
from cornstarch_core.errors import InputError, TruncatedSpanError

ITEM = 17
TEMPLATES = {"chatml": words.CHATML, "generation": words.GENERATION, "typed": words.TYPED, "llama2": words.LLAMA2}


@pytest.fixture(scope="module")
def processor():
    """With the placeholder ``<image>`` and a template for strings."""
    return words.processor(tokens={"vision": "<image>"}, chat_template=words.CHATML)


def talk(*said, image=None):
    """A conversation: the user speaks first, then in turn; the image, if any, comes first."""
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": [{"type": "text", "text": one}]}
        for index, one in enumerate(said)
    ]
    if image is not None:
        messages[0]["content"].insert(0, {"type": "image", "image": image})
    return messages


def learned(processor, batch, sample=0):
    """What the labels of one sample say, as text."""
    labels = batch["labels"][sample]
    return processor.tokenizer.decode(labels[labels != -100])


# --- what is learned --------------------------------------------------------------------------------------------------


def test_exact_labels_of_one_conversation(processor):
    """The assistant's words and the end of its turn; nothing of the user, the header or the image."""
    batch = MultimodalCollator(processor)([talk(" What is this?", "A cat.", image=words.image())])
    encode = processor.tokenizer.encode
    before = encode("<|im_start|>user\n"), encode(" What is this?<|im_end|>\n<|im_start|>assistant\n")
    answer = encode("A cat.<|im_end|>\n")
    image = [processor.token_ids["vision"]] * ITEM
    assert batch["input_ids"].tolist() == [[*before[0], *image, *before[1], *answer]]
    assert batch["labels"].tolist() == [[-100] * (len(before[0]) + ITEM + len(before[1])) + answer]


@pytest.mark.parametrize(
    ("name", "turn"),
    [("chatml", "{}<|im_end|>\n"), ("generation", "{}<|im_end|>"), ("typed", " {}</s>"), ("llama2", " {} </s>")],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_all_turns_with_any_template_on_either_side(name, turn, side):
    """Whatever the template does, and wherever the padding is. A token that straddles the border is learned."""
    tokenizer = words.tokenizer(bos=True, padding_side=side)
    processor = words.processor(tokenizer=tokenizer, tokens={"vision": "<image>"}, chat_template=TEMPLATES[name])
    samples = [talk("What?", "A cat.", "A dog?", "No.", image=words.image()), talk("Hi", "Yes.")]
    batch = MultimodalCollator(processor)(samples)
    assert learned(processor, batch) == turn.format("A cat.") + turn.format("No.")
    assert learned(processor, batch, 1) == turn.format("Yes.")
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])


def test_all_text_is_learned_if_asked(processor):
    """Everything but padding and placeholders; from messages as from text."""
    collator = MultimodalCollator(processor, train_on="all")
    for samples in (
        [talk("What?", "A cat.", image=words.image()), talk("Hi", "Yes.")],
        [{"text": "<image> A cat.", "images": [words.image()]}, {"text": "A dog."}],
    ):
        batch = collator(samples)
        left_out = (batch["attention_mask"] == 0) | (batch["input_ids"] == processor.token_ids["vision"])
        assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(left_out, -100))


def test_an_image_that_the_assistant_shows_is_not_learned(processor):
    """Placeholders inside the assistant's turn are left out, the words around them are not."""
    shown = [
        {"type": "text", "text": "See: "},
        {"type": "image", "image": words.image()},
        {"type": "text", "text": "!"},
    ]
    batch = MultimodalCollator(processor)([[*talk("What?"), {"role": "assistant", "content": shown}]])
    assert learned(processor, batch) == "See: !<|im_end|>\n"


def test_spaces_in_an_answer_are_learned():
    """Indentation too, though byte-level tokenizers give tokens of nothing but spaces an empty range."""
    from tokenizers import processors

    tokenizer = words.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    processor = words.processor(tokenizer=tokenizer, chat_template=words.CHATML)
    batch = MultimodalCollator(processor)([talk("Code?", "if a:\n        b   \n")])
    assert learned(processor, batch) == "if a:\n        b   \n<|im_end|>\n"


@pytest.mark.parametrize("answer", ["é 猫 🐈", "<|im_start|>user", "  "])
def test_odd_answers(processor, answer):
    """Characters of several tokens, special tokens in the text, and nothing but spaces."""
    batch = MultimodalCollator(processor)([talk("What?", answer)])
    assert learned(processor, batch) == f"{answer}<|im_end|>\n"


# --- samples ----------------------------------------------------------------------------------------------------------


def test_media_in_the_messages_or_beside_them(processor):
    """Both give the same batch, also mixed; a bare list of messages is a sample; other columns are left alone."""
    collator = MultimodalCollator(processor)
    one, other = words.image(0), words.image(1)
    bare = [{"type": "image"}, {"type": "text", "text": "What?"}]
    first, second = talk("What?", "A cat.", image=one), talk("What?", "A dog.", image=other)
    expected = collator([first, second, talk("Hi", "Yes.")])
    beside = {"messages": [{"role": "user", "content": bare}, second[1]], "images": [other], "id": 5, "source": None}
    batch = collator([first, beside, {"messages": talk("Hi", "Yes."), "images": None}])
    for name in ("input_ids", "labels"):
        assert torch.equal(batch[name], expected[name])
    for name in ("pixel_values", "positions"):
        assert torch.equal(batch["encoder_inputs"]["vision"][name], expected["encoder_inputs"]["vision"][name])


def test_an_item_beside_a_sample_stays_with_it(processor):
    """Single items of several samples are not a flat list: too many in one can't make up for another."""
    two = {"messages": [{"role": "user", "content": "<image><image>"}, *talk("", "Yes.")[1:]], "images": words.image()}
    none = {"messages": talk("Hi", "Yes."), "images": words.image()}
    with pytest.raises(InputError, match="vision: sample 0: expected 2 items"):
        MultimodalCollator(processor)([two, none])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "at least one sample"),
        (["Hi"], "sample 0: expected a list of messages or a dictionary"),
        ([{"text": "a", "messages": []}], "sample 0: expected a list of messages or a dictionary"),
        ([talk("Hi", "Yes."), {"conversation": []}], "sample 1: .*; got conversation"),
        ([talk("Hi", "Yes."), {"messages": []}], "sample 1: .*empty list"),
        ([talk("Hi", "Yes."), {"messages": [{"role": "user", "content": [{"type": "smell"}]}]}], "sample 1, message 0"),
        ([{"text": "a"}], "sample 0 has 'text'.*train_on='all'"),
        ([talk("Hi", "Yes."), {"text": "a"}], "batches of one kind"),
        ([talk("Hi", "Yes."), talk("Hi")], "sample 1: there is no word of a message with the role 'assistant' in it"),
        ([{"messages": talk("Hi", "Yes.", image=words.image()), "images": [words.image()]}], "vision: sample 0: media"),
        ([{"messages": talk("Hi", "Yes."), "audio": [0.1]}], "audio= is given, but this model has vision"),
    ],
)
def test_bad_samples_are_named(processor, samples, message):
    """Each error names the sample, and what to do."""
    with pytest.raises(InputError, match=message):
        MultimodalCollator(processor)(samples)


def test_train_on_is_one_of_two(processor):
    """Anything else is refused when the collator is made."""
    with pytest.raises(ValueError, match="choose 'assistant' or 'all'"):
        MultimodalCollator(processor, train_on="user")


def test_a_slow_tokenizer_is_refused_where_characters_matter():
    """It can't tell the characters of a token; learning all text works."""

    class Slow(PreTrainedTokenizer):
        def __init__(self, **kwargs):
            super().__init__(pad_token="~", unk_token="?", **kwargs)

        @property
        def vocab_size(self):
            return 128

        def get_vocab(self):
            return {chr(index): index for index in range(128)} | self.added_tokens_encoder

        def _tokenize(self, text):
            return list(text)

        def _convert_token_to_id(self, token):
            return ord(token)

        def _convert_id_to_token(self, index):
            return chr(index)

    processor = words.processor(tokenizer=Slow(), chat_template=words.CHATML)
    samples = [[{"role": "user", "content": "<vision>"}, *talk("", "Yes.")[1:]]]
    with pytest.raises(InputError, match=r"needs a fast tokenizer.*Slow is none.*train_on='all'"):
        MultimodalCollator(processor)(samples)
    batch = MultimodalCollator(processor, train_on="all")([{"messages": samples[0], "images": [words.image()]}])
    assert (batch["labels"] == -100).sum() == ITEM


# --- truncation -------------------------------------------------------------------------------------------------------


def test_truncation_cuts_text_and_labels_alike(processor):
    """The first tokens stay, with the labels that they had."""
    sample = talk("What?", "A cat and a dog.", image=words.image())
    whole = MultimodalCollator(processor)([sample])
    width = whole["labels"].shape[1] - 4
    batch = MultimodalCollator(processor, max_length=width)([sample])
    assert all(torch.equal(batch[name], whole[name][:, :width]) for name in ("input_ids", "labels"))


def test_truncation_inside_a_span_names_the_sample(processor):
    """A cut image can't be trained on."""
    samples = [talk("Hi", "Yes."), talk("What?", "A cat.", image=words.image())]
    with pytest.raises(TruncatedSpanError, match=r"vision: sample 1, item 0: max_length=18 "):
        MultimodalCollator(processor, max_length=18)(samples)


def test_a_sample_of_which_nothing_is_left_to_learn_is_refused(processor):
    """A loss over nothing is NaN; better to know which sample."""
    samples = [talk("Hi", "Yes."), talk("a cat " * 20, "Yes.")]
    with pytest.raises(InputError, match=r"sample 1: .*in its first 25 tokens \(max_length\)"):
        MultimodalCollator(processor, max_length=25)(samples)


# --- training ---------------------------------------------------------------------------------------------------------


def samples_of_many_kinds():
    """Two images, none, one."""
    two = [{"type": "image", "image": words.image(i)} for i in range(2)]
    return [
        [{"role": "user", "content": [*two, {"type": "text", "text": "Both?"}]}, *talk("", "A cat and a dog.")[1:]],
        talk("Hi", "Yes.", "And?", "No."),
        talk("What?", "A seven.", image=words.image(2)),
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_trains(side):
    """Loss and gradients of every projector parameter are finite, and no label is lost."""
    model = words.model("llava")
    processor = words.processor(model=model, tokenizer=words.tokenizer(padding_side=side), chat_template=words.CHATML)
    model(**MultimodalCollator(processor)(samples_of_many_kinds())).loss.backward()
    grads = [parameter.grad for parameter in model.vision_encoder.projector.parameters()]
    assert all(torch.isfinite(grad).all() and grad.abs().sum() > 0 for grad in grads)


def losses(model, batch):
    """Per-token losses by label position, in the order of the flat batch."""
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_packed_samples_do_not_see_each_other(attention, train_on):
    """Per-token losses of a packed row equal those of the samples alone, with the model's own settings."""
    model = words.model("llava")
    model.language_model.set_attn_implementation(attention)
    processor = words.processor(model=model, chat_template=words.CHATML)
    samples = samples_of_many_kinds()
    packed = MultimodalCollator(processor, packing=True, train_on=train_on)(samples)
    collator = MultimodalCollator(processor, train_on=train_on)
    alone = torch.cat([losses(model, collator([sample])) for sample in samples])
    together = losses(model, packed)
    assert torch.allclose(together[together != 0], alone[alone != 0], atol=1e-5)
    assert (together != 0).sum() == (alone != 0).sum() > 10


def test_a_packed_row(processor):
    """One row, no mask, positions that begin anew, and no label at a sample's first token."""
    samples = samples_of_many_kinds()
    collator = MultimodalCollator(processor, train_on="all")
    alone = [collator([sample]) for sample in samples]
    packed = MultimodalCollator(processor, train_on="all", packing=True)(samples)
    assert set(packed) == {"input_ids", "position_ids", "labels", "use_cache", "encoder_inputs"}
    assert torch.equal(packed["input_ids"], torch.cat([one["input_ids"] for one in alone], dim=1))
    lengths = [one["input_ids"].shape[1] for one in alone]
    assert packed["position_ids"].tolist() == [[place for length in lengths for place in range(length)]]
    firsts = (packed["position_ids"] == 0).squeeze(0)
    assert (packed["labels"][0, firsts] == -100).all()
    rest = torch.cat([one["labels"] for one in alone], dim=1)
    assert torch.equal(packed["labels"][0, ~firsts], rest[0, ~firsts])
    vision = packed["encoder_inputs"]["vision"]
    assert (packed["input_ids"][0, vision["positions"]] == processor.token_ids["vision"]).all()
    assert torch.equal(
        vision["pixel_values"],
        torch.cat([one["encoder_inputs"]["vision"].get("pixel_values", vision["pixel_values"][:0]) for one in alone]),
    )


def test_a_packed_row_needs_no_padding_token():
    """Nothing is padded."""
    processor = words.processor(tokenizer=words.tokenizer(pad_token=None), chat_template=words.CHATML)
    samples = samples_of_many_kinds()
    assert MultimodalCollator(processor, packing=True)(samples)["input_ids"].shape[0] == 1
    with pytest.raises(InputError, match=r"tokenizer\.pad_token = "):
        MultimodalCollator(processor)(samples)


def test_it_works_in_the_workers_of_a_data_loader(processor):
    """Sent to another process, with the same result."""
    samples = samples_of_many_kinds()
    loader = torch.utils.data.DataLoader(
        samples, batch_size=3, collate_fn=MultimodalCollator(processor), num_workers=1, multiprocessing_context="fork"
    )
    (batch,) = loader
    expected = MultimodalCollator(processor)(samples)
    assert torch.equal(batch["labels"], expected["labels"])
    assert torch.equal(*(one["encoder_inputs"]["vision"]["pixel_values"] for one in (batch, expected)))
