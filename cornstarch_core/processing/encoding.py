"""Encode texts and media as rows of token ids, and rows as tensors; the processor and the collator both use this.

Placeholders are expanded after tokenising, in the token ids, so that the number and the place of the expanded
placeholders are exact. ``B`` is the number of rows of a batch, ``S`` their length after padding, ``P`` the number of
expanded placeholders of a modality.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import InputError, TruncatedSpanError
from ..modeling.encoder import POSITIONS
from .media import arrange
from .modality import Modality
from .spans import Row, expand, lost_span, needed_room, stretches, surround, truncate

__all__ = ["Encoding", "Options", "RowMaker", "pad"]

_UNLIMITED = 10**20  # a tokenizer without a limit has a larger model_max_length


@dataclass(frozen=True)
class Encoding:
    """Encoded samples before padding.

    Args:
        rows: token ids of each sample, with expanded placeholders.
        inputs: encoder inputs of all samples, by modality.
        offsets: for each sample, the character range of each token of the text; ``None`` unless ``make`` is called with
            ``offsets=True``.
    """

    rows: list[Row]
    inputs: dict[str, dict[str, Any]]
    offsets: list[list[tuple[int, int]]] | None = None

    def placed(self, starts: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Add ``positions`` to the encoder inputs: ``(P,)`` int64, the indices of placeholders in the flattened batch.

        Args:
            starts: index in the flattened ``(B * S)`` batch at which each row starts.
        """
        ranges = {key: stretches(self.rows, starts, key) for key in self.inputs}
        none = torch.empty(0, dtype=torch.int64)
        return {
            key: {**inputs, POSITIONS: torch.cat([none, *(torch.arange(one.start, one.stop) for one in ranges[key])])}
            for key, inputs in self.inputs.items()
        }


@dataclass(frozen=True)
class RowMaker:
    """Turns texts, with their media, into rows of token ids.

    Args:
        tokenizer: tokenizer of transformers.
        modalities: the modalities, by key.
        token_ids: token id of each modality's placeholder.
        tokens: placeholder token of each modality, for error messages.
    """

    tokenizer: PreTrainedTokenizerBase
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
        """Tokenise the texts, prepare the media, expand the placeholders, and truncate the rows.

        Args:
            texts: one text for each sample.
            media: media by modality key, in the forms that :func:`~cornstarch_core.processing.media.arrange` accepts.
            options: options of the image processors and feature extractors, by modality key.
            special_tokens: whether to add the tokenizer's special tokens; by default they are added unless the text
                begins with the BOS token.
            suffix: whether to add also the special tokens that follow a text.
            max_length: maximum number of tokens of each sample; ``None`` for no limit.
            offsets: whether to return the character range of each token.
        """
        tokenised = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=offsets
        )
        ids = tokenised["input_ids"]
        placeholders = {key: [row.count(token_id) for row in ids] for key, token_id in self.token_ids.items()}
        samples = {key: arrange(key, media.get(key), placeholders[key], self.tokens[key]) for key in self.modalities}
        done = {key: one.prepare(samples[key], options.get(key, {})) for key, one in self.modalities.items()}
        rows = []
        for sample, around in enumerate(self._around(texts, special_tokens, suffix)):
            counts = {key: by_sample[sample] for key, (_, by_sample) in done.items()}
            rows.append(self._finish(expand(ids[sample], self.token_ids, counts), around, sample, max_length))
        inputs = {key: inputs for key, (inputs, _) in done.items()}
        return Encoding(rows, inputs, tokenised["offset_mapping"] if offsets else None)

    def _around(
        self, texts: Sequence[str], special_tokens: bool | None, suffix: bool
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the special tokens that the tokenizer puts before and after each text."""
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

    def _finish(self, row: Row, around: tuple[list[int], list[int]], sample: int, max_length: int | None) -> Row:
        """Truncate an expanded row, and add the special tokens ``around`` it."""
        if max_length is not None:
            side, special = self.tokenizer.truncation_side, sum(map(len, around))
            lost = lost_span(row, max_length - special, side)
            if lost is not None:
                raise TruncatedSpanError(
                    f"{lost.key}: sample {sample}, item {lost.item}: max_length={max_length} would cut into its "
                    f"{lost.stop - lost.start} placeholder tokens. Give at least max_length="
                    f"{needed_room(row, side) + special} for this sample, or shorten the text around the item."
                )
            row = truncate(row, max_length - special, side)
        return surround(row, *around)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of ``MultimodalProcessor.__call__`` other than text and media."""

    padding: bool | str = True
    padding_side: str | None = None
    truncation: bool | str = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool | None = None
    sampling_rate: int | None = None
    return_tensors: str | None = "pt"

    def limit(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """Return the maximum number of tokens of a sample, or ``None`` for no limit.

        Raises:
            InputError: ``truncation`` is set, but neither the call nor the tokenizer gives a maximum length.
        """
        if self.truncation in (False, None, "do_not_truncate"):
            return None
        limit = self.max_length if self.max_length is not None else tokenizer.model_max_length
        if limit is None or limit > _UNLIMITED:
            raise InputError("truncation=True needs max_length=, because the tokenizer has no limit of its own.")
        return int(limit)


def pad(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, options: Options
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Pad rows to the same length, as ``tokenizer.pad`` does.

    Args:
        rows: one row for each sample.
        tokenizer: tokenizer with the padding token and the default side of padding.
        options: options of the processor's call, of which those for padding are used.

    Returns:
        ``input_ids`` and ``attention_mask``, ``(B, S)`` int64, and the index in the flattened ``(B * S)`` batch at
        which the tokens of each row start.

    Raises:
        InputError: the tokenizer has no padding token, or the rows differ in length and padding is off.
    """
    ids = [row.ids for row in rows]
    padded: Mapping[str, Any] = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
    unequal = len({len(row) for row in ids}) > 1 or options.padding == "max_length" or options.pad_to_multiple_of
    # tokenizer.pad (transformers 5.23) requires a padding token even if there is nothing to pad
    if unequal and options.padding not in (False, "do_not_pad"):
        if tokenizer.pad_token_id is None:
            raise InputError(
                "the samples of this batch must be padded, but the tokenizer has no padding token; set one: "
                "tokenizer.pad_token = tokenizer.eos_token."
            )
        padded = tokenizer.pad(
            {"input_ids": ids},
            padding=options.padding,
            max_length=options.max_length if options.padding == "max_length" else None,
            pad_to_multiple_of=options.pad_to_multiple_of,
            padding_side=options.padding_side,
            return_attention_mask=True,
        )
    if len({len(row) for row in padded["input_ids"]}) > 1:
        raise InputError(
            f"the samples have {', '.join(str(len(row)) for row in ids)} tokens, so they don't make a tensor; "
            "pass padding=True."
        )
    tensors = {name: torch.tensor(padded[name], dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    width = tensors["input_ids"].shape[1]
    left = (options.padding_side or tokenizer.padding_side) == "left"
    return tensors, [index * width + (width - len(row) if left else 0) for index, row in enumerate(ids)]
