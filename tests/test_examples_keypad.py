"""Tests of the exercises in examples/keypad.py: the answers are right for the clips and scans."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the examples need cornstarch-core[demo]")
EXAMPLES = str(Path(__file__).parent.parent / "examples")


@pytest.fixture
def sounds(monkeypatch: pytest.MonkeyPatch):
    """The module under test. It is imported from its folder, because examples are scripts and not a package."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import keypad_sounds

    yield keypad_sounds
    sys.modules.pop("keypad_sounds")


def test_a_key_has_the_tones_of_its_row_and_its_column(sounds):
    """The two strongest frequencies of one second of a key are those in the table."""
    for key, tones in sounds.TONES.items():
        spectrum = np.abs(np.fft.rfft(sounds.press(key, 1.0)))
        assert tuple(sorted(np.argsort(spectrum)[-2:])) == tones


def test_half_of_the_pairs_are_the_same(sounds):
    """As many answers are yes as no, so guessing is right in half of the cases."""
    answers = [pair.answer for pair in sounds.Pairs(10, seed=0)]
    assert answers.count("yes") == answers.count("no") == 5


def test_an_exercise_is_reproducible_and_held_out_ones_differ(sounds):
    """An index and a seed always give the same clip; a held-out exercise of the same index has another clip."""
    one, again = (sounds.Numbers(3, seed=0)[2] for _ in range(2))
    held_out = sounds.Numbers(3, seed=0, held_out=True)[2]
    assert np.array_equal(one.sound, again.sound)
    assert not np.array_equal(one.sound[:100], held_out.sound[:100])


def test_blanks_keep_their_size(sounds):
    """without_sound() gives silence of the same length, without_scan() a black image of the same size; the rest stays."""
    pair = sounds.Pairs(1, seed=0)[0]
    silent, blind = pair.without_sound(), pair.without_scan()
    assert silent.sound.shape == pair.sound.shape
    assert not silent.sound.any()
    assert blind.scan.size == pair.scan.size
    assert blind.scan.getextrema() == (0, 0)
    assert silent.scan is pair.scan
    assert blind.sound is pair.sound
