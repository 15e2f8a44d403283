"""A checkpoint of what was trained and nothing else: projectors, callbacks' parameters, adapters. The rest is its base.

The base is known by a digest of its weights, so that what was trained can't be put onto another one by mistake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

from .. import adapters
from .._hf import is_peft, unwrap
from ..description import describe
from ..errors import CheckpointError
from ..folders import replaced_folder
from ..model import MultimodalModel
from ..plugins import registry

__all__ = ["load_trained", "save_trained"]

RECORD, TENSORS = "trained.json", "trained.safetensors"
_FORMAT = 1


def save_trained(model: MultimodalModel, folder: Any, *, is_main_process: bool = True) -> None:
    """Save what is trainable, and PEFT adapters, with a record of the base that they belong to.

    Args:
        model: with at least one trainable weight. Sharded weights are gathered: then every rank has to call this.
        folder: made if missing; gets ``trained.safetensors`` and ``trained.json``. A crash leaves the old or the new.
        is_main_process: whether this process writes.

    Raises:
        CheckpointError: nothing is trainable, or adapters could not be built again; says the way out.
        TypeError: ``model`` is of another kind, or wrapped by PEFT as a whole, which saves by its own method.

    Example:
        The first stage of LLaVA leaves a projector of some megabytes::

            mllm.set_trainable(encoders={"vision": (False, True)}, language_model=False)
            ...
            save_trained(mllm, "runs/projector")
            load_trained(the_same_parts_composed_again, "runs/projector")
    """
    _check(model)
    adapters.check_savable(model)
    for part, module in _modules(model).items():
        adapters.check_base_untouched(module, part)
    describe(model)
    tensors = {name: _whole(tensor).clone().contiguous() for name, tensor in _trained(model).items()}
    if not tensors:
        raise CheckpointError(
            "nothing in this model is trainable, so there is nothing to save; see set_trainable. All of it is saved by "
            "save_pretrained."
        )
    record = {
        "format": _FORMAT,
        "base": {part: _describe_base(module, tensors, part) for part, module in _modules(model).items()},
        "adapters": {part: adapters.describe(module) for part, module in _modules(model).items()},
        "token_ids": model.config.modality_token_ids,
        "plugins": model.config.plugins,
    }
    if not is_main_process:
        return
    with replaced_folder(folder, stale={RECORD, TENSORS}.__contains__) as staging:
        save_file(tensors, staging / TENSORS, metadata={"format": "pt"})
        (staging / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def load_trained(model: MultimodalModel, folder: Any, *, check_base: bool = True) -> MultimodalModel:
    """Put what :func:`save_trained` wrote onto its base.

    Args:
        model: composed of the parts that it was trained with. Parts get the adapters that are in the checkpoint, unless
            they have been wrapped alike already. Nothing is changed if something does not fit.
        folder: a folder or a hub name.
        check_base: whether to hold the base against the record, which reads all of its weights once. Its precision does
            not matter: weights count as bfloat16.

    Returns:
        ``model``. What trains is as it was, and of new adapters those that were active.

    Raises:
        CheckpointError: the base is another one, and where; or this is no such checkpoint, or a damaged one.
        MissingPluginError: a plugin that made the model is missing; says what to install.
        TypeError: ``model`` is of another kind.
    """
    _check(model)
    record, tensors = _read(folder)
    registry().check_record(record["plugins"])
    modules = _modules(model)
    if record["base"].keys() != modules.keys() or not record["token_ids"].keys() <= model.encoders.keys():
        raise CheckpointError(
            f"{folder} was trained on a model of {', '.join(record['base'])}; this one is of {', '.join(modules)}."
        )
    for part, module in modules.items():
        _check_adapters(folder, part, module, record, tensors)
        _check_fits(folder, part, module, record, tensors)
        if check_base:
            _check_base(folder, part, module, record, tensors)
    with _attached(model, record["adapters"], tensors):
        _check_places(folder, model, tensors)
    model.load_state_dict(tensors, strict=False)
    for key, token_id in record["token_ids"].items():
        if key not in model.config.modality_token_ids:
            model.set_modality_token_ids({key: token_id})
    return model


def _check(model: Any) -> None:
    if is_peft(model):
        raise TypeError(
            "this model is wrapped by PEFT as a whole; its own save_pretrained and PeftModel.from_pretrained save and "
            "load the adapters, and with them what modules_to_save=['projector'] names."
        )
    if not isinstance(model, MultimodalModel):
        raise TypeError(f"expected a MultimodalModel, not {type(model).__name__}.")


# --- what belongs to what ---------------------------------------------------------------------------------------------


def _modules(model: MultimodalModel) -> dict[str, nn.Module]:
    """The parts by the names that they have in the state dict."""
    found = {}
    for key, encoder in model.encoders.items():
        children = (name for name, _ in encoder.named_children())
        found.update({f"{key}_encoder.{name}": encoder.get_submodule(name) for name in children})
    return {**found, "language_model": model.language_model}


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trainable weights, with the buffers beside them, such as a batch norm's, and adapters; each once."""
    kept = adapters.adapter_weights(model)
    for module in model.modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            kept |= {id(buffer) for buffer in module.buffers(recurse=False)}
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.requires_grad or id(tensor) in kept:
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _base(module: nn.Module, trained: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The weights of a part that are its base: not trained, and no adapters."""
    own = {adapters.plain_name(name) for name, _ in _of(part, trained)}
    return {name: tensor for name, tensor in adapters.base_tensors(module).items() if name not in own}


def _of(part: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of one part, by their names in it."""
    start = f"{part}."
    return ((name.removeprefix(start), tensor) for name, tensor in tensors.items() if name.startswith(start))


def _describe_base(module: nn.Module, trained: Mapping[str, torch.Tensor], part: str) -> dict[str, Any]:
    return {
        "class": type(unwrap(module)).__name__,
        "name": getattr(getattr(unwrap(module), "config", None), "name_or_path", "") or None,
        "digest": _digest(_base(module, trained, part)),
    }


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, shapes and values; in bfloat16, so that a base is the same in whatever precision it is loaded."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = _whole(tensors[name])
        values = values.bfloat16() if values.is_floating_point() else values
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}\n".encode())
        digest.update(values.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """On the host, and gathered if it is sharded."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu()


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(folder: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        record_file, tensor_file = (str(cached_file(folder, name)) for name in (RECORD, TENSORS))
    except OSError as error:
        raise CheckpointError(
            f"{folder} holds nothing that save_trained wrote: no {RECORD} and {TENSORS} ({error}). Whole models are "
            "loaded by MultimodalModel.from_pretrained."
        ) from error
    try:
        with open(record_file) as file:
            record = json.load(file)
        tensors = load_file(tensor_file)
        problem = _damage(record)
    except (ValueError, SafetensorError, EOFError) as error:
        problem = str(error)
    if problem is not None:
        raise CheckpointError(f"{folder} is damaged: {problem}. Copy or save it again.")
    return record, tensors


def _damage(record: Any) -> str | None:
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        return f"{RECORD} is of another format than {_FORMAT}; it may need a later version of cornstarch-core"
    for name, kind in (("base", dict), ("adapters", dict), ("token_ids", dict), ("plugins", list)):
        if not isinstance(record.get(name), kind):
            return f"{RECORD} lacks {name!r}"
    if record["adapters"].keys() != record["base"].keys():
        return f"{RECORD} has adapters of other parts than there are"
    if not all(one is None or (isinstance(one, dict) and one.get("configs")) for one in record["adapters"].values()):
        return f"{RECORD} does not describe its adapters"
    if not all(isinstance(one, dict) and isinstance(one.get("digest"), str) for one in record["base"].values()):
        return f"{RECORD} has no digest of a part"
    if not all(type(token_id) is int for token_id in record["token_ids"].values()):
        return f"{RECORD} has a placeholder that is no number"
    return None


def _check_adapters(
    folder: Any, part: str, module: nn.Module, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """A part may be wrapped as it was then; or for a next stage, if it was not and nothing of it was trained."""
    theirs, ours = record["adapters"].get(part), adapters.describe(module)
    if ours is None or (theirs is None and not any(True for _ in _of(part, tensors))):
        return
    if theirs is None or not adapters.alike(ours, theirs):
        raise CheckpointError(
            f"{part}: it has adapters that {folder} does not know, or with other settings. Load onto a model without "
            "them, and wrap it then."
        )


def _check_fits(
    folder: Any, part: str, module: nn.Module, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Every tensor must have its place, those of adapters aside, which have none yet."""
    places = adapters.base_tensors(module)
    for name, tensor in _of(part, tensors):
        place = places.get(adapters.plain_name(name))
        if place is None and record["adapters"].get(part) is not None:
            continue
        if place is None or place.shape != tensor.shape:
            found = "there is none" if place is None else f"it has the shape {tuple(place.shape)}"
            raise CheckpointError(
                f"{folder} does not fit this model: {part}.{name} has the shape {tuple(tensor.shape)}, here {found}. "
                "Compose the model as it was composed when it was trained. Nothing was changed."
            )


def _check_base(
    folder: Any, part: str, module: nn.Module, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    base = record["base"][part]
    if _digest(_base(module, tensors, part)) != base["digest"]:
        name = f"{base.get('class')} {base.get('name') or ''}".strip()[:200]
        raise CheckpointError(
            f"{folder} was trained on another {part}: a {name}, whose weights are not those that are here. Compose the "
            "model of the parts that it was trained with; if this part was itself trained and saved before, load that "
            "first. Nothing was changed."
        )


@contextmanager
def _attached(
    model: MultimodalModel, records: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Iterator[None]:
    """Wrap the parts that were wrapped; unwrap them again if something then goes wrong."""
    before = {}
    try:
        for part, record in records.items():
            module = model.get_submodule(part)
            if record is not None and not is_peft(module):
                before[part] = module
                _put(model, part, _wrap(module, record, part, tensors))
        yield
    except BaseException:
        for part, module in before.items():
            wrapped: Any = model.get_submodule(part)
            _put(model, part, wrapped.unload() if is_peft(wrapped) else module)
        raise


def _wrap(module: nn.Module, record: Any, part: str, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """``module`` with adapters that are as precise as those that were saved."""
    wrapped = adapters.attach(module, record, part).train(module.training)
    adapters.freeze_base(wrapped)
    places = dict(wrapped.named_parameters())
    for name, saved in _of(part, tensors):
        if name in places:
            places[name].data = places[name].data.to(saved.dtype)
    return wrapped


def _put(model: nn.Module, part: str, module: nn.Module) -> None:
    parent, _, name = part.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _check_places(folder: Any, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    places = model.state_dict()
    wrong = [name for name, tensor in tensors.items() if name not in places or places[name].shape != tensor.shape]
    if wrong:
        raise CheckpointError(
            f"{folder} is damaged: {wrong[0]} does not fit the adapters that it describes. Copy or save it again. "
            "Nothing was changed."
        )
