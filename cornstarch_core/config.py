"""The config of a composed model: plain data that describes its parts completely enough to build them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from transformers import PreTrainedConfig

from ._hf.build import config_from_dict

__all__ = ["CallbacksRecord", "EncoderRecord", "ModuleRecord", "MultimodalConfig", "ProjectorRecord", "read_record"]

RecordT = TypeVar("RecordT")


@dataclass(kw_only=True)
class ModuleRecord:
    """Description of a module in a saved config.

    Args:
        class_path: import path ``"package.module:Class"`` of the module inside any PEFT wrapper; ``None`` if there is
            no module.
        arguments: constructor arguments that the module's config does not contain.
        dtype: dtype of the module's weights.
        adapters: description of the PEFT adapters, from :func:`cornstarch_core.saving.adapters.describe`.
    """

    class_path: str | None = None
    arguments: dict[str, Any] | None = None
    dtype: str | None = None
    adapters: dict[str, Any] | None = None


@dataclass(kw_only=True)
class ProjectorRecord:
    """Description of a projector in a saved config.

    Args:
        config: config of the projector.
        custom: whether the user passed the projector's module, so that no plugin can build it again.
        dtype: dtype of the projector's weights.
    """

    config: dict[str, Any]
    custom: bool
    dtype: str | None = None


@dataclass(kw_only=True)
class CallbacksRecord:
    """Description, in a saved config, of callbacks that a plugin registers.

    Args:
        name: qualified name of the callbacks.
        options: options that the callbacks were built with.
    """

    name: str
    options: dict[str, Any]


@dataclass(kw_only=True)
class EncoderRecord(ModuleRecord):
    """Description of an encoder in a saved config and in a saved processor.

    Args:
        config: config of the encoder.
        encoder: qualified name of the registered encoder that describes the module.
        hidden_size: width of the encoder's features.
        input_names: names of the inputs that the encoder accepts.
        text_hidden_size: width of the language model's embeddings.
        projector: description of the projector.
        callbacks: description of the registered callbacks around the encoder.
        custom_callbacks: names of the callbacks that the user passed, so that no plugin can build them again.
        custom_settings: ``hidden_size`` and ``input_names`` of the callbacks that the user passed.
        callback_dtype: dtype of the weights of the callbacks.
        needs_model: whether counting the encoder's features requires objects that are not saved.
        token_id: id of the encoder's placeholder token.
    """

    hidden_size: int
    input_names: list[str]
    projector: ProjectorRecord
    config: dict[str, Any] | None = None
    encoder: str | None = None
    text_hidden_size: int | None = None
    callbacks: CallbacksRecord | None = None
    custom_callbacks: list[str] = field(default_factory=list)
    custom_settings: dict[str, Any] = field(default_factory=dict)
    callback_dtype: str | None = None
    needs_model: bool = False
    token_id: int | None = None


class MultimodalConfig(PreTrainedConfig):
    """Config of a :class:`~cornstarch_core.MultimodalModel`. You rarely write one: composing a model makes it.

    Args:
        text_config: config of the language model, as an object or as its dictionary.
        language_model: record of the language model: its class, dtype and adapters.
        encoders: dictionary of one :class:`EncoderRecord`, or its dictionary, for each modality key.
        plugins: records of the plugins that the model uses: distribution, version and registered names.
        init_projector_type: type of the projectors that the model makes itself.
        init_activation: activation of the projectors that the model makes itself.

    The config of each encoder is an attribute, such as ``config.vision_config`` for the key ``"vision"``.

    Raises:
        ValueError: a record lacks an entry, or an entry has a wrong type.
    """

    model_type = "cornstarch"

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        language_model: ModuleRecord | dict[str, Any] | None = None,
        encoders: Mapping[str, EncoderRecord | dict[str, Any]] | None = None,
        plugins: list[dict[str, Any]] | None = None,
        init_projector_type: str = "linear",
        init_activation: str = "gelu",
        **kwargs: Any,
    ) -> None:
        if not isinstance(encoders or {}, Mapping):
            raise ValueError(f"encoders is a {type(encoders).__name__}, not a dictionary")
        self.language_model = read_record(ModuleRecord, language_model or {}, "language_model")
        self.encoders = {
            key: read_record(EncoderRecord, record, f"encoders.{key}") for key, record in (encoders or {}).items()
        }
        self.text_config = _as_config(text_config, self.language_model)
        self.plugins = plugins or []
        self.init_projector_type = init_projector_type
        self.init_activation = init_activation
        for key, record in self.encoders.items():
            setattr(self, f"{key}_config", _as_config(record.config, record))
        super().__init__(**kwargs)

    @property
    def sub_configs(self) -> dict[str, type[PreTrainedConfig]]:
        """Names and classes of the nested configs, to which settings such as ``attn_implementation`` are passed on."""
        names = ["text_config", *(f"{key}_config" for key in self.encoders)]
        configs = {name: getattr(self, name, None) for name in names}
        return {name: type(config) for name, config in configs.items() if isinstance(config, PreTrainedConfig)}

    @property
    def modality_token_ids(self) -> dict[str, int]:
        """Dictionary of placeholder token ids by modality key, without modalities that have no id."""
        return {key: record.token_id for key, record in self.encoders.items() if record.token_id is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain data. The config of an encoder occurs only in the encoder's record."""
        output = super().to_dict()
        output["language_model"] = asdict(self.language_model)
        output["encoders"] = {key: asdict(record) for key, record in self.encoders.items()}
        for key in self.encoders:
            config = getattr(self, f"{key}_config", None)
            output.pop(f"{key}_config", None)
            if isinstance(config, PreTrainedConfig):
                output["encoders"][key]["config"] = config.to_dict()
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all values except paths of this machine.

        The defaults are included, so that a saved model does not depend on the defaults of a later version.
        """
        return _without_paths(self.to_dict())


def read_record(cls: type[RecordT], saved: object, path: str) -> RecordT:
    """Make a record from an untrusted dictionary. Entries that are not fields of the record are ignored.

    Args:
        cls: class of the record.
        saved: the dictionary, or a record of that class.
        path: name of the record in error messages.

    Raises:
        ValueError: an entry is missing or has a wrong type. The message names the entry, for example
            ``"encoders.vision.hidden_size is a str"``.
    """
    if isinstance(saved, cls):
        return saved
    if not isinstance(saved, Mapping):
        raise ValueError(f"{path} is a {type(saved).__name__}, not a dictionary")
    types = get_type_hints(cls)
    values = {}
    for one in fields(cls):  # type: ignore[arg-type]  # a dataclass
        if one.name in saved:
            values[one.name] = _checked(saved[one.name], types[one.name], f"{path}.{one.name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{path}.{one.name} is missing")
    return cls(**values)


def _checked(value: Any, expected: object, path: str) -> Any:
    """Return ``value`` if it has the annotated type. Convert a dictionary to a record if the type is a record."""
    options = get_args(expected) if type(None) in get_args(expected) else (expected,)
    record: Any = next((option for option in options if is_dataclass(option)), None)
    if record is not None and value is not None:
        return read_record(record, value, path)
    kinds = tuple(get_origin(option) or option for option in options)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{path} is a {type(value).__name__}")
    if expected == list[str] and not all(isinstance(one, str) for one in value):
        raise ValueError(f"{path} holds other things than strings")
    dtype = getattr(torch, value, None) if path.endswith("dtype") and value is not None else torch.float32
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"{path} is {value[:20]!r}")
    return value


def _as_config(config: PreTrainedConfig | dict[str, Any] | None, record: ModuleRecord) -> PreTrainedConfig | None:
    """Convert a dictionary to a config object. Return ``None`` if the recorded class is not one of transformers."""
    return config_from_dict(config, record.class_path) if isinstance(config, dict) else config


def _without_paths(value: object) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(entry) for key, entry in value.items() if key != "_name_or_path"}
    return [_without_paths(entry) for entry in value] if isinstance(value, list) else value
