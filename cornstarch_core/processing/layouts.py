"""Layouts: how the data of one sample may be laid out, and where its media are.

A sample is a list of messages, or a dictionary with ``"messages"`` or ``"text"``. Its media are in the typed content of
its messages, or beside them under the names that :mod:`.arguments` knows. To support a further layout, convert it to
one of these in :func:`read_sample`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from .templates import ChatTemplate, Message

__all__ = ["by_modality", "combine", "gather", "read_conversations", "read_sample", "read_texts"]

_PLACES = ("path", "url", "base64")  # where an item may be beside its own name, as in Hugging Face's messages


def read_sample(sample: object, index: int) -> dict[str, Any]:
    """Read one sample of a training batch.

    Args:
        sample: in any layout.
        index: of the sample in the batch, for error messages.

    Returns:
        A new dictionary with ``"messages"``, a list of messages, or ``"text"``, and the other entries as they are.

    Raises:
        InputError: the layout is unknown, or the messages are not messages.
    """
    sample = {"messages": sample} if isinstance(sample, (list, tuple)) else sample
    if not isinstance(sample, Mapping) or ("messages" in sample) == ("text" in sample):
        found = ", ".join(map(str, sample)) if isinstance(sample, Mapping) else type(sample).__name__
        hint = " If a Trainer took its entries away, set TrainingArguments(remove_unused_columns=False)."
        raise InputError(
            f"sample {index}: expected a list of messages or a dictionary with 'messages' or 'text'; got "
            f"{found or 'an empty dictionary'}.{'' if found else hint}"
        )
    if "text" in sample:
        return dict(sample)
    (messages,), _ = read_conversations([sample["messages"]], index)
    return {**sample, "messages": messages}


def read_conversations(given: object, first: int = 0) -> tuple[list[list[Message]], bool]:
    """Read one conversation or several. Entries that are ``None`` are left out of messages.

    Args:
        given: a list of messages, or a list of such lists.
        first: number of the first sample, for error messages.

    Returns:
        ``(conversations, whether several are given)``.

    Raises:
        InputError: it is neither a list of messages nor a list of such lists, or a message has no role.
    """
    entries = _entries(given, "")
    many = not isinstance(entries[0], Mapping)
    conversations = entries if many else [entries]
    return [_read_messages(one, f"sample {index}") for index, one in enumerate(conversations, first)], many


def _read_messages(given: object, where: str) -> list[Message]:
    messages = _entries(given, f"{where}: ")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(
                f"{where}, message {index}: expected a dictionary with 'role' and 'content', got {_what(message)}."
            )
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


def _entries(given: object, where: str) -> Sequence[Any]:
    given = getattr(given, "messages", given)  # transformers' own class of conversations
    if not isinstance(given, (list, tuple)) or not given:
        raise InputError(f"{where}a conversation is a list of messages, not {_what(given)}.")
    return given


def _what(value: object) -> str:
    empty = isinstance(value, (list, tuple)) and not value
    return f"{'an empty ' if empty else ''}{type(value).__name__}"


def read_texts(given: object, tokens: Mapping[str, str]) -> list[str]:
    """Read the texts that a processor is called with.

    Args:
        given: one text, or a list with one text for each sample.
        tokens: the placeholders, for error messages.

    Raises:
        InputError: there is no text, or an entry is no string.
    """
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else []
    if texts and all(isinstance(one, str) for one in texts):
        return texts
    wrong = next((one for one in texts if not isinstance(one, str)), given)
    example = f"{next(iter(tokens.values()), '')} What is this?".strip()
    raise InputError(
        f"text= must be a string or a list of strings, not {type(wrong).__name__}; write one placeholder an item, "
        f"such as {example!r}."
    )


# --- media ------------------------------------------------------------------------------------------------------------


def gather(template: ChatTemplate, messages: Sequence[Message], where: str) -> dict[str, list[Any]]:
    """Collect the media in the typed content of one conversation.

    Args:
        template: knows the types of content.
        messages: the conversation.
        where: which conversation, for error messages, for example ``"sample 0, "``.

    Returns:
        The items of each modality, in order. A part without an item is left out: its media may be beside the messages.

    Raises:
        InputError: a part is of an unknown type.
    """
    found: dict[str, list[Any]] = {}
    for index, message in enumerate(messages):
        content = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind != "text":
                key = template.modality(kind, f"{where}message {index}")
                item = next((part[name] for name in (kind, key, *_PLACES) if part.get(name) is not None), None)
                item = item["url"] if isinstance(item, Mapping) and "url" in item else item
                if item is not None:
                    found.setdefault(key, []).append(item)
    return found


def by_modality(samples: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[list[Any]]]:
    """Rearrange the media of each sample: for each modality one list of items a sample."""
    keys = dict.fromkeys(key for one in samples for key in one)
    return {key: [one.get(key, []) for one in samples] for key in keys}


def combine(found: Mapping[str, Any], beside: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Join the media in messages and the media beside them, both by modality.

    Raises:
        InputError: media of one modality are in both places.
    """
    if twice := sorted(found.keys() & beside.keys()):
        raise InputError(f"{twice[0]}: {where}media are in the messages and beside them; give them in one place.")
    return {**found, **beside}
