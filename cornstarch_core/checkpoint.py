"""Models as folders: describing a composed model as plain data, building it again, and loading parts by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from . import adapters
from ._hf import build_transformers_model, class_path, constructor_arguments, default_dtype, unwrap
from .config import MultimodalConfig
from .encoder import ModalEncoderModule
from .errors import CheckpointError, CompositionError
from .folders import replaced_folder
from .plugins import registry, resolve
from .projector import MultimodalProjector, MultimodalProjectorConfig
from .specs import ModalCallbacks

if TYPE_CHECKING:
    from .model import MultimodalModel

__all__ = ["build_encoders", "build_language_model", "describe", "load", "load_encoder", "save"]

_WEIGHT_FILES = re.compile(r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


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
    own = [part for part in ("preprocess", "postprocess_module", "postprocess_projector") if _is_own(encoder, part)]
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
        "custom_callbacks": own,
        "projector": {
            "config": encoder.projector.config.to_dict(),
            "custom": encoder.projector.is_custom,
            "dtype": _dtype(encoder.projector),
        },
    }


def _is_own(encoder: ModalEncoderModule, part: str) -> bool:
    """Whether this callback was handed in as an object, so that no plugin can make it again."""
    callback = getattr(encoder, f"{part}_callback")
    from_plugin = encoder.callback_provided is not None and part not in encoder.overrides
    return callback is not None and not from_plugin


def _describe_module(module: nn.Module | None) -> dict[str, Any]:
    if module is None:
        return {"class": None}
    return {
        "class": class_path(module),
        "arguments": constructor_arguments(module),
        "dtype": _dtype(module),
        "adapters": adapters.describe(module),
    }


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
    named = record.get("callbacks")
    if record.get("custom_callbacks") and callbacks is None:
        parts = ", ".join(record["custom_callbacks"])
        raise _own_making(key, f"its {parts} callback", f"callbacks={{{key!r}: ModalCallbacks(...)}}")
    own = {part: getattr(callbacks, part) for part in record.get("custom_callbacks", ())}
    return ModalEncoderModule(
        module,
        _build_projector(key, record["projector"], projector),
        callbacks=named["name"] if named else callbacks,
        callback_options=named["options"] if named else None,
        hidden_size=record["hidden_size"],
        input_names=record["input_names"],
        name=record.get("encoder"),
        **({f"{part}_callback": callback for part, callback in own.items()} if named else {}),
    )


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


# --- folders ----------------------------------------------------------------------------------------------------------


def save(
    model: MultimodalModel, write: Callable[..., None], folder: Any, is_main_process: bool, kwargs: dict[str, Any]
) -> None:
    """Describe ``model`` anew and write it through ``write``, the inherited ``save_pretrained``."""
    adapters.check_savable(model)
    describe(model)
    _check_rebuildable(model)
    if not model.should_save_on_this_rank(is_main_process):
        write(folder, is_main_process=is_main_process, **kwargs)
        return
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", str(folder).rstrip("/").rpartition("/")[2])
    kwargs.setdefault("save_original_format", False)  # the names in the files are those of the state dict
    with replaced_folder(folder, stale=lambda name: _WEIGHT_FILES.fullmatch(name) is not None) as staging:
        try:
            write(str(staging), is_main_process=is_main_process, **kwargs)
        except RuntimeError as error:
            if "shared tensors" not in str(error):
                raise
            raise CheckpointError(
                f"tensors share memory in a way that a folder can't hold; untie them: {error}"
            ) from error
        _check_written(model, staging)


def _check_rebuildable(model: MultimodalModel) -> None:
    """What the config describes must have the weights that are saved. Builds on the meta device: names, no memory."""
    records = {"language_model": (model.config.language_model, model.language_model, model.config.text_config)}
    for key, encoder in model.encoders.items():
        records[key] = (model.config.encoders[key], encoder.module, getattr(model.config, f"{key}_config"))
    for where, (record, module, config) in records.items():
        if record.get("adapters") is not None:
            continue
        with torch.device("meta"):
            rebuilt = build_transformers_model(record["class"], copy.deepcopy(config), record.get("arguments"))
        if rebuilt is not None and rebuilt.state_dict().keys() != module.state_dict().keys():
            different = sorted(rebuilt.state_dict().keys() ^ module.state_dict().keys())
            raise CheckpointError(
                f"{where}: its config does not describe its weights ({', '.join(different[:3])}, …), so it would not "
                "come back. Nothing was written. Change the config, or make the module a class of your own."
            )


def _check_written(model: MultimodalModel, folder: Path) -> None:
    """Nothing may be lost: every tensor is in the files, or tied to one that is."""
    written: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            written.update(tensors.keys())
    ties = model.all_tied_weights_keys
    tied = {name for pair in ties.items() if written & set(pair) for name in pair}
    ignored = model._keys_to_ignore_on_save or set()
    lost = sorted(model.state_dict().keys() - written - tied - set(ignored))
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors would be lost by saving ({', '.join(lost[:3])}, …); nothing was replaced. If they "
            "share memory with others, untie them, for example by cloning, and save again."
        )


def load(
    cls: type[MultimodalModel],
    read: Callable[..., Any],
    name: Any,
    args: tuple[Any, ...],
    given: dict[str, Any],
    kwargs: dict[str, Any],
) -> Any:
    """Check that ``name`` can be loaded, then load it through ``read``, the inherited ``from_pretrained``."""
    config = kwargs.pop("config", None)
    if config is None:
        raw = _read_config(name, kwargs)
        if raw.get("model_type") != MultimodalConfig.model_type:
            return _load_foreign(name, raw.get("model_type"), kwargs)
        registry().check_record(raw.get("plugins", []))
        config = MultimodalConfig.from_dict(raw)
    if kwargs.get("dtype", "auto") not in (None, "auto"):  # the caller's choice wins over what was saved
        for record in (config.language_model, *config.encoders.values(), *_projectors(config)):
            record["dtype"] = None
    want_info = kwargs.pop("output_loading_info", False)
    try:
        model, info = read(name, *args, config=config, output_loading_info=True, **given, **kwargs)
    except (SafetensorError, EOFError) as error:
        raise CheckpointError(f"{name}: a weight file is damaged or cut off ({error}); copy it again.") from error
    _check_loaded(name, info)
    for part in (model.language_model, *(encoder.module for encoder in model.encoders.values())):
        adapters.freeze_base(part)
    return (model, info) if want_info else model


def _projectors(config: MultimodalConfig) -> list[dict[str, Any]]:
    return [record["projector"] for record in config.encoders.values() if "projector" in record]


def _read_config(name: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    hub = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
    options = {option: kwargs[option] for option in hub if option in kwargs}
    try:
        config = PreTrainedConfig.get_config_dict(name, **options)[0]
        if not config:
            raise OSError("there is none")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} holds no multimodal model: no readable config.json ({error}). Save one with "
            "MultimodalModel.save_pretrained, or compose one with MultimodalModel.compose."
        ) from error
    return config


def _load_foreign(name: Any, model_type: Any, kwargs: dict[str, Any]) -> Any:
    offered = registry().names("checkpoints")
    if model_type not in {one.rpartition("/")[2] for one in offered}:
        raise CheckpointError(
            f"{name} holds a model of type {str(model_type)[:60]!r}, not a {MultimodalConfig.model_type} one; types "
            f"that plugins can read: {', '.join(offered) or 'none'}. To build on it, use MultimodalModel.compose."
            f" {registry().explain_unavailable()}".rstrip()
        )
    provided = registry().lookup("checkpoints", model_type)
    return resolve(provided.spec.load, provided.plugin)(name, **kwargs)


def _check_loaded(name: Any, info: Mapping[str, Any]) -> None:
    """A model with weights that were never saved, or a weight that found no place, is not the model that was saved."""
    problems = {
        "missing from the files": sorted(info.get("missing_keys", ())),
        "without a place in the model": sorted(info.get("unexpected_keys", ())),
        "of another shape": sorted(str(key) for key in info.get("mismatched_keys", ())),
    }
    found = [f"{len(keys)} tensors {what} ({', '.join(keys[:3])}, …)" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"{name} does not match its config: {'; '.join(found)}. Copy or save it again.")


# --- parts by name ----------------------------------------------------------------------------------------------------


def load_encoder(key: str, name: str, **kwargs: Any) -> PreTrainedModel:
    """Load an encoder by checkpoint name: the tower that a plugin knows, or what ``AutoModel`` makes of it."""
    hub = {option: kwargs[option] for option in ("cache_dir", "revision", "token") if option in kwargs}
    config = AutoConfig.from_pretrained(name, **hub)
    configs = [config, *(getattr(config, sub, None) for sub in config.sub_configs)]
    classes = _encoder_classes(key, {type(one) for one in configs if one is not None})
    if len(classes) > 1:
        names = ", ".join(sorted(cls.__name__ for cls in classes))
        raise CompositionError(f"{key}: {name} could be any of {names}; load it with one and use MultimodalModel(...).")
    loader = classes[0] if classes else AutoModel
    logging.get_logger(__name__).info("%s: loading %s as %s", key, name, loader.__name__)
    return loader.from_pretrained(name, **kwargs)


def _encoder_classes(key: str, configs: set[type]) -> list[type[PreTrainedModel]]:
    """The first class of every family that is made from one of ``configs``; of this modality if there are."""
    found = []
    for qualified in registry().names("encoders"):
        provided = registry().lookup("encoders", qualified)
        for path in provided.spec.classes:
            cls = resolve(path, provided.plugin)
            if getattr(cls, "config_class", None) in configs:
                found.append((provided.spec.modality, cls))
                break
    of_key = [cls for modality, cls in found if modality == key]
    return list(dict.fromkeys(of_key or [cls for _, cls in found]))
