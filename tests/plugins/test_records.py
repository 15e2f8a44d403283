"""The record of plugins in a saved model, and the check of a record that is not trusted."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

from cornstarch_core.errors import CheckpointError, MissingPluginError
from cornstarch_core.plugins import Registration, records
from cornstarch_core.plugins.discovery import PluginInfo
from cornstarch_core.specs import CallbackSpec, CheckpointSpec


def _entry(distribution: object = "cornstarch-audio", version: object = "0.1.0", used: object = ()) -> dict:
    return {"distribution": distribution, "version": version, "used": list(used)}


def _installed(version: str, **changes: object) -> list[PluginInfo]:
    return [
        PluginInfo(**{"id": "cornstarch-audio", "version": version, "entry_point": "x", "state": "active", **changes})
    ]


def _command(version: str) -> str:
    with pytest.raises(MissingPluginError) as caught:
        records.check([_entry(version=version)], [])
    return re.search(r"pip install .*", str(caught.value))[0]


def test_writes_what_was_used():
    """The record is JSON with one sorted entry for each distribution, and each use once."""
    spec = CallbackSpec(name="llava", modality="vision", target="a:b")
    llava = Registration("callbacks", spec, "cornstarch-vision", "0.1")
    load = Registration("checkpoints", CheckpointSpec(name="llava", target="a:b"), "cornstarch-vision", "0.1")
    spec = CallbackSpec(name="any", modality="audio", target="a:b")
    other = Registration("callbacks", spec, "cornstarch-audio", "0.2")
    record = records.write([load, llava, other, llava])
    assert json.loads(json.dumps(record)) == [
        {"distribution": "cornstarch-audio", "version": "0.2", "used": ["callbacks/any"]},
        {"distribution": "cornstarch-vision", "version": "0.1", "used": ["callbacks/llava", "checkpoints/llava"]},
    ]


def test_accepts_its_own_record():
    """A written record is accepted while the plugin is installed; a model without plugins has an empty record."""
    llava = CallbackSpec(name="llava", modality="vision", target="a:b")
    records.check(records.write([Registration("callbacks", llava, "cornstarch-audio", "0.1.0")]), _installed("0.1.0"))
    records.check([], [])


@pytest.mark.parametrize(
    ("recorded", "installed", "compatible"),
    [
        ("0.1.0", "0.1.0", True),
        ("0.1.0", "0.1.7", True),
        ("0.1", "0.1.0+cpu", True),
        ("0.1.0+cu12", "0.1.0", True),
        ("0.1.0", "0.1.1rc1", True),
        ("0.1.2", "0.1.1", False),
        ("0.1.0", "0.1.0rc1", False),
        ("0.1.0", "0.2.0", False),
        ("0.1.0", "0.2.0.dev1", False),
        ("0.1.0", "1.1.0", False),
        ("1.2.0", "1.9", True),
        ("1.2.0", "1.1.9", False),
        ("1.2.0", "2.0.0a1", False),
        ("1!0.1", "1!0.1.3", True),
        ("1!0.1", "0.1.3", False),
        ("0.1", "1!0.1", False),
        ("0.1", "garbage", False),
    ],
)
def test_judges_versions(recorded, installed, compatible):
    """A version is compatible from the recorded one up, with the same major.minor before 1.0, the same major after it."""
    if compatible:
        records.check([_entry(version=recorded)], _installed(installed))
    else:
        with pytest.raises(MissingPluginError, match=f"and {re.escape(installed)} is installed: pip install"):
            records.check([_entry(version=recorded)], _installed(installed))


@pytest.mark.parametrize(
    ("version", "bounds"),
    [
        ("0.1", ">=0.1,<0.2"),
        ("0.1.0", ">=0.1,<0.2"),
        ("0.1.3", ">=0.1.3,<0.2"),
        ("0.10.0", ">=0.10,<0.11"),
        ("1.0.0", ">=1.0,<2"),
        ("12.3.4", ">=12.3.4,<13"),
        ("0.2.0rc1", ">=0.2.0rc1,<0.3"),
        ("0.1.0+cu12", ">=0.1,<0.2"),
        ("1!0.1", ">=1!0.1,<1!0.2"),
        ("v0.1", ">=0.1,<0.2"),
        ("0", ">=0,<0.1"),
    ],
)
def test_says_what_to_install(version, bounds):
    """The command is made from the recorded version."""
    assert _command(version) == f'pip install "cornstarch-audio{bounds}"'


def test_says_that_a_plugin_is_missing():
    """The message names the plugin, what is wrong and the command."""
    with pytest.raises(MissingPluginError) as caught:
        records.check([_entry("Cornstarch_Audio")], [])
    assert str(caught.value) == (
        "this model can't be loaded: it needs cornstarch-audio, which is not installed: "
        'pip install "cornstarch-audio>=0.1,<0.2"'
    )


@pytest.mark.parametrize("state", ["blocked", "failed", "incompatible"])
def test_says_why_a_plugin_is_not_active(state):
    """An installed plugin that is not active counts as missing, with its reason and what to do."""
    with pytest.raises(MissingPluginError) as caught:
        records.check([_entry()], _installed("0.1.0", state=state, reason="it rained"))
    for part in ("it rained", "`cornstarch plugins doctor cornstarch-audio`", '"cornstarch-audio>=0.1,<0.2"'):
        assert part in str(caught.value)


def test_names_every_missing_plugin_at_once():
    """Two missing plugins are reported together."""
    with pytest.raises(MissingPluginError, match=r"cornstarch-audio.*cornstarch-depth"):
        records.check([_entry(), _entry("cornstarch-depth")], [])


def test_takes_the_first_of_two_namesakes():
    """A shadowed distribution does not hide the one that is used."""
    shadowed = _installed("0.2.0", state="blocked", reason="shadowed")
    records.check([_entry()], [*_installed("0.1.0"), *shadowed])


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        "cornstarch-audio",
        7,
        ["cornstarch-audio"],
        [None],
        [{}],
        [{"distribution": "a", "version": "1"}],
        [_entry(distribution=None)],
        [_entry(distribution="a b")],
        [_entry(distribution="a\n")],
        [_entry(distribution="-a")],
        [_entry(distribution="a; rm -rf ~")],
        [_entry(distribution="ä")],
        [_entry(distribution="a" * 101)],
        [_entry(version=1)],
        [_entry(version="1; rm -rf ~")],
        [_entry(version="")],
        [_entry(version="1" * 5000)],
        [{"distribution": "a", "version": "1", "used": "encoders/clip"}],
        [_entry(used=[1])],
    ],
)
def test_refuses_a_malformed_record(record):
    """A record that does not follow the grammar is refused as malformed, and is not shown."""
    with pytest.raises(CheckpointError, match="the record of plugins in this checkpoint is malformed") as caught:
        records.check(record, [])
    assert not isinstance(caught.value, MissingPluginError)
    assert "rm -rf" not in str(caught.value)


patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)
versions = st.builds(
    "{}{}{}".format,
    st.lists(st.integers(0, 30), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts))),
    st.sampled_from(["", "a1", "rc2", ".post1", ".dev3"]),
    st.sampled_from(["", "+cpu"]),
)


@patient
@given(names, versions)
def test_every_valid_name_and_version_makes_a_valid_command(name, version):
    """The command is one shell-safe requirement, and the recorded version satisfies it."""
    with pytest.raises(MissingPluginError) as caught:
        records.check([_entry(name, version)], [])
    requirement = Requirement(re.search(r'pip install "([A-Za-z0-9._!<>=,-]*)"$', str(caught.value))[1])
    assert requirement.specifier.contains(Version(version).public, prereleases=True)


@patient
@given(names, versions)
def test_every_valid_version_is_compatible_with_itself(name, version):
    """The plugin that made a model can load it."""
    info = PluginInfo(records.normalise(name), version, "x", state="active")
    records.check([_entry(name, version)], [info])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["distribution", "version"]), inner),
)


@patient
@given(anything | st.lists(st.builds(_entry, st.text() | anything, st.text() | versions | anything)))
def test_nothing_but_the_grammar_is_ever_shown(record):
    """Any record is accepted or refused, and the error has only plain characters."""
    said = ""
    try:
        records.check(record, [])
    except CheckpointError as error:
        said = str(error)
    assert re.fullmatch(r"[A-Za-z0-9 .,:;!<>=\"'()+_-]*", said)


@patient
@given(st.text(min_size=4), st.text(min_size=4))
def test_what_is_malformed_is_not_echoed(name, version):
    """Neither field of an entry with a bad name is shown."""
    bad = name + "\x1b[2J"
    with pytest.raises(CheckpointError) as caught:
        records.check([_entry(bad, version)], [])
    assert "\x1b" not in str(caught.value)
    assert bad not in str(caught.value)
