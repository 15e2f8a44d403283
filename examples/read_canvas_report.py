"""Draws the report of read_canvas.py: the losses, accuracies with and without tiling, and canvases with answers."""

from itertools import zip_longest
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from canvases import LAYOUTS, Canvas
from cornstarch_llava_next.anyres import best_pinpoint
from matplotlib.patches import Rectangle
from PIL import Image

MISTAKES = 2  # the most mistakes of the tiled model that each group shows
GROUPS = {  # layouts: number of canvases, and height and width of the area for one
    ("row",): (5, 24, 84),
    ("scattered", "single"): (7, 44, 44),
    ("column",): (7, 84, 24),
}
COLORS = {"tiled": "#1f4e8c", "untiled": "#e08e2b"}
RIGHT, WRONG = "#1e7d3c", "#c0392b"


def draw_report(
    path: Path,
    canvases: list[Canvas],
    losses: dict[str, list[float]],
    answers: dict[str, list[str]],
    pinpoints: list[list[int]],
) -> None:
    """Draw loss curves, accuracies by number of digits and by layout, and canvases with their tiles and answers."""
    right = {
        name: np.array([canvas.words == answer for canvas, answer in zip(canvases, read, strict=True)])
        for name, read in answers.items()
    }
    figure = plt.figure(figsize=(16, 13), layout="constrained")
    figure.suptitle(
        f"Whole canvases read without a mistake, of {len(canvases)} held out: {right['tiled'].mean():.0%} with tiling, "
        f"{right['untiled'].mean():.0%} scaled down to one view, after {len(losses['tiled']):,} steps each",
        fontsize=16, fontweight="bold",
    )  # fmt: skip
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 2])
    curve, by_digits, by_layout = top.subplots(1, 3, width_ratios=[1.3, 1, 1])
    _draw_losses(curve, losses)
    _draw_accuracies(by_digits, "number of digits", [canvas.digits for canvas in canvases], [1, 2, 3, 4], right)
    _draw_accuracies(by_layout, "layout", [canvas.layout for canvas in canvases], ["single", *LAYOUTS], right)
    bottom.suptitle(
        "Held-out canvases with their tiles (blue), and the one view that the untiled model gets, enlarged (orange).\n"
        "Below each, the answers of both models, mistakes in red; mistakes of the tiled model come first."
    )
    strips = bottom.subfigures(len(GROUPS), 1, height_ratios=[0.85, 1.25, 1.8])
    for strip, (layouts, (cards, height, width)) in zip(strips, GROUPS.items(), strict=True):
        chosen = _chosen(canvases, layouts, right["tiled"])
        for axes, index in zip(strip.subplots(1, cards), chosen, strict=False):
            readings = {name: read[index] for name, read in answers.items()}
            _draw_canvas(axes, canvases[index], readings, pinpoints, height, width)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_losses(axes: plt.Axes, losses: dict[str, list[float]]) -> None:
    for name, values in losses.items():
        width = max(len(values) // 50, 1)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(values, color=COLORS[name], linewidth=0.6, alpha=0.25)
        axes.plot(np.arange(len(smooth)) + width - 1, smooth, color=COLORS[name], linewidth=2, label=name)
    axes.set(title="Training loss", xlabel="step", ylabel="cross entropy of the answer", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_accuracies(axes: plt.Axes, title: str, kinds: list, order: list, right: dict[str, np.ndarray]) -> None:
    for offset, (name, hits) in zip((-0.2, 0.2), right.items(), strict=True):
        heights = [100 * hits[[kind == one for kind in kinds]].mean() for one in order]
        bars = axes.bar(np.arange(len(order)) + offset, heights, width=0.38, color=COLORS[name], label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=9)
    axes.set_xticks(range(len(order)), [f"{one}\n({kinds.count(one)})" for one in order])
    axes.set(title=f"Read without a mistake, by {title}", ylabel="% of canvases", ylim=(0, 115))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=2, loc="upper center", frameon=False)


def _chosen(canvases: list[Canvas], layouts: tuple[str, ...], right: np.ndarray) -> list[int]:
    """Choose canvases of these layouts: some mistakes first, then canvases of 4, 3, 2 and 1 digits in turn."""
    indices = [i for i, canvas in enumerate(canvases) if canvas.layout in layouts]
    mistakes = [i for i in indices if not right[i]][:MISTAKES]
    rest = [i for i in indices if i not in mistakes]
    turns = zip_longest(*([i for i in rest if canvases[i].digits == digits] for digits in (4, 3, 2, 1)))
    return mistakes + [i for turn in turns for i in turn if i is not None]


def _draw_canvas(
    axes: plt.Axes, canvas: Canvas, readings: dict[str, str], pinpoints: list[list[int]], height: int, width: int
) -> None:
    """Draw a canvas in the middle of ``height`` by ``width`` pixels, its scaled-down view, and both answers."""
    image = canvas.image
    axes.imshow(image, cmap="gray_r", extent=_around(0, 0, image.width, image.height))
    rows, columns, crop, edge = _tiles(image, pinpoints)
    for row, column in np.ndindex(rows, columns):
        corner = (column - columns / 2) * edge, (row - rows / 2) * edge
        axes.add_patch(Rectangle(corner, edge, edge, fill=False, color=COLORS["tiled"], linewidth=1.3))
    view, middle = min(height, 36), width / 2 + 8 + min(height, 36) / 2
    scaled = image.resize((crop, crop), Image.Resampling.BILINEAR)
    axes.imshow(scaled, cmap="gray_r", extent=_around(middle, 0, view, view))
    corner = middle - view / 2, -view / 2
    axes.add_patch(Rectangle(corner, view, view, fill=False, color=COLORS["untiled"], linewidth=1.8))
    axes.set(
        xlim=(-width / 2 - 1, middle + view / 2 + 1), ylim=(height / 2 + 1, -height / 2 - 1), aspect="equal", anchor="S"
    )
    axes.axis("off")
    lines = [(name, reading, RIGHT if reading == canvas.words else WRONG) for name, reading in readings.items()]
    if readings["tiled"] != canvas.words:
        lines.append(("right", canvas.words, "black"))
    for number, (name, words, color) in enumerate(lines):
        axes.annotate(
            f"{name}: {words or '—'}", (0.5, 0), (0, -4 - 13 * number), xycoords="axes fraction",
            textcoords="offset points", ha="center", va="top", fontsize=9.5, color=color,
            fontweight="bold" if name == "tiled" else "normal",
        )  # fmt: skip


def _around(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, x + width / 2, y + height / 2, y - height / 2


def _tiles(image: Image.Image, pinpoints: list[list[int]]) -> tuple[int, int, int, float]:
    """The rows and columns of tiles, and the edge of a tile in its own pixels and in pixels of the canvas."""
    crop = min(min(pinpoint) for pinpoint in pinpoints)
    height, width = best_pinpoint((image.height, image.width), [(h, w) for h, w in pinpoints])
    scale = min(width / image.width, height / image.height)  # the canvas is scaled by it, and centred
    return height // crop, width // crop, crop, crop / scale
