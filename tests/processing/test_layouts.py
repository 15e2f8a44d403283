"""Layouts: conversations, samples and texts as users give them, and the media in messages and beside them."""

from __future__ import annotations

import io

import pytest
import torch
import words

from cornstarch_core.errors import InputError, PlaceholderMismatchError
from cornstarch_core.processing.layouts import read_sample

IMAGE = {"type": "image"}


def text(words_):
    """A typed text part."""
    return {"type": "text", "text": words_}


def user(*parts):
    """A user's message of typed parts, or of one string."""
    return {"role": "user", "content": parts[0] if parts and isinstance(parts[0], str) else list(parts)}


def assistant(words_):
    """What the assistant says."""
    return {"role": "assistant", "content": words_}


@pytest.fixture(scope="module")
def processor():
    """With the placeholder ``<image>`` and a template for strings."""
    return words.processor(tokens={"vision": "<image>"}, chat_template=words.CHATML)


# --- texts, conversations and samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, [], 5, ["a", 5], words.image()])
def test_text_must_be_text(processor, text):
    """Other values are refused; the message shows an example."""
    with pytest.raises(InputError, match=r"text= must be a string or a list of strings.*<image>"):
        processor(text=text)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("Hi", "a conversation is a list of messages, not str"),
        ([], "not an empty list"),
        ([[user("Hi")], []], "sample 1: a conversation is a list of messages, not an empty list"),
        ([["Hi"]], "sample 0, message 0: expected a dictionary with 'role'"),
        ([{"content": "Hi"}], "sample 0, message 0: expected a dictionary with 'role'"),
    ],
)
def test_what_is_no_conversation_is_refused(processor, said, message):
    """The error names the sample and the message, and what is expected."""
    with pytest.raises(InputError, match=message):
        processor.apply_chat_template(said)


def test_messages_are_not_changed(processor):
    """Neither the list of messages nor their content changes."""
    said = [user({"type": "image", "image": words.image()}, text("a")), {"role": "assistant", "content": None}]
    before = [dict(message) for message in said], list(said[0]["content"])
    processor.apply_chat_template(said[:1], tokenize=True)
    assert ([dict(message) for message in said], list(said[0]["content"])) == before


SAID = [user("Hi"), assistant("Yes.")]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (SAID, {"messages": SAID}),
        (tuple(SAID), {"messages": SAID}),
        ({"messages": SAID, "images": None}, {"messages": SAID, "images": None}),
        ({"messages": [{**SAID[0], "name": None}, SAID[1]]}, {"messages": SAID}),
        ({"text": "Hi", "id": 5}, {"text": "Hi", "id": 5}),
    ],
)
def test_a_sample_has_messages_or_a_text(sample, expected):
    """A list is a list of messages. Other entries of a dictionary are kept."""
    assert read_sample(sample, 0) == expected


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("Hi", "sample 3: expected a list of messages .*; got str"),
        ({"text": "a", "messages": []}, "sample 3: .*; got text, messages"),
        ({}, r"sample 3: .*; got an empty dictionary.*remove_unused_columns=False"),
        ([], "sample 3: a conversation is a list of messages, not an empty list"),
        ({"messages": [{"content": "Hi"}]}, "sample 3, message 0: expected a dictionary with 'role'"),
    ],
)
def test_an_unknown_layout_is_refused(sample, message):
    """The error names the sample and what it has."""
    with pytest.raises(InputError, match=message):
        read_sample(sample, 3)


# --- media ------------------------------------------------------------------------------------------------------------


def test_media_come_out_of_the_messages_in_order(processor):
    """Images in typed content give the same batch as text with images."""
    a, b, c = (words.image(seed) for seed in range(3))
    talks = [
        [user({"type": "image", "image": a}, text("one")), assistant("ok"), user({"type": "vision", "vision": b})],
        [user("none")],
        [user({"type": "image_url", "image_url": {"url": c}}, text("three"))],
    ]
    texts = processor.apply_chat_template(talks, add_generation_prompt=True)
    batch = processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True)
    expected = processor(text=texts, images=[[a, b], [], [c]], padding_side="left")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    for name, value in expected["encoder_inputs"]["vision"].items():
        assert torch.equal(batch["encoder_inputs"]["vision"][name], value)


def test_an_image_may_be_a_path(processor, tmp_path):
    """A part can hold it under ``path`` or ``url``, or in place of the image."""
    words.image().save(tmp_path / "a.png")
    for name in ("path", "url", "image"):
        part = {"type": "image", name: str(tmp_path / "a.png")}
        batch = processor.apply_chat_template([user(part)], tokenize=True, return_dict=True)
        assert batch["encoder_inputs"]["vision"]["pixel_values"].shape[0] == 1


def test_entries_that_are_none_are_skipped(processor):
    """pyarrow fills every part with the same entries; the one that is not ``None`` counts, bytes or a path."""
    file = io.BytesIO()
    words.image().save(file, "PNG")
    options = {"tokenize": True, "return_dict": True}
    expected = processor.apply_chat_template([user({**IMAGE, "image": words.image()}, text("a"))], **options)
    for image in ({"bytes": file.getvalue(), "path": None}, {"bytes": file.getvalue(), "path": "gone.png"}):
        part = {**IMAGE, "text": None, "image": image, "url": None, "path": None}
        said = [user(part, {**text("a"), "image": None})]
        assert words.same(processor.apply_chat_template(said, **options), expected)
    beside = [user({**IMAGE, "text": None, "image": None}, text("a"))]
    assert words.same(processor.apply_chat_template(beside, images=[words.image()], **options), expected)


def test_media_can_be_beside_the_conversation(processor):
    """For parts without an item and for placeholders in strings. Media in both places are an error."""
    options = {"tokenize": True, "return_dict": True}
    beside = processor.apply_chat_template([user(IMAGE, text("a"))], images=[words.image()], **options)
    inline = processor.apply_chat_template([user("<image>a")], vision=words.image(), **options)
    assert torch.equal(beside["input_ids"], inline["input_ids"])
    with pytest.raises(InputError, match="vision: media are in the messages and beside them"):
        processor.apply_chat_template([user({**IMAGE, "image": words.image()})], images=[words.image()], **options)
    with pytest.raises(PlaceholderMismatchError, match="vision: sample 0"):
        processor.apply_chat_template([user(IMAGE)], **options)
