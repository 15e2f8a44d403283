"""The kit itself: what importing it costs, its messages, and the documentation of its checks."""

from __future__ import annotations

import inspect
import re

import pytest
from pages import DOCS, read, rows

from cornstarch_core import testing
from cornstarch_core.testing import EncoderConformance, PluginConformance
from cornstarch_core.testing.encoder_under_test import EncoderUnderTest

PAGE = read(DOCS / "how-to" / "test-a-plugin.md")
CHECKS = [name for kind in (PluginConformance, EncoderConformance) for name in dir(kind) if name.startswith("test_")]


def test_pytest_collects_nothing_of_the_kit_by_itself():
    """Its public names do not begin with "Test"."""
    assert testing.__all__ == ["EncoderConformance", "PluginConformance"]
    assert set(testing.__all__) <= set(dir(testing))
    with pytest.raises(AttributeError, match="no attribute 'TestPlugin'"):
        testing.TestPlugin  # noqa: B018


def test_every_check_is_documented():
    """The table of the page has all checks, and each check has one sentence as its docstring."""
    assert sorted(rows(PAGE, "Check")) == sorted(CHECKS)
    for kind in (PluginConformance, EncoderConformance):
        for name in (name for name in CHECKS if hasattr(kind, name)):
            text = inspect.getdoc(getattr(kind, name))
            assert text.endswith("."), name
            assert "\n" not in text, name


def test_every_attribute_is_documented():
    """The table of the page and the docstring have exactly the attributes that an author can set."""
    table = [name for line in rows(PAGE, "Attribute") for name in line.replace("`", "").split(", ")]
    text = inspect.getdoc(EncoderConformance).partition("Attributes:\n")[2].partition("\n\n")[0]
    assert table == list(EncoderUnderTest.__annotations__)
    assert table == re.findall(r"^    (\w+): ", text, re.MULTILINE)
