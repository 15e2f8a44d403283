"""Parameter groups for torch's optimizers, with a learning rate for each part of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .parts import parts_of

__all__ = ["parameter_groups"]


def parameter_groups(model: nn.Module, lr: Mapping[str, float], weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Make parameter groups for an optimizer, with a learning rate for each part.

    Args:
        model: a :class:`~cornstarch_core.MultimodalModel`, wrapped by PEFT or not.
        lr: dictionary ``{part: learning rate}``. A modality key such as ``"vision"`` sets the rate of the modality's
            module, projector and callbacks, except those that have an entry themselves.
        weight_decay: weight decay of parameters with two or more dimensions; biases, norms and other vectors have a
            weight decay of 0.

    Returns:
        One or two groups for each part, with the entries ``params``, ``lr``, ``weight_decay`` and ``name``. The groups
        contain each trainable parameter once, and no frozen parameter.

    Raises:
        ValueError: a part is unknown or frozen, or a trainable part has no learning rate.

    Example:
        >>> import torch
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
        >>> from cornstarch_core import ModalEncoderModule, MultimodalModel
        >>> sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
        >>> mllm = MultimodalModel(
        ...     encoders={"vision": ModalEncoderModule(CLIPVisionModel(CLIPVisionConfig(**sizes)))},
        ...     language_model=LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)),
        ... )
        >>> mllm.set_trainable(encoders={"vision": (False, True)})
        >>> groups = parameter_groups(mllm, lr={"vision.projector": 1e-3, "language_model": 2e-5}, weight_decay=0.1)
        >>> [(group["name"], group["lr"]) for group in groups if group["weight_decay"]]
        [('vision.projector', 0.001), ('language_model', 2e-05)]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    parts = parts_of(model)
    keys = {name: name.partition(".")[0] for name in parts}
    known = {*parts, *keys.values()}
    if unknown := sorted(lr.keys() - known):
        raise ValueError(f"lr= names {', '.join(unknown)}; choose from {', '.join(sorted(known))}.")
    groups: list[dict[str, Any]] = []
    used: set[str] = set()
    for name, part in parts.items():
        trainable = part.trainable.values()
        if not trainable:
            continue
        if name not in lr and keys[name] not in lr:
            raise ValueError(
                f"{name} is trainable, but lr= has no learning rate for it, only for {', '.join(lr)}. "
                "Give it one, or freeze it with set_trainable."
            )
        used |= {name, keys[name]}
        rate = lr.get(name, lr.get(keys[name]))
        matrices, vectors = [p for p in trainable if p.dim() >= 2], [p for p in trainable if p.dim() < 2]
        for params, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if params:
                groups.append({"params": params, "lr": rate, "weight_decay": decay, "name": name})
    if frozen := [name for name in lr if name not in used]:
        raise ValueError(f"lr= has a learning rate for {frozen[0]}, but all of it is frozen. See set_trainable.")
    return groups
