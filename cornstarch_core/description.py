"""A composed model as plain data, and built again from it: what its config holds of every part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedConfig

from . import adapters
from ._hf import build_transformers_model, class_path, constructor_arguments, default_dtype, unwrap
from .config import MultimodalConfig
from .encoder import ModalEncoderModule
from .errors import CheckpointError
from .plugins import registry, resolve
from .projector import MultimodalProjector, MultimodalProjectorConfig
from .specs import ModalCallbacks

if TYPE_CHECKING:
    from .model import MultimodalModel

__all__ = ["build_encoders", "build_language_model", "describe"]

_STEPS = ("preprocess", "postprocess_module", "postprocess_projector")
_FUNCTIONS = (*_STEPS, "run_module", "num_tokens", "num_features", "process", "dummy_inputs")


# --- a model as plain data --------------------------------------------------------------------------------------------


def describe(model: MultimodalModel) -> None:
    """Write what ``model`` is made of into its config."""
    config = model.config
    config.language_model = _describe_module(model.language_model)
    config.text_config = unwrap(model.language_model).config
    for key, encoder in model.encoders.items():
        token_id = config.encoders[key].get("token_id")
        config.encoders[key] = {**_describe_encoder(encoder), "token_id": token_id}
        setattr(config, f"{key}_config", _hf_config(encoder.module))
    config.plugins = registry().record([used for encoder in model.encoders.values() for used in encoder.used])


def _describe_encoder(encoder: ModalEncoderModule) -> dict[str, Any]:
    assert encoder.projector is not None  # made when the model was composed
    own = encoder.modal_callbacks if encoder.callback_provided is None else ModalCallbacks()
    callbacks = None
    if encoder.callback_provided is not None:
        callbacks = {"name": encoder.callback_provided.qualified_name, "options": encoder.callback_options}
    return {
        **_describe_module(encoder.module),
        "config": _plain_config(encoder.module),  # a config of transformers takes its place when it is saved
        "encoder": encoder.provided.qualified_name if encoder.provided is not None else None,
        "hidden_size": encoder.hidden_size,
        "input_names": list(encoder.input_names),
        "callbacks": callbacks,
        "custom_callbacks": [part for part in _FUNCTIONS if _is_own(encoder, part)],
        "callback_dtype": _callback_dtype(encoder),
        "custom_settings": {"hidden_size": own.hidden_size, "input_names": list(own.input_names)},
        "projector": {
            "config": encoder.projector.config.to_dict(),
            "custom": encoder.projector.is_custom,
            "dtype": _dtype(encoder.projector),
        },
    }


def _is_own(encoder: ModalEncoderModule, part: str) -> bool:
    """Whether this callback was handed in as an object, so that no plugin can make it again."""
    callback = getattr(encoder.modal_callbacks, part)
    if part in _STEPS:  # these may have been replaced since
        attached = getattr(encoder, f"{part}_callback")
        return attached is not None and (attached is not callback or not _is_from_plugin(encoder, part))
    return callback is not None and not _is_from_plugin(encoder, part)


def _is_from_plugin(encoder: ModalEncoderModule, part: str) -> bool:
    return encoder.callback_provided is not None and part not in encoder.overrides


def _describe_module(module: nn.Module | None) -> dict[str, Any]:
    if module is None:
        return {"class": None}
    return {
        "class": class_path(module),
        "arguments": constructor_arguments(module),
        "dtype": _dtype(module),
        "adapters": adapters.describe(module),
    }


def _callback_dtype(encoder: ModalEncoderModule) -> str | None:
    modules = (getattr(encoder, f"{part}_callback") for part in _STEPS)
    dtypes = (_dtype(module) for module in modules if isinstance(module, nn.Module))
    return next((dtype for dtype in dtypes if dtype is not None), None)


def _dtype(module: nn.Module) -> str | None:
    dtypes = (parameter.dtype for parameter in unwrap(module).parameters() if parameter.is_floating_point())
    first = next(dtypes, None)
    return str(first).removeprefix("torch.") if first is not None else None


def _hf_config(module: nn.Module | None) -> PreTrainedConfig | None:
    config = getattr(unwrap(module), "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def _plain_config(module: nn.Module | None) -> dict[str, Any] | None:
    config = getattr(unwrap(module), "config", None)
    if isinstance(config, dict):
        return dict(config)
    to_dict = getattr(config, "to_dict", None)
    return to_dict() if to_dict is not None else None


# --- and back ---------------------------------------------------------------------------------------------------------


def build_language_model(config: MultimodalConfig) -> nn.Module:
    """The language model that the config describes, with fresh weights."""
    record = config.language_model
    if not record:
        raise TypeError("language_model= is missing.")
    with default_dtype(record.get("dtype")):
        model = build_transformers_model(record.get("class"), config.text_config, record.get("arguments"))
    if model is None:
        raise _own_making("language_model", "the language model", "language_model=the_model")
    return adapters.attach(model, record.get("adapters"), "language_model")


def build_encoders(
    config: MultimodalConfig,
    encoders: Mapping[str, nn.Module],
    projectors: Mapping[str, nn.Module],
    callbacks: Mapping[str, ModalCallbacks],
) -> dict[str, ModalEncoderModule]:
    """All encoders: those given, and those that the config describes."""
    known = config.encoders.keys() | encoders.keys()
    for what, keys in (("projectors", projectors.keys()), ("callbacks", callbacks.keys())):
        if keys - known:
            raise ValueError(f"{what}= for {', '.join(sorted(keys - known))}, but there is no such encoder.")
    parts: dict[str, Any] = dict(encoders)
    for key, encoder in encoders.items():
        if isinstance(encoder, ModalEncoderModule) and (key in projectors or key in callbacks):
            raise TypeError(f"{key}: a ModalEncoderModule is given, so give its projector and callbacks to that.")
    for key in config.encoders:
        if not isinstance(parts.get(key), ModalEncoderModule):
            parts[key] = _build_encoder(key, config, parts.get(key), projectors.get(key), callbacks.get(key))
    return parts


def _build_encoder(
    key: str,
    config: MultimodalConfig,
    module: nn.Module | None,
    projector: nn.Module | None,
    callbacks: ModalCallbacks | None,
) -> ModalEncoderModule:
    record = config.encoders[key]
    if module is None and record.get("class") is not None:
        with default_dtype(record.get("dtype")):
            module = _build_module(key, record, getattr(config, f"{key}_config", None))
        module = adapters.attach(module, record.get("adapters"), key)
    encoder = ModalEncoderModule(
        module,
        _build_projector(key, record["projector"], projector),
        **_build_callbacks(key, record, callbacks or ModalCallbacks()),
        hidden_size=record["hidden_size"],
        input_names=record["input_names"],
        name=record.get("encoder"),
    )
    encoder.callback_dtype = record.get("callback_dtype")
    return encoder


def _build_callbacks(key: str, record: Mapping[str, Any], given: ModalCallbacks) -> dict[str, Any]:
    """Arguments of ModalEncoderModule: the registered callbacks by name, and those that are handed in again."""
    missing = [part for part in record.get("custom_callbacks", ()) if getattr(given, part) is None]
    if missing:
        arguments = ", ".join(f"{part}=..." for part in missing)
        raise _own_making(
            key, f"its {', '.join(missing)} callback", f"callbacks={{{key!r}: ModalCallbacks({arguments})}}"
        )
    named = record.get("callbacks")
    if named:
        overrides = {f"{part}_callback": getattr(given, part) for part in _STEPS}
        return {"callbacks": named["name"], "callback_options": named["options"], **overrides}
    settings = record.get("custom_settings") or {}
    width = given.hidden_size if given.hidden_size is not None else settings.get("hidden_size")
    names = given.input_names or tuple(settings.get("input_names", ()))
    return {"callbacks": replace(given, hidden_size=width, input_names=names)}


def _own_making(where: str, what: str, argument: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: {what} is of the user's own making, so it can't be built from the saved config; pass one built "
        f"alike: MultimodalModel.from_pretrained(folder, {argument})."
    )


def _build_module(key: str, record: Mapping[str, Any], config: PreTrainedConfig | None) -> nn.Module:
    module = build_transformers_model(record.get("class"), config, record.get("arguments"))
    if module is not None:
        return module
    if record.get("encoder") is not None:
        provided = registry().lookup("encoders", record["encoder"])
        if provided.spec.build is not None:
            return resolve(provided.spec.build, provided.plugin)(record.get("config"))
    raise _own_making(key, "its encoder", f"encoders={{{key!r}: the_module}}")


def _build_projector(key: str, record: Mapping[str, Any], projector: nn.Module | None) -> MultimodalProjector:
    if record["custom"] and projector is None:
        raise _own_making(key, "its projector", f"projectors={{{key!r}: the_module}}")
    if isinstance(projector, MultimodalProjector):
        return projector
    with default_dtype(record.get("dtype")):
        return MultimodalProjector(MultimodalProjectorConfig.from_dict(dict(record["config"])), projector)
