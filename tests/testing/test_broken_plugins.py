"""One mistake each: the kit fails the check that is meant for it, and no other, and names the fix."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from testing.toys import BROKEN, CONFIG, FURTHER, write_toy
from transformers import CONFIG_MAPPING

from cornstarch_core.plugins import reset_registry
from cornstarch_core.testing import EncoderConformance, PluginConformance
from cornstarch_core.testing.composed import Composed
from cornstarch_core.testing.package import ask

ALL = {**BROKEN, **FURTHER}
MAPPINGS = "test_auto_mappings_stay_as_they_were"  # takes a process with transformers in it


class Toy(EncoderConformance):
    """The settings for a toy plugin; ``module`` is the one with its encoder."""

    module: str

    def make_module(self):
        """The toy encoder."""
        return import_module(self.module).ToyEncoder(CONFIG)

    def make_items(self, rng):
        """One or two series."""
        return [rng.normal(size=rng.integers(4, 40)).tolist() for _ in range(rng.integers(1, 3))]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Path]:
    """A folder with all of the toys, as long as these tests run."""
    folder = tmp_path_factory.mktemp("site")
    write_toy(folder, "sound")
    for name, broken in ALL.items():
        write_toy(folder, name, broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    for name in [name for name in sys.modules if name.startswith("cornstarch_toy_")]:
        del sys.modules[name]
    CONFIG_MAPPING._extra_content.pop("cornstarch_toy", None)


@pytest.fixture
def only(site, monkeypatch) -> Iterator:
    """Makes one toy the only plugin of this process."""

    def use(*names: str) -> None:
        monkeypatch.setenv("CORNSTARCH_PLUGINS", ",".join(f"cornstarch-toy-{name}" for name in names))
        reset_registry()

    yield use
    monkeypatch.undo()
    reset_registry()


def run(checks: type, left_out: tuple[str, ...] = ()) -> tuple[dict[str, str], list[str]]:
    """All checks of a class: those that fail, with their messages, and those that are skipped."""
    failed, skipped = {}, []
    for name in (name for name in dir(checks) if name.startswith("test_") and name not in left_out):
        try:
            getattr(checks(), name)()
        except pytest.skip.Exception:
            skipped.append(name)
        except pytest.fail.Exception as failure:
            failed[name] = str(failure)
    return failed, skipped


def checks_of(name: str) -> tuple[type, type]:
    """The package's and the encoder's checks of one toy."""
    package = type("Package", (PluginConformance,), {"distribution": f"cornstarch-toy-{name}"})
    settings = {"encoder": f"cornstarch-toy-{name}/toy", "module": f"cornstarch_toy_{name}_encoder"}
    return package, type("Encoder", (Toy,), settings)


def test_the_sound_plugin_passes(only):
    """All checks run, and none fails; the one that is left out comes last in this file."""
    only("sound")
    assert [run(checks, (MAPPINGS,)) for checks in checks_of("sound")] == [({}, []), ({}, [])]


def test_each_check_has_a_plugin_that_fails_it():
    """But for the first one, which asks whether the plugin is there."""
    checks = [
        name for kind in (PluginConformance, EncoderConformance) for name in dir(kind) if name.startswith("test_")
    ]
    assert sorted(broken.check for broken in BROKEN.values()) == sorted({*checks} - {"test_it_is_active"})


@pytest.mark.parametrize("name", ALL)
def test_a_broken_plugin_fails_the_check_that_is_meant_for_it_and_no_other(name, only):
    """And the message names what to repair."""
    only(name)
    broken = ALL[name]
    package, encoder = checks_of(name)
    failed = run(package, () if broken.check == MAPPINGS else (MAPPINGS,))[0] | run(encoder)[0]
    assert list(failed) == [broken.check], failed
    message = failed[broken.check]
    assert message.startswith(f"cornstarch-toy-{name}")
    assert re.search(broken.message, message), message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "absent",
            r"it is not among the plugins that are installed here \(.*cornstarch-vision.*\n  fix: .*entry point in",
        ),
        ("sound", r"cornstarch-toy-sound is blocked: .*\n  fix: Unset the environment variable"),
    ],
)
def test_a_plugin_that_is_not_there_fails_one_check_of_each_class(name, message, only, monkeypatch):
    """Not installed, or blocked: the first check says so, and the rest waits for it."""
    only("heavy")
    package, encoder = checks_of(name)
    (failed, skipped), (failed_too, skipped_too) = run(package), run(encoder)
    assert list(failed) == ["test_it_is_active"]
    assert re.search(message, failed["test_it_is_active"])
    assert len(skipped) == 5
    assert list(failed_too) == ["test_its_spec_describes_the_module"]
    assert f"no encoder for 'cornstarch-toy-{name}/toy'" in failed_too["test_its_spec_describes_the_module"]
    assert len(skipped_too) == len([name for name in dir(encoder) if name.startswith("test_")]) - 1


def test_items_that_cannot_be_run_fail_with_advice(only, monkeypatch):
    """As where a module takes some batches and not others: what was raised, where, and what to do."""
    only("sound")
    _, encoder = checks_of("sound")
    monkeypatch.setattr(Composed, "features", lambda composed, inputs: inputs["series"][99])
    with pytest.raises(pytest.fail.Exception) as failure:
        encoder().test_features_do_not_depend_on_the_rest_of_the_batch()
    assert re.search(
        r"ToyEncoder can't be run on \d+ items of make_items: IndexError: .*\n  fix: .*also of a single one.",
        str(failure.value),
    )


def test_no_other_toy_changes_auto_mappings(only):
    """The check that the tests above leave out, in one process for all."""
    only("sound", *ALL)
    plugins = [f"cornstarch-toy-{name}" for name in ("sound", *ALL) if name != "registers"]
    assert ask("changed_mappings", plugins) == []
