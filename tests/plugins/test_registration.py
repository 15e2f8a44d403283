"""Targets: importing what a spec names, and refusing what does not fit."""

from __future__ import annotations

import pytest

from cornstarch_core import specs
from cornstarch_core.errors import PluginError, PluginLoadError
from cornstarch_core.plugins import Registration, resolve
from cornstarch_core.plugins.registration import target_problems, targets


def test_resolve_imports_what_a_target_names():
    """A target is imported, including a nested attribute."""
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
def test_resolve_wraps_an_error_once(site, target, reason):
    """The PluginLoadError names plugin, target and reason, and keeps the cause."""
    (site / "fake_exit.py").write_text("raise SystemExit(3)")
    with pytest.raises(PluginLoadError) as caught:
        resolve(target, "fake-a")
    assert str(caught.value).startswith(f"fake-a: can't import {target!r}: {reason}")
    assert not isinstance(caught.value.__cause__, PluginError)


def test_resolve_does_not_wrap_twice(site):
    """If a plugin resolves a target itself, its own error is raised."""
    (site / "fake_nested.py").write_text(
        "from cornstarch_core.plugins import resolve\nresolve('fake_inner:x', 'inner')"
    )
    with pytest.raises(PluginLoadError, match=r"^inner: can't import 'fake_inner:x'"):
        resolve("fake_nested:x", "fake-a")


TARGETS = """
from cornstarch_core.specs import EncoderInterface, ProjectorInterface

class Good(ProjectorInterface):
    def build(self, config):
        return "built"

class Partial(EncoderInterface):
    def num_tokens(self, config, encoder_inputs):
        return []

class Alone:
    def build(self, config):
        return "built"

class Greedy(ProjectorInterface):
    def __init__(self, width):
        pass

    def build(self, config):
        return "built"

value = 3
"""


def _registration(spec: specs.Spec) -> Registration:
    return Registration("any", spec, "fake-a", "0.1.0")


def test_a_target_is_imported_and_made(site):
    """The class is made without arguments, and optional methods have their defaults."""
    (site / "fake_targets.py").write_text(TARGETS)
    spec = specs.ProjectorSpec(name="good", target="fake_targets:Good")
    made = _registration(spec).load()
    assert (made.build(None), made.num_tokens(None, [1, 2])) == ("built", [1, 2])
    assert list(target_problems(spec)) == []


@pytest.mark.parametrize(
    ("target", "kind", "reason"),
    [
        ("missing", specs.ProjectorSpec, "can't import 'fake_targets:missing': AttributeError: "),
        ("value", specs.ProjectorSpec, "'fake_targets:value' is not a class"),
        ("Partial", specs.EncoderSpec, "'fake_targets:Partial' lacks the methods dummy_inputs of EncoderInterface"),
        ("Alone", specs.ProjectorSpec, "lacks the methods num_tokens, dummy_inputs of ProjectorInterface"),
        ("Greedy", specs.ProjectorSpec, "can't make 'fake_targets:Greedy': TypeError: "),
    ],
)
def test_a_bad_target_is_refused_with_the_reason(site, target, kind, reason):
    """Loading raises what ``target_problems`` yields, with the plugin's id before it."""
    (site / "fake_targets.py").write_text(TARGETS)
    more = {"modality": "vision", "classes": (), "input_names": ()} if kind is specs.EncoderSpec else {}
    spec = kind(name="bad", target=f"fake_targets:{target}", **more)
    (problem,) = target_problems(spec)
    assert problem.field == "target"
    assert reason in problem.text
    with pytest.raises(PluginLoadError) as caught:
        _registration(spec).load()
    assert str(caught.value) == f"fake-a: {problem.text}"


def test_targets_are_announced_before_they_are_imported(site):
    """The caller sees which path is next, even if importing it ends the process."""
    (site / "fake_targets.py").write_text(TARGETS)
    spec = specs.EncoderSpec(
        name="bad",
        modality="vision",
        target="fake_targets:Partial",
        classes=("fake_targets:Alone", "decimal:Decimal", "statistics:Fraction"),
        input_names=(),
    )
    announced: list[str] = []
    found = [(announced[-1], problem.field) for problem in target_problems(spec, announced.append)]
    assert announced == [path for _, path in targets(spec)] == [spec.target, *spec.classes]
    assert found == [("fake_targets:Partial", "target"), ("statistics:Fraction", "classes")]
