"""A model that sees and hears, and batches in which samples have any of the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sounds
import tiny
import torch
import words
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from cornstarch_core import ModalEncoderModule, MultimodalCollator, MultimodalModel, MultimodalProcessor

MIXES = ("v v|v t", "v v|t t", "t t|t t", "v t|a a", "v a|a v", "t v|a t")
"""What each of two ranks has: samples with vision, audio, or text alone."""


def compose(hears: Callable[[], nn.Module] | None = None) -> MultimodalModel:
    """CLIP and Whisper, whose used weights all train, and Llama; the same for every process.

    ``hears`` makes another encoder than Whisper.
    """
    encoders = {
        "vision": ModalEncoderModule(tiny.clip(), callbacks="llava", callback_options={"vision_feature_layer": -1}),
        "audio": ModalEncoderModule((hears or sounds.whisper)(), callbacks="audio"),
    }
    torch.manual_seed(7)
    model = MultimodalModel(encoders=encoders, language_model=tiny.llama(vocab_size=400))
    model.vision_encoder.module.post_layernorm.requires_grad_(False)  # "llava" takes what comes before it
    return model


def wav2vec2() -> Wav2Vec2Model:
    """With group norms, for which clips are run apart: as many calls as there are lengths."""
    torch.manual_seed(4)
    config = Wav2Vec2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        conv_dim=(16, 16),
        conv_kernel=(10, 8),
        conv_stride=(40, 8),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
    )
    return Wav2Vec2Model(config)


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
