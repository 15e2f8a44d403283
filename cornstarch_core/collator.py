"""The collator, which turns conversations and their media into a padded or packed training batch with labels.

The processor tokenises the text, prepares the media and expands the placeholders. The collator decides which tokens
contribute to the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch

from .errors import InputError
from .modeling.placeholders import IGNORE_INDEX, mask_labels
from .processing import layouts
from .processing.batch import MultimodalBatch
from .processing.encoding import Encoding, Options, pad
from .processing.media import as_items
from .processing.spans import ADDED, covered
from .processing.templates import ChatTemplate
from .processor import MultimodalProcessor

__all__ = ["MultimodalCollator"]

Spans = list[tuple[int, int]]
"""``(start, stop)`` of pieces of a text: indices of the first character and of the one after the last."""


class MultimodalCollator:
    """Makes a training batch out of conversations.

    Args:
        processor: the model's processor. Its tokenizer determines the side of padding and truncation.
        train_on: text that contributes to the loss. ``"assistant"``: the words of the assistant and the token that ends
            its turn, without the header before the turn. ``"all"``: all text.
        max_length: maximum number of tokens of a sample, counted with expanded placeholders; longer samples are cut.
        packing: whether to concatenate all samples in one row. ``position_ids``, which restart at 0 with each sample,
            separate the samples.

    With ``train_on="assistant"``, the collator needs a fast tokenizer. If the chat template contains
    ``{% generation %}`` blocks, the text of such a block is a turn of the assistant. Otherwise the collator renders the
    conversation with the turn and without it, and the difference of the two texts is the turn. A token that lies partly
    inside a turn contributes to the loss.

    Raises:
        TypeError: ``processor`` is not a ``MultimodalProcessor``.
        ValueError: ``train_on`` is neither ``"assistant"`` nor ``"all"``.

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
            samples: list of samples. Each is a list of messages, a dictionary with ``"messages"`` or, with
                ``train_on="all"``, a dictionary with ``"text"``. Media are in the typed content of the messages, or in
                the dictionary under a modality's key or a usual name for it (``"images"``). Other entries of the
                dictionary are ignored.

        Returns:
            A batch of B rows with S tokens each: ``input_ids`` and ``labels``, both ``(B, S)`` int64, and
            ``encoder_inputs`` as in the processor's batch. A padded batch also has ``attention_mask``, ``(B, S)``
            int64. A packed batch has one row (B is 1), ``position_ids``, ``(1, S)`` int64, which start at 0 in each
            sample, and ``use_cache=False``, because with a cache a language model does not separate the samples.
            ``labels`` are -100 at padding, at placeholders, and at tokens that do not contribute to the loss.

        Raises:
            TruncatedSpanError: ``max_length`` would remove some or all of a media item's placeholders; the message
                names the sample.
            InputError: a sample is malformed, or none of its tokens contributes to the loss, for example because
                ``max_length`` cut them off.
        """
        if not isinstance(samples, Sequence) or not samples:
            raise InputError("a batch needs at least one sample.")
        read = [layouts.read_sample(sample, index) for index, sample in enumerate(samples)]
        if len({"messages" in sample for sample in read}) > 1:
            raise InputError("some samples have 'messages', some 'text'; give batches of one kind.")
        encoding, turns = self._encode(read)
        labels = [self._labels(encoding, turns, index) for index in range(len(read))]
        return self._packed(encoding, labels) if self.packing else self._padded(encoding, labels)

    # --- encoding -----------------------------------------------------------------------------------------------------

    def _encode(self, samples: list[dict[str, Any]]) -> tuple[Encoding, list[Spans]]:
        """Return the rows of token ids, and the character spans of the assistant's turns in each sample's text."""
        is_chat, needs_turns = "messages" in samples[0], self.train_on == "assistant"
        if needs_turns and not is_chat:
            raise InputError("sample 0 has 'text', in which no turns are known; give 'messages', or train_on='all'.")
        if needs_turns and not self.processor.tokenizer.is_fast:
            raise InputError(
                f"train_on='assistant' needs a fast tokenizer, which tells the characters of each token; "
                f"{type(self.processor.tokenizer).__name__} is none. Load it with use_fast=True, or use train_on='all'."
            )
        template = self.processor.template() if is_chat else None
        texts, turns, media = zip(*(self._write(one, i, template) for i, one in enumerate(samples)), strict=True)
        encoding = self.processor.rows.make(
            texts, layouts.by_modality(media), {}, suffix=not is_chat, max_length=self.max_length, offsets=needs_turns
        )
        return encoding, list(turns)

    def _write(
        self, sample: dict[str, Any], index: int, template: ChatTemplate | None
    ) -> tuple[str, Spans, dict[str, list[Any]]]:
        """Return the text of one sample, the assistant's turns in it if they are needed, and its media by modality."""
        arguments = self.processor.arguments
        given = {name: value for name, value in sample.items() if arguments.is_media(name)}
        beside = {key: as_items(value) for key, value in arguments.media(given).items()}
        if template is None:
            return sample["text"], [], beside
        where, messages = f"sample {index}, ", sample["messages"]
        media = layouts.combine(layouts.gather(template, messages, where), beside, f"sample {index}: ")
        fitted = template.fit(messages, where)
        text, turns = (template.render(fitted, where), []) if self.train_on == "all" else template.turns(fitted, where)
        return text, turns, media

    # --- labels -------------------------------------------------------------------------------------------------------

    def _labels(self, encoding: Encoding, turns: list[Spans], index: int) -> torch.Tensor:
        """Return the labels of one row: its ids, or :data:`IGNORE_INDEX` for tokens without a loss."""
        row = encoding.rows[index]
        labels = torch.tensor(row.ids, dtype=torch.int64)
        if encoding.offsets is not None:
            learned = covered(encoding.offsets[index], turns[index])
            left_out = [origin == ADDED or not learned[origin] for origin in row.origin]
            labels.masked_fill_(torch.tensor(left_out, dtype=torch.bool), IGNORE_INDEX)
        placeholders = [position for span in row.spans for position in range(span.start, span.stop)]
        labels = mask_labels(labels, torch.tensor(placeholders, dtype=torch.int64))
        if bool((labels[1:] == IGNORE_INDEX).all()):  # the first token is never predicted
            where = "in it" if self.max_length is None else f"in its first {self.max_length} tokens (max_length)"
            what = "no word of a message with the role 'assistant'" if self.train_on == "assistant" else "no text"
            raise InputError(f"sample {index}: there is {what} {where}, so nothing to learn; leave it out of the data.")
        return labels

    # --- batches ------------------------------------------------------------------------------------------------------

    def _padded(self, encoding: Encoding, labels: list[torch.Tensor]) -> MultimodalBatch:
        tensors, starts = pad(encoding.rows, self.processor.tokenizer, Options())
        padded = torch.full_like(tensors["input_ids"], IGNORE_INDEX)
        for start, label in zip(starts, labels, strict=True):
            padded.view(-1)[start : start + len(label)] = label
        return MultimodalBatch({**tensors, "labels": padded, "encoder_inputs": encoding.placed(starts)})

    def _packed(self, encoding: Encoding, labels: list[torch.Tensor]) -> MultimodalBatch:
        lengths = [len(row.ids) for row in encoding.rows]
        starts = [0, *accumulate(lengths)][:-1]
        packed = torch.cat(labels)
        packed[starts] = IGNORE_INDEX  # the last token of one sample must not predict the first of the next
        return MultimodalBatch(
            {
                "input_ids": _row(token_id for row in encoding.rows for token_id in row.ids),
                "position_ids": _row(position for length in lengths for position in range(length)),
                "labels": packed[None],
                "use_cache": False,  # transformers (5.23) sees packing only without a cache
                "encoder_inputs": encoding.placed(starts),
            }
        )


def _row(values: Iterable[int]) -> torch.Tensor:
    return torch.tensor([list(values)], dtype=torch.int64)
