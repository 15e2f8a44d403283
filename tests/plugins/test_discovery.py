"""Discovery: which plugins are installed, by their metadata alone, and which of them may be loaded."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from importlib.abc import MetaPathFinder
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from fake_plugins import isolated, sound, was_imported, write_plugin

import cornstarch_core
from cornstarch_core.plugins.discovery import PluginInfo, discover, unknown_in_environment


@pytest.fixture
def site(tmp_path):
    """An empty folder: the only place where this process finds plugins."""
    with isolated(tmp_path) as folder:
        yield folder


def _states() -> dict[str, str]:
    return {info.id: info.state for info in discover()}


def test_an_empty_environment_has_no_plugins(site):
    """Without plugins the list is empty, and there is no error."""
    assert discover() == []


def test_reads_the_metadata(site):
    """Id, version, module, requirement on the core and dependencies come from the metadata, and nothing is imported."""
    requires = ("Cornstarch.Core>=0.1", "cornstarch_vision (>=0.1)", "pytest; extra == 'dev'")
    write_plugin(site, "Fake_Audio", sound("whisper"), version="0.3.1", requires=requires)
    assert discover() == [
        PluginInfo(
            id="fake-audio",
            version="0.3.1",
            entry_point="fake_audio",
            requires="Cornstarch.Core>=0.1",
            depends=("cornstarch-core", "cornstarch-vision"),
        )
    ]
    assert not was_imported(site, "fake-audio")


def test_sorts_by_id(site):
    """The order does not depend on the order of a folder listing."""
    for name in ("fake-c", "fake-a", "fake-b"):
        write_plugin(site, name)
    assert list(_states()) == ["fake-a", "fake-b", "fake-c"]


def test_reads_entry_points_as_python_does(site):
    """Comments, spaces and other groups in entry_points.txt do not matter."""
    write_plugin(site, "fake-a", entry_points="# cornstarch = comment\n\n  fake=fake_a  \n[other.group]\nx = y")
    assert [info.entry_point for info in discover()] == ["fake_a"]


def test_ignores_other_groups(site):
    """A distribution that only mentions the group in a comment is not a plugin."""
    write_plugin(site, "fake-a", entry_points="# none\n[other.cornstarch.plugins]\nx = y")
    assert discover() == []


def test_reports_two_entries_in_one_distribution(site):
    """Two entry points in one distribution are refused; neither is dropped without a message."""
    write_plugin(site, "fake-a", entry_points="one = fake_a\ntwo = fake_a")
    [info] = discover()
    assert info.state == "failed"
    assert "it has 2 entry points in 'cornstarch.plugins', and one is allowed" in info.reason


def test_reports_two_versions_in_one_folder(site):
    """Two distributions in one folder with the same normalised name are both refused; the message has both versions."""
    write_plugin(site, "fake-a", version="0.1.0")
    write_plugin(site, "Fake.A", version="0.2.0")
    first, second = discover()
    assert (first.id, first.state, second.id, second.state) == ("fake-a", "failed") * 2
    assert "holds it 2 times (0.1.0, 0.2.0); reinstall it" in first.reason


def test_reports_a_shadowed_distribution(site, tmp_path, monkeypatch):
    """If two folders hold the same plugin, the one that Python imports is used, and the other is reported as shadowed."""
    write_plugin(site, "fake-a", version="0.1.0")
    write_plugin(tmp_path / "later", "fake-a", version="0.2.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "later")])
    first, second = discover()
    assert (first.version, first.state) == ("0.1.0", "available")
    assert (second.version, second.state) == ("0.2.0", "blocked")
    assert second.reason.endswith(f"is shadowed by version 0.1.0 in {site}")


def test_sees_a_folder_once(site, monkeypatch):
    """A folder that is on sys.path twice, or again through a link, holds each plugin once."""
    write_plugin(site, "fake-a")
    link = site.parent / "link"
    link.symlink_to(site)
    monkeypatch.setattr(sys, "path", [*sys.path, str(site), str(link), "/no/such/folder"])
    assert _states() == {"fake-a": "available"}


def test_ignores_what_pip_left_behind(site):
    """An interrupted pip leaves "~ame-1.0.dist-info" behind, which is not an installed plugin."""
    write_plugin(site, "fake-a")
    shutil.copytree(site / "fake_a-0.1.0.dist-info", site / "~ake_a-0.1.0.dist-info")
    assert _states() == {"fake-a": "available"}


@pytest.mark.parametrize("metadata", ["", "Name: fake-a\n", "Name: fäke\nVersion: 1\n", None])
def test_reports_broken_metadata(site, metadata):
    """Metadata without a valid name and version are reported, and do not stop discovery."""
    write_plugin(site, "fake-a")
    write_plugin(site, "fake-b")
    path = site / "fake_a-0.1.0.dist-info" / "METADATA"
    path.unlink() if metadata is None else path.write_text(metadata, encoding="utf-8")
    broken = next(info for info in discover() if info.id != "fake-b")
    assert broken.state == "failed"
    assert "have no valid name and version; reinstall it" in broken.reason
    assert _states()["fake-b"] == "available"


def test_metadata_that_is_no_text_is_broken(site):
    """A file that can't be decoded is reported like one that is missing."""
    write_plugin(site, "fake-a")
    (site / "fake_a-0.1.0.dist-info" / "METADATA").write_bytes(b"Name: f\xe4ke\nVersion: 1\n")
    [info] = discover()
    assert (info.id, info.state) == ("fake-a", "failed")
    assert "have no valid name and version; reinstall it" in info.reason


