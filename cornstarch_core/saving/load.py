"""Load a composed model from a folder or a hub."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedConfig

from .._hf.hub import hub_options
from ..config import MultimodalConfig
from ..errors import CheckpointError
from ..modeling.composition import Composition
from ..plugins import Registration, registry
from ..specs import CheckpointSpec
from . import adapters

FolderName = str | os.PathLike[str]

__all__ = ["FolderName", "check_loaded", "find_foreign", "load", "read_config"]


def load(
    cls: type[Composition], name: FolderName, args: tuple[Any, ...], given: Mapping[str, Any], kwargs: dict[str, Any]
) -> Any:
    """Check that ``name`` can be loaded, then load it.

    Args:
        cls: class of the model to load.
        name: a folder or a hub name.
        args: positional arguments for ``PreTrainedModel.from_pretrained``, which reads the files.
        given: parts to use in place of those that the config describes, by the name of the argument of
            ``MultimodalModel.from_pretrained``; ``None`` for arguments that were not passed.
        kwargs: keyword arguments for ``PreTrainedModel.from_pretrained``.

    Raises:
        CheckpointError: the checkpoint is not one that can be loaded, a part is missing, or the files are damaged.
        MissingPluginError: a plugin that the saved model uses is missing. The message says what to install.
    """
    config = copy.deepcopy(kwargs.pop("config", None))
    try:
        if config is None:
            raw = read_config(name, kwargs)
            if raw.get("model_type") != MultimodalConfig.model_type:
                return _load_foreign(name, raw.get("model_type"), (*args, *given.values()), kwargs)
            config = _restore_config(name, raw)
        return _load_own(cls, name, args, config, {**given, **kwargs})
    except (SafetensorError, EOFError) as error:
        raise CheckpointError(f"{name}: a weight file is damaged or cut off ({error}); copy it again.") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise CheckpointError(f"{name} does not match its config: tensors of another shape. {error}") from error


def read_config(name: FolderName, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Read the ``config.json`` of a folder or hub name.

    ``kwargs`` are arguments of ``from_pretrained``; the function uses only those that select the files to load.
    """
    try:
        config = PreTrainedConfig.get_config_dict(name, **hub_options(kwargs))[0]
        if not config:
            raise OSError("there is none")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} holds no multimodal model: no readable config.json ({error}). MultimodalModel.compose makes one."
        ) from error
    return config


# --- models of other libraries ----------------------------------------------------------------------------------------


def find_foreign(model_type: object) -> Registration[CheckpointSpec] | None:
    """Return the checkpoint family with this ``model_type``, or ``None`` if no plugin registers it."""
    offered = {name.rpartition("/")[2] for name in registry().names("checkpoints")}
    return registry().lookup("checkpoints", str(model_type)) if model_type in offered else None


def _load_foreign(name: FolderName, model_type: object, given: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    family = find_foreign(model_type)
    if family is None:
        raise CheckpointError(
            f"{name} holds a model of type {str(model_type)[:60]!r}, not a {MultimodalConfig.model_type} one; types "
            f"that plugins can read: {', '.join(registry().names('checkpoints')) or 'none'}. To build on it, use "
            f"MultimodalModel.compose. {registry().explain_unavailable()}".rstrip()
        )
    if any(value is not None for value in given):
        parts = "encoders=, language_model=, projectors= or callbacks="
        raise TypeError(f"{name} holds a model of type {model_type!r}, which is loaded as it is: without {parts}.")
    return family.load().load(name, **kwargs)


# --- models that save_pretrained wrote --------------------------------------------------------------------------------


def _restore_config(name: FolderName, raw: dict[str, Any]) -> MultimodalConfig:
    registry().check_record(raw.get("plugins", []))
    try:
        for section in ("language_model", "encoders", "text_config"):
            if not isinstance(raw.get(section), dict):
                raise ValueError(
                    f"{section} is {'missing' if section not in raw else f'a {type(raw[section]).__name__}'}"
                )
        return MultimodalConfig.from_dict(raw)
    except Exception as error:  # config classes raise all kinds of errors for damaged values
        raise CheckpointError(f"{name}: config.json is damaged: {error}. Copy or save it again.") from error


def _load_own(
    cls: type[Composition], name: FolderName, args: tuple[Any, ...], config: MultimodalConfig, kwargs: dict[str, Any]
) -> Any:
    if kwargs.get("torch_dtype") is not None:  # the name of dtype before transformers 5
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    if kwargs.get("dtype", "auto") not in (None, "auto"):  # the caller's dtype overrides the saved dtypes
        config.language_model.dtype = None
        for record in config.encoders.values():
            record.dtype = record.callback_dtype = record.projector.dtype = None
    want_info = kwargs.pop("output_loading_info", False)
    read: Any = super(Composition, cls).from_pretrained  # the method of transformers
    model, info = read(name, *args, config=config, output_loading_info=True, **kwargs)
    check_loaded(name, info)
    for part in (model.language_model, *(encoder.module for encoder in model.encoders.values())):
        adapters.freeze_base(part)
    return (model, info) if want_info else model


def check_loaded(name: FolderName, info: Mapping[str, Any]) -> None:
    """Refuse a loaded model whose weights are not exactly those in the files."""
    problems = {
        "missing from the files": sorted(info.get("missing_keys", ())),
        "without a place in the model": sorted(info.get("unexpected_keys", ())),
        "of another shape": sorted(str(key) for key in info.get("mismatched_keys", ())),
    }
    found = [f"{len(keys)} tensors {what} ({', '.join(keys[:3])}, …)" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"{name} does not match its config: {'; '.join(found)}. Copy or save it again.")
