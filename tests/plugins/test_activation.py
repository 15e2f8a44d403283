"""Activation of one plugin: what is refused, and that a refused plugin leaves nothing behind."""

from __future__ import annotations

import pytest
from fake_plugins import BROKEN, BUILT_IN, hook, sound, write_plugin

from cornstarch_core import hookspecs, specs
from cornstarch_core.errors import UnknownNameError
from cornstarch_core.plugins import registry
from cornstarch_core.plugins.activation import hooks, spec_types


def test_a_plugin_without_hooks_is_active(site):
    """An empty module is a valid plugin, and so is one with an optional hook of another version of the core."""
    write_plugin(site, "fake-a", "")
    write_plugin(site, "fake-b", hook("register_robots", "return []", marker="@hookimpl(optionalhook=True)"))
    registry().activate()
    assert [info.state for info in registry().plugins()] == ["active", "active"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_does_not_affect_the_others(site, name):
    """The other plugins work, and the error of a lookup says what is wrong with the broken one."""
    code, reason = BROKEN[name]
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-broken", code + "\n" if code == "def" else sound("whisper") + "\n" + code)
    write_plugin(site, "fake-z", sound("siglip"))
    assert registry().names("encoders") == ["fake-a/clip", "fake-z/siglip"]
    assert registry().names("projectors") == BUILT_IN
    (info,) = registry().unavailable()
    assert info.state == "failed"
    assert reason in info.reason
    assert registry().traceback("fake-broken").startswith("Traceback")
    with pytest.raises(UnknownNameError) as caught:
        registry().lookup("encoders", "whisper")
    assert str(caught.value).startswith("no encoder for 'whisper'; fake-broken failed to load: ")
    assert info.reason in str(caught.value)


def test_a_broken_plugin_leaves_nothing_registered(site):
    """A plugin that fails late, when its hook is called, has no hook left that could run."""
    write_plugin(site, "fake-a", BROKEN["asked"][0] + hook("model_composed", "model.append('broken')", "model"))
    write_plugin(site, "fake-b", hook("model_composed", "model.append('sound')", "model"))
    model: list[str] = []
    registry().call_hook("cornstarch_model_composed", model=model)
    assert model == ["sound"]


def test_every_kind_has_a_hook_and_a_spec():
    """Kinds, registering hooks and spec types belong to each other one by one, and each type is one of the specs."""
    kinds = registry().kinds()
    assert [name for name in hooks() if "_register_" in name] == [f"cornstarch_register_{kind}" for kind in kinds]
    assert set(hooks()) == {name for name in hookspecs.__all__ if name.startswith("cornstarch_")}
    assert sorted(spec_types()) == kinds
    named = {name for name in specs.__all__ if name.endswith("Spec") and name != "Spec"}
    assert {cls.__name__ for cls in spec_types().values()} == named
