"""Conversations: which form of content a template gets, where media come from, and where the assistant speaks."""

from __future__ import annotations

import io

import pytest
import torch
import words

from cornstarch_core.errors import InputError, PlaceholderMismatchError
from cornstarch_core.processing.templates import ChatTemplate

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


def template(source, token="<image>", **variables):
    """A template for a model with one image encoder."""
    return ChatTemplate(
        source, tokens={"vision": token}, types={"vision": ("vision", "image", "image_url")}, variables=variables
    )


def written(source, messages, token="<image>", **options):
    """What the template makes of a conversation."""
    one = template(source, token, bos_token="<s>", eos_token="</s>")
    return one.render(one.fit(messages), **options)


# --- the form of content ----------------------------------------------------------------------------------------------


def test_a_template_for_strings_gets_strings():
    """Typed parts are joined, with the placeholder where the image is."""
    said = [user(IMAGE, text(" What is this?")), assistant("A cat.")]
    assert written(words.CHATML, said) == (
        "<|im_start|>user\n<image> What is this?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    )


def test_a_template_for_typed_content_gets_typed_content():
    """It writes the placeholder itself, here with a line break; strings become text parts."""
    said = [user(IMAGE, text("What is this?")), assistant("A cat.")]
    assert written(words.TYPED, said) == "USER: <image>\nWhat is this? ASSISTANT: A cat.</s>"
    assert written(words.TYPED, [user("Hello")], add_generation_prompt=True) == "USER: Hello ASSISTANT:"


def test_a_template_with_another_placeholder_gets_ours_as_text():
    """The template writes ``<image>``, but the modality's is ``<vision>``: it must be what the model knows."""
    said = [user(IMAGE, text("What?"))]
    assert written(words.TYPED, said, "<vision>") == "USER: <vision>What? "


def test_a_template_that_leaves_images_out_gets_the_placeholder_as_text():
    """Nothing is lost in a template that writes only the text parts."""
    source = "{% for m in messages %}{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endfor %}"
    assert written(source, [user(text("a "), IMAGE, text(" b"))]) == "a <image> b"


def test_roles_may_take_different_forms():
    """A template that loops over the user's parts, but joins what the assistant says to a string."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content %}"
        "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
        "{% else %}{{ ' => ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    said = [user(IMAGE, text("What?")), {"role": "assistant", "content": [text("A cat.")]}]
    assert written(source, said) == "<image>What? => A cat.</s>"


def test_a_template_that_writes_a_list_as_data_counts_as_one_for_strings():
    """``{{ content }}`` of a list would show braces and quotes; the model should never see them."""
    assert (
        written("{% for m in messages %}{{ m.content | trim }}{% endfor %}", [user(IMAGE, text(" a"))]) == "<image> a"
    )


@pytest.mark.parametrize("kind", ["vision", "image", "image_url"])
def test_every_name_of_a_type_is_written(kind):
    """The key, and each content type of the plugin, come out as the type that the template knows."""
    assert written(words.TYPED, [user({"type": kind}, text("a"))]) == "USER: <image>\na "


@pytest.mark.parametrize("source", [words.CHATML, words.TYPED], ids=["strings", "typed"])
def test_fields_that_are_none_are_not_there(source):
    """Tables of pyarrow fill them in, so that all parts have the same."""
    filled = [
        user({**IMAGE, "text": None, "image": None}, {**text("What?"), "image": None}),
        {"role": "assistant", "content": [{**text("A cat."), "image": None}], "name": None},
    ]
    assert written(source, filled) == written(source, [user(IMAGE, text("What?")), assistant("A cat.")])


@pytest.mark.parametrize("part", [{"type": "smell"}, "a", {"text": "a"}, {"type": "text"}, None])
def test_an_unknown_part_is_refused(part):
    """The error names the message, and the types that there are."""
    with pytest.raises(InputError, match=r"message 1: a part of type .*text, vision, image"):
        written(words.CHATML, [user("a"), {"role": "user", "content": [part]}])


def test_a_template_that_writes_no_text_is_refused():
    """Neither a string nor typed parts come out: better an error than an empty prompt."""
    with pytest.raises(InputError, match="neither from a string"):
        written("{% for m in messages %}{{ m.words }}{% endfor %}", [user(text("a"))])


@pytest.mark.parametrize("content", ["a", [{"type": "text", "text": "a"}]])
def test_what_a_template_raises_is_told(content):
    """A template's own complaint, here about a role, reaches the user, whatever the form of content."""
    source = "{% for m in messages %}{{ raise_exception('no system') if m.role == 'system' else '' + m.content }}{% endfor %}"
    with pytest.raises(InputError, match="no system"):
        written(source, [{"role": "system", "content": content}, user("b")])


LLAVA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
)


