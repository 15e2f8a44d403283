"""A report of what a training step trained in each part of a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

from torch import nn

from .._hf.peft import is_peft
from ..saving.adapters import adapter_weights
from .parts import Part, parts_of

__all__ = ["Audit", "PartReport", "audit"]

_HEAD = ["part", "parameters", "trainable", "with gradient", "zero gradient", "runs"]


@dataclass(frozen=True)
class PartReport:
    """What a step did to one part.

    Args:
        name: name of the part.
        parameters: number of elements of all its parameters.
        trainable: number of elements of the trainable parameters.
        with_gradient: number of elements of the trainable parameters that have a gradient.
        zero_gradient: number of elements of the trainable parameters whose gradient is zero everywhere.
        runs: number of calls of the part's encoder since the model was composed; ``None`` if calls are not counted.
    """

    name: str
    parameters: int
    trainable: int
    with_gradient: int
    zero_gradient: int
    runs: int | None


@dataclass(frozen=True)
class Audit:
    """The result of :func:`audit`; ``print`` shows it as a table.

    Args:
        parts: a report for each part.
        mistakes: a sentence for each mistake; empty if there are no mistakes.
    """

    parts: tuple[PartReport, ...]
    mistakes: tuple[str, ...]

    def __str__(self) -> str:
        rows = [_HEAD, *map(_cells, self.parts)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"! {mistake}" for mistake in self.mistakes)])

    def __rich__(self) -> Any:
        """Return the report as a table of rich, if rich is installed: ``rich.print(audit(mllm))``."""
        from rich.console import Group
        from rich.table import Table

        table = Table(*_HEAD)
        for part in self.parts:
            table.add_row(*_cells(part))
        return Group(table, *(f"[bold red]![/] {mistake}" for mistake in self.mistakes))


def audit(model: nn.Module, *, warn: bool = True) -> Audit:
    """Report which parts of a model got gradients in its first backward pass, and warn of likely mistakes.

    Call this function after ``loss.backward()`` and before ``optimizer.zero_grad()``. It reads every gradient once,
    which synchronises with the device, so do not call it in every step.

    Args:
        model: a :class:`~cornstarch_core.MultimodalModel`, wrapped by PEFT or not.
        warn: whether to emit a warning for each mistake.

    Returns:
        A report for each part, and the mistakes: adapters in an encoder whose own weights are frozen, an encoder that
        never ran, and trainable parts or weights without a gradient.

    Example:
        ::

            loss.backward()
            print(audit(mllm))
    """
    reports: list[PartReport] = []
    mistakes: list[str] = []
    for part in parts_of(model).values():
        reports.append(_report(part))
        mistakes += _mistakes(part, reports[-1])
    for mistake in mistakes if warn else ():
        warnings.warn(mistake, stacklevel=2)
    return Audit(tuple(reports), tuple(mistakes))


def _report(part: Part) -> PartReport:
    trainable = part.trainable.values()
    gradients = [parameter.grad for parameter in trainable if parameter.grad is not None]
    return PartReport(
        name=part.name,
        parameters=sum(parameter.numel() for parameter in part.parameters.values()),
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
    trainable = part.trainable
    wrapped = part.encoder is None or is_peft(part.module)  # on purpose
    adapters = adapter_weights(part.module) if part.module is not None and not wrapped else set()
    if trainable and all(id(parameter) in adapters for parameter in trainable.values()):
        found = f"{len(trainable)} adapter weights landed in it ({next(iter(trainable))}, …)"
        fix = r"Wrap the language model before composing, or anchor the pattern: r'language_model.*\.(q_proj|v_proj)'."
        yield f"{part.name} is frozen, but {found}: target_modules matches its layers, too. {fix}"
    missing = [name for name, parameter in trainable.items() if parameter.grad is None]
    if missing and not report.with_gradient:
        fix = "Freeze it with set_trainable, or find out why the loss does not depend on it."
        yield f"{part.name} is trainable, but nothing in it got a gradient. {fix}"
    elif missing:
        fix = "Freeze weights that are never used, requires_grad_(False), or DistributedDataParallel waits for them."
        yield f"{part.name}: {len(missing)} trainable weights got no gradient ({missing[0]}, …). {fix}"


def _cells(part: PartReport) -> list[str]:
    return ["" if one is None else one if isinstance(one, str) else f"{one:,}" for one in astuple(part)]
