"""What docs/compatibility.md promises to plugins that were written for an earlier version.

The tables are what version 0.1 promises. They may be added to; an entry that has to go is a change that the policy has rules for.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import MISSING, fields
from importlib import util
from pathlib import Path

import pytest
import torch
from fake_plugins import hook, isolated, sound, write_plugin
from safetensors.torch import load_file

from cornstarch_core import MultimodalModel, MultimodalProcessor, errors, hookspecs, specs
from cornstarch_core.plugins import registry
from cornstarch_core.runtime import discovery, doctor
from cornstarch_core.training import load_trained

HOOKS = {
    "cornstarch_model_composed": ["model"],
    "cornstarch_register_callbacks": [],
    "cornstarch_register_checkpoints": [],
    "cornstarch_register_encoders": [],
    "cornstarch_register_processors": [],
    "cornstarch_register_projectors": [],
}
"""Each hook, with the arguments that an implementation may ask for."""

NEEDED = {
    "CallbackSpec": {"name", "modality", "build"},
    "CheckpointSpec": {"name", "load"},
    "EncoderContext": {"key", "config", "hidden_size", "text_hidden_size"},
    "EncoderSpec": {"name", "modality", "classes", "input_names", "num_tokens", "dummy_inputs"},
    "ModalCallbacks": set(),
    "ProcessorSpec": {"name", "modality", "build"},
    "ProjectorSpec": {"name", "build"},
}
"""The fields that have to be given."""

OPTIONAL = {
    "CallbackSpec": {"processor"},
    "CheckpointSpec": {"load_processor", "export", "callback", "encoder"},
    "EncoderContext": {"prefix_tokens", "layers"},
    "EncoderSpec": {"hidden_size", "prefix_tokens", "layers", "processor", "build"},
    "ModalCallbacks": {
        *("preprocess", "postprocess_module", "postprocess_projector", "run_module", "calls_vary", "num_tokens"),
        *("num_features", "process", "dummy_inputs", "hidden_size", "input_names"),
    },
    "ProcessorSpec": {"media_names", "content_types", "wrap", "prepare"},
    "ProjectorSpec": {"num_tokens", "dummy_inputs"},
}
"""The fields that may be given."""

ERRORS = {
    *("AmbiguousNameError", "CheckpointError", "CompositionError", "CornstarchError", "InputError", "MediaError"),
    *("MissingPluginError", "PlaceholderMismatchError", "PluginError", "PluginLoadError", "TruncatedSpanError"),
    "UnknownNameError",
}
LISTED = {"id", "version", "entry_point", "requires", "state", "reason", "depends"}
"""The keys of ``cornstarch plugins list --json``."""


@pytest.fixture
def site(tmp_path):
    """An empty folder: the only place where this process finds plugins."""
    with isolated(tmp_path) as folder:
        yield folder


def later(monkeypatch, name: str, function, **options) -> None:
    """Make this the core of a later version, in which the hook looks so."""
    function.__name__ = name
    monkeypatch.setattr(hookspecs, name, hookspecs.hookspec(**options)(function), raising=False)
    monkeypatch.setattr(hookspecs, "__all__", sorted({*hookspecs.__all__, name}))


# --- what stays -------------------------------------------------------------------------------------------------------


def test_every_hook_of_the_first_version_is_there_with_its_arguments():
    """Hooks and arguments may be added."""
    for name, arguments in HOOKS.items():
        assert set(arguments) <= set(inspect.signature(getattr(hookspecs, name)).parameters)


@pytest.mark.parametrize("name", NEEDED)
def test_every_spec_of_the_first_version_can_still_be_made(name):
    """Fields may be added, with a default; by keyword, so that their order is nobody's business."""
    cls = getattr(specs, name)
    found = {field.name: field for field in fields(cls)}
    assert NEEDED[name] | OPTIONAL[name] <= found.keys()
    has_default = {name for name, field in found.items() if field.default is not MISSING}
    assert found.keys() - has_default == NEEDED[name]
    assert all(field.kw_only for field in found.values())


def test_names_that_users_write_down_stay():
    """In ``except``, in ``pyproject.toml``, in the environment, and in what reads ``--json``."""
    assert set(errors.__all__) >= ERRORS
    assert discovery.GROUP == "cornstarch.plugins"
    assert (discovery.ALLOW, discovery.BLOCK) == ("CORNSTARCH_PLUGINS", "CORNSTARCH_DISABLE_PLUGINS")
    command = [sys.executable, "-c", "from cornstarch_core.cli import main; main(['plugins', 'list', '--json'])"]
    out = subprocess.run(command, env=os.environ, check=True, capture_output=True, text=True).stdout
    assert all(entry.keys() >= LISTED for entry in json.loads(out))


@pytest.fixture(scope="module")
def saved():
    """What lies in ``tests/data``: see there."""
    spec = util.spec_from_file_location("saved", Path(__file__).parent / "data" / "saved.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FOLDER.exists(), "a new minor version begins: run tests/data/saved.py once, and remove the old folder"
    return module


def test_public_names_keep_their_arguments(saved):
    """Arguments may be added; so may errors and targets. An error keeps what it can be caught as."""
    then, now = json.loads((saved.FOLDER / "public.json").read_text()), saved.public()
    for name, arguments in then["arguments"].items():
        assert name in now["arguments"]
        assert set(arguments) <= set(now["arguments"][name]), name
    for name, bases in then["errors"].items():
        assert set(bases) <= set(now["errors"][name]), name
    assert then["targets"].items() <= now["targets"].items()


def test_a_model_that_was_saved_by_this_minor_version_comes_back(saved):
    """With its processor, its adapters and the callback of a plugin; and what was trained of it, onto its base."""
    model = MultimodalModel.from_pretrained(saved.FOLDER).eval()
    processor = MultimodalProcessor.from_pretrained(saved.FOLDER)
    expected = load_file(saved.FOLDER / "expected.safetensors")["logits"]

    def check() -> None:
        with torch.no_grad():
            logits = model(**processor(text=saved.TEXT, images=saved.images(), padding=True)).logits
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)  # sums are rounded as the processor likes

    check()
    trained = load_file(saved.FOLDER / "trained" / "trained.safetensors")
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in trained:
            weights[name].zero_()
    load_trained(model, saved.FOLDER / "trained")
    check()


