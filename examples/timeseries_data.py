"""Exercises for timeseries.py: generated series, and questions about their trend, their peak and their period."""

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
    """A kind of question, its answer, and a series, ``(n,)`` float32, at a random level and scale."""

    kind: str
    answer: str
    series: np.ndarray

    @property
    def question(self) -> str:
        """The question in words."""
        return QUESTIONS[self.kind]

    def blanked(self) -> "Exercise":
        """The same exercise with a series of the same length that stays at its first value."""
        return replace(self, series=np.full_like(self.series, self.series[0]))


class Exercises(Dataset):
    """Exercises of all kinds in turn, for training or held out; an index and a seed always give the same exercise.

    Args:
        size: the number of exercises.
        lengths: the shortest and the longest series, in steps.
        seed: the seed of everything random.
        held_out: whether to make held-out exercises, which differ from those for training.
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
    """Draw a series with these three answers: a line, a wave, a peak and noise, at a random level and scale."""
    time = np.arange(steps)
    slope = (TRENDS.index(truth["trend"]) - 1) * rng.uniform(1.2, 3)  # over the whole series
    wave = np.sin(2 * np.pi * (time / PERIODS[truth["period"]] + rng.uniform()))
    series = slope * time / steps + wave + rng.normal(0, 0.4, steps)
    top = place(PLACES.index(truth["peak"]), steps, rng)
    series = np.maximum(series, series.max() + rng.uniform(0.5, 1.5) - np.abs(time - top))  # the peak is highest
    return (10 ** rng.uniform(-2, 2) * (series + rng.uniform(-20, 20))).astype("float32")


def place(third: int, steps: int, rng: np.random.Generator) -> int:
    """Draw a step in the first, second or last third of a series, away from the border between two thirds."""
    margin = steps / 24
    return int(rng.uniform(third * steps / 3 + margin * (third > 0), (third + 1) * steps / 3 - margin * (third < 2)))