def test_a_template_that_takes_typed_content_only_loses_no_string():
    """LLaVA's template would silently write nothing of a string."""
    assert written(LLAVA, [user("Hi"), assistant("Yes.")]) == "USER: Hi ASSISTANT: Yes. "
    assert written(LLAVA, [user(text("What?"), IMAGE)]) == "USER: <image>\nWhat? "


# --- the assistant's turns --------------------------------------------------------------------------------------------

TALK = [user("Hi"), assistant("Yes."), user("And?"), assistant("No.")]


def spoken(source, messages):
    """The pieces of text that are found to be the assistant's."""
    one = template(source, bos_token="<s>", eos_token="</s>")
    text_, spans = one.turns(one.fit(messages))
    return [text_[start:stop] for start, stop in spans]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (words.CHATML, ["Yes.<|im_end|>\n", "No.<|im_end|>\n"]),
        (words.GENERATION, ["Yes.<|im_end|>", "No.<|im_end|>"]),
        (words.TYPED, [" Yes.</s>", " No.</s>"]),
        (words.LLAMA2, [" Yes. </s>", " No. </s>"]),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", [" Yes.\n", " No.\n"]),
    ],
    ids=["chatml", "generation", "typed", "llama2", "no-prompt"],
)
def test_turns_hold_the_words_and_the_end_but_no_header(source, expected):
    """With a generation prompt, with ``{% generation %}``, and without either."""
    assert spoken(source, TALK) == expected


def test_a_conversation_may_begin_with_the_assistant():
    """There is nothing before it to write; the header is told by what stays when the words change."""
    assert spoken(words.CHATML, [assistant("Hello."), user("Hi"), assistant("Yes.")]) == [
        "\nHello.<|im_end|>\n",
        "Yes.<|im_end|>\n",
    ]


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% if loop.last %}</s>{% endif %}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}",
        "{% if messages | length < 4 %}{{ raise_exception('too short') }}{% endif %}{{ messages[0].content }}",
    ],
    ids=["last", "length", "prompt", "raises"],
)
def test_a_template_that_writes_beginnings_otherwise_is_refused(source):
    """Turns can't be told then; the error says what to add to the template."""
    with pytest.raises(InputError, match=r"message \d: .*can't be found.*\{% generation %\}"):
        spoken(source, TALK)


# --- through the processor --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor():
    """With the placeholder ``<image>`` and a template for strings."""
    return words.processor(tokens={"vision": "<image>"}, chat_template=words.CHATML)


def test_media_come_out_of_the_messages_in_order(processor):
    """Typed content holds the images; the batch is the same as from text and images."""
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


def test_a_generation_prompt_is_padded_on_the_left_unless_told(processor):
    """Generating continues the end of each row; training batches keep the tokenizer's side."""
    talks = [[user("one")], [user("none of it, but longer")]]
    options = {"tokenize": True, "return_dict": True}
    prompt = processor.apply_chat_template(talks, add_generation_prompt=True, **options)
    assert prompt["attention_mask"][0].tolist() == sorted(prompt["attention_mask"][0].tolist())
    for given in ({"processor_kwargs": {"padding_side": "right"}}, {"padding_side": "right"}):
        right = processor.apply_chat_template(talks, add_generation_prompt=True, **options, **given)
        assert right["attention_mask"][0, -1] == 0
    assert processor.apply_chat_template(talks, **options)["attention_mask"][0, -1] == 0


def test_an_image_may_be_a_path(processor, tmp_path):
    """Under ``path`` or ``url``, or in place of the image."""
    words.image().save(tmp_path / "a.png")
    for name in ("path", "url", "image"):
        part = {"type": "image", name: str(tmp_path / "a.png")}
        batch = processor.apply_chat_template([user(part)], tokenize=True, return_dict=True)
        assert batch["encoder_inputs"]["vision"]["pixel_values"].shape[0] == 1


def test_media_whose_other_places_are_none_are_found(processor):
    """In a part as a table of pyarrow gives it, as bytes with or without the file they come from."""
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


def test_media_may_stand_beside_the_conversation(processor):
    """For parts that hold none, and for placeholders in strings; in both places is an error."""
    options = {"tokenize": True, "return_dict": True}
    beside = processor.apply_chat_template([user(IMAGE, text("a"))], images=[words.image()], **options)
    inline = processor.apply_chat_template([user("<image>a")], vision=words.image(), **options)
    assert torch.equal(beside["input_ids"], inline["input_ids"])
    with pytest.raises(InputError, match="vision: media are in the messages and beside them"):
        processor.apply_chat_template([user({**IMAGE, "image": words.image()})], images=[words.image()], **options)
    with pytest.raises(PlaceholderMismatchError, match="vision: sample 0"):
        processor.apply_chat_template([user(IMAGE)], **options)


