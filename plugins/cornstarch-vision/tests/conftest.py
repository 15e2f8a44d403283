"""Tiny real encoders of every family, built from configs."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from cornstarch_vision.families import ENCODERS
from torch import nn

from cornstarch_core.specs import EncoderContext, EncoderInterface, EncoderSpec

SPECS = {spec.name: spec for spec in ENCODERS}


def resolve(path: str) -> Any:
    """What ``"package.module:Class"`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def make(spec: EncoderSpec) -> EncoderInterface[Any]:
    """An instance of a spec's target."""
    return resolve(spec.target)()


def build(family: str, **overrides: Any) -> nn.Module:
    """A tiny encoder in eval mode whose every weight is random, also those that start at zero or one."""
    model_class = resolve(SPECS[family].classes[0])
    settings = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**{**settings, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def describe(family: str, model: nn.Module) -> EncoderContext:
    """The context that the core gives plugins for ``model``."""
    spec = SPECS[family]
    return EncoderContext(
        key="vision",
        config=model.config,
        hidden_size=model.config.hidden_size,
        text_hidden_size=24,
        prefix_tokens=make(spec).prefix_tokens(model.config),
        layers=spec.layers,
    )


@pytest.fixture(scope="session")
def tiny() -> Callable[..., nn.Module]:
    """``tiny(family, **config) -> encoder``."""
    return build


@pytest.fixture(scope="session")
def context_of() -> Callable[..., EncoderContext]:
    """``context_of(family, encoder) -> EncoderContext``."""
    return describe


@pytest.fixture(scope="session")
def target() -> Callable[[EncoderSpec], EncoderInterface[Any]]:
    """``target(spec) -> object``: an instance of the spec's target."""
    return make


@pytest.fixture(scope="session")
def specs() -> dict[str, EncoderSpec]:
    """Encoder specs by name."""
    return SPECS


@pytest.fixture(scope="module", params=sorted(SPECS))
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return request.param
