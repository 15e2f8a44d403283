"""All checks of the kit together, on a plugin that works."""

from __future__ import annotations

from testing.toys import ALL, BROKEN, MAPPINGS, checks_of, run, toys_that_fail

from cornstarch_core.testing import EncoderConformance, PluginConformance


def test_the_working_plugin_passes(only):
    """All checks run, and none fails; test_package.py runs the slow one."""
    only("sound")
    assert [run(checks, (MAPPINGS,)) for checks in checks_of("sound")] == [({}, []), ({}, [])]


def test_each_check_has_a_plugin_that_fails_it():
    """The first check is the exception: it fails for plugins that are not installed."""
    checks = [
        name for kind in (PluginConformance, EncoderConformance) for name in dir(kind) if name.startswith("test_")
    ]
    assert sorted(broken.check for broken in BROKEN.values()) == sorted({*checks} - {"test_it_is_active"})


def test_every_broken_plugin_is_tried():
    """Each toy belongs to one of the classes that the kit is made of."""
    kinds = [PluginConformance, *EncoderConformance.__mro__[1:]]
    assert sorted(name for kind in kinds for name in toys_that_fail(kind)) == sorted(ALL)
