"""Audio clips, and tiny models for audio: Hugging Face's own audio language models, and encoders to compose with."""

from __future__ import annotations

import base64
import copy
import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import words
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
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
WINDOW = 15360  # samples, 0.96 s: 96 frames of a spectrogram, 48 after the convolutions
SECOND = 16000  # samples: the window of models whose processor counts whole seconds
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 128,  # four times the hidden size: Voxtral's projector reads four frames as one vector of this size
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_mel_bins": 16,
    "max_source_positions": 48,
}
_NAMES = {"hidden_size": "d_model", "intermediate_size": "encoder_ffn_dim", "num_hidden_layers": "encoder_layers"}
_NAMES |= {"num_attention_heads": "encoder_attention_heads"}
_WHISPER = {_NAMES.get(name, name): value for name, value in TOWER.items()}  # the same settings by Whisper's names
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
    """Make a clip of noise, float32."""
    return np.random.default_rng(seed).normal(scale=0.1, size=samples).astype(np.float32)


def clips(sizes: Sequence[Sequence[int]]) -> list[list[np.ndarray]]:
    """Make clips of noise of these lengths for each sample; each length has its own noise."""
    return [[noise(size, seed=size) for size in sample] for sample in sizes]


def tokenizer(token: str = "<|AUDIO|>", **changes: Any) -> Any:
    """Make a tokenizer with this placeholder token, whose id the models below use."""
    made = words.tokenizer(bos=True, **changes)
    made.add_special_tokens({"extra_special_tokens": [token]}, replace_extra_special_tokens=False)
    return made


AUDIO = tokenizer().convert_tokens_to_ids("<|AUDIO|>")
VOXTRAL_AUDIO = 24  # Voxtral's processor fixes this id
_TEKKEN_TOKENS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<SPECIAL_{rank}>" for rank in range(5, 24))]
_TEKKEN_TOKENS += ["[AUDIO]", "[BEGIN_AUDIO]", "<pad>"]


def tekken() -> str:
    """The ``tekken.json`` of a tokenizer like Voxtral's: the special tokens, then a token for each byte."""
    config = {"pattern": r"\s*\S+|\s+", "num_vocab_tokens": 256, "default_num_special_tokens": len(_TEKKEN_TOKENS)}
    config |= {"default_vocab_size": 256 + len(_TEKKEN_TOKENS), "version": "v7"}
    vocabulary = [
        {"rank": b, "token_bytes": base64.b64encode(bytes([b])).decode(), "token_str": None} for b in range(256)
    ]
    special = [{"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(_TEKKEN_TOKENS)]
    return json.dumps({"config": config, "vocab": vocabulary, "special_tokens": special})


@cache
def _tekken_tokenizer() -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tekken.json").write_text(tekken())
        return PreTrainedTokenizerFast.from_pretrained(folder, pad_token="<pad>")


def voxtral_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that transformers makes of :func:`tekken` if mistral-common is not installed."""
    return copy.deepcopy(_tekken_tokenizer())


def whisper(seed: int = 0, **changes: Any) -> WhisperEncoder:
    """Make a Whisper encoder with windows of 0.96 s and 48 frames of width 32."""
    torch.manual_seed(seed)
    config = WhisperConfig(**{**_WHISPER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changes})
    return WhisperEncoder(config).eval()


def qwen2_audio(tie: bool = False, **changes: Any) -> Qwen2AudioForConditionalGeneration:
    """Make Hugging Face's Qwen2-Audio with random weights."""
    tower = dict(_WHISPER)  # a copy, here and below: configs of transformers 5.17 change a given dictionary
    settings = {"audio_config": tower, **_text(Qwen2Config(**TEXT), tie), "audio_token_index": AUDIO, **changes}
    return _random(Qwen2AudioForConditionalGeneration, Qwen2AudioConfig(**settings))


def audio_flamingo3(tie: bool = False, **changes: Any) -> AudioFlamingo3ForConditionalGeneration:
    """Make Hugging Face's Audio Flamingo 3 with random weights, for windows of one second."""
    tower = {**TOWER, "max_source_positions": 50}
    settings = {"audio_config": tower, **_text(Qwen2Config(**TEXT), tie), "audio_token_id": AUDIO, **changes}
    return _random(AudioFlamingo3ForConditionalGeneration, AudioFlamingo3Config(**settings))


def voxtral(tie: bool = False, **changes: Any) -> VoxtralForConditionalGeneration:
    """Make Hugging Face's Voxtral with random weights."""
    text = _text(LlamaConfig(**TEXT, head_dim=16), tie)
    settings = {"audio_config": dict(TOWER), **text, "audio_token_id": VOXTRAL_AUDIO, **changes}
    return _random(VoxtralForConditionalGeneration, VoxtralConfig(**settings))


def _text(config: PreTrainedConfig, tie: bool) -> dict[str, Any]:
    """The config entries for a language model whose head is tied or not."""
    return {"text_config": {**config.to_dict(), "tie_word_embeddings": tie}, "tie_word_embeddings": tie}


def _random(model_class: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config).eval()
    with torch.no_grad():  # larger than the initial weights, so that the audio changes the output
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.normal_(std=0.3)
    return model


# --- for comparisons with Hugging Face's models -----------------------------------------------------------------------


def text_of(batch: Any) -> dict[str, torch.Tensor]:
    """The inputs of the language model in a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def labels_of(batch: Any, token_id: int) -> torch.Tensor:
    """The ids of a batch as labels, without padding and placeholders."""
    return batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | (batch["input_ids"] == token_id), -100)


def gradients(ours: Any, theirs: Any) -> dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]:
    """The gradients of each parameter in both models, by Hugging Face's names."""
    places = {
        "audio_encoder.module": "model.audio_tower",
        "audio_encoder.projector.projection": "model.multi_modal_projector",
        "language_model.model": "model.language_model",
        "language_model.lm_head": "lm_head",
    }
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {}
    for name, parameter in ours.named_parameters():
        place = next(place for place in places if name.startswith(place))
        found[name.replace(place, places[place])] = parameter.grad
    assert found.keys() == expected.keys()
    return {name: (found[name], expected[name]) for name in found}