# --- hooks that change ------------------------------------------------------------------------------------------------


def test_a_plugin_that_asks_for_fewer_arguments_still_works(site, monkeypatch):
    """A hook gets a further argument: whoever does not ask for it is called as before, down to asking for none."""
    write_plugin(site, "fake-a", hook("model_composed", "seen.append('none')") + "from builtins_seen import seen\n")
    write_plugin(site, "fake-b", hook("model_composed", "model.append('model')", "model"))
    (site / "builtins_seen.py").write_text("seen = []\n")
    later(monkeypatch, "cornstarch_model_composed", lambda model, folder: None)
    model: list[str] = []
    registry().model_composed(model)
    assert [info.state for info in registry().plugins()] == ["active", "active"]
    assert model == ["model"]
    assert sys.modules["builtins_seen"].seen == ["none"]


def test_an_argument_that_the_hook_does_not_have_is_refused_by_name(site, monkeypatch):
    """And the arguments that it has are listed, those of this version."""
    write_plugin(site, "fake-a", hook("model_composed", "pass", "model, trainer"))
    later(monkeypatch, "cornstarch_model_composed", lambda model, folder: None)
    registry().activate()
    (info,) = registry().plugins()
    assert info.state == "failed"
    assert info.reason.endswith(
        "cornstarch_model_composed asks for an unknown argument 'trainer'; its arguments: model, folder"
    )


def test_a_plugin_for_several_versions_gives_an_argument_a_default(site):
    """It gets what the core has; of what the core does not have the default holds."""
    write_plugin(site, "fake-a", hook("model_composed", "model.append(trainer)", "model=None, trainer='none yet'"))
    model: list[str] = []
    registry().model_composed(model)
    assert model == ["none yet"]


def test_a_deprecated_hook_still_works_and_says_what_comes_instead(site, monkeypatch):
    """The plugin stays active; whoever shows warnings sees where its function stands, and ``doctor`` tells it."""
    write_plugin(site, "fake-a", sound("clip") + hook("register_robots", "return []"))
    text = "cornstarch_register_robots is deprecated since 0.3 and goes with 0.5; use cornstarch_register_encoders"
    later(monkeypatch, "cornstarch_register_robots", lambda: None, warn_on_impl=DeprecationWarning(text))
    with pytest.warns(DeprecationWarning, match="deprecated since 0.3") as caught:
        assert registry().names("encoders") == ["fake-a/clip"]
    assert caught[0].filename == str(site / "fake_a.py")


def test_the_doctor_tells_of_a_deprecated_argument(site, monkeypatch):
    """As a warning, and not as a problem."""
    write_plugin(site, "fake-a", hook("model_composed", "pass", "model"))
    text = "cornstarch_model_composed: 'model' is deprecated since 0.3 and goes with 0.5; use 'composition'"
    later(
        monkeypatch,
        "cornstarch_model_composed",
        lambda model, composition: None,
        warn_on_impl_args={"model": DeprecationWarning(text)},
    )
    told: list[dict] = []
    assert doctor._activate("fake-a", lambda **event: told.append(event))
    assert {"warning": text} in told
    assert not any("problem" in event for event in told)


def test_the_doctor_does_not_blame_a_plugin_for_another(site, monkeypatch):
    """Activated together, since one depends on the other, each answers for its own functions."""
    write_plugin(site, "fake-a", hook("model_composed", "pass", "model"))
    write_plugin(site, "fake-b", "import fake_a\n", requires=["cornstarch-core>=0.1,<0.2", "fake-a"])
    later(
        monkeypatch,
        "cornstarch_model_composed",
        lambda model: None,
        warn_on_impl=DeprecationWarning("cornstarch_model_composed is deprecated"),
    )
    told: list[dict] = []
    assert doctor._activate("fake-b", lambda **event: told.append(event))
    assert not any("warning" in event for event in told)


def test_a_hook_that_went_is_refused_unless_it_is_optional(site):
    """``optionalhook=True`` keeps a plugin alive under versions with the hook and without it."""
    write_plugin(site, "fake-a", hook("register_robots", "return []"))
    write_plugin(site, "fake-b", hook("register_robots", "return []", marker="@hookimpl(optionalhook=True)"))
    registry().activate()
    assert [(info.id, info.state) for info in registry().plugins()] == [("fake-a", "failed"), ("fake-b", "active")]


def test_a_plugin_for_a_later_core_is_never_run(site):
    """Its requirement is checked before its code, which would fail on what is not there yet."""
    write_plugin(
        site, "fake-a", sound("clip").replace("name=", "not_there_yet=1, name="), requires=["cornstarch-core>=9"]
    )
    registry().activate()
    (info,) = registry().plugins()
    assert info.state == "incompatible"
    assert "it needs cornstarch-core>=9" in info.reason
