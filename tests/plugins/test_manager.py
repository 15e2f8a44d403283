"""Activation and lookup, with real distributions on sys.path."""

from __future__ import annotations

import sys
import threading
from fractions import Fraction

import pytest
from fake_plugins import BUILT_IN, hook, sound, was_imported, write_broken, write_plugin

from cornstarch_core.errors import (
    AmbiguousNameError,
    MissingPluginError,
    PluginError,
    UnknownNameError,
)
from cornstarch_core.plugins import PluginInfo, registry, reset_registry

PROJECTOR = hook("register_projectors", "return [ProjectorSpec(name='clip', target='a:b')]")


def _info(plugin: str) -> PluginInfo:
    return next(info for info in registry().plugins() if info.id == plugin)


def test_there_is_one_registry_per_process():
    """registry() is the same object until it is reset."""
    before = registry()
    assert registry() is before
    reset_registry()
    assert registry() is not before


def test_plugins_are_listed_without_being_imported(site):
    """plugins() reads metadata once, and returns a new list each time."""
    write_plugin(site, "fake-a", sound("clip"))
    assert [info.state for info in registry().plugins()] == ["available"]
    write_plugin(site, "fake-b")
    registry().plugins().clear()
    assert [info.id for info in registry().plugins()] == ["fake-a"]
    assert not was_imported(site, "fake-a")


def test_activation_makes_plugins_active(site):
    """A working plugin is active, with no reason and no traceback."""
    write_plugin(site, "fake-a", sound("clip"))
    registry().activate()
    assert (_info("fake-a").state, _info("fake-a").reason) == ("active", "")
    assert registry().traceback("fake-a") == ""
    assert registry().unavailable() == []
    assert registry().explain_unavailable() == ""


def test_a_lookup_names_all_broken_plugins(site):
    """If every plugin is broken, a lookup raises an error with the reason of each."""
    reasons = write_broken(site)
    with pytest.raises(UnknownNameError) as caught:
        registry().lookup("encoders", "clip")
    for plugin, reason in reasons.items():
        assert f"{plugin} failed to load: " in str(caught.value)
        assert reason in str(caught.value)


def test_keyboard_interrupt_is_not_kept(site):
    """Ctrl-C during an import ends the activation, which can be tried again."""
    write_plugin(site, "fake-a", sound("clip"))
    flag = site / "flag"
    write_plugin(
        site,
        "fake-b",
        f"import pathlib\nif not pathlib.Path({str(flag)!r}).exists():\n    raise KeyboardInterrupt",
    )
    with pytest.raises(KeyboardInterrupt):
        registry().activate()
    flag.touch()
    registry().activate()
    assert [info.state for info in registry().plugins()] == ["active", "active"]
    assert registry().names("encoders") == ["fake-a/clip"]