def test_reports_entry_points_that_cannot_be_parsed(site):
    """A line without an equals sign is reported as an entry point that names no module."""
    write_plugin(site, "fake-a", entry_points="fake_a")
    [info] = discover()
    assert (info.id, info.state) == ("fake-a", "failed")
    assert "its entry point is ''" in info.reason


@pytest.mark.parametrize("content", [b"[group]\nno equals sign\n", b"[gr\xfcp]\n"])
def test_other_distributions_can_be_broken(site, content):
    """Entry points that can't be parsed hide that distribution alone."""
    write_plugin(site, "fake-a")
    write_plugin(site, "other")
    (site / "other-0.1.0.dist-info" / "entry_points.txt").write_bytes(content)
    assert _states() == {"fake-a": "available"}


@pytest.mark.parametrize("value", ["fake_a:plugin", "fake a", "", "..", "fake-a"])
def test_reports_an_entry_point_that_is_no_module(site, value):
    """An entry point has to name a module."""
    write_plugin(site, "fake-a", entry_points=f"x = {value}")
    [info] = discover()
    assert info.state == "failed"
    assert f"its entry point is {value!r}" in info.reason


@pytest.mark.parametrize(
    ("requirement", "state"),
    [
        ("cornstarch-core", "available"),
        ("cornstarch-core>=0.1,<0.2", "available"),
        ("cornstarch-core (>=0.1)", "available"),
        ("cornstarch_core ~= 0.1.0", "available"),
        ("cornstarch-core==0.1.*", "available"),
        ("cornstarch-core[all]>=0.1", "available"),
        ("cornstarch-core @ file:///somewhere", "available"),
        ("cornstarch-core>=99; python_version < '3'", "available"),
        ("cornstarch-core>=99; python_version > '3'", "incompatible"),
        ("cornstarch-core>=99; extra == 'dev'", "available"),
        ("cornstarch-core>=99", "incompatible"),
        ("cornstarch-core<0.1", "incompatible"),
        ("cornstarch-core==0.0.*", "incompatible"),
        ("cornstarch-core>=ninety", "incompatible"),
        ("cornstarch-core-extras>=99", "available"),
    ],
)
def test_checks_the_requirement_on_the_core(site, monkeypatch, requirement, state):
    """The cornstarch-core requirement is judged as pip would, before any code of the plugin runs."""
    monkeypatch.setattr(cornstarch_core, "__version__", "0.1.0")
    write_plugin(site, "fake-a", sound("clip"), requires=(requirement,))
    [info] = discover()
    assert info.state == state
    assert ("cornstarch-core" in info.reason) == (state == "incompatible")


def test_the_reason_has_the_requirement_and_the_version(site, monkeypatch):
    """The reason of an incompatible plugin has its requirement and the version of the core."""
    monkeypatch.setattr(cornstarch_core, "__version__", "0.1.0")
    write_plugin(site, "fake-a", requires=("cornstarch-core>=99",))
    assert discover()[0].reason == "it needs cornstarch-core>=99, and this is cornstarch-core 0.1.0"


