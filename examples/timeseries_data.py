"""Exercises for timeseries.py: made-up series, and questions about their trend, their peak and their period."""

from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

TRENDS = ["falling", "level", "rising"]
PLACES = ["early", "middle", "late"]
PERIODS = {"four": 4, "six": 6, "nine": 9, "fourteen": 14}  # in steps
QUESTIONS = {
    "trend": "is it rising or falling ?",
    "peak": "when is the peak ?",
    "period": "how many steps is a wave ?",
}
ANSWERS = {"trend": TRENDS, "peak": PLACES, "period": list(PERIODS)}


@dataclass(frozen=True)
class Exercise:
    """A question about a series, ``(n,)`` float32, of some level and scale, and its answer."""

    kind: str
    answer: str
    series: np.ndarray

    @property
    def question(self) -> str:
        """In words."""
        return QUESTIONS[self.kind]

    def blanked(self) -> "Exercise":
        """The same of a series that stays as it begins, and is as long."""
        return replace(self, series=np.full_like(self.series, self.series[0]))


class Exercises(Dataset):
    """Exercises of all kinds in turn, for training or held out; each index its own, always the same for a seed.

    Args:
        size: how many.
        lengths: the shortest and the longest series, in steps.
        seed: of all that is random.
        held_out: whether they are other ones than those for training.
    """

    def __init__(self, size: int, lengths: tuple[int, int], seed: int, held_out: bool = False) -> None:
        self.size, self.lengths, self.seed, self.held_out = size, lengths, seed, held_out

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Exercise:
        if index >= self.size:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, self.held_out, index])
        truth = {kind: str(rng.choice(answers)) for kind, answers in ANSWERS.items()}
        kind = list(QUESTIONS)[index % len(QUESTIONS)]
        steps = int(rng.integers(self.lengths[0], self.lengths[1] + 1))
        return Exercise(kind, truth[kind], draw(truth, steps, rng))


def draw(truth: dict[str, str], steps: int, rng: np.random.Generator) -> np.ndarray:
    """A series of which all three answers are true: a line, a wave, a peak and noise, at any level and scale."""
    time = np.arange(steps)
    slope = (TRENDS.index(truth["trend"]) - 1) * rng.uniform(1.2, 3)  # over the whole series
    wave = np.sin(2 * np.pi * (time / PERIODS[truth["period"]] + rng.uniform()))
    series = slope * time / steps + wave + rng.normal(0, 0.4, steps)
    top = place(PLACES.index(truth["peak"]), steps, rng)
    series = np.maximum(series, series.max() + rng.uniform(0.5, 1.5) - np.abs(time - top))  # nothing else is as high
    return (10 ** rng.uniform(-2, 2) * (series + rng.uniform(-20, 20))).astype("float32")


def place(third: int, steps: int, rng: np.random.Generator) -> int:
    """A step in the first, second or last third of a series, not at the border of two thirds."""
    margin = steps / 24
    return int(rng.uniform(third * steps / 3 + margin * (third > 0), (third + 1) * steps / 3 - margin * (third < 2)))
