"""The checks of a plugin package: each plugin here has one mistake, and fails the check for it alone."""

from __future__ import annotations

import re

import pytest
from testing.toys import ALL, assert_one_check_fails, checks_of, run, toys_that_fail

from cornstarch_core.testing import PluginConformance
from cornstarch_core.testing.package import ask


@pytest.mark.parametrize("name", toys_that_fail(PluginConformance))
def test_a_broken_plugin_fails_one_check(name, only):
    """The message names what to change."""
    only(name)
    assert_one_check_fails(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "absent",
            r"the plugin is not installed here; installed are .*cornstarch-vision.*\n  fix: .*entry point in",
        ),
        ("sound", r"cornstarch-toy-sound is blocked: .*\n  fix: Unset the environment variable"),
    ],
)
def test_a_plugin_that_is_not_there_fails_one_check_of_each_class(name, message, only, monkeypatch):
    """If the plugin is not installed or blocked, the first check says so, and the others are skipped."""
    only("heavy")
    package, encoder = checks_of(name)
    (failed, skipped), (failed_too, skipped_too) = run(package), run(encoder)
    assert list(failed) == ["test_it_is_active"]
    assert re.search(message, failed["test_it_is_active"])
    assert len(skipped) == 5
    assert list(failed_too) == ["test_its_spec_describes_the_module"]
    assert f"no encoder for 'cornstarch-toy-{name}/toy'" in failed_too["test_its_spec_describes_the_module"]
    assert len(skipped_too) == len([name for name in dir(encoder) if name.startswith("test_")]) - 1


def test_no_other_toy_changes_auto_mappings(only):
    """The slow check passes for all toys, in one process."""
    only("sound", *ALL)
    plugins = [f"cornstarch-toy-{name}" for name in ("sound", *ALL) if name != "registers"]
    assert ask("changed_mappings", plugins) == []
