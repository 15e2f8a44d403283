"""PEFT adapters inside a composed model, as plain data and back. Imports peft only where there are adapters."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import torch
from torch import nn

from ._hf import is_peft, unwrap
from .errors import CheckpointError

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
"""Settings of an adapter that say nothing about what it computes."""
_CHANGE_THE_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")
_WAY_OUT = (
    "Merge them (merge_and_unload()), or save the adapters alone with PeftModel.save_pretrained and the model without "
    "them."
)


def describe(module: Any) -> dict[str, Any] | None:
    """The adapters of a ``PeftModel``; ``None`` for any other module."""
    if not is_peft(module):
        return None
    configs = {name: _plain(config.to_dict()) for name, config in module.peft_config.items()}
    return {"configs": configs, "active": module.active_adapters}


def attach(module: nn.Module, record: dict[str, Any] | None, where: str) -> nn.Module:
    """Wrap ``module`` as the record says; fresh weights."""
    if record is None:
        return module
    from peft import PeftConfig, get_peft_model

    for config in record["configs"].values():  # with these PEFT (0.19) imports whatever is named
        if config.get("megatron_config") or config.get("megatron_core") not in (None, "megatron.core"):
            raise CheckpointError(f"{where}: its adapters name a module to import, which a checkpoint may not.")
    try:
        configs = {name: PeftConfig.from_peft_type(**config) for name, config in record["configs"].items()}
        bases = {name: config.base_model_name_or_path for name, config in configs.items()}
        for config in configs.values():
            config.base_model_name_or_path = None  # else PEFT warns that the base is another
        (first, config), *others = configs.items()
        model = get_peft_model(module, config, adapter_name=first)
        for name, config in others:
            model.add_adapter(name, config)
        model.base_model.set_adapter(record["active"])
        for name, base in bases.items():
            model.peft_config[name].base_model_name_or_path = base
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: its adapters can't be attached by this version of peft: {error}.") from error
    return model


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two descriptions are of adapters that compute the same with the same weights."""
    return _essence(one) == _essence(other)


def _essence(description: dict[str, Any]) -> dict[str, Any]:
    return {name: _essential(config) for name, config in description["configs"].items()}


def _essential(config: dict[str, Any]) -> dict[str, Any]:
    """What is set. A setting that only one version of PEFT knows does not count where it is left at its default."""
    from peft import PeftConfig

    try:
        defaults = _plain(PeftConfig.from_peft_type(peft_type=config["peft_type"]).to_dict())
    except (KeyError, TypeError, ValueError):  # of a record that is damaged, or a type of another version
        defaults = {}
    return {key: value for key, value in {**defaults, **config}.items() if key not in _INCIDENTAL and value}


def check_base_untouched(module: nn.Module, where: str) -> None:
    """Refuse adapters that have changed the weights below them, so that those are not the base any more.

    Raises:
        CheckpointError: says the way out.
    """
    if any(getattr(part, "merged", False) for part in module.modules() if _is_tuner_layer(part)):
        raise CheckpointError(f"{where}: its adapters are merged into it; call unmerge_adapter() first.")
    for config in module.peft_config.values() if is_peft(module) else ():  # type: ignore[union-attr,operator]
        start = str(getattr(config, "init_lora_weights", "")).lower()
        if start.startswith(_CHANGE_THE_BASE):
            raise CheckpointError(
                f"{where}: adapters that begin with init_lora_weights={start!r} change the base, so they can't be put "
                "onto a fresh one. Save the whole model with save_pretrained."
            )


def adapter_weights(module: nn.Module) -> set[int]:
    """``id`` of each weight and buffer that PEFT has put into ``module``, wrapped as a whole or layer by layer."""
    found = set()
    for part in module.modules():
        own = _own_names(part)
        if own is not None:
            tensors = (*part.named_parameters(), *part.named_buffers())
            found |= {id(tensor) for name, tensor in tensors if own.match(name)}
    return found


def _own_names(part: nn.Module) -> re.Pattern[str] | None:
    """Names, in a layer that PEFT has made, of what is the adapters'; ``None`` for any other layer."""
    if not type(part).__module__.startswith("peft."):
        return None
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(part, ModulesToSaveWrapper):
        return re.compile(r"modules_to_save\.")
    return re.compile(r"(?!base_layer\.)") if isinstance(part, BaseTunerLayer) else None


def base_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and saved buffers without those of adapters, by the names that they have without adapters; each once."""
    own = adapter_weights(module)
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in unwrap(module).state_dict(keep_vars=True).items():
        if id(tensor) not in own:
            found.setdefault(id(tensor), (_WRAPPER.sub("", name), tensor))
    return dict(found.values())


def plain_name(name: str) -> str:
    """What a tensor of a ``PeftModel`` is called where there are no adapters."""
    return _WRAPPER.sub("", name.removeprefix("base_model.model."))


def freeze_base(module: Any) -> None:
    """Let only the active adapters of a ``PeftModel`` train, as after wrapping; loading weights unfreezes them all."""
    if not is_peft(module):
        return
    active = module.active_adapters
    module.requires_grad_(False)
    for name in active if len(active) == 1 else ():
        module.set_adapter(name)  # modules_to_save follow only this one
    module.base_model.set_adapter(active)


def check_savable(model: nn.Module) -> None:
    """Refuse adapters that would not come back: those outside a wrapped part, and those that are not weights of it.

    Raises:
        CheckpointError: says the way out.
    """
    wrapped = {name: part for name, part in model.named_modules() if is_peft(part)}
    for name, part in wrapped.items():
        if any(config.is_prompt_learning for config in part.peft_config.values()):
            raise CheckpointError(
                f"{name} has prompt-learning adapters that can't be saved inside the model. {_WAY_OUT}"
            )
    inside = tuple(f"{name}." for name in wrapped)
    for name, part in model.named_modules():
        if _is_tuner_layer(part) and not name.startswith(inside):
            raise CheckpointError(f"{name} has adapters that a saved model could not build again. {_WAY_OUT}")


def check_merged(model: nn.Module) -> None:
    """Refuse adapters of any kind, for those who can hold none.

    Raises:
        CheckpointError: says to merge them.
    """
    for name, part in model.named_modules():
        if is_peft(part) or _is_tuner_layer(part):
            raise CheckpointError(
                f"{name or 'the model'} has adapters; merge them first, for example "
                "mllm.language_model = mllm.language_model.merge_and_unload()."
            )


def _is_tuner_layer(module: nn.Module) -> bool:
    if not type(module).__module__.startswith("peft."):
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _plain(value: Any) -> Any:
    """Sets and enums as JSON has them."""
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(entry) for entry in value)
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.value if isinstance(value, Enum) else value
