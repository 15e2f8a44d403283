"""Learning rates by part, for any optimizer of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from .parts import parts_of

__all__ = ["parameter_groups"]


def parameter_groups(model: nn.Module, lr: Mapping[str, float], weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for an optimizer, with a learning rate for each part.

    Args:
        model: a :class:`~cornstarch_core.MultimodalModel`, wrapped by PEFT or not.
        lr: ``{part: learning rate}``; ``"vision"`` covers the module, the projector and the callbacks of that modality,
            unless they have a rate of their own.
        weight_decay: for matrices; biases, norms and other vectors get none.

    Returns:
        One or two groups a part, with ``params``, ``lr``, ``weight_decay`` and ``name``. Only what is trainable is in
        them, each parameter once.

    Raises:
        ValueError: a part is unknown, or frozen; or something trainable has no learning rate.

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
    parts = {part.name: part for part in parts_of(model)}
    keys = {name.partition(".")[0] for name in parts}
    unknown = sorted(lr.keys() - parts.keys() - keys)
    if unknown:
        raise ValueError(f"lr= names {', '.join(unknown)}; choose from {', '.join(sorted({*parts, *keys}))}.")
    rates = {name: lr.get(name, lr.get(name.partition(".")[0])) for name in parts}
    trainable = {name: [p for _, p in part.parameters if p.requires_grad] for name, part in parts.items()}
    for name, parameters in trainable.items():
        if parameters and rates[name] is None:
            raise ValueError(
                f"{name} is trainable, but lr= has no learning rate for it, only for {', '.join(lr)}. Give it one, or "
                "freeze it with set_trainable."
            )
    for name in lr:
        if not any(trainable[part] for part in parts if part == name or part.partition(".")[0] == name):
            raise ValueError(f"lr= has a learning rate for {name}, but all of it is frozen. See set_trainable.")
    return [group for name in parts for group in _split(name, trainable[name], rates[name], weight_decay)]


def _split(name: str, parameters: list[Any], rate: float | None, weight_decay: float) -> Iterator[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    for group, decay in ((matrices, weight_decay), (vectors, 0.0)):
        if group:
            yield {"params": group, "lr": rate, "weight_decay": decay, "name": name}
