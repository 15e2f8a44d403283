"""A model that sees and hears, and batches in which samples have any of the two."""

from __future__ import annotations

from typing import Any

import sounds
import tiny
import torch
import words

from cornstarch_core import ModalEncoderModule, MultimodalCollator, MultimodalModel, MultimodalProcessor

MIXES = ("v v|v t", "v v|t t", "t t|t t", "v t|a a", "v a|a v", "t v|a t")
"""What each of two ranks has: samples with vision, audio, or text alone."""


def compose() -> MultimodalModel:
    """CLIP and Whisper, whose used weights all train, and Llama; the same for every process."""
    encoders = {
        "vision": ModalEncoderModule(tiny.clip(), callbacks="llava", callback_options={"vision_feature_layer": -1}),
        "audio": ModalEncoderModule(sounds.whisper(), callbacks="audio"),
    }
    torch.manual_seed(7)
    model = MultimodalModel(encoders=encoders, language_model=tiny.llama(vocab_size=400))
    model.vision_encoder.module.post_layernorm.requires_grad_(False)  # "llava" takes what comes before it
    return model


def make_batch(model: MultimodalModel, share: str) -> dict[str, Any]:
    """One batch of a share such as ``"v t"``."""
    return collate(model, [sample(kind, seed) for seed, kind in enumerate(share.split())])


def collate(model: MultimodalModel, samples: list[list[dict]]) -> dict[str, Any]:
    """One batch of conversations."""
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=model, chat_template=words.CHATML)
    return dict(MultimodalCollator(processor)(samples))


def sample(kind: str, seed: int) -> list[dict]:
    """A conversation; answers differ in length."""
    media = {
        "v": [{"type": "image", "image": words.image(seed)}],
        "a": [{"type": "audio", "audio": sounds.noise(4000 + 1000 * seed, seed)}],
        "t": [],
    }[kind]
    answer = "A cat." if kind == "v" else "A dog and a cat, please."
    content = [*media, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def learned(batch: dict[str, Any]) -> int:
    """Tokens that a loss counts."""
    return int((batch["labels"][:, 1:] != -100).sum())
