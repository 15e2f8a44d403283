"""Keep the weights of modules that users pass, and write weight files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from ..errors import CheckpointError

__all__ = ["keep_weights", "shared_memory_refused", "use_published_names"]


def keep_weights(module: nn.Module) -> None:
    """Mark everything in ``module`` as initialised, so that a parent's ``post_init()`` (5.23) keeps the weights."""
    for item in (*module.modules(), *module.parameters(), *module.buffers()):
        setattr(item, "_is_hf_initialized", True)  # noqa: B010 - not an attribute that types know


def use_published_names(model: PreTrainedModel) -> None:
    """Make ``save_pretrained`` use the tensor names of published checkpoints.

    For a model that was not loaded, saving (5.23) omits prefixes such as ``vision_model.`` of CLIP. Transformers reads
    the names with and without the prefix; other libraries only read the published names.
    """
    setattr(model, "_weight_conversions", get_model_conversion_mapping(model, add_legacy=False))  # noqa: B010 - untyped


@contextmanager
def shared_memory_refused() -> Iterator[None]:
    """Convert the ``RuntimeError`` of ``save_pretrained`` (5.23) about shared tensors to a ``CheckpointError``."""
    try:
        yield
    except RuntimeError as error:
        if "shared tensors" not in str(error):
            raise
        raise CheckpointError(f"tensors share memory in a way that a folder can't hold; untie them: {error}") from error
