"""Convert the PEFT adapters of a composed model to plain data and back. PEFT is imported only if there are adapters."""

from __future__ import annotations

import re
import sys
from typing import Any, cast

import torch
from torch import nn

from .._hf.peft import is_peft, unwrap
from .._hf.plain import plain
from ..errors import CheckpointError

__all__ = [
    "adapter_weights",
    "alike",
    "attach",
    "base_tensors",
    "check_base_untouched",
    "check_merged",
    "check_savable",
    "describe",
    "freeze_base",
    "plain_name",
]

_WRAPPER = re.compile(r"(\.token_adapter)?\.(base_layer|original_module)(?=\.)")
_INCIDENTAL = ("base_model_name_or_path", "inference_mode", "peft_version", "revision")
"""Settings of an adapter that do not change its output."""
_CHANGE_THE_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")
_WAY_OUT = "Merge them with merge_and_unload(), or save only the adapters, with PeftModel.save_pretrained."


# --- as plain data, and back ------------------------------------------------------------------------------------------


def describe(module: nn.Module | None) -> dict[str, Any] | None:
    """Return the description of the adapters of a ``PeftModel``, or ``None`` for any other module."""
    if not is_peft(module):
        return None
    configs = {name: plain(config.to_dict()) for name, config in module.peft_config.items()}
    return {"configs": configs, "active": module.active_adapters}


def attach(module: nn.Module, record: dict[str, Any] | None, where: str) -> nn.Module:
    """Wrap ``module`` in the adapters of ``record``, with fresh weights. ``where`` names the part in error messages.

    Raises:
        CheckpointError: this version of PEFT can't make the adapters, or their settings name a module to import.
    """
    if record is None:
        return module
    from peft import PeftConfig, get_peft_model

    for config in record["configs"].values():  # PEFT (0.19) imports any module that these settings name
        if config.get("megatron_config") or config.get("megatron_core") not in (None, "megatron.core"):
            raise CheckpointError(f"{where}: its adapters name a module to import, which a checkpoint may not.")
    try:
        base = {"base_model_name_or_path": None}  # PEFT warns if the base model has another name
        configs = {name: PeftConfig.from_peft_type(**{**config, **base}) for name, config in record["configs"].items()}
        (first, config), *others = configs.items()
        model = get_peft_model(module, config, adapter_name=first)
        for name, config in others:
            model.add_adapter(name, config)
        model.base_model.set_adapter(record["active"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: its adapters can't be attached by this version of peft: {error}.") from error
    for name, settings in record["configs"].items():
        model.peft_config[name].base_model_name_or_path = settings.get("base_model_name_or_path")
    return model


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two descriptions are of adapters that compute the same output with the same weights."""
    return _essence(one) == _essence(other)


def _essence(description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings that change the output, by adapter name.

    A setting that only one version of PEFT has is left out if its value is the default.
    """
    from peft import PeftConfig

    found = {}
    for name, config in description["configs"].items():
        try:
            defaults = plain(PeftConfig.from_peft_type(peft_type=config["peft_type"]).to_dict())
        except (KeyError, TypeError, ValueError):  # a damaged record, or a type of another version
            defaults = {}
        found[name] = {k: value for k, value in {**defaults, **config}.items() if value and k not in _INCIDENTAL}
    return found


def freeze_base(module: nn.Module | None) -> None:
    """Freeze all weights of a ``PeftModel`` except its active adapters. Loading weights has unfrozen all of them."""
    if not is_peft(module):
        return
    active, base_model = module.active_adapters, cast(Any, module.base_model)
    module.requires_grad_(False)
    if len(active) == 1:  # only this call also sets the active modules_to_save
        module.set_adapter(active[0])
    base_model.set_adapter(active)


# --- which tensors are whose ------------------------------------------------------------------------------------------


def adapter_weights(module: nn.Module) -> set[int]:
    """Return the ``id`` of each weight and buffer that PEFT has added to ``module`` or to one of its layers."""
    found: set[int] = set()
    for part in module.modules():
        base = _name_of_base(part)
        if base is not None:
            tensors = (*part.named_parameters(), *part.named_buffers())
            found |= {id(tensor) for name, tensor in tensors if not name.startswith(f"{base}.")}
    return found


def base_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights and saved buffers without those of adapters, by their names in the model without adapters.

    A tensor with several names occurs once.
    """
    own = adapter_weights(module)
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in unwrap(module).state_dict(keep_vars=True).items():
        if id(tensor) not in own:
            found.setdefault(id(tensor), (_WRAPPER.sub("", name), tensor))
    return dict(found.values())


def plain_name(name: str) -> str:
    """Convert the name of a tensor in a ``PeftModel`` to its name in the model without adapters."""
    return _WRAPPER.sub("", name.removeprefix("base_model.model."))


def _name_of_base(layer: nn.Module) -> str | None:
    """Return the attribute in which a layer of PEFT holds the layer that it replaces; ``None`` for any other layer."""
    peft = sys.modules.get("peft")
    if peft is None:
        return None
    if isinstance(layer, peft.utils.ModulesToSaveWrapper):
        return "original_module"
    return "base_layer" if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer) else None


# --- checks that refuse adapters --------------------------------------------------------------------------------------


def check_base_untouched(module: nn.Module, where: str) -> None:
    """Refuse adapters that have changed the weights of their base model.

    Raises:
        CheckpointError: an adapter has changed the weights. The message says what to do.
    """
    if any(getattr(layer, "merged", False) for layer in module.modules() if _name_of_base(layer)):
        raise CheckpointError(f"{where}: its adapters are merged into it; call unmerge_adapter() first.")
    for config in module.peft_config.values() if is_peft(module) else ():
        start = str(getattr(config, "init_lora_weights", "")).lower()
        if start.startswith(_CHANGE_THE_BASE):
            raise CheckpointError(
                f"{where}: adapters with init_lora_weights={start!r} change the base; use save_pretrained."
            )


def check_savable(model: nn.Module) -> None:
    """Refuse adapters that can't be built again: prompts, and adapters in a part that is not a ``PeftModel``.

    Raises:
        CheckpointError: the model has such adapters. The message says what to do.
    """
    wrapped = {name: part for name, part in model.named_modules() if is_peft(part)}
    inside = tuple(f"{name}." for name in wrapped)
    for name, part in model.named_modules():
        is_prompt = name in wrapped and any(one.is_prompt_learning for one in wrapped[name].peft_config.values())
        if is_prompt or (_name_of_base(part) and not name.startswith(inside)):
            raise CheckpointError(f"{name} has adapters that a saved model can't build again. {_WAY_OUT}")


def check_merged(model: nn.Module) -> None:
    """Refuse adapters of any kind, for checkpoints that can't hold adapters.

    Raises:
        CheckpointError: the model has adapters. The message says to merge them.
    """
    for name, part in model.named_modules():
        if is_peft(part) or _name_of_base(part):
            raise CheckpointError(f"{name or 'the model'} has adapters; merge them first, with merge_and_unload().")
