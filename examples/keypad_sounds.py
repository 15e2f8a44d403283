"""Exercises for keypad.py: dialled numbers to write down, scanned digits to read, and scans to compare with a key.

A telephone key plays two tones at once, one for its row and one for its column (DTMF, ITU-T Q.23).
"""

from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset

RATE = 16000  # samples per second
DIGITS = "0123456789"
ROWS, COLUMNS = [697, 770, 852, 941], [1209, 1336, 1477]  # hertz
TONES = {
    key: (ROWS[row], COLUMNS[column])
    for row, keys in enumerate(["123", "456", "789", "*0#"])
    for column, key in enumerate(keys)
}
WRITE, READ, COMPARE = "write the number", "read the digit", "was this digit dialled ?"


@dataclass(frozen=True)
class Exercise:
    """A question and its answer, with an audio clip (``sound``, ``(n,)`` float32), a scan, or both."""

    question: str
    answer: str
    sound: np.ndarray | None = None
    scan: Image.Image | None = None
    dialled: str = ""

    def without_sound(self) -> "Exercise":
        """The same exercise with silence of the same length."""
        return replace(self, sound=np.zeros_like(self.sound))

    def without_scan(self) -> "Exercise":
        """The same exercise with a blank image of the same size."""
        return replace(self, scan=Image.new("L", self.scan.size))


class Exercises(Dataset):
    """Exercises for training, or held-out ones; an index and a seed always give the same exercise.

    Of scikit-learn's 1,797 scans 300 are held out, so training exercises and held-out ones have no scan in common.
    """

    def __init__(self, size: int, seed: int, held_out: bool = False) -> None:
        digits = load_digits()
        parts = train_test_split(digits.images, digits.target, test_size=300, random_state=0, stratify=digits.target)
        self.scans, self.digits = parts[held_out], parts[2 + held_out]
        self.size, self.seed, self.held_out = size, seed, held_out

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Exercise:
        if index >= self.size:
            raise IndexError(index)
        return self.make(index, np.random.default_rng([self.seed, self.held_out, index]))

    @abstractmethod
    def make(self, index: int, rng: np.random.Generator) -> Exercise:
        """Make the exercise of this index."""

    def draw_scan(self, rng: np.random.Generator) -> tuple[Image.Image, int]:
        """Draw a scan and its digit; for training, distort the scan a little."""
        chosen = rng.integers(len(self.scans))
        image = Image.fromarray((self.scans[chosen] * 255 / 16).astype("uint8"))
        return (image if self.held_out else distort(image, rng)), int(self.digits[chosen])


class Numbers(Exercises):
    """Dialled numbers of 1 to 7 digits, to write down."""

    def make(self, index: int, rng: np.random.Generator) -> Exercise:
        """Draw the digits of a number one by one."""
        number = "".join(rng.choice(list(DIGITS), size=rng.integers(1, 8)))
        return Exercise(WRITE, " ".join(number), sound=dial(number, rng), dialled=number)


class Scans(Exercises):
    """Scanned digits to read."""

    def make(self, index: int, rng: np.random.Generator) -> Exercise:
        """Draw a scan."""
        scan, digit = self.draw_scan(rng)
        return Exercise(READ, str(digit), scan=scan)


class Pairs(Exercises):
    """A scanned digit to compare with a dialled key; in every other pair they are the same."""

    def make(self, index: int, rng: np.random.Generator) -> Exercise:
        """Draw a scan, and take the key of its digit or draw another key."""
        scan, digit = self.draw_scan(rng)
        same = index % 2 == 0
        key = str(digit if same else (digit + rng.integers(1, 10)) % 10)
        return Exercise(COMPARE, "yes" if same else "no", sound=dial(key, rng), scan=scan, dialled=key)


def dial(keys: str, rng: np.random.Generator) -> np.ndarray:
    """Keys pressed one after another, of random durations and volume, on a noisy line: ``(n,)`` float32."""
    parts = [silence(rng.uniform(0.05, 0.12))]
    for key in keys:
        parts += [press(key, rng.uniform(0.06, 0.16)), silence(rng.uniform(0.05, 0.12))]
    sound = np.concatenate(parts)
    noise = rng.uniform(0.02, 0.3) * rng.normal(size=len(sound))
    return (rng.uniform(0.03, 0.3) * (sound + noise)).astype("float32")


def press(key: str, seconds: float) -> np.ndarray:
    """The two tones of a key."""
    time = np.arange(round(seconds * RATE)) / RATE
    row, column = TONES[key]
    return np.sin(2 * np.pi * row * time) + np.sin(2 * np.pi * column * time)


def silence(seconds: float) -> np.ndarray:
    """Silence of this duration."""
    return np.zeros(round(seconds * RATE))


def distort(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shear, scale and shift a scan a little at random."""
    matrix = np.eye(2) + rng.uniform(-0.06, 0.06, (2, 2))
    middle = np.array(image.size) / 2
    offset = middle - matrix @ middle + rng.uniform(-0.28, 0.28, 2)
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    return image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
