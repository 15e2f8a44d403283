"""Checkpoints that contain only trained weights: projectors, parameters of callbacks, and adapters.

All other weights of a model are its *base*. A checkpoint contains a digest of the base's weights, so that trained
weights are not loaded onto another base.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

from .._hf.peft import is_peft, unwrap
from ..config import read_record
from ..errors import CheckpointError
from ..model import MultimodalModel
from ..plugins import registry
from ..saving import adapters
from ..saving.atomic import replaced_folder
from ..saving.describe import describe
from ..saving.load import FolderName
from .parts import multimodal_model

__all__ = ["load_trained", "save_trained"]

RECORD, TENSORS = "trained.json", "trained.safetensors"
_FORMAT = 1
Tensors = dict[str, torch.Tensor]


def save_trained(model: MultimodalModel, folder: FolderName, *, is_main_process: bool = True) -> None:
    """Save the trainable weights and the PEFT adapters, with a record of the base that they belong to.

    Args:
        model: model with at least one trainable weight. If its weights are sharded, they are gathered, and every rank
            has to call this function.
        folder: folder to write ``trained.safetensors`` and ``trained.json`` to; it is created if it does not exist. If
            the process crashes while it writes, the folder has either the old files or the new ones.
        is_main_process: whether this process writes the files.

    Raises:
        CheckpointError: no weight is trainable, or the adapters could not be restored from a checkpoint; the message
            says what to do instead.
        TypeError: ``model`` is not a ``MultimodalModel``, or PEFT wraps the whole model; use PEFT's ``save_pretrained``
            for a wrapped model.

    Example:
        The first stage of LLaVA leaves a projector of some megabytes::

            mllm.set_trainable(encoders={"vision": (False, True)}, language_model=False)
            ...
            save_trained(mllm, "runs/projector")
            load_trained(the_same_parts_composed_again, "runs/projector")
    """
    _check_type(model)
    adapters.check_savable(model)
    describe(model)
    tensors = _trained_tensors(model)
    if not tensors:
        raise CheckpointError("nothing in this model is trainable; see set_trainable, or save it with save_pretrained.")
    record = TrainedRecord(_FORMAT, {}, {}, model.config.modality_token_ids, model.config.plugins)
    for part, module in _modules(model).items():
        adapters.check_base_untouched(module, part)
        inner = unwrap(module)
        record.base[part] = {
            "class": type(inner).__name__,
            "name": getattr(getattr(inner, "config", None), "name_or_path", "") or None,
            "digest": _digest_base(module, _of(part, tensors)),
        }
        record.adapters[part] = adapters.describe(module)
    if is_main_process:
        with replaced_folder(folder, stale={RECORD, TENSORS}.__contains__) as staging:
            save_file(tensors, staging / TENSORS, metadata={"format": "pt"})
            (staging / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n")


def load_trained(model: MultimodalModel, folder: FolderName, *, check_base: bool = True) -> MultimodalModel:
    """Load weights that :func:`save_trained` saved into a model with the same base.

    Args:
        model: model that is composed of the same parts as the trained one. A part gets the adapters of the checkpoint
            unless it already has adapters with the same settings. If the checkpoint does not fit, the model is not
            changed.
        folder: folder or hub name of the checkpoint.
        check_base: whether to compare the digest of the model's base with the recorded one, which reads all weights
            once. The dtype of the base does not matter, because the digest is of the weights in bfloat16.

    Returns:
        ``model``. The weights that were trainable before are trainable, and so are the weights of the new adapters that
        were active when they were saved.

    Raises:
        CheckpointError: the base of a part, which the message names, differs, or the checkpoint is missing or damaged.
        MissingPluginError: a plugin that the model needs is missing; the message says what to install.
        TypeError: ``model`` is not a ``MultimodalModel``, or PEFT wraps the whole model.
    """
    _check_type(model)
    saved = _read(folder)
    registry().check_record(saved.record.plugins)
    modules, token_ids = _modules(model), saved.record.token_ids
    if saved.record.base.keys() != modules.keys() or not token_ids.keys() <= model.encoders.keys():
        raise CheckpointError(
            f"{folder} was trained on a model of {', '.join(saved.record.base)}; this one is of {', '.join(modules)}."
        )
    for part, module in modules.items():
        saved.check_part(part, module, check_base)
    saved.attach_adapters(model)
    model.load_state_dict(saved.tensors, strict=False)
    model.set_modality_token_ids({**token_ids, **model.config.modality_token_ids})
    return model


@dataclass(frozen=True)
class TrainedRecord:
    """The content of ``trained.json``.

    Args:
        format: version of the file format.
        base: for each part, the digest of the weights that were not trained, and its class and name for error messages.
        adapters: for each part, the result of :func:`cornstarch_core.saving.adapters.describe`.
        token_ids: placeholder token id of each modality.
        plugins: record of the plugins that the model was made with.

    Raises:
        ValueError: an entry is not what :func:`save_trained` writes.
    """

    format: int
    base: dict[str, dict[str, Any]]
    adapters: dict[str, dict[str, Any] | None]
    token_ids: dict[str, int]
    plugins: list[dict[str, Any]]

    def __post_init__(self) -> None:
        digests = [isinstance(one, dict) and isinstance(one.get("digest"), str) for one in self.base.values()]
        configs = [one is None or (isinstance(one, dict) and one.get("configs")) for one in self.adapters.values()]
        numbers = [type(token_id) is int for token_id in self.token_ids.values()]
        if self.adapters.keys() != self.base.keys() or not all([*digests, *configs, *numbers]):
            raise ValueError(f"{RECORD} has entries that save_trained does not write")


def _check_type(model: nn.Module) -> None:
    if is_peft(model):
        raise TypeError(
            "PEFT wraps this model as a whole: its own save_pretrained and PeftModel.from_pretrained save and load the "
            "adapters, and the projectors if modules_to_save=['projector']."
        )
    multimodal_model(model)


# --- what belongs to what ---------------------------------------------------------------------------------------------


def _modules(model: MultimodalModel) -> dict[str, nn.Module]:
    """Return the modules of the model's parts, by their prefixes in the state dict."""
    found: dict[str, nn.Module] = {}
    for key, encoder in model.encoders.items():
        found |= {f"{key}_encoder.{name}": child for name, child in encoder.named_children()}
    return {**found, "language_model": model.language_model}


