"""From texts and media to rows of token ids, and from rows to tensors: what processor and collator share.

Placeholders are expanded after tokenising, on ids: the counts are exact, and every span is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..encoder import POSITIONS
from ..errors import InputError, PlaceholderMismatchError, TruncatedSpanError
from .media import arrange
from .modality import Modality
from .spans import Row, add_around, expand, lost_span, needed_room, stretches, truncate

__all__ = ["Encoding", "Options", "Padding", "RowMaker", "place", "read_texts"]

_UNLIMITED = 10**20  # model_max_length of a tokenizer that has no limit is larger


@dataclass(frozen=True)
class Encoding:
    """Samples before padding.

    Args:
        rows: ids of each sample, placeholders expanded.
        inputs: encoder inputs by modality, of all samples.
        offsets: for each sample the characters of each token of the text, if they were asked for.
    """

    rows: list[Row]
    inputs: dict[str, dict[str, Any]]
    offsets: list[list[tuple[int, int]]] | None = None


@dataclass(frozen=True)
class RowMaker:
    """Turns texts, with their media, into rows of token ids.

    Args:
        tokenizer: of transformers.
        modalities: by key.
        token_ids: placeholder id of each.
        tokens: the placeholders themselves, for messages.
    """

    tokenizer: Any
    modalities: Mapping[str, Modality]
    token_ids: Mapping[str, int]
    tokens: Mapping[str, str]

    def make(
        self,
        texts: Sequence[str],
        media: Mapping[str, Any],
        options: Mapping[str, Mapping[str, Any]],
        *,
        special_tokens: bool | None = None,
        suffix: bool = True,
        max_length: int | None = None,
        offsets: bool = False,
    ) -> Encoding:
        """Tokenise, prepare the media, expand, truncate.

        Args:
            texts: one a sample.
            media: by modality key, as :func:`~cornstarch_core.processing.media.arrange` takes them.
            options: for the image processors and feature extractors, by modality key.
            special_tokens: whether the tokenizer's special tokens go around; default: unless the text begins with BOS.
            suffix: whether those after the text, too.
            max_length: tokens to keep of each sample.
            offsets: whether to tell the characters of each token.
        """
        tokenised = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=offsets
        )
        ids = tokenised["input_ids"]
        samples = {key: self._arranged(key, media.get(key), ids) for key in self.modalities}
        done = {key: one.process(samples[key], options.get(key, {})) for key, one in self.modalities.items()}
        counts = {key: counts for key, (_, counts) in done.items()}
        around = list(self._around(texts, special_tokens, suffix))
        rows = [
            self._row(sample, expand(ids[sample], self.token_ids, _of(counts, sample)), around[sample], max_length)
            for sample in range(len(texts))
        ]
        inputs = {key: inputs for key, (inputs, _) in done.items()}
        return Encoding(rows, inputs, tokenised["offset_mapping"] if offsets else None)

    def _arranged(self, key: str, value: Any, ids: Sequence[Sequence[int]]) -> list[list[Any]]:
        placeholders = [row.count(self.token_ids[key]) for row in map(list, ids)]
        if value is not None:
            return arrange(key, value, placeholders, self.tokens[key])
        if any(placeholders):
            sample = next(index for index, count in enumerate(placeholders) if count)
            raise PlaceholderMismatchError(
                f"{key}: sample {sample}: the text has {placeholders[sample]} times the placeholder {self.tokens[key]} "
                f"and no items are given. Pass {key}=..., or take the placeholders out of the text."
            )
        return [[] for _ in ids]

    def _around(
        self, texts: Sequence[str], special_tokens: bool | None, suffix: bool
    ) -> Iterator[tuple[list[int], list[int]]]:
        """The tokenizer's special tokens before and after each text."""
        begin, end = self._special_tokens() if special_tokens is not False else ([], [])
        bos = self.tokenizer.bos_token
        for text in texts:
            has_bos = special_tokens is None and bos is not None and text.startswith(bos)
            yield ([], []) if has_bos else (begin, end if suffix else [])

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        word = next(iter(self.tokens.values()), "a")
        bare, full = (list(self.tokenizer(word, add_special_tokens=add)["input_ids"]) for add in (False, True))
        start = next(start for start in range(len(full) + 1) if full[start : start + len(bare)] == bare)
        return full[:start], full[start + len(bare) :]

    def _row(self, sample: int, row: Row, around: tuple[list[int], list[int]], max_length: int | None) -> Row:
        if max_length is not None:
            side = self.tokenizer.truncation_side
            special = sum(map(len, around))
            self._check_spans(sample, row, max_length, special, side)
            row = truncate(row, max_length - special, side)
        return add_around(row, *around)

    def _check_spans(self, sample: int, row: Row, max_length: int, special: int, side: str) -> None:
        room = max_length - special
        lost = lost_span(row, room, side) if room < len(row.ids) else None
        if lost is not None:
            raise TruncatedSpanError(
                f"{lost.key}: sample {sample}, item {lost.item}: max_length={max_length} would cut into its "
                f"{lost.stop - lost.start} placeholder tokens. Give at least max_length="
                f"{needed_room(row, side) + special} for this sample, or shorten the text around the item."
            )


