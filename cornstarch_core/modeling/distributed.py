"""Handle differences between ranks: their batches may have different media, but their plugins must be the same.

torch.distributed requires that every rank runs the same modules in the same order. It reduces the gradients of
replicated weights when all ranks have computed them, and it gathers sharded weights whenever a rank runs their module.
If one rank has a batch without images and skips the encoder, the other ranks wait for this rank forever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule

from .._hf.torch_private import default_store
from ..errors import CompositionError, PluginError
from ..plugins import registry
from .encoder import ModalEncoderModule
from .placeholders import flatten

__all__ = ["check_not_sharded", "check_plugins", "dummy_forward", "needs_dummy_forward"]

_FIRST = "cornstarch/plugins"  # key in the store for the plugins of the rank that composed a model first


def check_plugins() -> None:
    """Compare the plugins of this rank with those of the rank that composed a model first.

    This function is not a collective, so one rank may compose a model that other ranks don't compose. The ranks read
    and write the store with which the process group was created. If the store doesn't answer, for example because the
    process that serves it has ended, the function compares nothing.

    Raises:
        PluginError: a plugin is missing on one of the two ranks, or has another version.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return
    mine: dict[str, Any] = {"rank": distributed.get_rank(), "plugins": registry().fingerprint()}
    store, theirs = default_store(), mine
    if store is not None:
        with suppress(RuntimeError):  # the store doesn't answer
            theirs = json.loads(store.compare_set(_FIRST, "", json.dumps(mine)))
    if differences := list(_differences(mine["plugins"], theirs["plugins"], f"rank {theirs['rank']}")):
        raise PluginError(
            f"rank {mine['rank']} has other plugins than rank {theirs['rank']}: {'; '.join(differences)}. "
            "Install the same on all of them, or leave out what differs with CORNSTARCH_DISABLE_PLUGINS."
        )


def _differences(mine: Mapping[str, str], theirs: Mapping[str, str], there: str) -> Iterator[str]:
    reasons = {info.id: info.explain() for info in registry().unavailable()}
    for name in sorted({**mine, **theirs}):
        if name not in theirs:
            yield f"{name} {mine[name]} is not active on {there}"
        elif name not in mine:
            yield f"{name} {theirs[name]} is not active here ({reasons.get(name, 'it is not installed')})"
        elif mine[name] != theirs[name]:
            yield f"{name} is {mine[name]} here and {theirs[name]} on {there}"


def needs_dummy_forward(module: nn.Module) -> bool:
    """Whether this rank has to run ``module`` even without media, because other ranks may run it.

    Returns ``True`` if several processes train the weights of ``module``, or if each process holds a shard of them.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return False
    weights = list(module.parameters())
    sharded = any(hasattr(weight, "placements") for weight in weights)  # a DTensor
    return sharded or (torch.is_grad_enabled() and any(weight.requires_grad for weight in weights))


def check_not_sharded(encoder: ModalEncoderModule) -> None:
    """Check that the blocks of an encoder are not sharded, if the number of its calls depends on the batch.

    Other ranks may call such an encoder more or less often than this rank.

    Raises:
        CompositionError: the encoder's blocks are sharded, so that the ranks would wait for each other.
    """
    parts = encoder.module.modules() if encoder.module is not None else ()
    blocks = sorted({type(part).__name__.removeprefix("FSDP") for part in parts if isinstance(part, FSDPModule)})
    if blocks:
        raise CompositionError(
            f"{encoder.key}: its encoder runs differently often for different batches, so its blocks "
            f"({', '.join(blocks)}) can't be sharded: ranks would wait for each other. Shard only what "
            "cornstarch_core.training.sharding_units returns; with accelerate, name the other blocks in "
            "fsdp_transformer_layer_cls_to_wrap."
        )


def dummy_forward(encoder: ModalEncoderModule) -> torch.Tensor:
    """Run an encoder on its smallest valid inputs, and return a zero that depends on all of its weights.

    Raises:
        CompositionError: the encoder's smallest inputs are not known.
    """
    inputs = encoder.info.dummy_inputs()
    if inputs is None:
        raise CompositionError(
            f"{encoder.key}: this rank has a batch without any, and other ranks may have some, so the encoder must run "
            "on dummy inputs, which are not known. Register the encoder in a plugin, or give "
            "ModalCallbacks(dummy_inputs=f), where f(inputs) returns them."
        )
    device = next(encoder.parameters()).device
    for name, value in inputs.items():
        inputs[name] = value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
    return (0 * flatten(encoder(**inputs)[0])).sum()  # multiply first, because the sum of many features may overflow
