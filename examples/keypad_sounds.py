"""Exercises for keypad.py: dialled numbers to write down, scanned digits to read, and scans to compare with a tone.

A key of a telephone sounds as two tones at once, one for its row and one for its column (DTMF, ITU-T Q.23).
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
    """A question and its answer, with what is heard and what is seen: a sound, ``(n,)`` float32, a scan, or both."""

    question: str
    answer: str
    sound: np.ndarray | None = None
    scan: Image.Image | None = None
    dialled: str = ""

    def without_sound(self) -> "Exercise":
        """The same with silence, as long as the sound."""
        return replace(self, sound=np.zeros_like(self.sound))

    def without_scan(self) -> "Exercise":
        """The same with a blank picture, as large as the scan."""
        return replace(self, scan=Image.new("L", self.scan.size))


class Exercises(Dataset):
    """Exercises for training, or held out; each index its own, always the same for a seed.

    Of scikit-learn's 1,797 scans 300 are held out: no exercise of one part has a scan of the other.
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
        """The exercise of this index."""

    def draw_scan(self, rng: np.random.Generator) -> tuple[Image.Image, int]:
        """Any of the scans, for training a little out of shape, and its digit."""
        chosen = rng.integers(len(self.scans))
        image = Image.fromarray((self.scans[chosen] * 255 / 16).astype("uint8"))
        return (image if self.held_out else wobble(image, rng)), int(self.digits[chosen])


class Numbers(Exercises):
    """Numbers of 1 to 7 digits, dialled, to write down."""

    def make(self, index: int, rng: np.random.Generator) -> Exercise:
        """A number of digits drawn one by one."""
        number = "".join(rng.choice(list(DIGITS), size=rng.integers(1, 8)))
        return Exercise(WRITE, " ".join(number), sound=dial(number, rng), dialled=number)


class Scans(Exercises):
    """Scanned digits to read."""

    def make(self, index: int, rng: np.random.Generator) -> Exercise:
        """Any scan."""
        scan, digit = self.draw_scan(rng)
        return Exercise(READ, str(digit), scan=scan)


class Pairs(Exercises):
    """A scanned digit and the tone of one key to compare; in every other pair they are the same."""

    def make(self, index: int, rng: np.random.Generator) -> Exercise:
        """Any scan, with the key of its digit or of any other."""
        scan, digit = self.draw_scan(rng)
        same = index % 2 == 0
        key = str(digit if same else (digit + rng.integers(1, 10)) % 10)
        return Exercise(COMPARE, "yes" if same else "no", sound=dial(key, rng), scan=scan, dialled=key)


def dial(keys: str, rng: np.random.Generator) -> np.ndarray:
    """The sound of keys pressed one after another, short or long, soft or loud, on a noisy line: ``(n,)`` float32."""
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
    """Nothing, for a while."""
    return np.zeros(round(seconds * RATE))


def wobble(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A scan a little sheared, scaled and moved, so that no two are the same."""
    matrix = np.eye(2) + rng.uniform(-0.06, 0.06, (2, 2))
    middle = np.array(image.size) / 2
    offset = middle - matrix @ middle + rng.uniform(-0.28, 0.28, 2)
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    return image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
