"""The collator: conversations with their media to a training batch with labels, padded or packed.

Tokenising, preparing and expanding are the processor's; here it is decided what is learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch

from .errors import InputError
from .processing.arguments import merge
from .processing.batch import MultimodalBatch
from .processing.chat import gather, read_conversations
from .processing.encoding import Encoding, Padding, place
from .processing.media import as_items
from .processing.spans import ADDED, Row, covered
from .processing.templates import ChatTemplate, Message
from .processor import MultimodalProcessor

__all__ = ["IGNORED", "MultimodalCollator"]

IGNORED = -100  # the label that a loss leaves out


class MultimodalCollator:
    """Makes a training batch of conversations.

    Args:
        processor: tokenises, and prepares the media; its tokenizer tells the side of padding and truncation.
        train_on: ``"assistant"``: learn what the assistant says, up to and with what ends its turn, not the header
            before it; ``"all"``: learn all text.
        max_length: cut samples to this many tokens, placeholders expanded.
        packing: put all samples into one row, kept apart by ``position_ids`` that begin anew.

    With ``train_on="assistant"`` the turns are taken from ``{% generation %}`` if the chat template has it. Otherwise
    the template writes the conversation up to a turn, and through it, and the difference is the turn. Both need a fast
    tokenizer. A token that straddles the border of a turn is learned.

    Raises:
        TypeError: ``processor`` is of another kind.
        ValueError: ``train_on`` is neither of the two.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from cornstarch_core import MultimodalCollator, MultimodalModel, MultimodalProcessor
        >>> sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
        >>> mllm = MultimodalModel(language_model=LlamaForCausalLM(LlamaConfig(**sizes)))
        >>> words = Tokenizer(models.WordLevel({"?": 0, "user": 1, "assistant": 2, ":": 3, "hi": 4, "hello": 5}, "?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
        >>> template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
        >>> processor = MultimodalProcessor(tokenizer=tokenizer, model=mllm, chat_template=template)
        >>> collator = MultimodalCollator(processor)
        >>> said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello hi"}]
        >>> batch = collator([{"messages": said}])
        >>> batch["labels"].tolist()
        [[-100, -100, -100, -100, -100, 5, 4]]
        >>> mllm(**batch).loss.backward()
    """

    def __init__(
        self,
        processor: MultimodalProcessor,
        *,
        train_on: Literal["assistant", "all"] = "assistant",
        max_length: int | None = None,
        packing: bool = False,
    ) -> None:
        if not isinstance(processor, MultimodalProcessor):
            raise TypeError(f"processor= must be a MultimodalProcessor, not {type(processor).__name__}.")
        if train_on not in ("assistant", "all"):
            raise ValueError(f"train_on={train_on!r}; choose 'assistant' or 'all'.")
        self.processor = processor
        self.train_on = train_on
        self.max_length = max_length
        self.packing = packing

    def __call__(self, samples: Sequence[Any]) -> MultimodalBatch:
        """Make one batch.

        Args:
            samples: each a list of messages, or a dictionary with ``"messages"``, or, with ``train_on="all"``, with
                ``"text"``. Media are in the messages' typed content, or beside them under a modality's key or a usual
                name for it (``"images"``). Other entries are left alone.

        Returns:
            ``input_ids``, ``labels``, both ``(B, S)`` int64; ``encoder_inputs``, as the processor's. Padded:
            ``attention_mask``, ``(B, S)`` int64. Packed: B is 1, ``position_ids`` ``(1, S)`` int64 begin at 0 with each
            sample, and ``use_cache`` is ``False``: with a cache a language model does not tell samples apart.
            ``labels`` are -100 at padding, at placeholders, and at all that is not to be learned.

        Raises:
            TruncatedSpanError: ``max_length`` would cut into a media item's placeholders; names the sample.
            InputError: a sample holds nothing to learn, also because all of it was cut off; or makes no sense.
        """
        if not isinstance(samples, Sequence) or not samples:
            raise InputError("a batch needs at least one sample.")
        read = [_read(sample, index) for index, sample in enumerate(samples)]
        kinds = {"messages" in sample for sample in read}
        if len(kinds) > 1:
            raise InputError("some samples have 'messages', some 'text'; give batches of one kind.")
        encoding, spans = self._encode_chats(read) if kinds == {True} else self._encode_texts(read)
        labels = [self._labels(encoding, spans, index) for index in range(len(read))]
        return self._packed(encoding, labels) if self.packing else self._padded(encoding, labels)

    # --- encoding -----------------------------------------------------------------------------------------------------

    def _encode_texts(self, samples: list[dict[str, Any]]) -> tuple[Encoding, None]:
        if self.train_on == "assistant":
            raise InputError("sample 0 has 'text', in which no turns are known; give 'messages', or train_on='all'.")
        media = [self._beside(sample) for sample in samples]
        texts = [sample["text"] for sample in samples]
        return self.processor.rows.make(texts, self._by_key(media), {}, max_length=self.max_length), None

    def _encode_chats(self, samples: list[dict[str, Any]]) -> tuple[Encoding, list[list[tuple[int, int]]] | None]:
        template = self.processor.template()
        media, written = [], []
        for index, sample in enumerate(samples):
            found = gather(template, [sample["messages"]], index)
            media.append(merge({key: items for key, (items,) in found.items()}, self._beside(sample), index))
            written.append(self._write(template, sample["messages"], f"sample {index}, "))
        turns = self.train_on == "assistant"
        encoding = self.processor.rows.make(
            [text for text, _ in written],
            self._by_key(media),
            {},
            suffix=False,
            max_length=self.max_length,
            offsets=turns,
        )
        return encoding, [spans for _, spans in written] if turns else None

    def _write(self, template: ChatTemplate, messages: list[Message], where: str) -> tuple[str, list[tuple[int, int]]]:
        fitted = template.fit(messages, where)
        if self.train_on == "all":
            return template.render(fitted, where), []
        if not self.processor.tokenizer.is_fast:
            raise InputError(
                f"train_on='assistant' needs a fast tokenizer, which tells the characters of each token; "
                f"{type(self.processor.tokenizer).__name__} is none. Load it with use_fast=True, or use train_on='all'."
            )
        return template.turns(fitted, where)

    def _beside(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        arguments = self.processor.arguments
        given = {name: value for name, value in sample.items() if arguments.is_media(name)}
        return {key: as_items(value) for key, value in arguments.media(given).items()}

    def _by_key(self, media: list[dict[str, Any]]) -> dict[str, Any]:
        keys = [key for key in self.processor.modalities if any(key in one for one in media)]
        return {key: [one.get(key, []) for one in media] for key in keys}

    # --- labels -------------------------------------------------------------------------------------------------------

    def _labels(self, encoding: Encoding, spans: list[list[tuple[int, int]]] | None, sample: int) -> list[int]:
        row = encoding.rows[sample]
        learned = None if spans is None else covered((encoding.offsets or [])[sample], spans[sample])
        labels = _of_text(row, learned)
        if all(label == IGNORED for label in labels[1:]):  # nothing predicts the first token
            raise InputError(self._nothing_learned(sample))
        return labels

    def _nothing_learned(self, sample: int) -> str:
        where = "in it" if self.max_length is None else f"in its first {self.max_length} tokens (max_length)"
        what = "no word of a message with the role 'assistant'" if self.train_on == "assistant" else "no text"
        return f"sample {sample}: there is {what} {where}, so nothing to learn; leave it out of the data."

    # --- batches ------------------------------------------------------------------------------------------------------

    def _padded(self, encoding: Encoding, labels: list[list[int]]) -> MultimodalBatch:
        tensors, starts = Padding(self.processor.tokenizer).pad(encoding.rows)
        flat = torch.full((tensors["input_ids"].numel(),), IGNORED, dtype=torch.int64)
        for start, label in zip(starts, labels, strict=True):
            flat[start : start + len(label)] = torch.tensor(label)
        inputs = place(encoding.inputs, encoding.rows, starts)
        return MultimodalBatch({**tensors, "labels": flat.view_as(tensors["input_ids"]), "encoder_inputs": inputs})

    def _packed(self, encoding: Encoding, labels: list[list[int]]) -> MultimodalBatch:
        lengths = [len(row.ids) for row in encoding.rows]
        starts = [0, *accumulate(lengths)][:-1]
        return MultimodalBatch(
            {
                "input_ids": _row(token_id for row in encoding.rows for token_id in row.ids),
                "position_ids": _row(position for length in lengths for position in range(length)),
                # the last token of one sample must not predict the first of the next
                "labels": _row(label for one in labels for label in (IGNORED, *one[1:])),
                "use_cache": False,  # transformers (5.23) sees packing only where there is no cache
                "encoder_inputs": place(encoding.inputs, encoding.rows, starts),
            }
        )


def _row(values: Any) -> torch.Tensor:
    return torch.tensor([list(values)], dtype=torch.int64)


def _of_text(row: Row, learned: list[bool] | None) -> list[int]:
    """Labels of one row: its ids, or :data:`IGNORED` at placeholders and at what is not learned."""
    if learned is None:
        labels = list(row.ids)
    else:
        pairs = zip(row.ids, row.origin, strict=True)
        labels = [token_id if origin != ADDED and learned[origin] else IGNORED for token_id, origin in pairs]
    for span in row.spans:
        labels[span.start : span.stop] = [IGNORED] * (span.stop - span.start)
    return labels


def _read(sample: Any, index: int) -> dict[str, Any]:
    sample = {"messages": sample} if isinstance(sample, (list, tuple)) else sample
    if not isinstance(sample, Mapping) or ("messages" in sample) == ("text" in sample):
        found = ", ".join(map(str, sample)) if isinstance(sample, Mapping) else type(sample).__name__
        hint = (
            "" if found else " If a Trainer took its entries away, set TrainingArguments(remove_unused_columns=False)."
        )
        raise InputError(
            f"sample {index}: expected a list of messages or a dictionary with 'messages' or 'text'; got "
            f"{found or 'an empty dictionary'}.{hint}"
        )
    if "text" in sample:
        return dict(sample)
    (messages,), _ = read_conversations([sample["messages"]], index)
    return {**sample, "messages": messages}
