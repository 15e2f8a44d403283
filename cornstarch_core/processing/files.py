"""A processor's folder: reading it back into what a processor is made from. Nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import AutoTokenizer

from ..checkpoint import find_foreign, read_config
from ..config import MultimodalConfig
from ..errors import CheckpointError
from ..plugins import registry, resolve
from .modality import check_recipe
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


def read(name: Any, get_dict: Callable[..., Any], model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments for ``MultimodalProcessor``, with the recipes of the saved modalities as ``model`` unless one is given.

    Args:
        name: folder or hub name.
        get_dict: ``ProcessorMixin.get_processor_dict``.
        model: the model, or ``None``.
        kwargs: for the tokenizer, and those that say where to load from.

    Raises:
        CheckpointError: this is no such processor, it is damaged, or it takes the model to count.
        MissingPluginError: a plugin that made it is missing.

    The processor of a checkpoint family that a plugin can read is read by that plugin.
    """
    try:
        saved, rest = get_dict(name, **kwargs)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} holds no multimodal processor that can be read: {error}") from error
    modalities = saved.get("modalities")
    if not isinstance(modalities, dict):
        parts = _read_foreign(name, kwargs)
        return {**parts, "model": model if model is not None else parts["model"]}
    registry().check_record(saved.get("plugins"))
    try:
        parts = {**_parts(modalities), "chat_template": saved.get("chat_template")}
        parts["tokenizer"] = _tokenizer(name, kwargs, rest)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name}: the saved processor is damaged or not complete ({type(error).__name__}: {error}); save it again."
        ) from error
    if model is None:
        _check_countable(name, parts["model"])
    return {**parts, "model": model if model is not None else parts["model"]}


def _read_foreign(name: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        model_type = read_config(name, kwargs).get("model_type")
    except CheckpointError:  # a processor may lie in a folder of its own
        model_type = None
    family = find_foreign(model_type)
    if family is None or family.spec.load_processor is None:
        raise CheckpointError(
            f"{name} holds no multimodal processor: its processor_config.json is missing or of another kind. Save one "
            f"with MultimodalProcessor.save_pretrained. {registry().explain_unavailable()}".rstrip()
        )
    return resolve(family.spec.load_processor, family.plugin)(name, **kwargs)


def _check_countable(name: Any, config: MultimodalConfig) -> None:
    for key, recipe in config.encoders.items():
        if recipe.get("needs_model"):
            raise CheckpointError(
                f"{name}: {key}: how its features are counted was told by an object of the user's own making, which is "
                "not saved; pass the model: MultimodalProcessor.from_pretrained(folder, model=mllm)."
            )


def _parts(modalities: Mapping[str, Any]) -> dict[str, Any]:
    recipes = {key: dict(one["recipe"]) for key, one in modalities.items()}
    for recipe in recipes.values():
        check_recipe(recipe)
    return {
        "processors": {
            key: SavedProcessor(str(one["processor"]["class"]), one["processor"]["config"])
            for key, one in modalities.items()
        },
        "model": MultimodalConfig(encoders=recipes),
        "tokens": {key: str(one["token"]) for key, one in modalities.items()},
    }


def _tokenizer(name: Any, kwargs: Mapping[str, Any], rest: Mapping[str, Any]) -> Any:
    hub = {option: value for option, value in kwargs.items() if option not in rest and not option.startswith("_")}
    return AutoTokenizer.from_pretrained(name, **hub, **{k: v for k, v in rest.items() if v is not None})
