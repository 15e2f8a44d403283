"""Conversations as users give them: telling one from many, and gathering the media out of typed content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from .templates import ChatTemplate, Message

__all__ = ["gather", "read_conversations"]

_PLACES = ("path", "url", "base64")  # where an item may stand beside its own name, as in Hugging Face's messages


def read_conversations(given: Any, first: int = 0) -> tuple[list[list[Message]], bool]:
    """``(conversations, whether there were many)``; entries that are ``None`` are left out of messages.

    Messages count samples from ``first``.

    Raises:
        InputError: it is neither a list of messages nor a list of such lists, or a message has no role.
    """
    given = getattr(given, "messages", given)
    if not isinstance(given, (list, tuple)) or not given:
        raise InputError(f"a conversation is a list of messages, not {_what(given)}.")
    many = not isinstance(given[0], Mapping)
    conversations = [getattr(one, "messages", one) for one in given] if many else [given]
    return [_read(one, f"sample {index}") for index, one in enumerate(conversations, first)], many


def _read(messages: Any, where: str) -> list[Message]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InputError(f"{where}: a conversation is a list of messages, not {_what(messages)}.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(
                f"{where}, message {index}: expected a dictionary with 'role' and 'content', got {_what(message)}."
            )
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


def _what(value: Any) -> str:
    return (
        f"an empty {type(value).__name__}" if isinstance(value, (list, tuple)) and not value else type(value).__name__
    )


def gather(
    template: ChatTemplate, conversations: Sequence[Sequence[Message]], first: int = 0
) -> dict[str, list[list[Any]]]:
    """The media inside typed content, by modality and conversation, in order. Messages count samples from ``first``.

    Returns:
        Only modalities of which there is an item; the others may be given beside the conversation.

    Raises:
        InputError: a part is of an unknown type.
    """
    found: dict[str, list[list[Any]]] = {}
    for sample, messages in enumerate(conversations):
        for index, message in enumerate(messages):
            for key, item in _items(template, message, f"sample {first + sample}, message {index}"):
                found.setdefault(key, [[] for _ in conversations])[sample].append(item)
    return found


def _items(template: ChatTemplate, message: Message, where: str) -> list[tuple[str, Any]]:
    content = message.get("content")
    parts = content if isinstance(content, (list, tuple)) else []
    media = [part for part in parts if not (isinstance(part, Mapping) and part.get("type") == "text")]
    keys = [template.modality(part.get("type") if isinstance(part, Mapping) else None, where) for part in media]
    pairs = [(key, _item(part, key)) for key, part in zip(keys, media, strict=True)]
    return [(key, item) for key, item in pairs if item is not None]


def _item(part: Mapping[str, Any], key: str) -> Any:
    names = (part["type"], key, *_PLACES)
    item = next((part[name] for name in names if part.get(name) is not None), None)
    return item["url"] if isinstance(item, Mapping) and "url" in item else item