def test_a_module_belongs_to_one_plugin(site):
    """If two distributions name the same module, the second one is refused."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", entry_points="x = fake_a")
    assert registry().names("encoders") == ["fake-a/clip"]
    assert "already registered" in _info("fake-b").reason


def test_an_incompatible_plugin_is_never_imported(site):
    """A plugin for another version of the core is not imported, and lookups say so."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("whisper"), requires=("cornstarch-core>=99",))
    with pytest.raises(UnknownNameError, match="fake-b is incompatible: it needs cornstarch-core>=99, and this is"):
        registry().lookup("encoders", "whisper")
    assert was_imported(site, "fake-a")
    assert not was_imported(site, "fake-b")


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CORNSTARCH_DISABLE_PLUGINS", "fake-b", "CORNSTARCH_DISABLE_PLUGINS names it"),
        ("CORNSTARCH_PLUGINS", "fake-a", "CORNSTARCH_PLUGINS='fake-a' does not name it"),
        ("CORNSTARCH_PLUGINS", "", "CORNSTARCH_PLUGINS='' does not name it"),
    ],
)
def test_a_blocked_plugin_is_never_imported(site, monkeypatch, variable, value, reason):
    """A plugin that the environment blocks is not imported, lookups say so, and the others work."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("whisper"))
    monkeypatch.setenv(variable, value)
    with pytest.raises(UnknownNameError) as caught:
        registry().lookup("encoders", "whisper")
    assert f"fake-b is blocked: {reason}" in str(caught.value)
    assert not was_imported(site, "fake-b")
    assert registry().names("encoders") == (["fake-a/clip"] if value else [])


def test_activation_happens_once(site):
    """Concurrent threads import a plugin once, and all of them see it."""
    counter = site / "count"
    write_plugin(
        site,
        "fake-a",
        f"import time\ntime.sleep(0.05)\nwith open({str(counter)!r}, 'a') as f: f.write('x')\n" + sound("a"),
    )
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(registry().names("encoders"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["fake-a/a"]] * 8
    assert counter.read_text() == "x"


def test_lookup_by_bare_and_qualified_name(site):
    """A name is found bare and qualified, in any spelling of the distribution."""
    write_plugin(site, "fake-a", sound("clip"), version="0.3.0")
    for name in ("clip", "fake-a/clip", "Fake_A/clip"):
        found = registry().lookup("encoders", name)
        assert (found.kind, found.plugin, found.version) == ("encoders", "fake-a", "0.3.0")
        assert (found.spec.name, found.qualified_name) == ("clip", "fake-a/clip")


def test_kinds_are_separate(site):
    """The same name can be registered as two kinds, and a lookup finds the one of its kind."""
    write_plugin(site, "fake-a", sound("clip", more=PROJECTOR))
    assert registry().lookup("projectors", "clip").kind == "projectors"
    with pytest.raises(UnknownNameError, match="no processor for 'clip'; no plugin offers any of the processors"):
        registry().lookup("processors", "clip")


@pytest.mark.parametrize("kind", ["encoder", "", "hooks"])
def test_an_unknown_kind_raises_value_error(site, kind):
    """The error lists the kinds."""
    with pytest.raises(ValueError, match="the kinds are callbacks, checkpoints"):
        registry().lookup(kind, "clip")


def test_an_ambiguous_name_is_refused(site):
    """A bare name that two plugins offer raises an error with both qualified names, which work."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("clip", "vit"))
    with pytest.raises(AmbiguousNameError, match="name one of 'fake-a/clip' and 'fake-b/clip'"):
        registry().lookup("encoders", "clip")
    assert registry().lookup("encoders", "fake-b/clip").plugin == "fake-b"
    assert registry().lookup("encoders", "vit").plugin == "fake-b"


def test_a_plugin_prefers_its_own_names(site):
    """A bare name in a plugin's own spec means what that plugin registers, if it registers the name."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("clip", "vit"))
    assert registry().lookup("encoders", "clip", prefer="fake-b").plugin == "fake-b"
    assert registry().lookup("encoders", "vit", prefer="fake-a").plugin == "fake-b"


def test_an_unknown_name_shows_close_matches_first(site):
    """The error lists the known names, most similar first, and the next step."""
    write_plugin(site, "fake-a", sound("beit", "clip", "siglip", "vit"))
    with pytest.raises(UnknownNameError) as caught:
        registry().lookup("encoders", "sigclip")
    assert str(caught.value) == (
        "no encoder for 'sigclip'; there is fake-a/siglip, fake-a/clip, fake-a/beit, fake-a/vit; "
        "see `cornstarch plugins doctor`"
    )


@pytest.mark.parametrize("name", ["fake-b/clip", "/clip", "fake-a/", "", "clip/fake-a"])
def test_a_qualified_name_has_to_match_exactly(site, name):
    """A name with another plugin, or a part of a name, is not found."""
    write_plugin(site, "fake-a", sound("clip"))
    with pytest.raises(UnknownNameError):
        registry().lookup("encoders", name)


def test_explains_what_is_unavailable(site):
    """The sentence names each plugin with its reason, and the next step."""
    write_plugin(site, "fake-a", "raise RuntimeError('boom')")
    write_plugin(site, "fake-b", requires=("cornstarch-core>=99",))
    assert [info.id for info in registry().unavailable()] == ["fake-a", "fake-b"]
    sentence = registry().explain_unavailable()
    assert sentence.startswith("fake-a failed to load: RuntimeError: boom; fake-b is incompatible: it needs ")
    assert sentence.endswith("; see `cornstarch plugins doctor`")


class _Half(Fraction):
    """A class that only its base class describes."""


def test_an_encoder_is_found_by_its_class(site):
    """An object is matched by the module and the name of its class or of a base class."""
    write_plugin(site, "fake-a", sound("clip", cls="fractions:Fraction"))
    assert registry().find_encoder(Fraction(1)).qualified_name == "fake-a/clip"
    assert registry().find_encoder(_Half(1)).qualified_name == "fake-a/clip"
    assert registry().find_encoder("text") is None


def test_the_most_derived_class_wins(site):
    """A class that one plugin describes is not matched by another plugin's base class."""
    write_plugin(site, "fake-a", sound("base", cls="numbers:Rational"))
    write_plugin(site, "fake-b", sound("derived", cls="fractions:Fraction"))
    assert registry().find_encoder(Fraction(1)).qualified_name == "fake-b/derived"
    assert registry().find_encoder(_Half(1)).qualified_name == "fake-b/derived"


