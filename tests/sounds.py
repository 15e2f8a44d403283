"""Clips, and tiny real models that hear: Hugging Face's own audio language models, and encoders to compose with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import words
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    LlamaConfig,
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

RATE = 16000
VOCABULARY = 400
WINDOW = 15360  # samples, 0.96 s: 96 frames of a spectrogram, 48 behind the convolutions
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 128,  # four frames wide, as Voxtral takes it
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_mel_bins": 16,
    "max_source_positions": 48,
}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """A clip of noise, float32."""
    return np.random.default_rng(seed).normal(scale=0.1, size=samples).astype(np.float32)


def tokenizer(token: str = "<|AUDIO|>", **changes: Any) -> Any:
    """One that knows the placeholder, with the id that it has in the models below."""
    made = words.tokenizer(bos=True, **changes)
    made.add_special_tokens({"extra_special_tokens": [token]}, replace_extra_special_tokens=False)
    return made


AUDIO = tokenizer().convert_tokens_to_ids("<|AUDIO|>")


def whisper(seed: int = 0, **changes: Any) -> WhisperEncoder:
    """An encoder with windows of 0.96 s and 48 frames of width 32."""
    names = {"hidden_size": "d_model", "intermediate_size": "encoder_ffn_dim", "num_hidden_layers": "encoder_layers"}
    names["num_attention_heads"] = "encoder_attention_heads"
    settings = {names.get(name, name): value for name, value in TOWER.items()}
    torch.manual_seed(seed)
    config = WhisperConfig(**{**settings, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changes})
    return WhisperEncoder(config).eval()


def qwen2_audio(**text: Any) -> Qwen2AudioForConditionalGeneration:
    """Hugging Face's model with random weights."""
    names = {"hidden_size": "d_model", "intermediate_size": "encoder_ffn_dim", "num_hidden_layers": "encoder_layers"}
    names["num_attention_heads"] = "encoder_attention_heads"
    tower = {names.get(name, name): value for name, value in TOWER.items()}
    config = Qwen2AudioConfig(
        audio_config=tower, text_config=Qwen2Config(**{**TEXT, **text}).to_dict(), audio_token_index=AUDIO
    )
    return _random(Qwen2AudioForConditionalGeneration, config)


def audio_flamingo3(**changes: Any) -> AudioFlamingo3ForConditionalGeneration:
    """Hugging Face's model with random weights."""
    config = AudioFlamingo3Config(
        audio_config=TOWER, text_config=Qwen2Config(**TEXT).to_dict(), audio_token_id=AUDIO, **changes
    )
    return _random(AudioFlamingo3ForConditionalGeneration, config)


def voxtral(**changes: Any) -> VoxtralForConditionalGeneration:
    """Hugging Face's model with random weights."""
    text = LlamaConfig(**TEXT, head_dim=16).to_dict()
    config = VoxtralConfig(audio_config=TOWER, text_config=text, audio_token_id=AUDIO, **changes)
    return _random(VoxtralForConditionalGeneration, config)


def _random(model_class: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config).eval()
    with torch.no_grad():  # larger than they are drawn, so that what is heard matters
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.normal_(std=0.3)
    return model
