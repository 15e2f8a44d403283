"""Read the folder of a saved processor, whose content is not trusted, and tell its files from other files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import AutoTokenizer

from .._hf.hub import hub_options
from ..config import EncoderRecord, MultimodalConfig, read_record
from ..errors import CheckpointError
from ..modeling.composition import Composition
from ..plugins import registry
from ..saving.load import FolderName, find_foreign, read_config
from .saved_processor import SavedProcessor

__all__ = ["is_processor_file", "read"]

_FILES = re.compile(
    r"chat_templates|chat_template\.(jinja|json)|(merges|vocab)\.txt|(spiece|tokenizer)\.model|"
    r"(added_tokens|processor_config|special_tokens_map|tokenizer|tokenizer_config|vocab)\.json"
)


def is_processor_file(name: str) -> bool:
    """Whether a file of this name belongs to a saved processor, so that saving a new processor removes it."""
    return _FILES.fullmatch(name) is not None


def read(
    name: FolderName, get_dict: Callable[..., Any], model: Composition | None, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the arguments of ``MultimodalProcessor`` from a folder, if necessary with a plugin's checkpoint family.

    Args:
        name: folder or hub name of the saved processor.
        get_dict: the method ``ProcessorMixin.get_processor_dict``.
        model: the model, or ``None`` to use a config that is made of the saved modalities.
        kwargs: arguments for the tokenizer, and options of the hub.

    Raises:
        CheckpointError: the folder holds no saved processor, the processor is damaged, or the model is required to
            count features.
        MissingPluginError: a plugin that the processor needs is missing.
    """
    try:
        saved, rest = get_dict(name, **kwargs)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} holds no multimodal processor that can be read: {error}") from error
    own = isinstance(saved.get("modalities"), dict)
    parts = _read_own(name, saved, {**rest, **hub_options(kwargs)}) if own else _read_foreign(name, kwargs)
    if model is not None:
        return {**parts, "model": model}
    for key, record in parts["model"].encoders.items():
        if record.needs_model:
            raise CheckpointError(
                f"{name}: {key}: its features are counted by a custom object, which is not saved; pass the model: "
                "MultimodalProcessor.from_pretrained(folder, model=mllm)."
            )
    return parts


def _read_own(name: FolderName, saved: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    registry().check_record(saved.get("plugins"))
    encoders, processors, tokens = {}, {}, {}
    try:
        for key, one in saved["modalities"].items():
            encoders[key] = read_record(EncoderRecord, one["encoder"], f"modalities.{key}.encoder")
            processors[key] = SavedProcessor(str(one["processor"]["class"]), one["processor"]["config"])
            tokens[key] = str(one["token"])
        return {
            "processors": processors,
            "tokenizer": AutoTokenizer.from_pretrained(name, **{k: v for k, v in options.items() if v is not None}),
            "model": MultimodalConfig(encoders=encoders),
            "tokens": tokens,
            "chat_template": saved.get("chat_template"),
        }
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name}: the saved processor is damaged or not complete ({type(error).__name__}: {error}); save it again."
        ) from error


def _read_foreign(name: FolderName, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        model_type = read_config(name, kwargs).get("model_type")
    except CheckpointError:  # the folder may hold a processor without a model
        model_type = None
    family = find_foreign(model_type)
    if family is None:
        raise CheckpointError(
            f"{name} holds no multimodal processor: its processor_config.json is missing or of another kind. Save one "
            f"with MultimodalProcessor.save_pretrained. {registry().explain_unavailable()}".rstrip()
        )
    return family.load().load_processor(name, **kwargs)
