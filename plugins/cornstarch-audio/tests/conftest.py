"""Tiny real encoders of every family, built from configs, and clips."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from cornstarch_audio.extractors import Audio
from cornstarch_audio.families import ENCODERS
from torch import nn

from cornstarch_core import ModalEncoderModule
from cornstarch_core.errors import CompositionError
from cornstarch_core.specs import EncoderContext, EncoderSpec

SPECS = {spec.name: spec for spec in ENCODERS}
WIDTH = 24  # of the language model that is not there

_CONVOLUTIONAL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 50,  # windows of one second
}
_BLOCKS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

SETTINGS: dict[str, dict[str, Any]] = {
    "whisper": {**_WHISPER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 60},
    "wav2vec2": _CONVOLUTIONAL,
    "hubert": _CONVOLUTIONAL,
    "wavlm": _CONVOLUTIONAL,
    "data2vec_audio": {**_CONVOLUTIONAL, "num_conv_pos_embeddings": 3},
    "unispeech_sat": _CONVOLUTIONAL,
    "sew": {**_CONVOLUTIONAL, "conv_dim": (16,) * 13},
    "wav2vec2_conformer": _CONVOLUTIONAL,
    "wav2vec2_bert": {**_BLOCKS, "feature_projection_input_dim": 32},
    "ast": {**_BLOCKS, "num_mel_bins": 32, "max_length": 64, "patch_size": 8},
    "qwen2_audio": _WHISPER,
    "voxtral": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_mel_bins": 16,
        "max_source_positions": 48,
    },
    "audio_flamingo3": {**_BLOCKS, "num_mel_bins": 16, "max_source_positions": 50},
    "glm_asr": {**_BLOCKS, "num_mel_bins": 16, "max_position_embeddings": 50, "num_key_value_heads": 4},
    "moonshine": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "encoder_num_hidden_layers": 2,
        "encoder_num_attention_heads": 4,
        "encoder_num_key_value_heads": 4,
    },
    "parakeet": {**_BLOCKS, "num_mel_bins": 16, "subsampling_conv_channels": 8},
}


def resolve(path: str) -> Any:
    """What ``"package.module:Class"`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def build(family: str, **changes: Any) -> nn.Module:
    """A tiny encoder in eval mode whose every weight is random, also those that start at zero or one."""
    model_class = resolve(SPECS[family].classes[0])
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**{**SETTINGS[family], **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        for name, buffer in model.named_buffers():
            if "running" in name:  # of batch norms
                buffer.uniform_(0.5, 1.5)
    return model


def describe(family: str, model: nn.Module) -> EncoderContext:
    """The context that the core gives plugins for ``model``."""
    spec = SPECS[family]
    target = resolve(spec.target)()
    return EncoderContext(
        key="audio",
        config=model.config,
        hidden_size=target.hidden_size(model.config),
        text_hidden_size=WIDTH,
        prefix_tokens=target.prefix_tokens(model.config),
        layers=spec.layers,
    )


def make_extractor(family: str, model: nn.Module) -> Any:
    """The feature extractor that the plugin builds for ``model``."""
    try:
        return Audio().build(describe(family, model))
    except CompositionError as error:
        if "librosa" in str(error):
            pytest.skip("this transformers needs librosa for Parakeet's feature extractor")
        raise


def compose(module: nn.Module, callbacks: Any = "audio", **options: Any) -> ModalEncoderModule:
    """``module`` with callbacks and a linear projector."""
    torch.manual_seed(1)
    encoder = ModalEncoderModule(module, callbacks=callbacks, **options)
    encoder.complete("audio", WIDTH)
    return encoder.eval()


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """A clip of noise, float32."""
    return np.random.default_rng(seed).normal(scale=0.1, size=samples).astype(np.float32)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., nn.Module]:
    """``tiny(family, **config) -> encoder``."""
    return build


@pytest.fixture(scope="session")
def context_of() -> Callable[..., EncoderContext]:
    """``context_of(family, encoder) -> EncoderContext``."""
    return describe


@pytest.fixture(scope="session")
def extractor_of() -> Callable[..., Any]:
    """``extractor_of(family, encoder) -> AudioFeatureExtractor``."""
    return make_extractor


@pytest.fixture(scope="session")
def composed() -> Callable[..., ModalEncoderModule]:
    """``composed(encoder, callbacks="audio", **options) -> ModalEncoderModule``."""
    return compose


@pytest.fixture(scope="session")
def clip() -> Callable[..., np.ndarray]:
    """``clip(samples, seed=0) -> array``."""
    return noise


@pytest.fixture(scope="session")
def specs() -> dict[str, EncoderSpec]:
    """Encoder specs by name."""
    return SPECS


@pytest.fixture(scope="module", params=sorted(SPECS))
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return request.param
