"""A look at what a training step really trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .._hf import is_peft
from ..adapters import adapter_weights
from .parts import Part, parts_of

__all__ = ["Audit", "PartReport", "audit"]

_HEAD = ("part", "parameters", "trainable", "with gradient", "zero gradient", "runs")


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
    parts = list(parts_of(model))
    reports = tuple(_report(part) for part in parts)
    mistakes = tuple(
        mistake for part, report in zip(parts, reports, strict=True) for mistake in _mistakes(part, report)
    )
    for mistake in mistakes if warn else ():
        warnings.warn(mistake, stacklevel=2)
    return Audit(reports, mistakes)


def _report(part: Part) -> PartReport:
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


def _mistakes(part: Part, report: PartReport) -> Iterator[str]:
    if part.name.endswith(".module") and report.runs == 0:
        name = part.name if part.module is not None else part.name.partition(".")[0]
        yield f"{name} never ran: no batch had any of it. Are its media under the right key, and in these samples?"
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


def _strays(part: Part, trainable: list[tuple[str, nn.Parameter]]) -> list[str]:
    """Adapter weights in an encoder that was not wrapped, and of which nothing else trains."""
    if part.encoder is None or part.module is None or is_peft(part.module):
        return []
    adapters = adapter_weights(part.module)
    return [name for name, _ in trainable] if all(id(parameter) in adapters for _, parameter in trainable) else []


def _cells(part: PartReport) -> tuple[str, ...]:
    numbers = (part.parameters, part.trainable, part.with_gradient, part.zero_gradient)
    return (part.name, *(f"{number:,}" for number in numbers), "" if part.runs is None else str(part.runs))
