"""A processor's folder: reading it back into what a processor is made from. Nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import AutoTokenizer

from .config import MultimodalConfig
from .errors import CheckpointError
from .plugins import registry
from .subprocessors import SavedProcessor

__all__ = ["is_processor_file", "read"]

_FILES = {
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "chat_templates",
    "merges.txt",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
}


def is_processor_file(name: str) -> bool:
    """Whether a file of an old folder belongs to its processor, so that a new one replaces it."""
    return name in _FILES


def read(name: Any, get_dict: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments for ``MultimodalProcessor``, with the recipes of the saved modalities as ``model``.

    Args:
        name: folder or hub name.
        get_dict: ``ProcessorMixin.get_processor_dict``.
        kwargs: for the tokenizer, and those that say where to load from.

    Raises:
        CheckpointError: this is no such processor, or it is damaged.
        MissingPluginError: a plugin that made it is missing.
    """
    try:
        saved, rest = get_dict(name, **kwargs)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} holds no multimodal processor that can be read: {error}") from error
    modalities = saved.get("modalities")
    if not isinstance(modalities, dict):
        raise CheckpointError(
            f"{name} holds no multimodal processor: its processor_config.json is missing or of another kind. Save one "
            "with MultimodalProcessor.save_pretrained."
        )
    registry().check_record(saved.get("plugins"))
    try:
        return {**_parts(modalities), "tokenizer": _tokenizer(name, kwargs, rest), "chat_template": _template(saved)}
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name}: the saved processor is damaged or not complete ({type(error).__name__}: {error}); save it again."
        ) from error


def _parts(modalities: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "processors": {
            key: SavedProcessor(str(one["processor"]["class"]), one["processor"]["config"])
            for key, one in modalities.items()
        },
        "model": MultimodalConfig(encoders={key: dict(one["recipe"]) for key, one in modalities.items()}),
        "tokens": {key: str(one["token"]) for key, one in modalities.items()},
    }


def _tokenizer(name: Any, kwargs: Mapping[str, Any], rest: Mapping[str, Any]) -> Any:
    hub = {option: value for option, value in kwargs.items() if option not in rest and not option.startswith("_")}
    return AutoTokenizer.from_pretrained(name, **hub, **{k: v for k, v in rest.items() if v is not None})


def _template(saved: Mapping[str, Any]) -> Any:
    return saved.get("chat_template")