def _trained_tensors(model: nn.Module) -> Tensors:
    """Return trainable weights, buffers of their modules (as in a batch norm) and adapters, each once, on the CPU."""
    kept = adapters.adapter_weights(model)
    for module in model.modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            kept |= {id(buffer) for buffer in module.buffers(recurse=False)}
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.requires_grad or id(tensor) in kept:
            found.setdefault(id(tensor), (name, tensor))
    return {name: _whole(tensor).clone().contiguous() for name, tensor in found.values()}


def _of(part: str, tensors: Tensors) -> Tensors:
    """Return the tensors of one part, by their names in the part."""
    return {name[len(part) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}


def _digest_base(module: nn.Module, trained: Iterable[str]) -> str:
    """Compute a digest of the names, shapes and values of a part's base: tensors that are neither trained nor adapters.

    Floating-point values are cast to bfloat16, so that the digest does not depend on the dtype of the loaded base.
    """
    left_out = {adapters.plain_name(name) for name in trained}
    digest = hashlib.sha256()
    for name, tensor in sorted(adapters.base_tensors(module).items()):
        if name not in left_out:
            values = _whole(tensor)
            values = values.bfloat16() if values.is_floating_point() else values
            digest.update(f"{name} {tuple(values.shape)} {values.dtype}\n".encode())
            digest.update(values.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the CPU, gathered if it is sharded."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu()


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(folder: FolderName) -> _Checkpoint:
    try:
        record_file, tensor_file = (Path(str(cached_file(folder, name))) for name in (RECORD, TENSORS))
    except OSError as error:
        raise CheckpointError(
            f"{folder} holds nothing that save_trained wrote ({error}). Use from_pretrained for whole models."
        ) from error
    try:
        saved = json.loads(record_file.read_text())
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
            raise ValueError(f"{RECORD} is of another format than {_FORMAT}; a later cornstarch-core may read it")
        return _Checkpoint(folder, read_record(TrainedRecord, saved, RECORD), load_file(tensor_file))
    except (ValueError, SafetensorError, EOFError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}. Copy or save it again.") from error


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint that was read from a folder."""

    folder: FolderName
    record: TrainedRecord
    tensors: Tensors

    def check_part(self, part: str, module: nn.Module, check_base: bool) -> None:
        """Raise if the part has other adapters, lacks a tensor of the checkpoint, or has another base."""
        base, recorded, tensors = self.record.base[part], self.record.adapters[part], _of(part, self.tensors)
        own = adapters.describe(module)
        # A part may have the adapters that were saved, or, if nothing of the part was saved, new ones for a next stage.
        if own is not None and (not adapters.alike(own, recorded) if recorded else tensors):
            raise CheckpointError(
                f"{part}: it has adapters that {self.folder} does not know, or with other settings. Load first, onto a "
                "model without them, and wrap it afterwards."
            )
        places = adapters.base_tensors(module)
        for name, tensor in tensors.items():
            # A tensor without a place belongs to an adapter that is not attached yet; attach_adapters checks it.
            place = places.get(adapters.plain_name(name), tensor if recorded else None)
            if place is None or place.shape != tensor.shape:
                found = "there is none" if place is None else f"it has the shape {tuple(place.shape)}"
                raise CheckpointError(
                    f"{self.folder} does not fit this model: {part}.{name} has the shape {tuple(tensor.shape)}, here "
                    f"{found}. Compose the model as it was composed for training. Nothing was changed."
                )
        if check_base and _digest_base(module, tensors) != base["digest"]:
            name = f"{base.get('class')} {base.get('name') or ''}".strip()[:200]
            raise CheckpointError(
                f"{self.folder} was trained on another {part}: a {name} with other weights. Compose the same model; if "
                "this part was trained and saved by an earlier stage, load that first. Nothing was changed."
            )

    def attach_adapters(self, model: MultimodalModel) -> None:
        """Wrap the parts that have adapters in the checkpoint; undo this on an error or if a tensor does not fit."""
        before: dict[str, nn.Module] = {}
        try:
            for part, recorded in self.record.adapters.items():
                module = model.get_submodule(part)
                if recorded is not None and not is_peft(module):
                    before[part] = module
                    wrapped = adapters.attach(module, recorded, part).train(module.training)
                    model.set_submodule(part, wrapped)
                    adapters.freeze_base(wrapped)
                    tensors = _of(part, self.tensors)
                    for name, parameter in wrapped.named_parameters():
                        if name in tensors:  # adapters keep the dtype that they were saved in
                            parameter.data = parameter.data.to(tensors[name].dtype)
            state = model.state_dict()
            wrong = [name for name, one in self.tensors.items() if name not in state or state[name].shape != one.shape]
            if wrong:
                raise CheckpointError(
                    f"{self.folder} is damaged: {wrong[0]} does not fit the adapters that it describes. Copy or save "
                    "it again. Nothing was changed."
                )
        except BaseException:
            for part, module in before.items():
                wrapped = model.get_submodule(part)
                model.set_submodule(part, wrapped.unload() if is_peft(wrapped) else module)  # type: ignore[operator]
            raise
