"""What the kit runs in other processes, here in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_plugins import isolated, sound, write_plugin

from cornstarch_core.specs import ProjectorSpec
from cornstarch_core.testing import probe


@pytest.fixture
def alone(tmp_path):
    """An empty folder: the only place where this process finds plugins."""
    with isolated(tmp_path) as folder:
        yield folder


def test_specs_are_plain_data():
    """The data is sorted, and the same after JSON."""
    offers = [("projectors", ProjectorSpec(name=name, target="a:b")) for name in "ba"]
    found = probe.plain(offers)
    assert [spec["name"] for _, spec in found] == ["a", "b"]
    assert json.loads(json.dumps(found)) == found


def test_a_plugin_is_activated_twice(alone):
    """Both results are equal for a working plugin; for a broken one they are the error."""
    write_plugin(alone, "fake-a", sound("clip"))
    write_plugin(alone, "fake-b", "raise RuntimeError('boom')")
    first, second = probe.activate_twice("fake-a")
    assert first == second
    assert [(kind, spec["name"]) for kind, spec in first] == [("encoders", "clip")]
    assert probe.activate_twice("fake-b") == ["RuntimeError: boom"] * 2


def test_heavy_imports_are_found_with_their_place(alone, monkeypatch):
    """The file and the line are those of the plugin, also if another module was imported before."""
    (alone / "fake_heavy.py").write_text("")
    write_plugin(alone, "fake-a", "\nimport fake_heavy\n" + sound("clip"))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    found = probe.heavy_imports("fake-a", ["fake_heavy", "fake_absent"])
    assert found == {"fake_heavy": f"{Path(alone).name}/fake_a.py, line 2"}


def test_the_processes_of_the_kit_start_light():
    """The code for child processes imports neither pytest nor torch, and the core does not import the kit."""
    code = (
        "import sys, cornstarch_core.plugins; assert 'cornstarch_core.testing' not in sys.modules\n"
        "import cornstarch_core.testing.probe\n"
        "print([name for name in ('numpy', 'pytest', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
