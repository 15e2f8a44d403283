"""The base of the kit's test classes: checks that build on each other, and failures that say what to change.

Must not know what is checked.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any, NoReturn

import pytest

__all__ = ["Promises", "fail", "promise", "say"]

_NOT_THE_AUTHORS = ("cornstarch_core", "importlib", "peft", "pluggy", "torch", "transformers")


class Promises:
    """Base of the test classes. It keeps what is costly to make for all tests of a class."""

    _kept: dict[str, Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._kept = {}

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make()`` returned the first time."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def holds(self, name: str) -> bool:
        """Whether the check of this name passes, or a subclass has removed it (``test_x = None``)."""
        return self.keep(name, lambda: getattr(self, name) is None or _passes(getattr(self, name)))


def promise(*needs: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Skip a check if one that it builds on fails, so that one mistake gives one failure.

    Args:
        *needs: names of the checks that it builds on.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @wraps(check)
        def run(self: Promises) -> None:
            for name in needs:
                if not self.holds(name):
                    pytest.skip(f"{name} has to pass first")
            check(self)

        return run

    return decorate


def fail(found: str, fix: str) -> NoReturn:
    """Fail a check with two lines; pytest shows nothing else.

    Args:
        found: the plugin, what was expected, and what was found.
        fix: what to change, by the names of spec fields and methods.
    """
    raise pytest.fail.Exception(f"{found}\n  fix: {fix}", pytrace=False) from None


def say(error: BaseException) -> str:
    """An error in one line, with the place in the author's code that raised it.

    Returns:
        For example ``"RuntimeError: mat1 and mat2 must have the same dtype (encoder.py, line 12)"``.
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    places = [frame for frame in traceback.extract_tb(root.__traceback__) if not frame.filename.startswith(_others())]
    return f"{text} ({os.path.basename(places[-1].filename)}, line {places[-1].lineno})" if places else text


def _others() -> tuple[str, ...]:
    """The folders of code that is not the author's."""
    specs = [find_spec(name) for name in _NOT_THE_AUTHORS]
    folders = [folder for spec in specs if spec is not None for folder in spec.submodule_search_locations or ()]
    return (*(os.path.join(folder, "") for folder in folders), "<frozen")


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except (Exception, pytest.fail.Exception, pytest.skip.Exception):
        return False
    return True
