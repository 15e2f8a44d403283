"""Activation and lookup, with real distributions on sys.path."""

from __future__ import annotations

import sys
import threading
from fractions import Fraction

import pytest
from fake_plugins import BROKEN, hook, isolated, sound, was_imported, write_broken, write_plugin

from cornstarch_core.errors import (
    AmbiguousNameError,
    MissingPluginError,
    PluginError,
    PluginLoadError,
    UnknownNameError,
)
from cornstarch_core.plugins import KINDS, PluginInfo, registry, reset_registry, resolve

PROJECTOR = hook("register_projectors", "return [ProjectorSpec(name='clip', build='a:b')]")


@pytest.fixture
def site(tmp_path):
    """An empty folder: the only place where this process finds plugins."""
    with isolated(tmp_path) as folder:
        yield folder


def _info(plugin: str) -> PluginInfo:
    return next(info for info in registry().plugins() if info.id == plugin)


def test_there_is_one_registry_per_process():
    """registry() is the same object until it is reset."""
    before = registry()
    assert registry() is before
    reset_registry()
    assert registry() is not before


def test_plugins_are_listed_without_being_imported(site):
    """plugins() reads metadata, once; the list that it gives away is the caller's."""
    write_plugin(site, "fake-a", sound("clip"))
    assert [info.state for info in registry().plugins()] == ["available"]
    write_plugin(site, "fake-b")
    registry().plugins().clear()
    assert [info.id for info in registry().plugins()] == ["fake-a"]
    assert not was_imported(site, "fake-a")


def test_activation_makes_plugins_active(site):
    """A sound plugin is active, with no reason and no traceback."""
    write_plugin(site, "fake-a", sound("clip"))
    registry().activate()
    assert (_info("fake-a").state, _info("fake-a").reason) == ("active", "")
    assert registry().traceback("fake-a") == ""
    assert registry().unavailable() == []
    assert registry().explain_unavailable() == ""


