"""What the plugin registers, and what it costs to look."""

import subprocess
import sys
from importlib.metadata import entry_points

import pluggy
import pytest
from cornstarch_vision import plugin
from torch import nn

from cornstarch_core import hookspecs
from cornstarch_core.plugins import resolve


@pytest.fixture
def registered():
    """All specs, as pluggy collects them."""
    manager = pluggy.PluginManager("cornstarch")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, "cornstarch-vision")
    manager.check_pending()
    kinds = ("encoders", "projectors", "processors", "callbacks", "checkpoints")
    return {kind: getattr(manager.hook, f"cornstarch_register_{kind}")()[0] for kind in kinds}


def test_the_plugin_module_is_light():
    """Importing the plugin's module imports neither torch, transformers, PIL nor numpy."""
    code = (
        "import sys, cornstarch_vision.plugin as p; p.cornstarch_register_encoders();"
        "print([m for m in ('torch', 'transformers', 'PIL', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_entry_point_names_the_plugin_module():
    """The distribution offers one plugin, and it is this module."""
    points = [point for point in entry_points(group="cornstarch.plugins") if point.dist.name == "cornstarch-vision"]
    assert [point.load() for point in points] == [plugin]


def test_names_are_the_documented_ones(registered):
    """Users and checkpoints refer to these names."""
    assert {kind: [spec.name for spec in specs] for kind, specs in registered.items()} == {
        "encoders": ["clip", "siglip", "vit", "deit", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit"],
        "projectors": ["pixel_shuffle"],
        "processors": ["image"],
        "callbacks": ["llava"],
        "checkpoints": ["llava"],
    }


def test_every_target_resolves(registered):
    """No target is misspelt, and each is a class with the methods of its spec's interface."""
    for spec in (spec for specs in registered.values() for spec in specs):
        assert spec.interface in resolve(spec.target).__mro__
        resolve(spec.target)()


def test_every_encoder_class_exists(registered):
    """The installed transformers has each class under the path that the spec gives."""
    classes = [resolve(name) for spec in registered["encoders"] for name in spec.classes]
    assert len(classes) == 8
    assert all(issubclass(one, nn.Module) for one in classes)


def test_every_encoder_names_a_registered_processor(registered):
    """Images are prepared by the processor that this plugin registers."""
    assert {spec.processor for spec in registered["encoders"]} == {spec.name for spec in registered["processors"]}