def test_a_class_that_two_plugins_claim_is_refused(site):
    """The error has both qualified names; other classes work."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("sigclip"))
    with pytest.raises(AmbiguousNameError, match="fractions:Fraction is claimed by 'fake-a/clip' and 'fake-b/sigclip'"):
        registry().find_encoder(Fraction(1))
    assert registry().find_encoder(1.0) is None


def test_model_composed_calls_the_plugins_in_order(site):
    """The hook runs in the order of the ids, unless a plugin asks to be first, and its argument can be left out."""
    write_plugin(site, "fake-a", hook("model_composed", "model.append('a')", "model"))
    write_plugin(site, "fake-b", hook("model_composed", "pass"))
    write_plugin(site, "fake-c", hook("model_composed", "model.append('c')", "model"))
    write_plugin(site, "fake-d", hook("model_composed", "model.append('d')", "model", "@hookimpl(tryfirst=True)"))
    model: list[str] = []
    registry().call_hook("cornstarch_model_composed", model=model)
    assert model == ["d", "a", "c"]


def test_model_composed_names_the_plugin_that_raises(site):
    """An exception in the hook is a PluginError that names the plugin and keeps the cause."""
    write_plugin(site, "fake-a", hook("model_composed", "model.missing", "model"))
    with pytest.raises(PluginError, match="fake-a: cornstarch_model_composed failed: AttributeError: ") as caught:
        registry().call_hook("cornstarch_model_composed", model=[])
    assert isinstance(caught.value.__cause__, AttributeError)


def test_a_record_is_checked_against_what_is_active(site):
    """A record of a loaded plugin passes; a failed one raises, with its reason and the command."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", "raise RuntimeError('boom')")
    record = registry().record([registry().lookup("encoders", "clip")])
    assert record == [{"distribution": "fake-a", "version": "0.1.0", "used": ["encoders/clip"]}]
    registry().check_record(record)
    with pytest.raises(MissingPluginError, match=r'fake-b \(pip install "fake-b>=0.1,<0.2"\), but .* boom'):
        registry().check_record([{**record[0], "distribution": "fake-b"}])


def test_a_record_imports_nothing(site):
    """A module that a record names is not imported."""
    (site / "fake_evil.py").write_text(sound("x"))
    with pytest.raises(MissingPluginError):
        registry().check_record([{"distribution": "fake_evil", "version": "1", "used": ["fake_evil:x"]}])
    assert "fake_evil" not in sys.modules
    assert not was_imported(site, "fake-evil")


def test_built_in_projectors_are_registered_like_those_of_plugins(site):
    """The core registers its own by the hook, under its own name; a plugin can have one of the same name."""
    assert registry().names("projectors") == BUILT_IN
    assert registry().lookup("projectors", "mlp").qualified_name == "cornstarch-core/mlp"
    assert registry().plugins() == []
    reset_registry()
    write_plugin(site, "fake-a", hook("register_projectors", "return [ProjectorSpec(name='mlp', target='a:b')]"))
    with pytest.raises(AmbiguousNameError, match="name one of 'cornstarch-core/mlp' and 'fake-a/mlp'"):
        registry().lookup("projectors", "mlp")
