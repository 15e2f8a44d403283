"""Chat templates: which form of content a template gets, and where the assistant speaks."""

from __future__ import annotations

import pytest
import words

from cornstarch_core.errors import InputError
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
    """Typed parts are joined, with the placeholder in the place of the image."""
    said = [user(IMAGE, text(" What is this?")), assistant("A cat.")]
    assert written(words.CHATML, said) == (
        "<|im_start|>user\n<image> What is this?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    )


def test_a_template_for_typed_content_gets_typed_content():
    """The template writes the placeholder itself, here with a line break. Strings become text parts."""
    said = [user(IMAGE, text("What is this?")), assistant("A cat.")]
    assert written(words.TYPED, said) == "USER: <image>\nWhat is this? ASSISTANT: A cat.</s>"
    assert written(words.TYPED, [user("Hello")], add_generation_prompt=True) == "USER: Hello ASSISTANT:"


def test_a_template_with_another_placeholder_gets_ours_as_text():
    """The template writes ``<image>``, but the model knows ``<vision>``."""
    said = [user(IMAGE, text("What?"))]
    assert written(words.TYPED, said, "<vision>") == "USER: <vision>What? "


def test_a_template_that_leaves_images_out_gets_the_placeholder_as_text():
    """A template that writes only text parts loses no image."""
    source = "{% for m in messages %}{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endfor %}"
    assert written(source, [user(text("a "), IMAGE, text(" b"))]) == "a <image> b"


def test_roles_may_take_different_forms():
    """This template loops over the user's parts, but joins the assistant's content to a string."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content %}"
        "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
        "{% else %}{{ ' => ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    said = [user(IMAGE, text("What?")), {"role": "assistant", "content": [text("A cat.")]}]
    assert written(source, said) == "<image>What? => A cat.</s>"


def test_a_template_that_writes_a_list_as_data_counts_as_one_for_strings():
    """Such a template would show the model the braces and quotes of a list."""
    assert (
        written("{% for m in messages %}{{ m.content | trim }}{% endfor %}", [user(IMAGE, text(" a"))]) == "<image> a"
    )


@pytest.mark.parametrize("kind", ["vision", "image", "image_url"])
def test_every_name_of_a_type_is_written(kind):
    """The key and each content type of the plugin become the type that the template knows."""
    assert written(words.TYPED, [user({"type": kind}, text("a"))]) == "USER: <image>\na "


@pytest.mark.parametrize("source", [words.CHATML, words.TYPED], ids=["strings", "typed"])
def test_fields_that_are_none_are_ignored(source):
    """Tables of pyarrow add them, so that all parts have the same fields."""
    filled = [
        user({**IMAGE, "text": None, "image": None}, {**text("What?"), "image": None}),
        {"role": "assistant", "content": [{**text("A cat."), "image": None}], "name": None},
    ]
    assert written(source, filled) == written(source, [user(IMAGE, text("What?")), assistant("A cat.")])


@pytest.mark.parametrize("part", [{"type": "smell"}, "a", {"text": "a"}, {"type": "text"}, None])
def test_an_unknown_part_is_refused(part):
    """The error names the message and lists the known types."""
    with pytest.raises(InputError, match=r"message 1: a part of type .*text, vision, image"):
        written(words.CHATML, [user("a"), {"role": "user", "content": [part]}])


def test_a_template_that_writes_no_text_is_refused():
    """If it writes neither a string nor typed parts, an error is better than an empty prompt."""
    with pytest.raises(InputError, match="neither from a string"):
        written("{% for m in messages %}{{ m.words }}{% endfor %}", [user(text("a"))])


@pytest.mark.parametrize("content", ["a", [{"type": "text", "text": "a"}]])
def test_an_error_of_a_template_reaches_the_user(content):
    """The template's own message, here about a role, is part of the error for either form of content."""
    source = "{% for m in messages %}{{ raise_exception('no system') if m.role == 'system' else '' + m.content }}{% endfor %}"
    with pytest.raises(InputError, match="no system"):
        written(source, [{"role": "system", "content": content}, user("b")])


LLAVA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
)


def test_a_template_that_takes_typed_content_only_loses_no_string():
    """LLaVA's template writes nothing of a string, so it gets a text part."""
    assert written(LLAVA, [user("Hi"), assistant("Yes.")]) == "USER: Hi ASSISTANT: Yes. "
    assert written(LLAVA, [user(text("What?"), IMAGE)]) == "USER: <image>\nWhat? "


def test_a_type_that_two_encoders_share_is_refused():
    """The error asks for the modality as the type, and that works."""
    processor = words.processor(keys=("left", "right"), chat_template=words.CHATML)
    with pytest.raises(InputError, match=r'could be for any of left, right.*\{"type": "left", "left": \.\.\.\}'):
        processor.apply_chat_template([user(IMAGE)])
    batch = processor.apply_chat_template(
        [user({"type": "right", "right": words.image()}, {"type": "left", "left": words.image()})],
        tokenize=True,
        return_dict=True,
    )
    assert all(len(one["positions"]) == 17 for one in batch["encoder_inputs"].values())


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
    """With a generation prompt, with ``{% generation %}``, and with neither."""
    assert spoken(source, TALK) == expected


def test_a_conversation_may_begin_with_the_assistant():
    """There is no earlier text, so the header is what stays when the words change."""
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
    """The turns cannot be found. The error says what to add to the template."""
    with pytest.raises(InputError, match=r"message \d: .*can't be found.*\{% generation %\}"):
        spoken(source, TALK)


# --- which template ---------------------------------------------------------------------------------------------------


def test_which_template_is_used():
    """The argument wins over the processor's, and this over the tokenizer's. Without any, the error says what to set."""
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
