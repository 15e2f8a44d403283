"""Write composed models as checkpoints of other families: choose the family, check the dtypes, write the folder.

This module contains no code for a particular family; plugins register the families.
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .._hf.weights import shared_memory_refused, use_published_names
from ..errors import CheckpointError
from ..model import MultimodalModel
from ..plugins import Registration, registry
from ..processing.folder import is_processor_file
from ..processor import MultimodalProcessor
from ..saving import adapters, atomic, tensors
from ..specs import CheckpointSpec

__all__ = ["export_pretrained"]


def export_pretrained(
    model: MultimodalModel,
    folder: str | os.PathLike[str],
    processor: MultimodalProcessor | None = None,
    *,
    max_shard_size: int | str = "50GB",
) -> None:
    """Write a model as a checkpoint of another family, which every library that reads this family can load.

    The callbacks of the model's encoder determine the family: ``"llava"`` makes a ``LlavaForConditionalGeneration``. If
    several families name the same callbacks, the class of the encoder determines the family. The export shares the
    weights with the model and does not copy them. A crash leaves the old folder or the new one.

    Classes of other families do not accept a placeholder id outside the embedding table. Therefore the exported
    embeddings and head get more rows, up to the placeholder id. Each new row is the mean of the old rows, so that a new
    token never has the highest logit. The logits of the old tokens stay the same, except for the rounding of a larger
    matrix product.

    Args:
        model: model to export; it does not change.
        folder: folder to create or replace. Other files in it stay.
        processor: processor of the model, to export with it; default: only the model is exported.
        max_shard_size: maximal size of a weight file.

    Raises:
        CheckpointError: the family can't represent the model. The message says why and what to do.
        TypeError: ``processor`` is not a :class:`~cornstarch_core.MultimodalProcessor`.

    Example:
        ::

            from cornstarch_core.interop import export_pretrained

            export_pretrained(mllm, "my-llava", processor)
            LlavaForConditionalGeneration.from_pretrained("my-llava")
    """
    adapters.check_merged(model)
    if processor is not None:
        _check_processor(model, processor)
    theirs, their_processor = _find_family(model).load().export(model, processor)
    _check_dtypes(model, theirs)
    use_published_names(theirs)

    def stale(name: str) -> bool:
        return atomic.is_weight_file(name) or (processor is not None and is_processor_file(name))

    with atomic.replaced_folder(folder, stale) as staging, shared_memory_refused():
        theirs.save_pretrained(str(staging), max_shard_size=max_shard_size)
        _check_written(theirs, staging)
        if their_processor is not None:
            their_processor.save_pretrained(str(staging))


def _check_processor(model: MultimodalModel, processor: object) -> None:
    if not isinstance(processor, MultimodalProcessor):
        raise TypeError(f"processor= must be a MultimodalProcessor, not {type(processor).__name__}.")
    of_model = {key: model.config.modality_token_ids.get(key) for key in model.encoders}
    if processor.token_ids != of_model:
        raise CheckpointError(
            f"the processor's placeholder ids are {processor.token_ids}, the model's {of_model}; make it with model=."
        )


def _find_family(model: MultimodalModel) -> Registration[CheckpointSpec]:
    """Return the one family that names the callbacks, and possibly the registered encoder, of one of the encoders."""
    registrations = (registry().lookup("checkpoints", name) for name in registry().names("checkpoints"))
    families = {family: _marks_of(family) for family in registrations if family.spec.callback}
    has = {key: _marks(one.callback_registration, one.registration) for key, one in model.encoders.items()}
    accepted = {*has.values(), *(_marks(one.callback_registration, None) for one in model.encoders.values())}
    found = [family for family, marks in families.items() if marks in accepted]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{key} has {marks}" for key, marks in has.items())
    if found:
        names = ", ".join(family.qualified_name for family in found)
        raise CheckpointError(
            f"the model could be any of {names}; {there}. Block the other plugins with CORNSTARCH_DISABLE_PLUGINS."
        )
    offered = ", ".join(f"{family.qualified_name} for {marks}" for family, marks in families.items())
    raise CheckpointError(
        f"no encoder has a callback that decides the family: {there}; plugins export {offered or 'nothing'}. "
        f'Compose with ModalEncoderModule(..., callbacks="name"). {registry().explain_unavailable()}'.rstrip()
    )


def _marks_of(family: Registration[CheckpointSpec]) -> str:
    """Return the marks of a family. The callbacks and encoders of the family's own plugin take precedence."""
    lookup = partial(registry().lookup, prefer=family.plugin)
    callback, encoder = family.spec.callback, family.spec.encoder
    return _marks(lookup("callbacks", str(callback)), lookup("encoders", encoder) if encoder is not None else None)


def _marks(callback: Registration[Any] | None, encoder: Registration[Any] | None) -> str:
    """Return the marks that determine the family: the qualified names of the callbacks and the encoder."""
    said = "no callback" if callback is None else f"the callback {callback.qualified_name!r}"
    return said if encoder is None else f"{said} with the encoder {encoder.qualified_name!r}"


def _check_dtypes(model: nn.Module, theirs: PreTrainedModel) -> None:
    """Refuse a model with several dtypes.

    Classes of other families load every weight in the dtype of their config, except weights that they keep in float32.
    """
    kept = set(theirs._keep_in_fp32_modules_strict or ())  # names of modules, such as Voxtral's embed_positions
    found = {
        parameter.dtype: name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and not (parameter.dtype == torch.float32 and kept & set(name.split(".")))
    }
    if len(found) > 1:
        places = ", ".join(f"{name} in {str(dtype).removeprefix('torch.')}" for dtype, name in found.items())
        raise CheckpointError(f"the parts have different dtypes ({places}); give them one: mllm.to(torch.bfloat16).")


def _check_written(theirs: PreTrainedModel, folder: Path) -> None:
    """Check that no value was lost: saving may rename and split tensors, but does not change their total size."""
    total = sum({tensor.data_ptr(): tensor.numel() for tensor in theirs.state_dict().values()}.values())
    written = sum(math.prod(shape) for shape in tensors.shapes_in(folder).values())
    if written != total:
        raise CheckpointError(f"{written} of {total} values were written; nothing was replaced. Clone shared tensors.")
