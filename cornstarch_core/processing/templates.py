"""Render conversations with a chat template, in the form of content that the template supports.

To find this form, the template is tried on one message of each role. If it renders a typed text part of a role as text,
the messages of that role get typed content; otherwise they get strings in which placeholders stand for the media. If
the template does not render a typed media part as exactly one placeholder of the modality, the part is replaced by a
text part with the placeholder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers.utils import chat_template_utils

from ..errors import InputError

__all__ = ["ChatTemplate", "Message", "choose"]

Message = dict[str, Any]

_render_jinja: Any = chat_template_utils.render_jinja_template  # annotated with one result only (5.23)

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SAMPLE = "cornstarch"  # unchanged by trimming; templates do not contain this word
_AS_DATA = re.compile(r"""['"]text['"]\s*:\s*['"]""" + _SAMPLE)
_HINT = (
    "Mark the assistant's words in the template with {% generation %} and {% endgeneration %}: then they are found "
    "with any template."
)


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template, with the placeholders, content types and variables to render it with.

    Args:
        source: source text of the template.
        tokens: placeholder token of each modality.
        types: content types of each modality, of which the first is its key.
        variables: variables of the template: the tokenizer's special tokens, ``tools``, ``documents`` and others.
    """

    source: str
    tokens: Mapping[str, str]
    types: Mapping[str, Sequence[str]]
    variables: Mapping[str, Any] = field(default_factory=dict)

    # --- writing ------------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], where: str = "", **options: Any) -> str:
        """Render one conversation, in the form that :meth:`fit` returns.

        Raises:
            InputError: the template raises an error.
        """
        return self._render(messages, where, **options)[0]

    def _render(self, messages: Sequence[Message], where: str, **options: Any) -> tuple[str, list[tuple[int, int]]]:
        variables = {**self.variables, **options}
        try:
            texts, spans = _render_jinja(conversations=[list(messages)], chat_template=self.source, **variables)
        except Exception as error:  # a template may raise anything
            raise InputError(f"{where}the chat template can't write this conversation: {error}") from error
        return texts[0], [(start, stop) for start, stop in spans[0]] if spans else []

    def turns(self, messages: Sequence[Message], where: str = "") -> tuple[str, list[tuple[int, int]]]:
        """Render one conversation, and find the assistant's turns in the text.

        Returns:
            The text, and the character indices ``(start, stop)`` of each turn of the assistant. If the template has
            ``{% generation %}`` blocks, these are the turns. Otherwise a turn excludes the role's header and includes
            the token that ends the turn.

        Raises:
            InputError: the text of a conversation does not begin with the text of its first messages, so that a turn
                can't be found.
        """
        if _GENERATION.search(self.source):
            return self._render(messages, where, return_assistant_tokens_mask=True)
        text = self.render(messages, where)
        speaks = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
        return text, [self._turn(messages, index, text, f"{where}message {index}") for index in speaks]

    def _turn(self, messages: Sequence[Message], index: int, text: str, where: str) -> tuple[int, int]:
        try:
            through = self.render(messages[: index + 1])
            before = self._before(messages, index)
        except InputError as error:
            raise InputError(f"{where}: the assistant's turn can't be found, because {error} {_HINT}") from error
        if not (text.startswith(through) and through.startswith(before)):
            raise InputError(
                f"{where}: the assistant's turn can't be found, because the chat template does not write a "
                f"conversation as it writes the beginning of it. {_HINT}"
            )
        return len(before), len(through)

    def _before(self, messages: Sequence[Message], index: int) -> str:
        """Return the text before the first character of the assistant's message."""
        earlier, message = messages[:index], messages[index]
        said, prompt = (self.render(earlier, add_generation_prompt=add) if earlier else "" for add in (False, True))
        if prompt != said:
            return prompt
        # Without a generation prompt, the header is the text before the words, except for a space before them.
        typed = isinstance(message.get("content"), list)
        contents = ([_text(word)] if typed else word for word in ("A", "Z"))
        one, other = (self.render([*earlier, {**message, "content": content}]) for content in contents)
        same = next((place for place, (a, z) in enumerate(zip(one, other, strict=False)) if a != z), len(one))
        return said + one[len(said) : same].rstrip()

    # --- fitting ------------------------------------------------------------------------------------------------------

    def fit(self, messages: Sequence[Message], where: str = "") -> list[Message]:
        """Convert a conversation to the form of content that the template supports, without the media.

        Args:
            messages: messages whose content is a string or a list of typed parts.
            where: name of the conversation for error messages.

        Raises:
            InputError: the template renders neither form, or the type of a part belongs to no modality or to several.
        """
        return [self._fit(dict(message), f"{where}message {index}") for index, message in enumerate(messages)]

    def _fit(self, message: Message, where: str) -> Message:
        content = message.get("content")
        if not isinstance(content, (str, list, tuple)):
            return message
        typed, plain = self._forms.get(message.get("role", ""), self._forms["user"])
        if isinstance(content, str):
            return message if plain or not typed else {**message, "content": [_text(content)]}
        parts = [self._part(part, typed, where) for part in content]
        if not typed and not plain:
            raise InputError(
                f"{where}: the chat template writes the text of a {message.get('role')} message neither from a string "
                "nor from typed parts; give another with chat_template=."
            )
        return {**message, "content": parts if typed else "".join(part["text"] for part in parts)}

    def _part(self, part: object, typed: bool, where: str) -> Message:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
        if kind == "text" and isinstance(text, str):
            return _text(text)
        key = self.modality(kind, where)
        written = self._written[key] if typed else None
        return {"type": written} if written is not None else _text(self.tokens[key])

    def modality(self, kind: object, where: str) -> str:
        """Return the key of the modality of a typed part whose type is ``kind``.

        Raises:
            InputError: no modality has this type, or several modalities have it.
        """
        keys = [key for key in self.tokens if key == kind] or [key for key in self.types if kind in self.types[key]]
        if len(keys) == 1:
            return keys[0]
        if keys:
            raise InputError(
                f"{where}: a part of type {kind!r} could be for any of {', '.join(keys)}; name the modality: "
                f'{{"type": "{keys[0]}", "{keys[0]}": ...}}.'
            )
        known = ["text", *dict.fromkeys(one for types in self.types.values() for one in types)]
        raise InputError(
            f"{where}: a part of type {kind!r}; expected a dictionary with a type of {', '.join(known)}, such as "
            '{"type": "text", "text": "..."}.'
        )

    @cached_property
    def _forms(self) -> dict[str, tuple[bool, bool]]:
        """For each role, whether the template renders typed text parts, and whether it renders strings."""
        user: Message = {"role": "user", "content": ""}
        forms = {"user": self._try([user], 0)}
        user["content"] = [_text("Hello")] if forms["user"][0] else "Hello"
        reply = {"role": "assistant", "content": ""}
        return {**forms, "assistant": self._try([user, reply], 1), "system": self._try([{"role": "system"}, user], 0)}

    def _try(self, messages: list[Message], index: int) -> tuple[bool, bool]:
        def written(content: str | list[Message]) -> bool | None:
            text = self._attempt([*messages[:index], {**messages[index], "content": content}, *messages[index + 1 :]])
            return None if text is None else _SAMPLE in text and not _AS_DATA.search(text)

        typed, plain = written([_text(_SAMPLE)]), written(_SAMPLE)
        # If the template raises an error for the role, it gets a string, so that rendering shows the user this error.
        return bool(typed), not typed if plain is None else plain

    @cached_property
    def _written(self) -> dict[str, str | None]:
        """For each modality, the content type that the template renders as the modality's placeholder, or ``None``."""
        return {key: next((kind for kind in self.types[key] if self._writes(kind, key)), None) for key in self.tokens}

    def _writes(self, kind: str, key: str) -> bool:
        text = self._attempt([{"role": "user", "content": [{"type": kind}, _text(_SAMPLE)]}]) or ""
        return text.count(self.tokens[key]) == 1 and _SAMPLE in text

    def _attempt(self, messages: list[Message]) -> str | None:
        try:
            return self.render(messages)
        except InputError:
            return None


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def choose(given: str | None, own: str | dict[str, str] | None) -> str:
    """Return the given template, which may be the name of one of ``own``, or else the default template of ``own``.

    Raises:
        InputError: there is no template, or there are several and none has the name ``"default"``.
    """
    named = own if isinstance(own, dict) else {"default": own} if own else {}
    if given is not None:
        return named.get(given, given)
    if "default" in named:
        return named["default"]
    if named:
        raise InputError(
            f"there is no chat template called 'default', only {', '.join(named)}; name one: chat_template='...'."
        )
    raise InputError(
        "there is no chat template; set processor.chat_template to one, pass chat_template=, or use a tokenizer that "
        "has one."
    )
