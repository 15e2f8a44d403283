"""What to shard by itself, without knowing what is inside the parts."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .._hf import unwrap
from .parts import parts_of

__all__ = ["sharding_units"]


def sharding_units(model: nn.Module, replicate: Iterable[str] = ()) -> list[nn.Module]:
    """The modules to call ``fully_shard`` on, in this order, before calling it on the whole model.

    They are the blocks that the parts declare (``_no_split_modules`` of transformers' models), also inside PEFT; those
    of encoders that run differently often for different batches are left out, and go with the whole.

    Args:
        model: a :class:`~cornstarch_core.MultimodalModel`, wrapped by PEFT or not.
        replicate: parts to leave whole on every rank, such as ``["vision.module"]`` for a frozen tower. Tell the last
            call, too: ``ignored_params=set(mllm.vision_encoder.module.parameters())``.

    Raises:
        TypeError: ``model`` is of another kind.
        ValueError: a part in ``replicate`` is unknown, or trains: replicated weights get no gradients of other ranks.

    Example:
        ::

            for unit in sharding_units(mllm):
                fully_shard(unit, mesh=mesh)
            fully_shard(mllm, mesh=mesh)
    """
    parts = {part.name: part for part in parts_of(model)}
    unknown = sorted(set(replicate) - parts.keys())
    if unknown:
        raise ValueError(f"replicate= names {', '.join(unknown)}; choose from {', '.join(parts)}.")
    training = sorted(name for name in replicate if any(p.requires_grad for _, p in parts[name].parameters))
    if training:
        raise ValueError(
            f"replicate= names {', '.join(training)}, which trains: its gradients would differ between ranks. Freeze "
            "it with set_trainable, or shard it."
        )
    names = unwrap(model)._no_split_modules
    left_out: set[nn.Module] = set()
    for part in parts.values():
        varies = part.name.endswith(".module") and part.encoder is not None and part.encoder.modal_callbacks.calls_vary
        if part.module is not None and (varies or part.name in replicate):
            left_out |= set(part.module.modules())
    units = [module for module in model.modules() if type(module).__name__ in names and module not in left_out]
    return units[::-1]  # inner ones first
