"""Tiny tokenizers trained on a few sentences, several kinds of chat templates, and images."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tiny
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor

SENTENCES = [
    "What is in the picture? A cat and a dog.",
    "USER: Which digit is this? ASSISTANT: It is a seven.",
    "user assistant system: describe both images, please.",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TYPED = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}\n{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def tokenizer(*, bos: bool = False, eos: bool = False, **changes: Any) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer with 0 ``<pad>``, 1 ``<s>`` and 2 ``</s>``; with ``bos`` and ``eos`` it adds these."""
    backend = Tokenizer.from_str(_trained())
    if bos or eos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{'<s> ' * bos}$A{' </s>' * eos}", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    settings = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    settings["extra_special_tokens"] = ["<|im_start|>", "<|im_end|>"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**settings, **changes})


def model(callbacks: Any = None, keys: tuple[str, ...] = ("vision",), **changes: Any) -> MultimodalModel:
    """Compose a CLIP with 16 patches and CLS for each key, and a Llama with the tokenizer's vocabulary."""
    encoders = {key: ModalEncoderModule(tiny.clip(seed), callbacks=callbacks) for seed, key in enumerate(keys)}
    return MultimodalModel(encoders=encoders, language_model=tiny.llama(vocab_size=400, **changes)).eval()


def processor(callbacks: Any = None, keys: tuple[str, ...] = ("vision",), **changes: Any) -> MultimodalProcessor:
    """Make a processor for :func:`model`."""
    settings = {"tokenizer": tokenizer(), "model": model(callbacks, keys)}
    return MultimodalProcessor(**{**settings, **changes})


def image(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Make a random RGB image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(one: Any, other: Any) -> bool:
    """Whether two batches are equal, tensor by tensor."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if hasattr(one, "items"):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return one == other