def test_lets_prereleases_of_the_core_satisfy(site, monkeypatch):
    """A pre-release of the core satisfies the requirements that include it."""
    monkeypatch.setattr(cornstarch_core, "__version__", "0.1.5.dev3")
    write_plugin(site, "fake-a", requires=("cornstarch-core>=0.1,<0.2",))
    assert _states() == {"fake-a": "available"}


@pytest.mark.parametrize(
    ("allow", "block", "available"),
    [
        (None, None, ["fake-a", "fake-b"]),
        ("", None, []),
        (" , ", None, []),
        ("fake-a", None, ["fake-a"]),
        (" Fake_A ,fake-c", None, ["fake-a"]),
        (None, "fake-a", ["fake-b"]),
        (None, "", ["fake-a", "fake-b"]),
        ("fake-a,fake-b", "FAKE.A", ["fake-b"]),
    ],
)
def test_follows_the_environment(site, monkeypatch, allow, block, available):
    """CORNSTARCH_PLUGINS: unset allows all, empty allows none, else it is a list; CORNSTARCH_DISABLE_PLUGINS removes some."""
    write_plugin(site, "fake-a")
    write_plugin(site, "fake-b")
    for variable, value in (("CORNSTARCH_PLUGINS", allow), ("CORNSTARCH_DISABLE_PLUGINS", block)):
        if value is not None:
            monkeypatch.setenv(variable, value)
    states = _states()
    assert [name for name, state in states.items() if state == "available"] == available
    assert set(states.values()) <= {"available", "blocked"}


def test_says_which_variable_blocks(site, monkeypatch):
    """The reason of a blocked plugin names the variable, and shows the allow-list, which may be misspelt."""
    write_plugin(site, "fake-a")
    monkeypatch.setenv("CORNSTARCH_PLUGINS", "fake-x")
    assert discover()[0].reason == "CORNSTARCH_PLUGINS='fake-x' does not name it"
    monkeypatch.setenv("CORNSTARCH_DISABLE_PLUGINS", "fake-a")
    assert discover()[0].reason == "CORNSTARCH_DISABLE_PLUGINS names it"


def test_finds_misspelt_ids_in_the_environment(site, monkeypatch):
    """An id in the environment that no installed plugin has is reported."""
    write_plugin(site, "fake-a")
    monkeypatch.setenv("CORNSTARCH_PLUGINS", "fake-a,fake-x")
    assert unknown_in_environment(discover()) == ["CORNSTARCH_PLUGINS names 'fake-x', which is not installed"]


def _make_egg_info(site: Path) -> None:
    info = site / "fake_a.egg-info"
    os.rename(site / "fake_a-0.1.0.dist-info", info)
    text = (info / "METADATA").read_text().replace("Requires-Dist: cornstarch-core>=0.1,<0.2\n", "")
    (info / "PKG-INFO").write_text(text)
    (info / "METADATA").unlink()
    (info / "requires.txt").write_text("cornstarch-core>=99\n")


def test_reads_legacy_metadata(site):
    """An .egg-info is read where there is no .dist-info."""
    write_plugin(site, "fake-a")
    _make_egg_info(site)
    [info] = discover()
    assert (info.id, info.version, info.requires, info.state) == (
        "fake-a",
        "0.1.0",
        "cornstarch-core>=99",
        "incompatible",
    )


def test_prefers_proper_metadata_to_legacy(site):
    """An editable install leaves an .egg-info beside the sources, which is not a second plugin."""
    write_plugin(site, "fake-a")
    _make_egg_info(site)
    write_plugin(site, "fake-a")
    assert _states() == {"fake-a": "available"}


def test_reads_archives(site, tmp_path, monkeypatch):
    """A plugin in a zip file on sys.path is found."""
    write_plugin(tmp_path / "zipped", "fake-z")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for path in (tmp_path / "zipped").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "zipped"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "some.zip")])
    assert _states() == {"fake-z": "available"}


def test_asks_other_finders(site, tmp_path, monkeypatch):
    """A plugin is found that only another library's finder knows, for example in a frozen application."""
    write_plugin(tmp_path / "hidden", "fake-h")

    class Finder(MetaPathFinder):
        def find_distributions(self, context=None):
            return [PathDistribution(tmp_path / "hidden" / "fake_h-0.1.0.dist-info")]

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert _states() == {"fake-h": "available"}
