"""The text parts of the model under test: a small language model with random weights, and a tokenizer."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["WORDS", "tiny_language_model", "tiny_tokenizer"]

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = ("what", "is", "this", "it", "rises", "falls", "and", "then", "a", "the")
"""The words in the tokenizer's vocabulary."""


def tiny_language_model() -> LlamaForCausalLM:
    """Return a float32 Llama in eval mode with two layers and embeddings of width 40.

    The initial weights are larger than usual, so that the features of an encoder change the logits.
    """
    config = LlamaConfig(
        vocab_size=len(_SPECIAL) + len(WORDS),
        hidden_size=40,  # unusual for an encoder, so that no check confuses the two widths
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=1 << 16,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval().to(torch.float32)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each of :data:`WORDS`."""
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *WORDS))}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
