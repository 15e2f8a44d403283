"""Draws the report of finetune_llava.py: the loss of both stages, and the answers before and after training."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

COLUMNS, ROWS = 8, 3
TITLES = {"projector": "First stage: the projector alone", "trained": "Second stage: with the language model"}


def draw_report(path: Path, losses: dict, stages: dict, pictures: list, answers: dict) -> None:
    """Draw the report.

    Args:
        path: the file to write.
        losses: ``{stage: [(step, loss), ...]}``.
        stages: ``{stage: numbers}``, with tokens per second, seconds and peak memory.
        pictures: ``(path of an image or None, right answer)`` of the held-out samples.
        answers: ``{"before": [...], "after": [...]}``: the answers to the held-out samples.
    """
    figure = plt.figure(figsize=(15, 10), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.5])
    for axes, (name, points) in zip(top.subplots(1, len(losses)), losses.items(), strict=True):
        _draw_losses(axes, TITLES.get(name, name), points, stages[name])
    _draw_answers(bottom, pictures, answers)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_losses(axes: plt.Axes, title: str, points: list, numbers: dict) -> None:
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color="#1f4e8c", linewidth=2)
    memory = f", {numbers['peak_memory_gb']:.1f} GB peak memory" if numbers["peak_memory_gb"] else ""
    speed = f"{numbers['tokens_per_second']:,.0f} tokens/s for {numbers['seconds']:,.0f} s{memory}"
    axes.set(title=f"{title}\n{speed}", xlabel="step", ylabel="cross entropy of the answers")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _draw_answers(figure: plt.Figure, pictures: list, answers: dict) -> None:
    figure.suptitle(
        "Held-out samples: above, the answer after training, in green if it is right; below, the answer before training"
    )
    cells = figure.subplots(ROWS, COLUMNS).flat
    shown = zip(pictures, answers["before"], answers["after"], strict=True)
    for axes, ((image, wanted), before, after) in zip(cells, shown, strict=False):
        if image is not None:
            axes.imshow(Image.open(image))
        right = after == wanted
        axes.set_title(_short(after) if right else f"{_short(after)} (right: {_short(wanted)})", fontsize=9,
                       color="#1e7b34" if right else "#c0392b")  # fmt: skip
        axes.set_xlabel(_short(before), fontsize=7, color="#777777")
        axes.set_xticks([])
        axes.set_yticks([])


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"
