"""Tiny real models, built from configs: no network, random weights, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cornstarch_timeseries.conv import SeriesConvConfig, SeriesConvEncoder
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PatchTSTConfig, PatchTSTModel, PreTrainedTokenizerFast

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor

# How long an example takes says something of the machine, not of the plugin.
hypothesis_settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("patient")

WORDS = ["<pad>", "<unk>", "<end>", "user", "assistant", ":", "is", "it", "rising", "?", "yes"]
CHAT = "{% for m in messages %}{{ m.role }} : {{ m.content }} <end> {% endfor %}"


def make_patchtst(**changes: Any) -> PatchTSTModel:
    """Seven patches of width 16 a channel, of 32 steps; every weight random, in eval mode."""
    settings = {
        "context_length": 32,
        "patch_length": 8,
        "patch_stride": 4,
        "d_model": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    return _random(PatchTSTModel(PatchTSTConfig(**{**settings, **changes})))


def make_conv(**changes: Any) -> SeriesConvEncoder:
    """Patches of 4 steps, width 16; every weight random, in eval mode."""
    torch.manual_seed(0)
    settings = {"patch_length": 4, "hidden_size": 16, "num_layers": 3}
    return _random(SeriesConvEncoder(SeriesConvConfig(**{**settings, **changes})))


def _random(module: nn.Module) -> Any:
    """With weights that start neither at zero nor at one, and in batch norms means that are not those of a start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return module.eval()


def compose_model(encoder: ModalEncoderModule, **settings: Any) -> MultimodalModel:
    """The encoder and a tiny Llama, in eval mode."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, eos_token_id=2, **sizes))
    return MultimodalModel(encoders={"series": encoder}, language_model=llama, **settings).eval()


def make_processor(model: MultimodalModel, **settings: Any) -> MultimodalProcessor:
    """A processor that knows a few words."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )
    return MultimodalProcessor(tokenizer=tokenizer, model=model, chat_template=CHAT, **settings)


@pytest.fixture(scope="session")
def patchtst() -> Callable[..., PatchTSTModel]:
    """``patchtst(**config) -> encoder``."""
    return make_patchtst


@pytest.fixture(scope="session")
def conv() -> Callable[..., SeriesConvEncoder]:
    """``conv(**config) -> encoder``."""
    return make_conv


@pytest.fixture(scope="session")
def compose() -> Callable[..., MultimodalModel]:
    """``compose(encoder, **settings) -> model``."""
    return compose_model


@pytest.fixture(scope="session")
def processor_of() -> Callable[..., MultimodalProcessor]:
    """``processor_of(model, **settings) -> processor``."""
    return make_processor


@pytest.fixture(params=["patchtst", "joined", "conv", "merged"])
def model(request: pytest.FixtureRequest) -> MultimodalModel:
    """A model of each encoder in turn, for series of two channels: ``patchtst`` needs 32 steps, ``conv`` any number."""
    if request.param == "conv":
        return compose_model(ModalEncoderModule(make_conv(channels=2)))
    if request.param == "merged":
        return compose_model(ModalEncoderModule(make_conv(channels=2)), init_projector_type="patch_merge")
    options = {"channels": "joined"} if request.param == "joined" else {}
    encoder = ModalEncoderModule(make_patchtst(num_input_channels=2), callbacks="series", callback_options=options)
    return compose_model(encoder)
