"""Build the parts that a saved config describes, with fresh weights, or use the parts that the caller passes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from .._hf.build import build_transformers_model, default_dtype
from ..config import EncoderRecord, ModuleRecord, MultimodalConfig
from ..errors import CheckpointError
from ..modeling.encoder import CALLBACK_STEPS, ModalEncoderModule
from ..modeling.projector import MultimodalProjector, MultimodalProjectorConfig
from ..plugins import registry
from ..specs import ModalCallbacks
from . import adapters

__all__ = ["build_encoders", "build_language_model"]


def build_language_model(config: MultimodalConfig) -> nn.Module:
    """Build the language model that the config describes.

    Raises:
        TypeError: the config describes no language model.
        CheckpointError: the class is not one of transformers, so the caller has to pass the language model.
    """
    if config.language_model.class_path is None:
        raise TypeError("language_model= is missing.")
    model = _build_module("language_model", config.language_model, config.text_config)
    if model is None:
        raise _must_be_passed("language_model", "its class", "language_model=the_model")
    return model


def build_encoders(
    config: MultimodalConfig,
    encoders: Mapping[str, nn.Module],
    projectors: Mapping[str, nn.Module],
    callbacks: Mapping[str, ModalCallbacks],
) -> dict[str, ModalEncoderModule]:
    """Return all encoders by modality key: those that the caller passes, and those that the config describes.

    Args:
        config: config that describes the encoders that are not passed.
        encoders: modules, or complete encoders, by modality key.
        projectors: modules for projectors, by modality key.
        callbacks: callbacks by modality key.

    Raises:
        CheckpointError: the caller has to pass a part. The message says how.
        TypeError: a part is given twice.
        ValueError: there is no encoder for a projector or for callbacks.
    """
    parts: dict[str, Any] = dict(encoders)
    complete = {key for key, encoder in encoders.items() if isinstance(encoder, ModalEncoderModule)}
    for what, keys in (("projectors", projectors.keys()), ("callbacks", callbacks.keys())):
        if unknown := sorted(keys - config.encoders.keys() - encoders.keys()):
            raise ValueError(f"{what}= for {', '.join(unknown)}, but there is no such encoder.")
        for key in keys & complete:
            raise TypeError(f"{key}: a ModalEncoderModule is given, so give its projector and callbacks to that.")
    for key, record in config.encoders.items():
        if key in complete:
            continue
        module, given = parts.get(key), callbacks.get(key) or ModalCallbacks()
        if module is None and record.class_path is not None:
            module = _build_module(key, record, getattr(config, f"{key}_config", None))
            if module is None:
                raise _must_be_passed(key, "its encoder", f"encoders={{{key!r}: the_module}}")
        parts[key] = _build_encoder(key, record, module, projectors.get(key), given)
    return parts


def _build_module(key: str, record: ModuleRecord, config: PreTrainedConfig | None) -> nn.Module | None:
    """Build a module with its adapters. Return ``None`` if neither transformers nor a plugin can build the module."""
    with default_dtype(record.dtype):
        module: nn.Module | None = build_transformers_model(record.class_path, config, record.arguments)
        if module is None and isinstance(record, EncoderRecord) and record.encoder is not None:
            with suppress(NotImplementedError):
                module = registry().lookup("encoders", record.encoder).load().build(record.config)
    return adapters.attach(module, record.adapters, key) if module is not None else None


def _build_encoder(
    key: str, record: EncoderRecord, module: nn.Module | None, projector: nn.Module | None, given: ModalCallbacks
) -> ModalEncoderModule:
    """Make the encoder of ``module`` with its projector and its callbacks."""
    if record.projector.custom and projector is None:
        raise _must_be_passed(key, "its projector", f"projectors={{{key!r}: the_module}}")
    if not isinstance(projector, MultimodalProjector):
        with default_dtype(record.projector.dtype):
            config = MultimodalProjectorConfig.from_dict(dict(record.projector.config))
            projector = MultimodalProjector(config, projector)
    encoder = ModalEncoderModule(
        module,
        projector,
        **_callback_arguments(key, record, given),
        hidden_size=record.hidden_size,
        input_names=record.input_names,
        name=record.encoder,
    )
    encoder.callback_dtype = record.callback_dtype
    return encoder


def _callback_arguments(key: str, record: EncoderRecord, given: ModalCallbacks) -> dict[str, Any]:
    """Return the arguments of ModalEncoderModule for registered callbacks, or for callbacks that the caller passes."""
    missing = [name for name in record.custom_callbacks if getattr(given, name, None) is None]
    if missing:
        argument = f"callbacks={{{key!r}: ModalCallbacks({', '.join(f'{name}=...' for name in missing)})}}"
        raise _must_be_passed(key, f"its {', '.join(missing)} callback", argument)
    if record.callbacks is not None:
        overrides = {f"{step}_callback": getattr(given, step) for step in CALLBACK_STEPS}
        return {"callbacks": record.callbacks.name, "callback_options": record.callbacks.options, **overrides}
    width = given.hidden_size if given.hidden_size is not None else record.custom_settings.get("hidden_size")
    names = given.input_names or tuple(record.custom_settings.get("input_names", ()))
    return {"callbacks": replace(given, hidden_size=width, input_names=names)}


def _must_be_passed(where: str, what: str, argument: str) -> CheckpointError:
    call = f"MultimodalModel.from_pretrained(folder, {argument})"
    return CheckpointError(f"{where}: {what} can't be built from the saved config; pass one that is alike: {call}.")
