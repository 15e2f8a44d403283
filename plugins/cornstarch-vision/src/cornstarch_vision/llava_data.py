"""LLaVA's published training data, such as ``llava_v1_5_mix665k.json``, as conversations that a collator takes.

This module must not open images: they are opened when a batch is made, where an error names the file.

Source: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset

from cornstarch_core.errors import InputError, PlaceholderMismatchError

__all__ = ["LlavaData", "to_messages"]

_PLACEHOLDER = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_LAYOUT = '{"id": ..., "image": "a/b.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}'
_OTHER = "Convert data of another layout to messages for MultimodalCollator with your own code."


def to_messages(entry: Mapping[str, Any], image_folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Convert one entry of LLaVA's data.

    Images stay where ``<image>`` stands: at the beginning of a turn, in it or at its end. LLaVA's own training code
    moves each image to the front of its turn, with a line break after it, and strips the text. To train like that,
    change the entries before you convert them. Here no text is changed: ``"<image>\\nWhat is it?"`` gives an image and
    ``"\\nWhat is it?"``.

    It also works in the ``map`` of Hugging Face datasets, in memory or streaming. Remove the columns that an entry had,
    since ``image`` would name its images twice:
    ``rows.map(to_messages, fn_kwargs={"image_folder": "images"}, remove_columns=rows.column_names)``. If none of the
    first thousand entries has an image, pass ``features=`` as well, because datasets infers the type of a column from
    those.

    Args:
        entry: has ``conversations``, a list of turns ``{"from": ..., "value": ...}``, from ``"human"`` or ``"user"``,
            ``"gpt"`` or ``"assistant"``, or ``"system"``; ``image``, one path below the folder, a list of paths, or
            nothing (missing or ``None``); and ``id``, for error messages. Other fields are ignored.
        image_folder: the folder that the paths start from.

    Returns:
        ``messages``, each with ``role`` and ``content``, a list of parts ``{"type": "image"}`` and
        ``{"type": "text", "text": ...}``; and ``images``, the path of each image in order, ``[]`` if there are none.
        All rows have columns of the same types.

    Raises:
        InputError: a field is missing or of another type, or a speaker is unknown; the message has the entry's id.
        PlaceholderMismatchError: the turns have more or fewer ``<image>`` than there are images; it has the id too.

    Example:
        >>> turns = [{"from": "human", "value": "What is it?\\n<image>"}, {"from": "gpt", "value": "A cat."}]
        >>> row = to_messages({"id": 7, "image": "coco/7.jpg", "conversations": turns}, "images")
        >>> row["messages"][0]
        {'role': 'user', 'content': [{'type': 'text', 'text': 'What is it?\\n'}, {'type': 'image'}]}
        >>> row["images"] == [os.path.join("images", "coco/7.jpg")]
        True
    """
    return _convert(entry, image_folder, "LLaVA data")


class LlavaData(Dataset[dict[str, Any]]):
    """One of LLaVA's files as a map-style dataset of rows for :class:`~cornstarch_core.MultimodalCollator`.

    The file is read when the dataset is made; an entry is converted when you index the dataset. A missing or broken
    image raises a :class:`~cornstarch_core.errors.MediaError` that names the file when the collator opens it. To find
    missing images before a long run, call :meth:`problem`.

    An item is what :func:`to_messages` returns. Indexing raises the same errors, with the name of the file.

    Args:
        json_file: a JSON file with a list of entries; or one entry a line, if its name ends in ``.jsonl``.
        image_folder: the folder that the images' paths start from.

    Raises:
        OSError: the file can't be opened.
        InputError: the file is not JSON, or has another layout.

    Example:
        >>> from pathlib import Path
        >>> turns = [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
        >>> entry = {"id": "7", "image": "7.jpg", "conversations": turns}
        >>> _ = Path("captions.json").write_text(json.dumps([entry]))
        >>> data = LlavaData("captions.json", "images")
        >>> len(data), data[0] == to_messages(entry, "images")
        (1, True)
    """

    def __init__(self, json_file: str | os.PathLike[str], image_folder: str | os.PathLike[str]) -> None:
        self.json_file = os.fspath(json_file)
        self.image_folder = os.fspath(image_folder)
        self.entries = _read(self.json_file)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _convert(self.entries[index], self.image_folder, f"{self.json_file}[{index}]")

    def problem(self, index: int) -> str:
        """Tell why an entry can't be used for training. Checks the turns and whether the image files exist.

        Args:
            index: of the entry.

        Returns:
            One sentence that names the entry, or ``""`` if nothing is wrong.

        Example:
            >>> from pathlib import Path
            >>> turns = [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
            >>> _ = Path("captions.json").write_text(json.dumps([{"id": 7, "image": "7.jpg", "conversations": turns}]))
            >>> data = LlavaData("captions.json", "images")
            >>> usable = [index for index in range(len(data)) if not data.problem(index)]
            >>> print(data.problem(0).replace(os.sep, "/"))
            captions.json[0]: entry 7: there is no image images/7.jpg
        """
        try:
            images = self[index]["images"]
        except InputError as error:
            return str(error)
        missing = next((image for image in images if not os.path.isfile(image)), None)
        where = f"{self.json_file}[{index}]: entry {self.entries[index].get('id')!r}"
        return "" if missing is None else f"{where}: there is no image {missing}"


