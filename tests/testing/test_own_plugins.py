"""The kit on the plugins of this project, and on the plugin of the documentation."""

from __future__ import annotations

import re

import numpy as np
import pytest
import sounds
import tiny
from pages import DOCS
from scaffolded import install_from, python
from transformers import Dinov2Config, Dinov2Model, Wav2Vec2Config, Wav2Vec2Model

from cornstarch_core.testing import EncoderConformance, PluginConformance
from cornstarch_core.testing.package import ask

PAGES = [DOCS / "how-to" / name for name in ("plugin-by-hand.md", "test-a-plugin.md")]


class TestVision(PluginConformance):
    """cornstarch-vision."""

    distribution = "cornstarch-vision"
    test_auto_mappings_stay_as_they_were = None  # below, for all in one process


class TestAudio(PluginConformance):
    """cornstarch-audio."""

    distribution = "cornstarch-audio"
    test_auto_mappings_stay_as_they_were = None  # below, for all in one process


class TestLlavaNext(PluginConformance):
    """cornstarch-llava-next."""

    distribution = "cornstarch-llava-next"
    test_auto_mappings_stay_as_they_were = None  # below, for all in one process


def test_none_of_them_changes_auto_mappings():
    """The slow check passes for all plugins, in one process."""
    assert ask("changed_mappings", ["cornstarch-vision", "cornstarch-audio", "cornstarch-llava-next"]) == []


# --- images -----------------------------------------------------------------------------------------------------------


class Pictures(EncoderConformance):
    """One or two images of any size."""

    def make_items(self, rng):
        """Arrays of RGB values."""
        sizes = rng.integers(8, 80, (rng.integers(1, 3), 2))
        return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


class TestClip(Pictures):
    """All features of the last layer."""

    encoder = "cornstarch-vision/clip"

    def make_module(self):
        """A tiny one."""
        return tiny.clip()


class TestClipWithLlava(TestClip):
    """The features of an earlier layer, without CLS, with an MLP projector."""

    callbacks = "llava"
    projection_type = "mlp"


class TestClipWithLlavaNext(TestClip):
    """Images of any resolution, which give different numbers of features."""

    callbacks = "cornstarch-llava-next/llava-next"


class TestClipWithPixelShuffle(TestClip):
    """A projector that changes the number of features."""

    callbacks = "llava"
    projection_type = "pixel_shuffle"


class TestSiglip(Pictures):
    """A family of a fixed size."""

    encoder = "siglip"

    def make_module(self):
        """A tiny one."""
        return tiny.siglip()


class TestDinov2(Pictures):
    """A family of any size."""

    encoder = "dinov2"

    def make_module(self):
        """A tiny one."""
        return Dinov2Model(Dinov2Config(**tiny.VISION))


# --- audio ------------------------------------------------------------------------------------------------------------


class Clips(EncoderConformance):
    """One or two clips of up to two and a half seconds."""

    callbacks = "audio"

    def make_items(self, rng):
        """Arrays of samples."""
        lengths = rng.integers(2000, 40000, rng.integers(1, 3))
        return [rng.normal(scale=0.1, size=length).astype(np.float32) for length in lengths]


class TestWhisper(Clips):
    """Windows of a fixed length, of which only the part with audio gives features."""

    encoder = "cornstarch-audio/whisper"

    def make_module(self):
        """A tiny one."""
        return sounds.whisper()


class TestWhisperWithFrameStack(TestWhisper):
    """A projector that stacks frames."""

    projection_type = "frame_stack"


class TestWav2Vec2(Clips):
    """Waveforms of any length, which are encoded one by one because the encoder has no exact mask."""

    encoder = "cornstarch-audio/wav2vec2"

    def make_module(self):
        """A tiny one."""
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        settings = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
        return Wav2Vec2Model(Wav2Vec2Config(**sizes, **settings))


# --- the plugin that is written by hand -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_plugin_that_is_written_by_hand_passes_as_pytest_runs_it(tmp_path):
    """In a separate process, pytest collects the kit only through the subclasses in its test files."""
    for page in PAGES:
        install_from(page, tmp_path)
    out = python([tmp_path], tmp_path, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests")
    checks = {
        name for kind in (PluginConformance, EncoderConformance) for name in dir(kind) if name.startswith("test_")
    }
    assert re.search(rf"^{len(checks) + 1} passed in ", out, re.MULTILINE), out
