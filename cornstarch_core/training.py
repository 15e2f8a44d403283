"""Help for those who train: learning rates by part, and a look at what a step really trained.

Loops, optimizers and sharding are other libraries' to do. Must not know any modality.

The *parts* of a model are ``"language_model"``, and for each modality ``"<key>.module"``, ``"<key>.projector"`` and
``"<key>.callbacks"``; ``"<key>"`` stands for all three.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ._hf import is_peft, unwrap
from .adapters import adapter_weights
from .encoder import ModalEncoderModule
from .model import MultimodalModel

__all__ = ["Audit", "PartReport", "audit", "parameter_groups"]


# --- learning rates ---------------------------------------------------------------------------------------------------


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
    parts = {part.name: part for part in _parts(model)}
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


_HEAD = ("part", "parameters", "trainable", "with gradient", "zero gradient", "runs")

# --- audit ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartReport:
    """What a step did to one part.

    Args:
        name: of the part.
        parameters: numbers in it.
        trainable: those that ask for gradients.
        with_gradient: those of them that have one.
        zero_gradient: those of them whose gradient is zero throughout its tensor.
        runs: how often the part ran since the model was composed; ``None``: not counted.
    """

    name: str
    parameters: int
    trainable: int
    with_gradient: int
    zero_gradient: int
    runs: int | None


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found; ``print`` shows it as a table.

    Args:
        parts: one report each.
        mistakes: what is surely wrong, in words; empty if nothing is.
    """

    parts: tuple[PartReport, ...]
    mistakes: tuple[str, ...]

    def __str__(self) -> str:
        rows = [_HEAD, *(_cells(part) for part in self.parts)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"! {mistake}" for mistake in self.mistakes)])

    def __rich__(self) -> Any:
        """The same as a table of rich, if that is installed: ``rich.print(audit(mllm))``."""
        from rich.console import Group
        from rich.table import Table

        table = Table(*_HEAD)
        for part in self.parts:
            table.add_row(*_cells(part))
        return Group(table, *(f"[bold red]![/] {mistake}" for mistake in self.mistakes))


def audit(model: nn.Module, *, warn: bool = True) -> Audit:
    """Look at a model after its first backward pass: which parts trained, and which only seemed to.

    Call it after ``loss.backward()`` and before ``optimizer.zero_grad()``. It reads every gradient once, which costs
    device syncs: not for every step.

    Args:
        model: a :class:`~cornstarch_core.MultimodalModel`, wrapped by PEFT or not.
        warn: whether mistakes are warned of, too.

    Returns:
        A table of the parts, and the mistakes: adapters that landed in an encoder whose own weights are frozen, an
        encoder that never ran, and trainable parts or weights without a gradient.

    Example:
        ::

            loss.backward()
            print(audit(mllm))
    """
    parts = list(_parts(model))
    reports = tuple(_report(part) for part in parts)
    mistakes = tuple(
        mistake for part, report in zip(parts, reports, strict=True) for mistake in _mistakes(part, report)
    )
    for mistake in mistakes if warn else ():
        warnings.warn(mistake, stacklevel=2)
    return Audit(reports, mistakes)


@dataclass(frozen=True)
class _Part:
    name: str
    parameters: list[tuple[str, nn.Parameter]]
    module: nn.Module | None = None
    encoder: ModalEncoderModule | None = None


def _parts(model: nn.Module) -> Iterator[_Part]:
    """Every part with its parameters, each parameter in one."""
    mllm = unwrap(model)
    if not isinstance(mllm, MultimodalModel):
        raise TypeError(f"expected a MultimodalModel, not {type(mllm).__name__}.")
    seen: set[int] = set()

    def new(module: nn.Module | None) -> list[tuple[str, nn.Parameter]]:
        named = [] if module is None else [(n, p) for n, p in module.named_parameters() if id(p) not in seen]
        seen.update(id(parameter) for _, parameter in named)
        return named

    for key, encoder in mllm.encoders.items():
        for what, module in (("module", encoder.module), ("projector", encoder.projector), ("callbacks", encoder)):
            named = new(module)
            if named or what == "module":
                yield _Part(f"{key}.{what}", named, module, encoder)
    yield _Part("language_model", new(mllm.language_model), mllm.language_model)


def _report(part: _Part) -> PartReport:
    trainable = [parameter for _, parameter in part.parameters if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trainable if parameter.grad is not None]
    return PartReport(
        name=part.name,
        parameters=sum(parameter.numel() for _, parameter in part.parameters),
        trainable=sum(parameter.numel() for parameter in trainable),
        with_gradient=sum(gradient.numel() for gradient in gradients),
        zero_gradient=sum(gradient.numel() for gradient in gradients if not bool(gradient.any())),
        runs=part.encoder.runs if part.encoder is not None else None,
    )


def _mistakes(part: _Part, report: PartReport) -> Iterator[str]:
    if part.name.endswith(".module") and report.runs == 0:
        yield f"{part.name} never ran: no batch had any of it. Are its media under the right key, and in these samples?"
        return
    trainable = [(name, parameter) for name, parameter in part.parameters if parameter.requires_grad]
    stray = _strays(part, trainable)
    if stray:
        yield (
            f"{part.name} is frozen, but {len(stray)} adapter weights landed in it ({stray[0]}, …): target_modules "
            "matches its layers, too. Wrap the language model before composing, or anchor the pattern: "
            "r'language_model.*\\.(q_proj|v_proj)'."
        )
    missing = [name for name, parameter in trainable if parameter.grad is None]
    if missing and not report.with_gradient:
        yield (
            f"{part.name} is trainable, but nothing in it got a gradient. Freeze it with set_trainable, or find out "
            "why the loss does not depend on it."
        )
    elif missing:
        yield (
            f"{part.name}: {len(missing)} trainable weights got no gradient ({missing[0]}, …). Weights that are never "
            "used should not ask for one: requires_grad_(False), or DistributedDataParallel waits for them."
        )


def _strays(part: _Part, trainable: list[tuple[str, nn.Parameter]]) -> list[str]:
    """Adapter weights in an encoder that was not wrapped, and of which nothing else trains."""
    if part.encoder is None or part.module is None or is_peft(part.module):
        return []
    adapters = adapter_weights(part.module)
    return [name for name, _ in trainable] if all(id(parameter) in adapters for _, parameter in trainable) else []


def _cells(part: PartReport) -> tuple[str, ...]:
    numbers = (part.parameters, part.trainable, part.with_gradient, part.zero_gradient)
    return (part.name, *(f"{number:,}" for number in numbers), "" if part.runs is None else str(part.runs))
