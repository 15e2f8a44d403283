"""Read samples and conversations in the supported layouts, and collect their media.

A sample is a list of messages, or a dictionary with ``"messages"`` or ``"text"``. Its media are in the typed content of
its messages, or in the dictionary under the names that :mod:`.arguments` accepts. To support another layout, convert it
to one of these layouts in :func:`read_sample`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from .templates import ChatTemplate, Message

__all__ = ["by_modality", "combine", "gather", "read_conversations", "read_sample", "read_texts"]

_PLACES = ("path", "url", "base64")  # further names of an item in a part, as in Hugging Face's messages


def read_sample(sample: object, index: int) -> dict[str, Any]:
    """Read one sample of a training batch.

    Args:
        sample: sample in any supported layout.
        index: index of the sample in the batch, from 0, for error messages.

    Returns:
        A new dictionary with ``"messages"``, a list of messages, or ``"text"``, and the other entries of the sample.

    Raises:
        InputError: the layout is not supported, or the messages are malformed.
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
    """Read one conversation or several, and remove the entries of messages that are ``None``.

    Args:
        given: a list of messages, or a list of such lists.
        first: index of the first conversation's sample, for error messages.

    Returns:
        A pair: the list of conversations, and whether ``given`` is a list of conversations.

    Raises:
        InputError: ``given`` is neither a list of messages nor a list of such lists, or a message has no role.
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
        tokens: placeholder token of each modality, for error messages.

    Raises:
        InputError: there is no text, or an entry is not a string.
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
        template: chat template, which maps the types of content parts to modalities.
        messages: messages of the conversation.
        where: name of the conversation for error messages, for example ``"sample 0, "``.

    Returns:
        The items of each modality, in order. Parts without an item are skipped, because their items may be given
        outside the messages.

    Raises:
        InputError: the type of a part belongs to no modality, or to several.
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
    """Convert a dictionary of media for each sample to, for each modality, a list with the items of each sample."""
    keys = dict.fromkeys(key for one in samples for key in one)
    return {key: [one.get(key, []) for one in samples] for key in keys}


def combine(found: Mapping[str, Any], beside: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Merge the media ``found`` in messages and the media given ``beside`` the messages, both by modality.

    Raises:
        InputError: both have media of the same modality.
    """
    if twice := sorted(found.keys() & beside.keys()):
        raise InputError(f"{twice[0]}: {where}media are in the messages and beside them; give them in one place.")
    return {**found, **beside}
