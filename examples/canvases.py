"""Canvases for read_canvas.py: images of scanned digits in a row, in a column or scattered, with the words for them."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LAYOUTS = ["row", "column", "scattered"]
DIGIT = 16  # pixels: twice the size of a scan


@dataclass(frozen=True)
class Canvas:
    """An image of digits, the words for them, and their layout: ``"single"`` or one of ``LAYOUTS``."""

    image: Image.Image
    words: str
    layout: str

    @property
    def digits(self) -> int:
        """The number of digits."""
        return len(self.words.split())


class Canvases(Dataset):
    """Canvases for training, or held-out ones; an index always gives the same canvas.

    Of scikit-learn's 1,797 scans 300 are held out, so training canvases and held-out canvases have no scan in common.
    """

    def __init__(self, size: int, held_out: bool = False) -> None:
        digits = load_digits()
        parts = train_test_split(digits.images, digits.target, test_size=300, random_state=0, stratify=digits.target)
        self.scans, self.targets = parts[held_out], parts[2 + held_out]
        self.size, self.held_out = size, held_out

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Canvas:
        if index >= self.size:
            raise IndexError(index)
        rng = np.random.default_rng([self.held_out, index])
        count = int(rng.integers(1, 5))
        chosen = rng.integers(len(self.scans), size=count)
        layout = "single" if count == 1 else str(rng.choice(LAYOUTS))
        image = draw([self.scans[i] for i in chosen], layout, rng, distort=not self.held_out)
        return Canvas(image, " ".join(WORDS[self.targets[i]] for i in chosen), layout)


def draw(scans: list[np.ndarray], layout: str, rng: np.random.Generator, distort: bool) -> Image.Image:
    """Place digits into the cells of a grid in reading order, each at a random position inside its cell."""
    count = len(scans)
    rows, columns = {"row": (1, count), "column": (count, 1), "scattered": (2, 2), "single": (1, 1)}[layout]
    height, width = DIGIT + rng.integers(0, 5, size=2) * (rows > 1, columns > 1)  # the size of a cell
    cells = np.sort(rng.choice(rows * columns, count, replace=False))
    canvas = np.zeros((rows * height, columns * width), "uint8")
    for scan, cell in zip(scans, cells, strict=True):
        top = cell // columns * height + rng.integers(height - DIGIT + 1)
        left = cell % columns * width + rng.integers(width - DIGIT + 1)
        canvas[top : top + DIGIT, left : left + DIGIT] = enlarge(scan, rng if distort else None)
    return Image.fromarray(canvas)


def enlarge(scan: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Enlarge a scan to the size of a digit; with ``rng`` also shear, scale and shift it a little at random."""
    matrix = np.eye(2) * scan.shape[0] / DIGIT
    shift = np.zeros(2)
    if rng is not None:
        matrix = matrix + rng.uniform(-0.06, 0.06, (2, 2))
        shift = rng.uniform(-0.5, 0.5, 2)
    offset = scan.shape[0] / 2 - matrix @ [DIGIT / 2, DIGIT / 2] + shift
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    image = Image.fromarray((scan * 255 / 16).astype("uint8"))
    return np.asarray(image.transform((DIGIT, DIGIT), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))
