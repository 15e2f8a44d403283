"""Functions that the kit runs in a separate process: they report a plugin's imports, its specs and its side effects.

The functions return plain data. The top level of this file must not import torch, transformers or pytest.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from types import FrameType
from typing import Any

from ..errors import PluginError
from ..plugins import resolve
from ..plugins.activation import load, new_manager
from ..plugins.discovery import discover
from ..plugins.registration import describe_error, targets
from ..specs import Spec

__all__ = ["activate_twice", "changed_mappings", "heavy_imports", "main", "plain"]


def main(name: str, *arguments: object) -> None:
    """Run one of the functions below, and print its result as JSON in the last line."""
    print("\n" + json.dumps(globals()[name](*arguments)))


def heavy_imports(plugin: str, heavy: Collection[str]) -> dict[str, str]:
    """Return the modules of ``heavy`` that activating a plugin imports, with the file and line of each import."""
    watcher = _Watcher(heavy)
    sys.meta_path.insert(0, watcher)
    _load(plugin)
    return watcher.found


def activate_twice(plugin: str) -> list[list[Any] | str]:
    """Activate a plugin twice, and return for each time its specs as :func:`plain` data, or the error as text."""
    return [_activated(plugin) for _ in range(2)]


def changed_mappings(plugins: Collection[str]) -> list[str]:
    """Return the entries of transformers' auto mappings that importing plugins and their targets adds or changes."""
    for core in ("collator", "model", "processor"):  # these modules of the core register entries themselves
        import_module(f"cornstarch_core.{core}")
    before = _mappings()
    for plugin in plugins:
        for _, spec in _load(plugin):
            for _, path in targets(spec):
                with suppress(PluginError):
                    resolve(path)
    after = _mappings()
    return sorted(name for name, value in after.items() if before.get(name) != value)


def plain(offers: list[tuple[str, Spec[Any]]]) -> list[list[Any]]:
    """Convert specs and their kinds to sorted data that JSON can hold."""
    return sorted(json.loads(json.dumps([[kind, asdict(spec)] for kind, spec in offers])), key=json.dumps)


def _load(plugin: str) -> list[tuple[str, Spec[Any]]]:
    return load(new_manager(), next(info for info in discover() if info.id == plugin))


def _activated(plugin: str) -> list[list[Any]] | str:
    try:
        return plain(_load(plugin))
    except (Exception, SystemExit) as error:
        return str(error) if isinstance(error, PluginError) else describe_error(error)


class _Watcher:
    """A finder in ``sys.meta_path`` that records imports, and finds no module itself."""

    def __init__(self, heavy: Collection[str]) -> None:
        self.heavy = heavy
        self.found: dict[str, str] = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Record the first import of each heavy module."""
        if name in self.heavy and name not in self.found:
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            file = os.sep.join(frame.f_code.co_filename.split(os.sep)[-2:]) if frame else "?"
            self.found[name] = f"{file}, line {frame.f_lineno if frame else '?'}"


def _mappings() -> dict[str, str]:
    """Return the registered entries of transformers' auto classes: ``{"MODEL_MAPPING[ToyConfig]": ...}``.

    In transformers 5.17 to 5.23, built-in entries are in tables of names, and entries that are registered later are in
    other tables.
    """
    import pkgutil

    from transformers.models import auto

    found = {}
    for module in pkgutil.iter_modules(auto.__path__):
        for name, value in vars(import_module(f"{auto.__name__}.{module.name}")).items():
            table = getattr(value, "_extra_content", value if name.endswith("_NAMES") else None)
            for key, entry in table.items() if isinstance(table, dict) else ():
                found[f"{name}[{getattr(key, '__name__', key)}]"] = repr(entry)
    return found
