"""Draws the report of timeseries.py: the losses and accuracies of each model, and series with its answers."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from timeseries_data import ANSWERS, PERIODS, PLACES, QUESTIONS, Exercise

SHOWN, MISTAKES = 2, 1  # series of each question and model; up to so many of them are mistakes
TITLES = {"patchtst": "PatchTST, series of 64 steps", "conv": "SeriesConvEncoder, series of 48 to 96 steps"}
COLORS = {"patchtst": "#1f4e8c", "conv": "#d0802b"}
GREY, BAND, RIGHT, WRONG = "#9aa5b1", "#dfe8f3", "#1e7d3c", "#c0392b"


def draw_report(path: Path, runs: dict[str, dict]) -> None:
    """Draw loss curves, accuracies, and for each model and question some series with the answers.

    Args:
        path: the file to write.
        runs: the result of ``timeseries.run`` for each model, by name.
    """
    shares = [share for run in runs.values() for share in run["accuracy"].values()]
    figure = plt.figure(figsize=(16, 15), layout="constrained")
    figure.suptitle(
        f"Two encoders for time series, each composed with a Llama: accuracies of {min(shares):.1%} and more"
        "\n(held-out series, generated answers)", fontsize=16, fontweight="bold",
    )  # fmt: skip
    top, *rest = figure.subfigures(1 + len(runs), 1, height_ratios=[1, *[1.6] * len(runs)])
    curve, bars = top.subplots(1, 2, width_ratios=[1, 1.3])
    _draw_losses(curve, runs)
    _draw_accuracies(bars, runs)
    for part, (name, run) in zip(rest, runs.items(), strict=True):
        part.suptitle(f"{TITLES[name]}: held-out series with the answers; mistakes in red, with the right answer")
        _draw_series(part, run["exercises"], run["answers"], COLORS[name])
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_losses(axes: plt.Axes, runs: dict[str, dict]) -> None:
    for name, run in runs.items():
        losses = run["losses"]
        width = max(len(losses) // 50, 1)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(losses, color=COLORS[name], linewidth=0.8, alpha=0.3)
        label = f"{TITLES[name].split(',')[0]}, mean of {width} steps"
        axes.plot(np.arange(len(smooth)) + width - 1, smooth, color=COLORS[name], linewidth=2, label=label)
    axes.set(title="Training loss", xlabel="step", ylabel="cross entropy of the answer", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_accuracies(axes: plt.Axes, runs: dict[str, dict]) -> None:
    """Draw a bar for each question and model, inside it a pale bar for blank series, and the accuracy of guessing."""
    width = 0.38
    for place, (name, run) in enumerate(runs.items()):
        at = np.arange(len(QUESTIONS)) + (place - (len(runs) - 1) / 2) * (width + 0.03)
        full = axes.bar(at, [100 * run["accuracy"][kind] for kind in QUESTIONS], width, color=COLORS[name])
        axes.bar_label(full, fmt="%.1f", fontsize=10)
        blank = axes.bar(at, [100 * run["blank"][kind] for kind in QUESTIONS], width, color="white", alpha=0.55)
        axes.bar_label(blank, fmt="%.0f", fontsize=10, padding=2, color="white")
        full.set_label(TITLES[name].split(",")[0])
    pale = Patch(color="#cccccc", label="with a blank series")
    for at, kind in enumerate(QUESTIONS):
        guess = axes.hlines(
            100 / len(ANSWERS[kind]), at - 0.45, at + 0.45, color="black", linewidth=1.2, linestyle="--"
        )
    guess.set_label("guessing")
    handles = axes.get_legend_handles_labels()[0]
    axes.set_xticks(range(len(QUESTIONS)), [f"{kind}\n“{question}”" for kind, question in QUESTIONS.items()])
    axes.set(title="Accuracy by question", ylabel="% of answers right", ylim=(0, 135), yticks=range(0, 101, 20))
    axes.legend(handles=[*handles, pale], loc="upper center", ncols=4, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_series(figure: plt.Figure, exercises: list[Exercise], answers: list[str], color: str) -> None:
    grid = figure.subplots(SHOWN, len(QUESTIONS))
    for column, kind in enumerate(QUESTIONS):
        for axes, index in zip(grid[:, column], _mistakes_first(exercises, answers, kind), strict=True):
            exercise, answer = exercises[index], answers[index]
            _draw_truth(axes, exercise)
            axes.plot(exercise.series, color=color, linewidth=1.3, marker=".", markersize=4)
            axes.margins(x=0.01)
            axes.tick_params(labelsize=8)
            right = answer == exercise.answer
            said = answer if right else f"{answer or '—'}  ({exercise.answer})"
            axes.set_title(f"{exercise.question}   {said}", fontsize=11, color=RIGHT if right else WRONG)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=9)


def _mistakes_first(exercises: list[Exercise], answers: list[str], kind: str) -> list[int]:
    """The indices of some mistakes, then of right answers, different ones first."""
    of_kind = [index for index, one in enumerate(exercises) if one.kind == kind]
    wrong = [index for index in of_kind if exercises[index].answer != answers[index]][:MISTAKES]
    right = [index for index in of_kind if exercises[index].answer == answers[index]]
    first_of_each = list({answers[index]: index for index in reversed(right)}.values())
    return [*wrong, *first_of_each, *right, *of_kind][:SHOWN]


def _draw_truth(axes: plt.Axes, exercise: Exercise) -> None:
    """Draw the right answer behind the series: a line through it, its waves as bands, or the third with its peak."""
    steps, time = len(exercise.series), np.arange(len(exercise.series))
    if exercise.kind == "trend":
        axes.plot(np.polyval(np.polyfit(time, exercise.series, 1), time), color=GREY, linewidth=6, alpha=0.45)
    elif exercise.kind == "peak":
        third = PLACES.index(exercise.answer)
        axes.axvspan(third * steps / 3, (third + 1) * steps / 3, color=BAND)
        axes.plot(exercise.series.argmax(), exercise.series.max(), "o", color=GREY, markersize=10)
    else:
        period = PERIODS[exercise.answer]
        line = np.polyval(np.polyfit(time, exercise.series, 1), time)
        phase = np.angle(np.sum((exercise.series - line) * np.exp(-2j * np.pi * time / period)))
        first = (-phase / (2 * np.pi) - 0.5) % 1 * period  # a trough
        for start in np.arange(first - 2 * period, steps, 2 * period):
            axes.axvspan(max(start, 0), min(max(start + period, 0), steps - 1), color=BAND)
