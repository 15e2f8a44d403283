"""Checks that build on each other, and messages of failures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cornstarch_core.testing.promises import Promises, fail, promise, say


def test_a_check_waits_for_those_that_it_builds_on():
    """It is skipped while one fails, and runs if a subclass removes that one."""

    class Two(Promises):
        ran = 0

        @promise()
        def test_first(self):
            fail("it is broken.", "Mend it.")

        @promise("test_first")
        def test_second(self):
            type(self).ran += 1

    class Without(Two):
        test_first = None

    with pytest.raises(pytest.fail.Exception, match="it is broken.\n  fix: Mend it."):
        Two().test_first()
    with pytest.raises(pytest.skip.Exception, match="test_first has to pass first"):
        Two().test_second()
    Without().test_second()
    assert (Two.ran, Without.ran) == (0, 1)


def test_an_error_is_shown_with_the_place_in_the_authors_code():
    """It is not the place in a library; for an error that wraps another, it is the place of the inner one."""

    def raise_in_torch():
        torch.zeros(2) @ torch.zeros(3)

    def wrap():
        try:
            raise_in_torch()
        except RuntimeError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as caught:
        wrap()
    line = raise_in_torch.__code__.co_firstlineno + 1
    assert say(caught.value) == f"ValueError: outer ({Path(__file__).name}, line {line})"
    assert say(KeyError()) == "KeyError"
