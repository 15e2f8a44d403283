"""Find the modules of a model that FSDP should shard separately."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .parts import multimodal_model, parts_of

__all__ = ["sharding_units"]


def sharding_units(model: nn.Module, replicate: Iterable[str] = ()) -> list[nn.Module]:
    """Return the modules to call ``fully_shard`` on, in this order, before calling it on the whole model.

    The modules are the blocks that transformers' models declare in ``_no_split_modules``, also inside PEFT wrappers.
    Blocks of encoders whose number of calls depends on the batch are left out, and are sharded with the whole model.

    Args:
        model: a :class:`~cornstarch_core.MultimodalModel`, wrapped by PEFT or not.
        replicate: names of parts that are not sharded but copied to every rank, such as ``["vision.module"]`` for a
            frozen encoder. Exclude their parameters also from the call of ``fully_shard`` on the whole model:
            ``ignored_params=set(mllm.vision_encoder.module.parameters())``.

    Raises:
        TypeError: ``model`` is not a ``MultimodalModel``.
        ValueError: a part in ``replicate`` does not exist, or is trainable; the gradients of replicated weights are not
            averaged over the ranks.

    Example:
        ::

            for unit in sharding_units(mllm):
                fully_shard(unit, mesh=mesh)
            fully_shard(mllm, mesh=mesh)
    """
    mllm, parts, replicate = multimodal_model(model), parts_of(model), set(replicate)
    if unknown := sorted(replicate - parts.keys()):
        raise ValueError(f"replicate= names {', '.join(unknown)}; choose from {', '.join(parts)}.")
    if training := sorted(name for name in replicate if parts[name].trainable):
        raise ValueError(
            f"replicate= names {', '.join(training)}, which trains: its gradients would differ between ranks. Freeze "
            "it, or shard it."
        )
    whole = [encoder.module for encoder in mllm.encoders.values() if encoder.callbacks.data_dependent_calls]
    whole += [parts[name].module for name in replicate]
    left_out = {module for part in whole if part is not None for module in part.modules()}
    blocks = [module for module in model.modules() if type(module).__name__ in (mllm._no_split_modules or ())]
    return [block for block in reversed(blocks) if block not in left_out]  # inner ones first
