"""Save a composed model as a folder without losing a weight. A crash leaves the old folder or the new folder."""

from __future__ import annotations

import copy
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .._hf import build, weights
from ..errors import CheckpointError
from ..modeling.composition import Composition
from . import adapters, atomic, tensors
from .describe import describe

__all__ = ["save"]


def save(model: Composition, folder: str | os.PathLike[str], is_main_process: bool, kwargs: dict[str, Any]) -> None:
    """Update the description of ``model`` in its config, check that the model can be loaded again, and write it.

    Args:
        model: model to save.
        folder: folder to write; created if missing.
        is_main_process: whether this process writes.
        kwargs: arguments for ``PreTrainedModel.save_pretrained``, which writes the files.

    Raises:
        CheckpointError: a part can't be saved in a way that loads as an equal part. The message says what to do.
    """
    adapters.check_savable(model)
    model.find_ties()
    describe(model)
    _check_rebuildable(model)
    write = super(Composition, model).save_pretrained  # the method of transformers
    # in the original format, the names of tensors would differ from those in the state dict
    kwargs = {"is_main_process": is_main_process, "save_original_format": False, **kwargs}
    if not model.should_save_on_this_rank(is_main_process):
        write(folder, **kwargs)  # this rank participates in gathering the weights
        return
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", str(folder).rstrip("/").rpartition("/")[2])
    stale = partial(atomic.is_weight_file, variant=kwargs.get("variant"))
    with atomic.replaced_folder(folder, stale) as staging, weights.shared_memory_refused():
        write(str(staging), **kwargs)
        _check_written(model, staging)


def _check_rebuildable(model: Composition) -> None:
    """Refuse parts whose weights differ from those that their config describes.

    This function builds the parts on the meta device to compare the names and shapes of the weights.
    """
    config = model.config
    parts = [("language_model", config.language_model, model.language_model, config.text_config)]
    for key, encoder in model.encoders.items():
        parts.append((key, config.encoders[key], encoder.module, getattr(config, f"{key}_config")))
    for where, record, module, part_config in parts:
        if record.adapters is not None:
            continue
        with torch.device("meta"):
            rebuilt = build.build_transformers_model(record.class_path, copy.deepcopy(part_config), record.arguments)
        different = tensors.different_names(rebuilt.state_dict(), module.state_dict()) if rebuilt is not None else []
        if different:
            raise CheckpointError(
                f"{where}: its config does not describe its weights ({', '.join(different[:3])}, …), so it would not "
                "load again. Nothing was written. Change the config, or make the module a class of your own."
            )


def _check_written(model: Composition, folder: Path) -> None:
    """Check that every tensor is in the files, or is tied to a tensor in the files."""
    written = tensors.shapes_in(folder).keys()
    tied = {name for pair in model.all_tied_weights_keys.items() if not written.isdisjoint(pair) for name in pair}
    lost = sorted(model.state_dict().keys() - written - tied - set(model._keys_to_ignore_on_save or ()))
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors would be lost ({', '.join(lost[:3])}, …); nothing was replaced. If they "
            "share memory with others, clone them, and save again."
        )
