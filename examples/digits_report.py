"""Draws the report of digits.py: the loss, the digits that are confused, and scans with the model's answers."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

ROWS, COLUMNS = 6, 12
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def draw_report(
    path: Path, losses: list[float], scans: list[Image.Image], words: list[str], answers: list[str]
) -> None:
    """Draw the loss curve, a table of confusions, and a grid of scans with their answers: mistakes first, in red."""
    right = [word == answer for word, answer in zip(words, answers, strict=True)]
    figure = plt.figure(figsize=(15, 11), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.7])
    figure.suptitle(
        f"A ViT and a Llama, composed: {sum(right)} of {len(right)} held-out scans read correctly "
        f"({sum(right) / len(right):.1%})", fontsize=16, fontweight="bold",
    )  # fmt: skip
    curve, table = top.subplots(1, 2, width_ratios=[2, 1])
    _draw_losses(curve, losses)
    _draw_confusions(table, words, answers)
    _draw_scans(bottom, scans, words, answers)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_losses(axes: plt.Axes, losses: list[float]) -> None:
    width = max(len(losses) // 50, 1)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(losses, color="#b9c6d8", linewidth=0.8, label="each step")
    axes.plot(np.arange(len(smooth)) + width - 1, smooth, color="#1f4e8c", linewidth=2, label=f"mean of {width} steps")
    axes.set(title="Training loss", xlabel="step", ylabel="cross entropy of the answer", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_confusions(axes: plt.Axes, words: list[str], answers: list[str]) -> None:
    order = sorted(set(words), key=WORDS.index)
    counts = np.array(
        [[sum(w == a and b == c for w, b in zip(words, answers, strict=True)) for c in order] for a in order]
    )
    axes.imshow(np.log1p(counts), cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if row == column else "#c0392b"
            axes.text(column, row, count, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(order)), order, rotation=60)
    axes.set_yticks(range(len(order)), order)
    axes.set(title="Answers", xlabel="the model's answer", ylabel="digit in the scan")


def _draw_scans(figure: plt.Figure, scans: list[Image.Image], words: list[str], answers: list[str]) -> None:
    wrong_first = sorted(range(len(scans)), key=lambda i: words[i] == answers[i])
    grid = figure.subplots(ROWS, COLUMNS)
    figure.suptitle(
        "Held-out scans with the generated words; mistakes (red) come first, with the right word in brackets"
    )
    for axes, index in zip(grid.flat, wrong_first, strict=False):
        right = words[index] == answers[index]
        axes.imshow(scans[index], cmap="gray_r")
        title = answers[index] if right else f"{answers[index] or '—'} ({words[index]})"
        axes.set_title(
            title, fontsize=9, color="black" if right else "#c0392b", fontweight="normal" if right else "bold"
        )
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color="#999999" if right else "#c0392b", linewidth=0.5 if right else 2.5)
