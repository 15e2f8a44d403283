"""The exercises of examples/keypad.py: what sounds and scans say is what the answers say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the examples need cornstarch-core[demo]")
EXAMPLES = str(Path(__file__).parent.parent / "examples")


@pytest.fixture
def sounds(monkeypatch: pytest.MonkeyPatch):
    """The module under test; examples are scripts, not a package."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import keypad_sounds

    yield keypad_sounds
    sys.modules.pop("keypad_sounds")


def test_a_key_sounds_as_the_tones_of_its_row_and_its_column(sounds):
    """The two strongest frequencies of a second of a key, hertz by hertz, are the ones in the table."""
    for key, tones in sounds.TONES.items():
        spectrum = np.abs(np.fft.rfft(sounds.press(key, 1.0)))
        assert tuple(sorted(np.argsort(spectrum)[-2:])) == tones


def test_half_of_the_pairs_are_the_same(sounds):
    """Yes and no are balanced, so that neither is a good guess."""
    answers = [pair.answer for pair in sounds.Pairs(10, seed=0)]
    assert answers.count("yes") == answers.count("no") == 5


def test_an_exercise_is_always_the_same_and_held_out_ones_are_others(sounds):
    """An index and a seed fix the sound; a held-out number is drawn apart from those for training."""
    one, again = (sounds.Numbers(3, seed=0)[2] for _ in range(2))
    held_out = sounds.Numbers(3, seed=0, held_out=True)[2]
    assert np.array_equal(one.sound, again.sound)
    assert not np.array_equal(one.sound[:100], held_out.sound[:100])


def test_blanks_keep_their_size(sounds):
    """Without sound there is silence as long, without scan a black picture as large; the rest stays."""
    pair = sounds.Pairs(1, seed=0)[0]
    silent, blind = pair.without_sound(), pair.without_scan()
    assert silent.sound.shape == pair.sound.shape
    assert not silent.sound.any()
    assert blind.scan.size == pair.scan.size
    assert blind.scan.getextrema() == (0, 0)
    assert silent.scan is pair.scan
    assert blind.sound is pair.sound
