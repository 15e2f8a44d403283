"""A model with a vision and an audio encoder, and batches in which samples have either, both or none."""

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
"""The samples of two ranks, with a bar between them: v is an image, a an audio clip, t text alone."""


def compose(make_audio_encoder: Callable[[], nn.Module] = sounds.whisper) -> MultimodalModel:
    """Compose CLIP, an audio encoder and Llama, with the same weights in every process; all weights that run train."""
    encoders = {
        "vision": ModalEncoderModule(tiny.clip(), callbacks="llava", callback_options={"vision_feature_layer": -1}),
        "audio": ModalEncoderModule(make_audio_encoder(), callbacks="audio"),
    }
    torch.manual_seed(7)
    model = MultimodalModel(encoders=encoders, language_model=tiny.llama(vocab_size=400))
    model.vision_encoder.module.post_layernorm.requires_grad_(False)  # "llava" takes features from before this layer
    return model


def wav2vec2() -> Wav2Vec2Model:
    """Make a wav2vec 2.0 with group norms, which runs once for each length of clips."""
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
    """Make a batch of samples such as ``"v t"``."""
    return collate(model, [sample(kind, seed) for seed, kind in enumerate(share.split())])


def collate(model: MultimodalModel, samples: list[list[dict]]) -> dict[str, Any]:
    """Make a batch of conversations."""
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=model, chat_template=words.CHATML)
    return dict(MultimodalCollator(processor)(samples))


def sample(kind: str, seed: int) -> list[dict]:
    """Make a conversation about an image, an audio clip or text alone; answers differ in length."""
    media = {
        "v": [{"type": "image", "image": words.image(seed)}],
        "a": [{"type": "audio", "audio": sounds.noise(4000 + 1000 * seed, seed)}],
        "t": [],
    }[kind]
    answer = "A cat." if kind == "v" else "A dog and a cat, please."
    content = [*media, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def learned(batch: dict[str, Any]) -> int:
    """The number of tokens that the loss counts."""
    return int((batch["labels"][:, 1:] != -100).sum())
