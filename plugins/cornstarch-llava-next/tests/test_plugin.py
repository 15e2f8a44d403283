"""What the plugin registers, and what it costs to look."""

import subprocess
import sys
from importlib.metadata import entry_points, requires

import pluggy
import pytest
from cornstarch_llava_next import plugin

from cornstarch_core import hookspecs
from cornstarch_core.plugins import resolve


@pytest.fixture
def registered():
    """The specs, as pluggy collects them."""
    manager = pluggy.PluginManager("cornstarch")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, "cornstarch-llava-next")
    manager.check_pending()
    kinds = ("callbacks", "processors", "checkpoints")
    return {kind: getattr(manager.hook, f"cornstarch_register_{kind}")()[0] for kind in kinds}


def test_the_plugin_module_is_light():
    """Importing the plugin's module imports neither torch, transformers, PIL nor numpy, nor the other plugin."""
    code = (
        "import sys, cornstarch_llava_next.plugin as p; p.cornstarch_register_callbacks();"
        "print([m for m in ('torch', 'transformers', 'PIL', 'numpy', 'cornstarch_vision') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_entry_point_names_the_plugin_module():
    """The distribution offers one plugin, and it is this module."""
    name = "cornstarch-llava-next"
    points = [point for point in entry_points(group="cornstarch.plugins") if point.dist.name == name]
    assert [point.load() for point in points] == [plugin]


def test_the_other_plugin_is_declared():
    """A plugin may import another one only if it depends on it."""
    assert {"cornstarch-core<0.2,>=0.1", "cornstarch-vision<0.2,>=0.1"} <= set(requires("cornstarch-llava-next"))


def test_names_are_the_documented_ones(registered):
    """Users and checkpoints refer to these names."""
    names = {kind: [spec.name for spec in specs] for kind, specs in registered.items()}
    assert names == {"callbacks": ["llava-next"], "processors": ["llava-next"], "checkpoints": ["llava_next"]}
    assert registered["callbacks"][0].processor == "llava-next"


def test_every_target_resolves(registered):
    """No target is misspelt, and each is a class with the methods of its spec's interface."""
    for spec in (spec for specs in registered.values() for spec in specs):
        assert spec.interface in resolve(spec.target).__mro__
        resolve(spec.target)()


def test_media_have_the_same_names_as_with_the_vision_plugin(registered):
    """So that the same call works with and without tiling."""
    from cornstarch_vision.plugin import cornstarch_register_processors

    (ours,), (theirs,) = registered["processors"], cornstarch_register_processors()
    for field in ("modality", "media_names", "content_types"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert resolve(ours.target).prepare is resolve(theirs.target).prepare
