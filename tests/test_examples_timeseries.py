"""Tests of examples/timeseries.py: the answers are right for the series, and both models learn and generate."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cornstarch_timeseries", reason="the example needs its plugin, which make test installs")
pytest.importorskip("matplotlib", reason="the examples need cornstarch-core[demo]")
EXAMPLES = str(Path(__file__).parent.parent / "examples")
NAMES = ("timeseries_data", "timeseries_report", "timeseries")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch):
    """The modules under test. They are imported from their folder, because examples are scripts and not a package."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import timeseries
    import timeseries_data
    import timeseries_report

    yield {"data": timeseries_data, "report": timeseries_report, "demo": timeseries}
    for name in NAMES:
        sys.modules.pop(name)


@pytest.fixture
def data(modules):
    """The module ``timeseries_data``."""
    return modules["data"]


def strongest_period(series: np.ndarray, periods: list[int]) -> int:
    """The period with the largest amplitude in a series, after its linear trend is removed."""
    time = np.arange(len(series))
    rest = series - np.polyval(np.polyfit(time, series, 1), time)
    return max(periods, key=lambda period: abs(np.sum(rest * np.exp(-2j * np.pi * time / period))))


@pytest.mark.parametrize("lengths", [(64, 64), (48, 96)])
def test_answers_are_right_for_the_series(data, lengths):
    """The peak is always in the third of the answer; a fit finds the trend and the period of most noisy series."""
    rng = np.random.default_rng(0)
    found = {"trend": [], "period": []}
    for _ in range(300):
        truth = {kind: str(rng.choice(answers)) for kind, answers in data.ANSWERS.items()}
        steps = int(rng.integers(lengths[0], lengths[1] + 1))
        series = data.draw(truth, steps, rng)
        assert data.PLACES[int(3 * series.argmax() / steps)] == truth["peak"]
        period = data.PERIODS[truth["period"]]
        found["period"].append(strongest_period(series, list(data.PERIODS.values())) == period)
        slope = np.polyfit(np.arange(steps), series / series.std(), 1)[0]
        found["trend"].append(truth["trend"] == "level" or np.sign(slope) == data.TRENDS.index(truth["trend"]) - 1)
    assert np.mean(found["period"]) > 0.9
    assert np.mean(found["trend"]) > 0.9


def test_answers_are_balanced(data):
    """Each kind of question appears equally often, and its answers are about equally frequent."""
    exercises = list(data.Exercises(1200, (64, 64), seed=0))
    for kind, answers in data.ANSWERS.items():
        said = [exercise.answer for exercise in exercises if exercise.kind == kind]
        assert len(said) == 400
        assert set(said) == set(answers)
        assert max(said.count(answer) for answer in answers) < 1.25 * len(said) / len(answers)


def test_an_exercise_is_reproducible_and_held_out_ones_differ(data):
    """An index and a seed always give the same series; a held-out exercise of the same index has another series."""
    one, again = (data.Exercises(3, (48, 96), seed=0)[2] for _ in range(2))
    held_out = data.Exercises(3, (48, 96), seed=0, held_out=True)[2]
    assert np.array_equal(one.series, again.series)
    assert not np.array_equal(one.series[:40], held_out.series[:40])
    with pytest.raises(IndexError):
        data.Exercises(3, (48, 96), seed=0)[3]


def test_a_blanked_series_is_constant_and_keeps_its_length(data):
    """All values of a blanked series are equal; its length, its question and its answer stay."""
    exercise = data.Exercises(1, (48, 96), seed=0)[0]
    blank = exercise.blanked()
    assert blank.series.shape == exercise.series.shape
    assert len(set(blank.series.tolist())) == 1
    assert (blank.kind, blank.answer) == (exercise.kind, exercise.answer)


@pytest.mark.parametrize("name", ["patchtst", "conv"])
def test_a_model_learns_a_batch_and_answers(modules, name, tmp_path):
    """The loss of one batch falls, the model answers each exercise, and the report is drawn."""
    import torch

    demo, report = modules["demo"], modules["report"]
    tokenizer = demo.make_tokenizer()
    model = demo.compose_model(name, tokenizer)
    processor = demo.MultimodalProcessor(tokenizer=tokenizer, model=model, chat_template=demo.CHAT)
    exercises = list(demo.Exercises(12, demo.LENGTHS[name], seed=0))
    batch = demo.make_batch(demo.MultimodalCollator(processor), exercises)
    assert (batch["labels"] != -100).sum() == 2 * len(exercises)  # the answer, and the end of the turn
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    answers = demo.answer(name, model, processor, exercises)
    assert len(answers) == len(exercises)
    shares = demo.accuracies(exercises, answers)
    assert shares.keys() == demo.QUESTIONS.keys()
    run = {"losses": losses, "exercises": exercises, "answers": answers, "accuracy": shares, "blank": shares}
    report.draw_report(tmp_path / "report.png", {name: run})
    assert (tmp_path / "report.png").stat().st_size > 20_000


def test_accuracy_is_the_share_of_right_answers_to_each_question(modules):
    """With one of two, none, and all answers right, the shares are 0.5, 0 and 1."""
    demo = modules["demo"]
    exercises = list(demo.Exercises(6, (64, 64), seed=0))
    answers = [one.answer for one in exercises]
    answers[0], answers[1], answers[4] = "", "yes", "no"
    assert demo.accuracies(exercises, answers) == {"trend": 0.5, "peak": 0.0, "period": 1.0}
