"""Ranks that differ: in the media that they have, which is fine, and in their plugins, which is not.

Replicating, sharding and reducing are torch.distributed's to do. It only asks that every rank does the same, in the
same order: gradients of replicated weights are reduced once all of them are there, and sharded weights are gathered
whenever any rank runs them. A batch without images would leave the others waiting.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule

from .encoder import ModalEncoderModule
from .errors import CompositionError, PluginError
from .plugins import registry

__all__ = ["check_calls", "check_plugins", "idle_output", "must_run"]

_FIRST = "cornstarch/plugins"  # in the store: the fingerprint of the rank that composed a model first


def check_plugins() -> None:
    """Compare the plugins of this rank with those of the rank that composed a model first.

    This is no collective: the ranks meet in the store by which the process group was made, so one may compose a model
    that others don't. Where that store does not answer, as when the rank that keeps it has ended, nothing is compared.

    Raises:
        PluginError: they differ, in what is there or in versions.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return
    mine: dict[str, Any] = {"rank": distributed.get_rank(), "plugins": registry().fingerprint()}
    theirs = _first(mine)
    if differences := list(_differences(mine["plugins"], theirs["plugins"], f"rank {theirs['rank']}")):
        raise PluginError(
            f"rank {mine['rank']} has other plugins than rank {theirs['rank']}: {'; '.join(differences)}. "
            "Install the same on all of them, or leave out what differs with CORNSTARCH_DISABLE_PLUGINS."
        )


def _first(mine: dict[str, Any]) -> dict[str, Any]:
    """What the rank left that composed first; ``mine`` if this one is it, or nobody can tell."""
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    if store is None:  # of MPI
        return mine
    try:
        return json.loads(store.compare_set(_FIRST, "", json.dumps(mine)))
    except RuntimeError:
        return mine


def _differences(mine: Mapping[str, str], theirs: Mapping[str, str], there: str) -> Iterator[str]:
    reasons = {info.id: info.explain() for info in registry().unavailable()}
    for name in sorted({**mine, **theirs}):
        if name not in theirs:
            yield f"{name} {mine[name]} is not active on {there}"
        elif name not in mine:
            yield f"{name} {theirs[name]} is not active here ({reasons.get(name, 'it is not installed')})"
        elif mine[name] != theirs[name]:
            yield f"{name} is {mine[name]} here and {theirs[name]} on {there}"


def must_run(module: nn.Module) -> bool:
    """Whether this rank has to run ``module`` although it has nothing for it, because others may have.

    So it is where several processes train its weights, or hold a share of each. One process never has to.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return False
    weights = list(module.parameters())
    sharded = any(hasattr(weight, "placements") for weight in weights)  # a DTensor
    return sharded or (torch.is_grad_enabled() and any(weight.requires_grad for weight in weights))


def check_calls(encoder: ModalEncoderModule) -> None:
    """Refuse to wait for calls that other ranks never make.

    Raises:
        CompositionError: the blocks of an encoder are sharded that runs differently often on different ranks.
    """
    if not (encoder.modal_callbacks.calls_vary and encoder.module is not None):
        return
    blocks = sorted({type(part).__name__ for part in encoder.module.modules() if isinstance(part, FSDPModule)})
    if blocks:
        names = ", ".join(name.removeprefix("FSDP") for name in blocks)
        raise CompositionError(
            f"{encoder.key}: its encoder runs differently often for different batches, so it can't be sharded by "
            f"itself ({names}): ranks would wait for each other. Shard only what "
            "cornstarch_core.training.sharding_units gives; with accelerate, name the other blocks in "
            "fsdp_transformer_layer_cls_to_wrap."
        )


def idle_output(encoder: ModalEncoderModule) -> torch.Tensor:
    """A zero that depends on all weights of ``encoder``: it runs on the smallest inputs there are.

    Raises:
        CompositionError: nobody says what those are.
    """
    if encoder.dummy_inputs is None:
        raise CompositionError(
            f"{encoder.key}: this rank has a batch without any, while others may have some, so the encoder must run on "
            "inputs that mean nothing; what those look like is not known. Register the encoder in a plugin, with "
            "dummy_inputs, or give ModalCallbacks(dummy_inputs=f), where f(inputs) returns them."
        )
    device = next(encoder.parameters()).device
    features: Any = encoder(**_on(device, encoder.dummy_inputs()))[0]
    flat = features if isinstance(features, torch.Tensor) else torch.cat(list(features))
    return (0 * flat).sum()  # in this order: a sum of many may overflow


def _on(device: torch.device, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