# --- one entry --------------------------------------------------------------------------------------------------------


def _convert(entry: object, folder: str | os.PathLike[str], where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: an entry is a {type(entry).__name__}; expected {_LAYOUT}.")
    where = f"{where}: entry {entry.get('id')!r}"
    images, turns = _images(entry.get("image"), where), _turns(entry.get("conversations"), where)
    placeholders = sum(text.count(_PLACEHOLDER) for _, text in turns)
    if placeholders != len(images):
        raise PlaceholderMismatchError(
            f"{where}: its turns have {placeholders} {_PLACEHOLDER}, but 'image' lists {len(images)} images. "
            f"Write one {_PLACEHOLDER} for each image, where it belongs, or leave this entry out."
        )
    return {
        "messages": [{"role": role, "content": _parts(text)} for role, text in turns],
        "images": [os.path.join(folder, image) for image in images],
    }


def _images(given: object, where: str) -> list[str]:
    images: list[Any] = list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
    wrong = [image for image in images if not isinstance(image, str)]
    if wrong:
        raise InputError(
            f"{where}: 'image' has a {type(wrong[0]).__name__}; expected a path below the image folder, or a list of "
            "paths. For an entry without images leave it out."
        )
    return images


def _turns(given: object, where: str) -> list[tuple[str, str]]:
    """Role and text of each turn."""
    if not isinstance(given, (list, tuple)) or not given:
        found = "missing" if given is None else f"a {type(given).__name__}" if given else "empty"
        raise InputError(
            f"{where}: its 'conversations' are {found}; expected a list of turns such as "
            '{"from": "human", "value": "What is it?"}. Add them, or leave this entry out.'
        )
    return [_turn(turn, f"{where}, turn {index}") for index, turn in enumerate(given)]


def _turn(turn: object, where: str) -> tuple[str, str]:
    fields = turn if isinstance(turn, Mapping) else {}
    speaker, text = fields.get("from"), fields.get("value")
    if not isinstance(speaker, str) or not isinstance(text, str):
        found = f"{type(speaker).__name__} and {type(text).__name__}" if fields else f"a {type(turn).__name__}"
        raise InputError(
            f"{where}: expected strings under 'from' and 'value', got {found}. Repair the turn, or leave this entry "
            "out."
        )
    if speaker not in _ROLES:
        raise InputError(
            f"{where}: unknown speaker {speaker!r}; expected {', '.join(_ROLES)}. Rename it, or leave this entry out."
        )
    return _ROLES[speaker], text


def _parts(text: str) -> list[dict[str, str]]:
    """Typed parts; at least one, so that a turn without words still has a part of text."""
    pieces = text.split(_PLACEHOLDER)
    parts = [part for piece in pieces for part in ({"type": "image"}, {"type": "text", "text": piece})][1:]
    return [part for part in parts if part.get("text") != "" or len(parts) == 1]


# --- files ------------------------------------------------------------------------------------------------------------


def _read(path: str) -> list[Any]:
    with open(path, encoding="utf-8") as file:
        try:
            entries = list(_lines(file)) if path.endswith(".jsonl") else json.load(file)
        except ValueError as error:  # of json, or of an encoding other than UTF-8
            raise InputError(f"{path}: it can't be read as JSON: {error}. Download or write the file again.") from error
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of entries {_LAYOUT}; got a {type(entries).__name__}. {_OTHER}")
    wrong = next((index for index, entry in enumerate(entries) if not _has_turns(entry)), None)
    if wrong is not None:
        found = entries[wrong]
        names = f" with {', '.join(map(repr, found)) or 'nothing'}" if isinstance(found, Mapping) else ""
        raise InputError(f"{path}[{wrong}]: expected {_LAYOUT}; got a {type(found).__name__}{names}. {_OTHER}")
    return entries


def _lines(file: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from error


def _has_turns(entry: object) -> bool:
    return isinstance(entry, Mapping) and "conversations" in entry
