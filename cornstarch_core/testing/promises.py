"""The base of the kit's test classes: checks that depend on other checks, and failures that say what to change.

This file contains no check, and must not depend on what the checks test.
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
    """Base of the test classes. It caches, for all tests of a class, objects that take long to make."""

    _kept: dict[str, Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._kept = {}

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the cached result of the first call of ``make()`` under this name."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def holds(self, name: str) -> bool:
        """Whether the check of this name passes, or is removed by a subclass (``test_x = None``)."""
        return self.keep(name, lambda: getattr(self, name) is None or _passes(getattr(self, name)))


def promise(*needs: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a decorator that skips a check if one of its prerequisites fails, so that one mistake gives one failure.

    Args:
        *needs: names of the checks that have to pass before the decorated check runs.
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
    """Fail a check with a message of two lines, which pytest shows without a traceback.

    Args:
        found: sentence that names the plugin, what the check expects, and what it found.
        fix: sentence that says which spec fields or methods to change.
    """
    raise pytest.fail.Exception(f"{found}\n  fix: {fix}", pytrace=False) from None


def say(error: BaseException) -> str:
    """Describe an error in one line, with the line of the plugin's code that raised it.

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
    """Return the folders of code that does not belong to the plugin."""
    specs = [find_spec(name) for name in _NOT_THE_AUTHORS]
    folders = [folder for spec in specs if spec is not None for folder in spec.submodule_search_locations or ()]
    return (*(os.path.join(folder, "") for folder in folders), "<frozen")


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except (Exception, pytest.fail.Exception, pytest.skip.Exception):
        return False
    return True
