"""What docs/compatibility.md promises to plugins that were written for an earlier version.

The tables have the promises of version 0.1. Entries may be added; removing one follows the rules of that page.
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
from cornstarch_core.plugins import discovery, doctor, registry
from cornstarch_core.plugins.activation import spec_types
from cornstarch_core.training import load_trained

HOOKS = {
    "cornstarch_model_composed": ["model"],
    "cornstarch_register_callbacks": [],
    "cornstarch_register_checkpoints": [],
    "cornstarch_register_encoders": [],
    "cornstarch_register_processors": [],
    "cornstarch_register_projectors": [],
}
"""Each hook, with the arguments that an implementation can take."""

NEEDED = {
    "CallbackSpec": {"name", "target", "modality"},
    "CheckpointSpec": {"name", "target"},
    "EncoderContext": {"key", "config", "hidden_size", "text_hidden_size"},
    "EncoderSpec": {"name", "target", "modality", "classes", "input_names"},
    "ModalCallbacks": set(),
    "ProcessorSpec": {"name", "target", "modality"},
    "ProjectorSpec": {"name", "target"},
}
"""The required fields."""

OPTIONAL = {
    "CallbackSpec": {"processor"},
    "CheckpointSpec": {"callback", "encoder"},
    "EncoderContext": {"prefix_tokens", "layers"},
    "EncoderSpec": {"layers", "processor"},
    "ModalCallbacks": {
        *("preprocess", "postprocess_module", "postprocess_projector", "run_module", "data_dependent_calls"),
        *("num_tokens_before_projector", "num_tokens_after_projector", "prepare_on_host", "dummy_inputs"),
        *("hidden_size", "input_names"),
    },
    "ProcessorSpec": {"media_names", "content_types"},
    "ProjectorSpec": {"per_token"},
}
"""The optional fields."""

ABSTRACT = {
    "CallbacksInterface": {"build"},
    "CheckpointInterface": {"load"},
    "EncoderInterface": {"num_tokens", "dummy_inputs"},
    "ProcessorInterface": {"build"},
    "ProjectorInterface": {"build"},
}
"""The required methods of targets. The arguments of all methods are in ``tests/data``."""

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
    """Give the hook another signature, as in a later version of the core."""
    function.__name__ = name
    monkeypatch.setattr(hookspecs, name, hookspecs.hookspec(**options)(function), raising=False)
    monkeypatch.setattr(hookspecs, "__all__", sorted({*hookspecs.__all__, name}))


# --- what stays -------------------------------------------------------------------------------------------------------


def test_every_hook_of_the_first_version_is_there_with_its_arguments():
    """New hooks and new arguments are allowed."""
    for name, arguments in HOOKS.items():
        assert set(arguments) <= set(inspect.signature(getattr(hookspecs, name)).parameters)


@pytest.mark.parametrize("name", NEEDED)
def test_every_spec_of_the_first_version_can_still_be_made(name):
    """New fields need a default. Fields are given by keyword, so their order does not matter."""
    cls = getattr(specs, name)
    found = {field.name: field for field in fields(cls)}
    assert NEEDED[name] | OPTIONAL[name] <= found.keys()
    has_default = {name for name, field in found.items() if field.default is not MISSING}
    assert found.keys() - has_default == NEEDED[name]
    assert all(field.kw_only for field in found.values())


def test_every_target_of_the_first_version_still_fits():
    """A new method of an interface has a default."""
    found = {cls.interface.__name__: set(cls.interface.__abstractmethods__) for cls in spec_types().values()}
    assert all(found[name] <= methods for name, methods in ABSTRACT.items())


def test_names_outside_of_python_stay():
    """Errors in ``except``, names in ``pyproject.toml`` and in the environment, and the keys of ``--json`` stay."""
    assert set(errors.__all__) >= ERRORS
    assert discovery.GROUP == "cornstarch.plugins"
    assert (discovery.ALLOW, discovery.BLOCK) == ("CORNSTARCH_PLUGINS", "CORNSTARCH_DISABLE_PLUGINS")
    command = [sys.executable, "-c", "from cornstarch_core.cli import main; main(['plugins', 'list', '--json'])"]
    out = subprocess.run(command, env=os.environ, check=True, capture_output=True, text=True).stdout
    assert all(entry.keys() >= LISTED for entry in json.loads(out))


@pytest.fixture(scope="module")
def saved():
    """The module that wrote the files in ``tests/data``."""
    spec = util.spec_from_file_location("saved", Path(__file__).parent / "data" / "saved.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FOLDER.exists(), "a new minor version begins: run tests/data/saved.py once, and remove the old folder"
    return module


def test_public_names_keep_their_arguments(saved):
    """New arguments, errors and interfaces are allowed. An error keeps its base classes, and a method its arguments."""
    then, now = json.loads((saved.FOLDER / "public.json").read_text()), saved.public()
    for name, arguments in then["arguments"].items():
        assert name in now["arguments"]
        assert set(arguments) <= set(now["arguments"][name]), name
    for name, bases in then["errors"].items():
        assert set(bases) <= set(now["errors"][name]), name
    assert then["interfaces"].items() <= now["interfaces"].items()


def test_a_model_that_was_saved_by_this_minor_version_can_be_loaded(saved):
    """It loads with its processor, its adapters and the callback of a plugin; its trained weights load onto its base."""
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
    """If a hook gets a new argument, implementations without it, or without any, are called as before."""
    write_plugin(site, "fake-a", hook("model_composed", "seen.append('none')") + "from builtins_seen import seen\n")
    write_plugin(site, "fake-b", hook("model_composed", "model.append('model')", "model"))
    (site / "builtins_seen.py").write_text("seen = []\n")
    later(monkeypatch, "cornstarch_model_composed", lambda model, folder: None)
    model: list[str] = []
    registry().call_hook("cornstarch_model_composed", model=model, folder="x")
    assert [info.state for info in registry().plugins()] == ["active", "active"]
    assert model == ["model"]
    assert sys.modules["builtins_seen"].seen == ["none"]


def test_an_argument_that_the_hook_does_not_have_is_refused_by_name(site, monkeypatch):
    """The message lists the arguments of this version."""
    write_plugin(site, "fake-a", hook("model_composed", "pass", "model, trainer"))
    later(monkeypatch, "cornstarch_model_composed", lambda model, folder: None)
    registry().activate()
    (info,) = registry().plugins()
    assert info.state == "failed"
    assert info.reason.endswith(
        "cornstarch_model_composed asks for an unknown argument 'trainer'; its arguments: model, folder"
    )


def test_a_plugin_for_several_versions_gives_an_argument_a_default(site):
    """The core passes the arguments that it has; the others keep their defaults."""
    write_plugin(site, "fake-a", hook("model_composed", "model.append(trainer)", "model=None, trainer='none yet'"))
    model: list[str] = []
    registry().call_hook("cornstarch_model_composed", model=model)
    assert model == ["none yet"]


def test_a_deprecated_hook_still_works_and_names_its_replacement(site, monkeypatch):
    """The plugin stays active, and the warning points to its function."""
    write_plugin(site, "fake-a", sound("clip") + hook("register_robots", "return []"))
    text = "cornstarch_register_robots is deprecated since 0.3 and goes with 0.5; use cornstarch_register_encoders"
    later(monkeypatch, "cornstarch_register_robots", lambda: None, warn_on_impl=DeprecationWarning(text))
    with pytest.warns(DeprecationWarning, match="deprecated since 0.3") as caught:
        assert registry().names("encoders") == ["fake-a/clip"]
    assert caught[0].filename == str(site / "fake_a.py")


def test_the_doctor_warns_of_a_deprecated_argument(site, monkeypatch):
    """It is a warning, not a problem."""
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
    """If one plugin depends on another, the warnings of each are reported for that plugin only."""
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


def test_a_removed_hook_is_refused_unless_it_is_optional(site):
    """With ``optionalhook=True``, a plugin works with versions that have the hook and versions that do not."""
    write_plugin(site, "fake-a", hook("register_robots", "return []"))
    write_plugin(site, "fake-b", hook("register_robots", "return []", marker="@hookimpl(optionalhook=True)"))
    registry().activate()
    assert [(info.id, info.state) for info in registry().plugins()] == [("fake-a", "failed"), ("fake-b", "active")]


def test_a_plugin_for_a_later_core_is_never_run(site):
    """The core checks the plugin's requirement before it imports code that would fail."""
    write_plugin(
        site, "fake-a", sound("clip").replace("name=", "not_there_yet=1, name="), requires=["cornstarch-core>=9"]
    )
    registry().activate()
    (info,) = registry().plugins()
    assert info.state == "incompatible"
    assert "it needs cornstarch-core>=9" in info.reason
