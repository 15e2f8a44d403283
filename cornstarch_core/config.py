"""What a multimodal model is made of, as plain data: enough to build it again."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from ._hf import config_from_dict

__all__ = ["MultimodalConfig", "find_damage"]

_OPTIONAL_DICT, _OPTIONAL_NAME = (dict, type(None)), (str, type(None))
_MODULE = {"class": _OPTIONAL_NAME, "arguments": _OPTIONAL_DICT, "adapters": _OPTIONAL_DICT}
_ENCODER = {
    **_MODULE,
    "config": _OPTIONAL_DICT,
    "encoder": _OPTIONAL_NAME,
    "hidden_size": int,
    "input_names": list,
    "callbacks": _OPTIONAL_DICT,
    "custom_callbacks": list,
    "projector": dict,
    "token_id": (int, type(None)),
}
_PROJECTOR = {"config": dict, "custom": bool}
_CALLBACKS = {"name": str, "options": dict}


class MultimodalConfig(PreTrainedConfig):
    """Config of a :class:`~cornstarch_core.MultimodalModel`. You rarely write one: composing a model makes it.

    Args:
        text_config: the language model's config, or its dictionary.
        language_model: record of the language model: its class, dtype and adapters.
        encoders: one record a modality: class, config, width, inputs, callbacks, projector, placeholder token id.
        plugins: which plugins made the model: distribution, version and what was used.
        init_projector_type: type of the projectors that were created lazily.
        init_activation: their activation.

    ``config.vision_config`` and the like are the encoders' own configs, for every key of ``encoders`` that has one.
    """

    model_type = "cornstarch"

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        language_model: dict[str, Any] | None = None,
        encoders: dict[str, dict[str, Any]] | None = None,
        plugins: list[dict[str, Any]] | None = None,
        init_projector_type: str = "linear",
        init_activation: str = "gelu",
        **kwargs: Any,
    ) -> None:
        self.language_model = language_model or {}
        self.text_config = _as_config(text_config, self.language_model)
        self.encoders = encoders or {}
        self.plugins = plugins or []
        self.init_projector_type = init_projector_type
        self.init_activation = init_activation
        for key, record in self.encoders.items():
            setattr(self, f"{key}_config", _as_config(record.get("config"), record))
        super().__init__(**kwargs)

    @property
    def sub_configs(self) -> dict[str, type[PreTrainedConfig]]:
        """Names of the configs inside, so that settings such as ``attn_implementation`` reach them."""
        names = ["text_config", *(f"{key}_config" for key in self.encoders)]
        configs = {name: getattr(self, name, None) for name in names}
        return {name: type(config) for name, config in configs.items() if isinstance(config, PreTrainedConfig)}

    @property
    def modality_token_ids(self) -> dict[str, int]:
        """Placeholder token id of every modality that has one."""
        ids = {key: record.get("token_id") for key, record in self.encoders.items()}
        return {key: token_id for key, token_id in ids.items() if token_id is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain data. An encoder's config stands in its record, and nowhere else."""
        output = super().to_dict()
        for key in self.encoders:
            config = getattr(self, f"{key}_config", None)
            output.pop(f"{key}_config", None)
            if isinstance(config, PreTrainedConfig):
                output["encoders"][key]["config"] = config.to_dict()
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """All values, since a saved model must not depend on a later version's defaults; no paths of this machine."""
        return _without_paths(self.to_dict())


def find_damage(saved: Any) -> str | None:
    """What is wrong with the records of a saved config, for example ``"encoders.vision.hidden_size is a str"``."""
    parts: list[tuple[str, Any, dict[str, Any]]] = [
        ("", saved, {"language_model": dict, "encoders": dict, "text_config": dict}),
        ("language_model.", saved.get("language_model"), _MODULE),
    ]
    encoders = saved.get("encoders")
    for key, record in encoders.items() if isinstance(encoders, dict) else ():
        parts.append((f"encoders.{key}.", record, _ENCODER))
        for name, fields in (("projector", _PROJECTOR), ("callbacks", _CALLBACKS)):
            if isinstance(record, dict) and record.get(name) is not None:
                parts.append((f"encoders.{key}.{name}.", record[name], fields))
    return next((found for part in parts if (found := _find_wrong(*part)) is not None), None)


def _find_wrong(path: str, record: Any, fields: dict[str, Any]) -> str | None:
    if not isinstance(record, dict):
        return f"{path.rstrip('.')} is a {type(record).__name__}, not a dictionary"
    for name, kind in fields.items():
        optional = isinstance(kind, tuple)
        value = record.get(name)
        if name not in record and not optional:
            return f"{path}{name} is missing"
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            return f"{path}{name} is a {type(value).__name__}"
    dtype = record.get("dtype")
    known = dtype is None or (isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype))
    return None if known else f"{path}dtype is {str(dtype)[:20]!r}"


def _as_config(config: PreTrainedConfig | dict[str, Any] | None, record: dict[str, Any]) -> PreTrainedConfig | None:
    """A config object from its dictionary, where the recorded class is one of transformers."""
    return config_from_dict(config, record.get("class")) if isinstance(config, dict) else config


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(entry) for key, entry in value.items() if key != "_name_or_path"}
    return [_without_paths(entry) for entry in value] if isinstance(value, list) else value
