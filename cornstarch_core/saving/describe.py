"""Describe a composed model as plain data, in the records of its config."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from .._hf.build import class_path, config_from_dict, constructor_arguments
from .._hf.peft import unwrap
from ..config import CallbacksRecord, EncoderRecord, ModuleRecord, ProjectorRecord
from ..modeling.composition import Composition
from ..modeling.encoder import CALLBACK_STEPS, ModalEncoderModule
from ..plugins import registry
from ..specs import ModalCallbacks
from . import adapters

__all__ = ["describe", "restore_encoder_config"]

_COUNTING = {"num_tokens_before_projector", "num_tokens_after_projector", "prepare_on_host"}
_FUNCTIONS = [one.name for one in fields(ModalCallbacks) if "Callable" in str(one.type)]


def describe(model: Composition) -> None:
    """Write the description of all parts of ``model`` into its config."""
    config, token_ids = model.config, model.config.modality_token_ids
    config.language_model = ModuleRecord(**_describe_module(model.language_model))
    config.text_config = unwrap(model.language_model).config
    for key, encoder in model.encoders.items():
        encoder_config = getattr(unwrap(encoder.module), "config", None)
        config.encoders[key] = _describe_encoder(encoder, encoder_config)
        config.encoders[key].token_id = token_ids.get(key)
        setattr(config, f"{key}_config", encoder_config if isinstance(encoder_config, PreTrainedConfig) else None)
    config.plugins = registry().record([one for e in model.encoders.values() for one in e.info.registrations])


def _describe_encoder(encoder: ModalEncoderModule, config: object) -> EncoderRecord:
    """Make the record of an encoder, without the id of its placeholder."""
    by_name, projector = encoder.callback_registration, encoder.projector
    projector_config = projector.config.to_dict()
    own = encoder.callbacks if by_name is None else ModalCallbacks()
    to_dict = getattr(config, "to_dict", None)
    record = EncoderRecord(
        **_describe_module(encoder.module),
        config=to_dict() if to_dict is not None else dict(config) if isinstance(config, dict) else None,
        encoder=encoder.registration.qualified_name if encoder.registration is not None else None,
        hidden_size=encoder.hidden_size,
        input_names=list(encoder.input_names),
        text_hidden_size=encoder.text_hidden_size,
        projector=ProjectorRecord(config=projector_config, custom=projector.is_custom, dtype=_dtype(projector)),
        callbacks=CallbacksRecord(name=by_name.qualified_name, options=encoder.callback_options) if by_name else None,
        custom_callbacks=[name for name in _FUNCTIONS if _is_custom(encoder, name)],
        custom_settings={"hidden_size": own.hidden_size, "input_names": list(own.input_names)},
        callback_dtype=_dtype(*(getattr(encoder, f"{step}_callback") for step in CALLBACK_STEPS)),
    )
    needs_config = encoder.registration is not None and not isinstance(restore_encoder_config(record), type(config))
    record.needs_model = needs_config or not _COUNTING.isdisjoint(record.custom_callbacks)
    return record


def _describe_module(module: nn.Module | None) -> dict[str, Any]:
    """Return the fields of a :class:`~cornstarch_core.config.ModuleRecord` for ``module``."""
    if module is None:
        return {}
    return {
        "class_path": class_path(module),
        "arguments": constructor_arguments(module),
        "dtype": _dtype(module),
        "adapters": adapters.describe(module),
    }


def _is_custom(encoder: ModalEncoderModule, name: str) -> bool:
    """Whether the user passed this callback as an object, so that no plugin can build it again."""
    callback = getattr(encoder.callbacks, name)
    attached = getattr(encoder, f"{name}_callback", callback)  # a user may have replaced the callback of a step
    from_plugin = encoder.callback_registration is not None and name not in encoder.overrides
    return attached is not None and (attached is not callback or not from_plugin)


def _dtype(*modules: object) -> str | None:
    """Return the dtype of the first floating-point weight in ``modules``, or ``None``. Skip objects without weights."""
    weights = (weight for one in modules if isinstance(one, nn.Module) for weight in unwrap(one).parameters())
    return next((str(weight.dtype).removeprefix("torch.") for weight in weights if weight.is_floating_point()), None)


def restore_encoder_config(record: EncoderRecord) -> Any:
    """Return the encoder's config from its record.

    The config is an object if transformers or a plugin has the encoder's config class, else a dictionary.
    """
    if record.config is None:
        return None
    config = config_from_dict(record.config, record.class_path)
    if config is None and record.encoder is not None:
        registration = registry().lookup("encoders", record.encoder)
        classes = dict(zip(registration.spec.classes, registration.classes(), strict=True))
        config_class = getattr(classes.get(str(record.class_path)), "config_class", None)
        if isinstance(config_class, type) and issubclass(config_class, PreTrainedConfig):
            config = config_class.from_dict(record.config)
    return config if config is not None else record.config
