"""Draws the report of keypad.py: the loss, accuracies with and without each input, and exercises with answers."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from keypad_sounds import COLUMNS, RATE, ROWS, TONES, Exercise

NUMBERS, PAIRS, MISTAKES = 6, 8, 2  # shown; up to so many of them are mistakes
BLUE, GREY, RIGHT, WRONG = "#1f4e8c", "#b9c6d8", "#1e7d3c", "#c0392b"


def draw_report(
    path: Path,
    losses: list[float],
    exercises: dict[str, list[Exercise]],
    answers: dict[str, list[str]],
    accuracies: dict[str, float],
) -> None:
    """Draw the loss curve, accuracies, a table of yes and no, and some numbers and pairs with the model's answers."""
    figure = plt.figure(figsize=(16, 13), layout="constrained")
    figure.suptitle(
        f"Whisper, ViT and Llama in one model: {accuracies['number_accuracy']:.1%} of held-out numbers written without "
        f"a mistake,\n{accuracies['pair_accuracy']:.1%} of held-out scans compared correctly with a tone",
        fontsize=16, fontweight="bold",
    )  # fmt: skip
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1, 1.15, 1.05])
    curve, lengths, grid, bars = top.subplots(1, 4, width_ratios=[1.5, 1.2, 0.9, 1])
    _draw_losses(curve, losses)
    _draw_lengths(lengths, exercises["number"], answers["number"])
    _draw_confusions(grid, exercises["pair"], answers["pair"])
    _draw_needs(bars, accuracies)
    middle.suptitle("Held-out numbers as spectrograms, with the model's answers; mistakes, in red, come first")
    _draw_numbers(middle, exercises["number"], answers["number"])
    bottom.suptitle(
        "“Was this digit dialled?” Held-out scans, each beside a dialled key, and the model's answers;\n"
        "mistakes, in red, come first, with the right answer in brackets"
    )
    _draw_pairs(bottom, exercises["pair"], answers["pair"])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_losses(axes: plt.Axes, losses: list[float]) -> None:
    width = max(len(losses) // 50, 1)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(losses, color=GREY, linewidth=0.8, label="each step")
    axes.plot(np.arange(len(smooth)) + width - 1, smooth, color=BLUE, linewidth=2, label=f"mean of {width} steps")
    axes.set(title="Training loss", xlabel="step", ylabel="cross entropy of the answer", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_lengths(axes: plt.Axes, numbers: list[Exercise], answers: list[str]) -> None:
    digits = np.array([len(number.dialled) for number in numbers])
    right = np.array([number.answer == answer for number, answer in zip(numbers, answers, strict=True)])
    lengths = np.unique(digits)
    bars = axes.bar(lengths, [100 * right[digits == length].mean() for length in lengths], color=BLUE)
    axes.bar_label(bars, fmt="%.0f", fontsize=9)
    axes.set_xticks(lengths, [f"{length}\n({(digits == length).sum()})" for length in lengths])
    axes.set(
        title="Numbers without a mistake", xlabel="digits (how many numbers)", ylabel="% of numbers", ylim=(0, 112)
    )
    axes.spines[["top", "right"]].set_visible(False)


def _draw_confusions(axes: plt.Axes, pairs: list[Exercise], answers: list[str]) -> None:
    order = ["yes", "no"]
    said = list(zip([pair.answer for pair in pairs], answers, strict=True))
    counts = np.array([[said.count((truth, answer)) for answer in order] for truth in order])
    axes.imshow(counts, cmap="Blues", vmin=0, vmax=len(pairs) / 2)
    for (row, column), count in np.ndenumerate(counts):
        color = WRONG if row != column else "white" if count > len(pairs) / 4 else "black"
        axes.text(column, row, count, ha="center", va="center", color=color, fontsize=16)
    axes.set_xticks([0, 1], order)
    axes.set_yticks([0, 1], order)
    axes.set(title="Was this digit dialled?", xlabel="the model's answer", ylabel="the truth")


def _draw_needs(axes: plt.Axes, accuracies: dict[str, float]) -> None:
    names = {"scan\nand audio": "pair", "blank\nscan": "pair_without_scan", "silence": "pair_without_sound"}
    heights = [100 * accuracies[f"{name}_accuracy"] for name in names.values()]
    axes.bar(list(names), heights, color=[BLUE, "#6f88a8", "#6f88a8"])
    for place, height in enumerate(heights):
        axes.text(place, 25, f"{height:.1f}", ha="center", color="white", fontsize=12)  # well below the dashed line
    axes.axhline(50, color="black", linewidth=1, linestyle="--", label="guessing")
    axes.legend(loc="upper right", frameon=False)
    axes.set(title="The task needs both inputs", ylabel="% of pairs right", ylim=(0, 112))
    axes.spines[["top", "right"]].set_visible(False)


def _mistakes_first(exercises: list[Exercise], answers: list[str], count: int) -> list[int]:
    """The indices of some mistakes, then of the first right answers."""
    right = [exercise.answer == answer for exercise, answer in zip(exercises, answers, strict=True)]
    mistakes = [i for i, one in enumerate(right) if not one][:MISTAKES]
    return [*mistakes, *(i for i, one in enumerate(right) if one)][:count]


def _draw_numbers(figure: plt.Figure, numbers: list[Exercise], answers: list[str]) -> None:
    longest = sorted(range(len(numbers)), key=lambda i: -len(numbers[i].dialled))  # the longest first
    numbers, answers = [numbers[i] for i in longest], [answers[i] for i in longest]
    grid = figure.subplots(2, NUMBERS // 2, sharex=True, sharey=True)
    for axes, index in zip(grid.flat, _mistakes_first(numbers, answers, NUMBERS), strict=False):
        number, answer = numbers[index], answers[index]
        _draw_sound(axes, number.sound)
        right = answer == number.answer
        axes.set_title(
            f"dialled {number.answer}   written {answer or '—'}", fontsize=10.5, color=RIGHT if right else WRONG
        )
    for axes in grid[-1]:
        axes.set_xlabel("seconds")
    for axes in grid[:, 0]:
        axes.set_ylabel("hertz")


def _draw_sound(axes: plt.Axes, sound: np.ndarray) -> None:
    """Draw a spectrogram of the frequencies of the keys."""
    axes.specgram(sound, NFFT=512, pad_to=1024, noverlap=448, Fs=RATE, cmap="magma", vmin=-110, vmax=-45)
    axes.set(ylim=(550, 1620), yticks=[*ROWS, *COLUMNS])
    axes.tick_params(labelsize=7.5)
    axes.set_facecolor("#eeeeee")


def _draw_pairs(figure: plt.Figure, pairs: list[Exercise], answers: list[str]) -> None:
    cells = figure.subfigures(2, PAIRS // 2, wspace=0.04)
    for cell, index in zip(cells.flat, _mistakes_first(pairs, answers, PAIRS), strict=False):
        pair, answer = pairs[index], answers[index]
        left, right = cell.subplots(1, 2, width_ratios=[1, 1.4])
        left.imshow(pair.scan, cmap="gray_r")
        left.set(xticks=[], yticks=[], anchor="E")
        _draw_sound(right, pair.sound)
        row, column = TONES[pair.dialled]
        right.set(xticks=[], yticks=[])
        right.set_xlabel(f"key {pair.dialled}: {row} + {column} hertz", fontsize=9)
        correct = answer == pair.answer
        title = answer if correct else f"{answer or '—'} ({pair.answer})"
        cell.suptitle(title, fontsize=12, color=RIGHT if correct else WRONG, fontweight="bold")
