"""What the plugin registers, and what it costs to look."""

import subprocess
import sys
from importlib.metadata import entry_points

import pluggy
import pytest
from cornstarch_audio import plugin
from torch import nn

from cornstarch_core import hookspecs
from cornstarch_core.plugins import registry, resolve


@pytest.fixture
def registered():
    """All specs, as pluggy collects them."""
    manager = pluggy.PluginManager("cornstarch")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, "cornstarch-audio")
    manager.check_pending()
    kinds = ("encoders", "projectors", "processors", "callbacks", "checkpoints")
    return {kind: getattr(manager.hook, f"cornstarch_register_{kind}")()[0] for kind in kinds}


def test_the_plugin_module_is_light():
    """Importing the plugin's module imports neither torch, transformers, soundfile nor numpy."""
    code = (
        "import sys, cornstarch_audio.plugin as p; p.cornstarch_register_encoders();"
        "print([m for m in ('torch', 'transformers', 'soundfile', 'soxr', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_sound_is_prepared_without_the_extra():
    """Importing all of the package imports neither soundfile nor soxr."""
    code = (
        "import sys, cornstarch_audio.waveforms, cornstarch_audio.extractors, cornstarch_audio.callbacks;"
        "print([m for m in ('soundfile', 'soxr') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[]"


def test_the_entry_point_names_the_plugin_module():
    """The distribution offers one plugin, and it is this module."""
    points = [point for point in entry_points(group="cornstarch.plugins") if point.dist.name == "cornstarch-audio"]
    assert [point.load() for point in points] == [plugin]


def test_names_are_the_documented_ones(registered):
    """Users and checkpoints refer to these names."""
    names = {kind: [spec.name for spec in specs] for kind, specs in registered.items()}
    assert names.pop("encoders") == [
        *("whisper", "wav2vec2", "hubert", "wavlm", "data2vec_audio", "unispeech_sat", "sew", "wav2vec2_conformer"),
        *("wav2vec2_bert", "ast", "qwen2_audio", "voxtral", "audio_flamingo3", "glm_asr", "moonshine", "parakeet"),
    ]
    assert names == {
        "projectors": ["frame_stack", "conv_downsample", "resampler"],
        "processors": ["audio"],
        "callbacks": ["audio"],
        "checkpoints": ["qwen2_audio", "voxtral", "audioflamingo3"],
    }


def test_every_target_resolves(registered):
    """No target is misspelt, and each is a class with the methods of its spec's interface."""
    for spec in (spec for specs in registered.values() for spec in specs):
        assert spec.interface in resolve(spec.target).__mro__
        resolve(spec.target)()


def test_every_encoder_class_exists_and_finds_its_spec(registered, tiny):
    """The installed transformers has each class under the path that the spec gives, and the registry knows it by it."""
    for spec in registered["encoders"]:
        (path,) = spec.classes
        assert issubclass(resolve(path), nn.Module)
        assert registry().find_encoder(tiny(spec.name)).spec == spec


def test_every_encoder_has_its_blocks_where_the_spec_says(registered, tiny):
    """A list of modules at the dotted path."""
    for spec in registered["encoders"]:
        assert isinstance(tiny(spec.name).get_submodule(spec.layers), nn.ModuleList), spec.name