def test_a_plugin_without_hooks_is_active(site):
    """An empty module breaks no rule; an optional hook of another version of the core does not either."""
    write_plugin(site, "fake-a", "")
    write_plugin(site, "fake-b", hook("register_robots", "return []", marker="@hookimpl(optionalhook=True)"))
    registry().activate()
    assert [info.state for info in registry().plugins()] == ["active", "active"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_takes_only_itself_down(site, name):
    """Whatever is wrong with a plugin, the others work, and the error of a lookup says what is wrong."""
    code, reason = BROKEN[name]
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-broken", code + "\n" if code == "def" else sound("whisper") + "\n" + code)
    write_plugin(site, "fake-z", sound("siglip"))
    assert registry().names("encoders") == ["fake-a/clip", "fake-z/siglip"]
    assert registry().names("projectors") == []
    info = _info("fake-broken")
    assert info.state == "failed"
    assert reason in info.reason
    assert registry().traceback("fake-broken").startswith("Traceback")
    with pytest.raises(UnknownNameError) as caught:
        registry().lookup("encoders", "whisper")
    assert str(caught.value).startswith("no encoder for 'whisper'; fake-broken failed to load: ")
    assert info.reason in str(caught.value)


def test_a_broken_plugin_leaves_nothing_registered(site):
    """A plugin that fails late, when it is asked, has no hook left that could run."""
    write_plugin(site, "fake-a", BROKEN["asked"][0] + hook("model_composed", "model.append('broken')", "model"))
    write_plugin(site, "fake-b", hook("model_composed", "model.append('sound')", "model"))
    model: list[str] = []
    registry().model_composed(model)
    assert model == ["sound"]


def test_all_ways_to_be_broken_at_once(site):
    """With every plugin broken, lookups still end in an error that names all of them."""
    reasons = write_broken(site)
    with pytest.raises(UnknownNameError) as caught:
        registry().lookup("encoders", "clip")
    for plugin, reason in reasons.items():
        assert f"{plugin} failed to load: " in str(caught.value)
        assert reason in str(caught.value)


def test_keyboard_interrupt_is_not_kept(site):
    """Ctrl-C in an import ends the activation, which can be tried again."""
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


def test_one_module_named_by_two_plugins(site):
    """Two distributions that name one module: the second one is refused."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", entry_points="x = fake_a")
    assert registry().names("encoders") == ["fake-a/clip"]
    assert "already registered" in _info("fake-b").reason


def test_an_incompatible_plugin_is_never_imported(site):
    """A plugin for another core is not imported, and lookups say so."""
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
    """Many threads and calls import a plugin once, and all of them see it."""
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
    """A name that one plugin offers is found bare and qualified, in any spelling of the distribution."""
    write_plugin(site, "fake-a", sound("clip"), version="0.3.0")
    for name in ("clip", "fake-a/clip", "Fake_A/clip"):
        provided = registry().lookup("encoders", name)
        assert (provided.kind, provided.plugin, provided.version) == ("encoders", "fake-a", "0.3.0")
        assert (provided.spec.name, provided.qualified_name) == ("clip", "fake-a/clip")


def test_kinds_do_not_mix(site):
    """A name of one kind is unknown among another."""
    write_plugin(site, "fake-a", sound("clip", more=PROJECTOR))
    assert registry().lookup("projectors", "clip").kind == "projectors"
    with pytest.raises(UnknownNameError, match="no processor for 'clip'; no plugin offers any of the processors"):
        registry().lookup("processors", "clip")


@pytest.mark.parametrize("kind", ["encoder", "", "hooks"])
def test_an_unknown_kind_is_a_mistake_of_the_caller(site, kind):
    """A kind that is none raises ValueError, with the list of kinds."""
    with pytest.raises(ValueError, match="the kinds are callbacks, checkpoints"):
        registry().lookup(kind, "clip")


def test_an_ambiguous_name(site):
    """A bare name that two plugins offer raises with both qualified names; those work."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("clip", "vit"))
    with pytest.raises(AmbiguousNameError, match="name one of 'fake-a/clip' and 'fake-b/clip'"):
        registry().lookup("encoders", "clip")
    assert registry().lookup("encoders", "fake-b/clip").plugin == "fake-b"
    assert registry().lookup("encoders", "vit").plugin == "fake-b"


def test_a_plugin_means_its_own(site):
    """A bare name in a plugin's own spec means that plugin's, where it has one."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("clip", "vit"))
    assert registry().lookup("encoders", "clip", prefer="fake-b").plugin == "fake-b"
    assert registry().lookup("encoders", "vit", prefer="fake-a").plugin == "fake-b"


def test_an_unknown_name_shows_close_matches_first(site):
    """What there is follows in the order of likeness, and the next step."""
    write_plugin(site, "fake-a", sound("beit", "clip", "siglip", "vit"))
    with pytest.raises(UnknownNameError) as caught:
        registry().lookup("encoders", "sigclip")
    assert str(caught.value) == (
        "no encoder for 'sigclip'; there is fake-a/siglip, fake-a/clip, fake-a/beit, fake-a/vit; "
        "see `cornstarch plugins doctor`"
    )


@pytest.mark.parametrize("name", ["fake-b/clip", "/clip", "fake-a/", "", "clip/fake-a"])
def test_a_qualified_name_is_taken_at_its_word(site, name):
    """A name of another plugin, or a part of a name, is not found."""
    write_plugin(site, "fake-a", sound("clip"))
    with pytest.raises(UnknownNameError):
        registry().lookup("encoders", name)


def test_explains_what_is_unavailable(site):
    """The sentence for others' errors names each plugin with its reason, and the next step."""
    write_plugin(site, "fake-a", "raise RuntimeError('boom')")
    write_plugin(site, "fake-b", requires=("cornstarch-core>=99",))
    assert [info.id for info in registry().unavailable()] == ["fake-a", "fake-b"]
    sentence = registry().explain_unavailable()
    assert sentence.startswith("fake-a failed to load: RuntimeError: boom; fake-b is incompatible: it needs ")
    assert sentence.endswith("; see `cornstarch plugins doctor`")


class _Half(Fraction):
    """A class that no plugin describes itself."""


def test_an_encoder_is_found_by_its_class(site):
    """An object is matched by the module and name of its class; a subclass matches too."""
    write_plugin(site, "fake-a", sound("clip", cls="fractions:Fraction"))
    assert registry().find_encoder(Fraction(1)).qualified_name == "fake-a/clip"
    assert registry().find_encoder(_Half(1)).qualified_name == "fake-a/clip"
    assert registry().find_encoder("text") is None


def test_the_most_derived_class_wins(site):
    """A plugin for a base class does not take a subclass from the plugin that describes that."""
    write_plugin(site, "fake-a", sound("base", cls="numbers:Rational"))
    write_plugin(site, "fake-b", sound("derived", cls="fractions:Fraction"))
    assert registry().find_encoder(Fraction(1)).qualified_name == "fake-b/derived"
    assert registry().find_encoder(_Half(1)).qualified_name == "fake-b/derived"


def test_a_class_that_two_plugins_claim(site):
    """A class that two plugins describe raises with both qualified names; other classes work."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("sigclip"))
    with pytest.raises(AmbiguousNameError, match="fractions:Fraction is claimed by 'fake-a/clip' and 'fake-b/sigclip'"):
        registry().find_encoder(Fraction(1))
    assert registry().find_encoder(1.0) is None


def test_resolve_imports_what_a_target_names():
    """A target is imported, also a nested attribute."""
    assert resolve("os.path:join.__name__") == "join"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("cornstarch_no_such_module:x", "ModuleNotFoundError: No module named 'cornstarch_no_such_module'"),
        ("os.path:no_such_name", "AttributeError: "),
        ("os.path", "AttributeError: "),
        ("", "ValueError: "),
        ("fake_exit:x", "SystemExit: 3"),
    ],
)
def test_resolve_wraps_a_failure_once(site, target, reason):
    """What goes wrong is one PluginLoadError that names plugin, target and reason, and keeps the cause."""
    (site / "fake_exit.py").write_text("raise SystemExit(3)")
    with pytest.raises(PluginLoadError) as caught:
        resolve(target, "fake-a")
    assert str(caught.value).startswith(f"fake-a: can't import {target!r}: {reason}")
    assert not isinstance(caught.value.__cause__, PluginError)


def test_resolve_does_not_wrap_twice(site):
    """A plugin that resolves something itself gets its own error through."""
    (site / "fake_nested.py").write_text(
        "from cornstarch_core.plugins import resolve\nresolve('fake_inner:x', 'inner')"
    )
    with pytest.raises(PluginLoadError, match=r"^inner: can't import 'fake_inner:x'"):
        resolve("fake_nested:x", "fake-a")


def test_model_composed_calls_the_plugins_in_order(site):
    """The hook runs in the order of the ids, unless a plugin asks to be first; its argument can be left out."""
    write_plugin(site, "fake-a", hook("model_composed", "model.append('a')", "model"))
    write_plugin(site, "fake-b", hook("model_composed", "pass"))
    write_plugin(site, "fake-c", hook("model_composed", "model.append('c')", "model"))
    write_plugin(site, "fake-d", hook("model_composed", "model.append('d')", "model", "@hookimpl(tryfirst=True)"))
    model: list[str] = []
    registry().model_composed(model)
    assert model == ["d", "a", "c"]


def test_model_composed_names_the_plugin_that_raises(site):
    """An exception in the hook is a PluginError that names the plugin and keeps the cause."""
    write_plugin(site, "fake-a", hook("model_composed", "model.missing", "model"))
    with pytest.raises(PluginError, match="fake-a: cornstarch_model_composed failed: AttributeError: ") as caught:
        registry().model_composed([])
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
    """A module that a record names is not imported, whatever the record says."""
    (site / "fake_evil.py").write_text(sound("x"))
    with pytest.raises(MissingPluginError):
        registry().check_record([{"distribution": "fake_evil", "version": "1", "used": ["fake_evil:x"]}])
    assert "fake_evil" not in sys.modules
    assert not was_imported(site, "fake-evil")


def test_every_kind_has_a_hook_and_a_spec():
    """KINDS, the registering hooks and the spec types say the same."""
    from cornstarch_core import hookspecs
    from cornstarch_core.runtime.activation import SPEC_TYPES

    hooks = {name for name in hookspecs.__all__ if name.startswith("cornstarch_register_")}
    assert tuple(SPEC_TYPES) == KINDS
    assert hooks == {f"cornstarch_register_{kind}" for kind in KINDS}


def test_every_field_that_holds_a_target_is_known():
    """TARGETS names exactly the fields that the documentation of the specs calls targets."""
    import re

    from cornstarch_core import specs
    from cornstarch_core.runtime.activation import TARGETS

    assert set(re.findall(r"^``\w+Spec\.(\w+)``", specs.__doc__, re.MULTILINE)) == set(TARGETS)
