"""Build models of transformers again from their saved class and config."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version

from ..errors import CheckpointError
from .peft import unwrap

__all__ = ["build_transformers_model", "class_path", "config_from_dict", "constructor_arguments", "default_dtype"]

_CONSTRUCTOR_ARGUMENTS = ("add_pooling_layer", "use_mask_token")
_TRANSFORMERS_CLASS = re.compile(r"transformers\.models(\.[a-z0-9_]+)+:[A-Za-z][A-Za-z0-9_]*")


def class_path(module: nn.Module) -> str:
    """Return the import path ``"package.module:Class"`` of a module inside any PEFT wrapper."""
    cls = type(unwrap(module))
    return f"{cls.__module__}:{cls.__qualname__}"


def transformers_class(path: object) -> type[PreTrainedModel] | None:
    """Return the model class of transformers that a saved config names, or ``None`` if it names something else.

    The path is untrusted: the function imports only from ``transformers.models``, and returns only model classes. A
    saved config names a class, because the auto classes do not support some configs (Emu3's and Mllama's text models,
    5.23).
    """
    if not isinstance(path, str) or not _TRANSFORMERS_CLASS.fullmatch(path):
        return None
    module_name, class_name = path.split(":")
    try:
        cls = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not in transformers {transformers_version} ({error}); the model was saved with another version."
        ) from error
    return cls if isinstance(cls, type) and issubclass(cls, PreTrainedModel) else None


def config_from_dict(config: dict[str, Any], path: object) -> PreTrainedConfig | None:
    """Make the config object for a class of transformers. Return ``None`` if ``path`` names something else."""
    cls = transformers_class(path)
    return cls.config_class.from_dict(config) if cls is not None and cls.config_class is not None else None


def constructor_arguments(module: nn.Module) -> dict[str, bool]:
    """Return the constructor arguments of ``module``, without its config.

    Models of transformers (5.23) have only two further constructor arguments that change their weights.
    """
    parameters = inspect.signature(type(unwrap(module)).__init__).parameters
    found = {
        "add_pooling_layer": getattr(unwrap(module), "pooler", None) is not None,
        "use_mask_token": any(name.endswith("mask_token") for name, _ in unwrap(module).named_parameters()),
    }
    return {name: value for name, value in found.items() if name in parameters}


def build_transformers_model(
    path: object, config: PreTrainedConfig | None, arguments: dict[str, Any] | None
) -> PreTrainedModel | None:
    """Build a model with fresh weights in the default dtype. Return ``None`` if transformers has no class ``path``."""
    cls = transformers_class(path)
    if cls is None or config is None:
        return None
    known = {name: bool((arguments or {})[name]) for name in _CONSTRUCTOR_ARGUMENTS if name in (arguments or {})}
    return cls._from_config(config, dtype=torch.get_default_dtype(), **known)


@contextmanager
def default_dtype(dtype: str | None) -> Iterator[None]:
    """Set the dtype of new parameters inside a ``with`` block; ``None`` changes nothing."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype) if dtype else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
