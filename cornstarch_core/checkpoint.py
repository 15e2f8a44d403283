"""Models as folders: saving, loading, and loading parts by name. Nothing is lost, and nothing is drawn anew."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from . import adapters
from ._hf import build_transformers_model, write_weights
from .config import MultimodalConfig, find_damage
from .description import describe
from .errors import CheckpointError, CompositionError
from .export import export_pretrained
from .folders import is_weight_file, replaced_folder
from .plugins import Provided, registry, resolve

if TYPE_CHECKING:
    from .model import MultimodalModel

__all__ = [
    "check_loaded",
    "export_pretrained",
    "find_foreign",
    "load",
    "load_encoder",
    "read_config",
    "save",
]

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Arguments that say where to load from."""

# --- folders ----------------------------------------------------------------------------------------------------------


def save(
    model: MultimodalModel, write: Callable[..., None], folder: Any, is_main_process: bool, kwargs: dict[str, Any]
) -> None:
    """Describe ``model`` anew and write it through ``write``, the inherited ``save_pretrained``."""
    adapters.check_savable(model)
    model.find_ties()
    describe(model)
    _check_rebuildable(model)
    if not model.should_save_on_this_rank(is_main_process):
        write(folder, is_main_process=is_main_process, **kwargs)
        return
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", str(folder).rstrip("/").rpartition("/")[2])
    kwargs.setdefault("save_original_format", False)  # the names in the files are those of the state dict
    with replaced_folder(folder, partial(is_weight_file, variant=kwargs.get("variant"))) as staging:
        write_weights(write, str(staging), is_main_process=is_main_process, **kwargs)
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
        if rebuilt is None:
            continue
        different = sorted({name for name, _ in _shapes(rebuilt) ^ _shapes(module)})
        if different:
            raise CheckpointError(
                f"{where}: its config does not describe its weights ({', '.join(different[:3])}, …), so it would not "
                "come back. Nothing was written. Change the config, or make the module a class of your own."
            )


def _shapes(module: nn.Module) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in module.state_dict().items()}


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
        raw = read_config(name, kwargs)
        if raw.get("model_type") != MultimodalConfig.model_type:
            return _load_foreign(name, raw.get("model_type"), [*args, *given.values()], kwargs)
        registry().check_record(raw.get("plugins", []))
        config = _config_of(name, raw)
    config = copy.deepcopy(config)
    if kwargs.get("torch_dtype") is not None:  # the name it had before transformers 5
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    if kwargs.get("dtype", "auto") not in (None, "auto"):  # the caller's choice wins over what was saved
        for record in (config.language_model, *config.encoders.values(), *_projectors(config)):
            record["dtype"] = record["callback_dtype"] = None
    want_info = kwargs.pop("output_loading_info", False)
    try:
        model, info = read(name, *args, config=config, output_loading_info=True, **given, **kwargs)
    except (SafetensorError, EOFError) as error:
        raise _damaged(name, error) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise CheckpointError(f"{name} does not match its config: tensors of another shape. {error}") from error
    check_loaded(name, info)
    for part in (model.language_model, *(encoder.module for encoder in model.encoders.values())):
        adapters.freeze_base(part)
    return (model, info) if want_info else model


def _config_of(name: Any, raw: dict[str, Any]) -> MultimodalConfig:
    problem = find_damage(raw)
    if problem is not None:
        raise CheckpointError(f"{name}: config.json is damaged: {problem}. Copy or save it again.")
    try:
        return MultimodalConfig.from_dict(raw)
    except Exception as error:  # whatever a config class makes of damaged values
        raise CheckpointError(f"{name}: config.json can't be read: {error}. Copy or save it again.") from error


def _projectors(config: MultimodalConfig) -> list[dict[str, Any]]:
    return [record["projector"] for record in config.encoders.values() if "projector" in record]


def read_config(name: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of a folder or hub name; of ``kwargs`` those count that say where to load from."""
    options = {option: kwargs[option] for option in _HUB if option in kwargs}
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


def find_foreign(model_type: Any) -> Provided | None:
    """The checkpoint family of this ``model_type``, if a plugin can read it."""
    offered = {name.rpartition("/")[2] for name in registry().names("checkpoints")}
    return registry().lookup("checkpoints", model_type) if model_type in offered else None


def _load_foreign(name: Any, model_type: Any, given: list[Any], kwargs: dict[str, Any]) -> Any:
    family = find_foreign(model_type)
    if family is None:
        raise CheckpointError(
            f"{name} holds a model of type {str(model_type)[:60]!r}, not a {MultimodalConfig.model_type} one; types "
            f"that plugins can read: {', '.join(registry().names('checkpoints')) or 'none'}. To build on it, use "
            f"MultimodalModel.compose. {registry().explain_unavailable()}".rstrip()
        )
    if any(value is not None for value in given):
        raise TypeError(
            f"{name} holds a model of type {model_type!r}, which is loaded as it is: without encoders=, "
            "language_model=, projectors= or callbacks=."
        )
    try:
        return resolve(family.spec.load, family.plugin)(name, **kwargs)
    except (SafetensorError, EOFError) as error:
        raise _damaged(name, error) from error


def _damaged(name: Any, error: Exception) -> CheckpointError:
    return CheckpointError(f"{name}: a weight file is damaged or cut off ({error}); copy it again.")


def check_loaded(name: Any, info: Mapping[str, Any]) -> None:
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
    hub = {option: kwargs[option] for option in _HUB if option in kwargs}
    config = AutoConfig.from_pretrained(name, **hub)
    configs = [config, *(getattr(config, sub, None) for sub in config.sub_configs)]
    classes = _encoder_classes(key, {type(one) for one in configs if one is not None})
    if len(classes) > 1:
        names = ", ".join(sorted(cls.__name__ for cls in classes))
        raise CompositionError(f"{key}: {name} could be any of {names}; load it with one and use MultimodalModel(...).")
    loader = classes[0] if classes else AutoModel
    logging.get_logger(__name__).info("%s: loading %s as %s", key, name, loader.__name__)
    load: Any = partial(loader.from_pretrained, name, output_loading_info=True, **kwargs)
    encoder, info = load()
    if not _is_missing(encoder, info):
        return encoder
    # Of a part of another model transformers (5.23) finds no weights: their names there begin with where it is.
    place = _find_place(info)
    if place is not None:
        encoder, info = load(key_mapping={f"^{re.escape(place)}": ""})
    if _is_missing(encoder, info):
        raise CheckpointError(
            f"{key}: {name} holds no weights of a {loader.__name__}, so all of them would be random. Load the encoder "
            "with the class that was saved, and pass it to ModalEncoderModule."
        )
    return encoder


def _is_missing(encoder: nn.Module, info: Mapping[str, Any]) -> bool:
    """Whether not one of its weights was found. Single ones may be, such as those of a pooler."""
    return all(name in info["missing_keys"] for name, _ in encoder.named_parameters())


def _find_place(info: Mapping[str, Any]) -> str | None:
    """What stands before the encoder's names in the checkpoint, for example ``"model.encoder."``."""
    missing = set(info["missing_keys"])
    found = Counter(
        name[: -len(rest)]
        for name in info["unexpected_keys"]
        for rest in (name.split(".", depth)[-1] for depth in range(1, name.count(".") + 1))
        if rest in missing
    )
    return found.most_common(1)[0][0] if found else None


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