def test_what_comes_back(processor):
    """A text, a list of texts, ids, or a batch."""
    said = [user("Hi")]
    assert processor.apply_chat_template(said) == "<|im_start|>user\nHi<|im_end|>\n"
    assert processor.apply_chat_template([said, said]) == ["<|im_start|>user\nHi<|im_end|>\n"] * 2
    ids = processor.apply_chat_template(said, tokenize=True)
    assert torch.equal(ids, processor(text=processor.apply_chat_template(said))["input_ids"])


def test_options_go_where_they_belong(processor):
    """Arguments of a call to the processor, flat or together; the rest are variables of the template."""
    said = [[user("Hi")], [user("a cat and a dog")]]
    one = processor.apply_chat_template(said, tokenize=True, padding_side="left")
    other = processor.apply_chat_template(said, tokenize=True, processor_kwargs={"padding_side": "left"})
    assert torch.equal(one, other)
    assert one[0, 0] == processor.tokenizer.pad_token_id
    with pytest.raises(TypeError, match=r"return_assistant_tokens_mask= is not supported.*MultimodalCollator"):
        processor.apply_chat_template(said, return_assistant_tokens_mask=True)
    assert processor.apply_chat_template(said[0], "{{ mood }}{{ messages[0].content }}", mood="!") == "!Hi"


def test_the_last_message_can_be_left_open(processor):
    """As the tokenizer's own method does it."""
    said = [user("Hi"), assistant("Well,")]
    text_ = processor.apply_chat_template(said, continue_final_message=True)
    assert text_ == processor.tokenizer.apply_chat_template(
        said, chat_template=words.CHATML, tokenize=False, continue_final_message=True
    )
    assert text_.endswith("Well,")


def test_which_template_is_used():
    """The argument wins over the processor's, which wins over the tokenizer's; none is an error that says what to do."""
    said = [user("Hi")]
    processor = words.processor(tokenizer=words.tokenizer(chat_template="T{{ messages[0].content }}"))
    assert processor.apply_chat_template(said) == "THi"
    processor.chat_template = "P{{ messages[0].content }}"
    assert processor.apply_chat_template(said) == "PHi"
    assert processor.apply_chat_template(said, chat_template="A{{ messages[0].content }}") == "AHi"
    processor.chat_template = {"short": "S{{ messages[0].content }}"}
    assert processor.apply_chat_template(said, chat_template="short") == "SHi"
    with pytest.raises(InputError, match="called 'default', only short"):
        processor.apply_chat_template(said)
    with pytest.raises(InputError, match="there is no chat template; set processor.chat_template"):
        words.processor().apply_chat_template(said)


def test_bos_is_not_doubled():
    """Added where the template leaves it out, not where it writes it; and nothing is put after a prompt."""
    processor = words.processor(tokenizer=words.tokenizer(bos=True, eos=True))
    with_bos = processor.apply_chat_template([user("Hi")], words.LLAMA2, tokenize=True)[0].tolist()
    without = processor.apply_chat_template([user("Hi")], words.CHATML, tokenize=True)[0].tolist()
    assert with_bos.count(1) == without.count(1) == 1
    assert with_bos[0] == without[0] == 1
    assert 2 not in with_bos + without


def test_a_type_that_two_encoders_share_is_refused():
    """Then the part has to name the modality, which works."""
    processor = words.processor(keys=("left", "right"), chat_template=words.CHATML)
    with pytest.raises(InputError, match=r'could be for any of left, right.*\{"type": "left", "left": \.\.\.\}'):
        processor.apply_chat_template([user(IMAGE)])
    batch = processor.apply_chat_template(
        [user({"type": "right", "right": words.image()}, {"type": "left", "left": words.image()})],
        tokenize=True,
        return_dict=True,
    )
    assert all(len(one["positions"]) == 17 for one in batch["encoder_inputs"].values())


def test_messages_are_left_as_they_are(processor):
    """Neither the list nor what is in it changes."""
    said = [user({"type": "image", "image": words.image()}, text("a")), {"role": "assistant", "content": None}]
    before = [dict(message) for message in said], list(said[0]["content"])
    processor.apply_chat_template(said[:1], tokenize=True)
    assert ([dict(message) for message in said], list(said[0]["content"])) == before


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
    """The error says where, and what was expected."""
    with pytest.raises(InputError, match=message):
        processor.apply_chat_template(said)
