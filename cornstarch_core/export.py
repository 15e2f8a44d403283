"""Composed models as checkpoints of other families: which family it is, and writing its folder.

Knows no family: what theirs looks like is a plugin's to say.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from . import adapters
from ._hf import use_published_names, write_weights
from .errors import CheckpointError
from .folders import is_weight_file, replaced_folder
from .plugins import Provided, registry, resolve

if TYPE_CHECKING:
    from .model import MultimodalModel
    from .processor import MultimodalProcessor

__all__ = ["export_pretrained"]


def export_pretrained(
    model: MultimodalModel,
    folder: str | os.PathLike[str],
    processor: MultimodalProcessor | None = None,
    *,
    max_shard_size: int | str = "50GB",
) -> None:
    """Write a model as a checkpoint of a family that others know, so that whatever reads that family reads it.

    The callback in use decides which family: ``"llava"`` makes a ``LlavaForConditionalGeneration``. Among families that
    share one, the encoder decides. Weights are shared on the way, not copied; a crash leaves the old folder or the new
    one. A placeholder id outside the embedding table, which no other class takes, is given a place in it: the exported
    embeddings and head grow up to that id, each new row the mean of the old ones, so that no new token is ever the
    likeliest. The logits of the old tokens stay the same, though a larger matrix product may round otherwise.

    Args:
        model: what to export; it stays as it is.
        folder: folder to make or replace. Other files in it stay.
        processor: the model's processor, to be exported, too.
        max_shard_size: weights are written in files of at most this size.

    Raises:
        CheckpointError: that family can't hold this model; says why and what to do.
        TypeError: ``processor`` is of another kind.

    Example:
        ::

            from cornstarch_core.checkpoint import export_pretrained

            export_pretrained(mllm, "my-llava", processor)
            LlavaForConditionalGeneration.from_pretrained("my-llava")
    """
    from .processing.files import is_processor_file

    adapters.check_merged(model)
    _check_processor(model, processor)
    family = _find_family(model)
    theirs, their_processor = resolve(str(family.spec.export), family.plugin)(model, processor)
    _check_dtypes(model, theirs)
    use_published_names(theirs)

    def stale(name: str) -> bool:
        return is_weight_file(name) or (processor is not None and is_processor_file(name))

    with replaced_folder(folder, stale) as staging:
        write_weights(theirs.save_pretrained, str(staging), max_shard_size=max_shard_size)
        _check_written(theirs, staging)
        if their_processor is not None:
            their_processor.save_pretrained(str(staging))


def _check_dtypes(model: nn.Module, theirs: PreTrainedModel) -> None:
    """Other classes load every weight in one dtype, that of their config, but for those they keep in float32."""
    kept = set(theirs._keep_in_fp32_modules_strict or ())  # names of modules, such as Voxtral's embed_positions
    found = {
        parameter.dtype: name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and not (parameter.dtype == torch.float32 and kept & set(name.split(".")))
    }
    if len(found) > 1:
        places = ", ".join(f"{name} in {str(dtype).removeprefix('torch.')}" for dtype, name in found.items())
        raise CheckpointError(
            f"the parts have different dtypes ({places}); the exported class would load them in one. Choose it, "
            "for example mllm.to(torch.bfloat16), and export again."
        )


def _check_processor(model: MultimodalModel, processor: MultimodalProcessor | None) -> None:
    from .processor import MultimodalProcessor

    if processor is None:
        return
    if not isinstance(processor, MultimodalProcessor):
        raise TypeError(f"processor= must be a MultimodalProcessor, not {type(processor).__name__}.")
    of_model = {key: model.config.modality_token_ids.get(key) for key in model.encoders}
    if processor.token_ids != of_model:
        raise CheckpointError(
            f"the processor's placeholder ids are {processor.token_ids}, the model's {of_model}; make the processor "
            "for this model: MultimodalProcessor(tokenizer=..., model=mllm)."
        )


def _find_family(model: MultimodalModel) -> Provided:
    """The one family whose callback, and whose encoder if it names one, one of the model's encoders has."""
    provided = [registry().lookup("checkpoints", name) for name in registry().names("checkpoints")]
    families = [(family, _marks(family)) for family in provided if family.spec.export and family.spec.callback]
    has = {key: (_name(one.callback_provided), _name(one.provided)) for key, one in model.encoders.items()}
    found = [family for family, marks in families if any(_fits(marks, one) for one in has.values())]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{key} has {_say(*one)}" for key, one in has.items())
    if found:
        raise CheckpointError(
            f"the model could be any of {', '.join(family.qualified_name for family in found)}; {there}. Block the "
            "plugins of the others with CORNSTARCH_DISABLE_PLUGINS."
        )
    offered = ", ".join(f"{family.qualified_name} for {_say(*marks)}" for family, marks in families)
    raise CheckpointError(
        f"no encoder has a callback by which a family could be chosen: {there}; plugins export {offered or 'nothing'}. "
        f'Compose with ModalEncoderModule(..., callbacks="name"). {registry().explain_unavailable()}'.rstrip()
    )


def _marks(family: Provided) -> tuple[str | None, str | None]:
    """Qualified names of a family's callback and encoder; its plugin's own win over others of that name."""
    named = {"callbacks": family.spec.callback, "encoders": family.spec.encoder}
    callback, encoder = (
        _name(registry().lookup(kind, name, prefer=family.plugin)) if name is not None else None
        for kind, name in named.items()
    )
    return callback, encoder


def _fits(wanted: tuple[str | None, str | None], has: tuple[str | None, str | None]) -> bool:
    """Whether an encoder of the model shows that the model is of a family."""
    return wanted[0] == has[0] and wanted[1] in (None, has[1])


def _name(provided: Provided | None) -> str | None:
    return provided.qualified_name if provided is not None else None


def _say(callback: str | None, encoder: str | None) -> str:
    said = "no callback" if callback is None else f"the callback {callback!r}"
    return said if encoder is None else f"{said} with the encoder {encoder!r}"


def _check_written(theirs: PreTrainedModel, folder: Path) -> None:
    """Nothing may be lost. Saving may rename tensors and split them, so their sizes are what can be compared."""
    expected = {tensor.data_ptr(): tensor.numel() for tensor in theirs.state_dict().values()}
    written = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 - no mapping
        written += sum(math.prod(shape) for shape in shapes)
    if written != sum(expected.values()):
        raise CheckpointError(
            f"{sum(expected.values())} values were to be written, {written} were; nothing was replaced. If tensors "
            "share memory, untie them, for example by cloning, and export again."
        )