def _of(counts: Mapping[str, Sequence[list[int]]], sample: int) -> dict[str, list[int]]:
    return {key: by_sample[sample] for key, by_sample in counts.items()}


@dataclass(frozen=True)
class Padding:
    """Makes rows equally long, as ``tokenizer.pad`` does.

    Args:
        tokenizer: tells the padding token, and the side by default.
        how: ``True`` or ``"longest"``, ``"max_length"``, ``False``.
        side: ``"left"`` or ``"right"``.
        max_length: for ``"max_length"``.
        multiple_of: round the length up to a multiple of this.
    """

    tokenizer: Any
    how: bool | str = True
    side: str | None = None
    max_length: int | None = None
    multiple_of: int | None = None

    def pad(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """``input_ids`` and ``attention_mask``, ``(B, S)`` int64, and where each row starts in the flat batch.

        Raises:
            InputError: there is no padding token, or rows of several lengths and no padding.
        """
        padded = self._padded([row.ids for row in rows])
        lengths = {len(ids) for ids in padded["input_ids"]}
        if len(lengths) > 1:
            raise InputError(
                f"the samples have {', '.join(str(len(row.ids)) for row in rows)} tokens, so they don't make a tensor; "
                "pass padding=True."
            )
        tensors = {name: torch.tensor(value, dtype=torch.int64) for name, value in padded.items()}
        width = lengths.pop()
        left = (self.side or self.tokenizer.padding_side) == "left"
        return tensors, [i * width + (width - len(row.ids) if left else 0) for i, row in enumerate(rows)]

    def _padded(self, ids: list[list[int]]) -> dict[str, list[list[int]]]:
        if not self._is_needed({len(row) for row in ids}):
            return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
        if self.tokenizer.pad_token_id is None:
            raise InputError(
                "the samples of this batch must be padded, but the tokenizer has no padding token; set one: "
                "tokenizer.pad_token = tokenizer.eos_token."
            )
        encoded = self.tokenizer.pad(
            {"input_ids": ids},
            padding=self.how,
            max_length=self.max_length if self.how == "max_length" else None,
            pad_to_multiple_of=self.multiple_of,
            padding_side=self.side,
            return_attention_mask=True,
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _is_needed(self, lengths: set[int]) -> bool:
        """``tokenizer.pad`` (5.23) wants a padding token even where there is nothing to pad."""
        if self.how in (False, "do_not_pad"):
            return False
        return self.how == "max_length" or len(lengths) > 1 or bool(self.multiple_of)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a processor is called with beside text and media; see ``MultimodalProcessor.__call__``."""

    padding: bool | str = True
    padding_side: str | None = None
    truncation: bool | str = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool | None = None
    sampling_rate: int | None = None
    return_tensors: str | None = "pt"

    def limit(self, tokenizer: Any) -> int | None:
        """Tokens to keep of a sample, or ``None`` for all.

        Raises:
            InputError: truncation is asked for, but not to which length.
        """
        if self.truncation in (False, None, "do_not_truncate"):
            return None
        limit = self.max_length if self.max_length is not None else tokenizer.model_max_length
        if limit is None or limit > _UNLIMITED:
            raise InputError("truncation=True needs max_length=, because the tokenizer has no limit of its own.")
        return int(limit)

    def padding_of(self, tokenizer: Any) -> Padding:
        """How to pad."""
        return Padding(tokenizer, self.padding, self.padding_side, self.max_length, self.pad_to_multiple_of)


def place(
    inputs: Mapping[str, Mapping[str, Any]], rows: Sequence[Row], starts: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Encoder inputs with ``positions``, ``(P,)`` int64: flat indices of the placeholders, empty if there are none."""
    placed = {}
    for key, values in inputs.items():
        ranges = [torch.arange(one.start, one.stop) for one in stretches(rows, starts, key)]
        positions = torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64)
        placed[key] = {**values, POSITIONS: positions}
    return placed


def read_texts(text: Any, tokens: Mapping[str, str]) -> list[str]:
    """Texts as a list.

    Raises:
        InputError: there is none, or something else is among them.
    """
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, (list, tuple)) else []
    wrong = next((one for one in texts if not isinstance(one, str)), text)
    if not texts or not all(isinstance(one, str) for one in texts):
        example = next(iter(tokens.values()), "")
        raise InputError(
            f"text= must be a string or a list of strings, not {type(wrong).__name__}; write one placeholder an item, "
            f"such as {(example + ' What is this?').strip()!r}."
        )
    return texts
