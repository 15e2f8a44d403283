"""What the kit checks in a separate process: the imports of a plugin, its second activation, and its side effects.

Runs in the child process. Must not import torch, transformers or pytest at the top; returns plain data.
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
    """Run one of the functions below, and print what it returns as the last line."""
    print("\n" + json.dumps(globals()[name](*arguments)))


def heavy_imports(plugin: str, heavy: Collection[str]) -> dict[str, str]:
    """The modules of ``heavy`` that activating a plugin imports, each with the file and line of the import."""
    watcher = _Watcher(heavy)
    sys.meta_path.insert(0, watcher)
    _load(plugin)
    return watcher.found


def activate_twice(plugin: str) -> list[list[Any] | str]:
    """What a plugin registers the first and the second time, as :func:`plain` returns it, or the error as text."""
    return [_activated(plugin) for _ in range(2)]


def changed_mappings(plugins: Collection[str]) -> list[str]:
    """Entries of transformers' auto mappings that plugins and their targets add or change when they are imported."""
    for core in ("collator", "model", "processor"):  # the core registers its own
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
    """Specs with their kinds as data for JSON, sorted."""
    return sorted(json.loads(json.dumps([[kind, asdict(spec)] for kind, spec in offers])), key=json.dumps)


def _load(plugin: str) -> list[tuple[str, Spec[Any]]]:
    return load(new_manager(), next(info for info in discover() if info.id == plugin))


def _activated(plugin: str) -> list[list[Any]] | str:
    try:
        return plain(_load(plugin))
    except (Exception, SystemExit) as error:
        return str(error) if isinstance(error, PluginError) else describe_error(error)


class _Watcher:
    """A finder in ``sys.meta_path`` that sees every import, and finds nothing itself."""

    def __init__(self, heavy: Collection[str]) -> None:
        self.heavy = heavy
        self.found: dict[str, str] = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Note the first import of each heavy module."""
        if name in self.heavy and name not in self.found:
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            file = os.sep.join(frame.f_code.co_filename.split(os.sep)[-2:]) if frame else "?"
            self.found[name] = f"{file}, line {frame.f_lineno if frame else '?'}"


def _mappings() -> dict[str, str]:
    """All that was registered in transformers' auto classes: ``{"MODEL_MAPPING[ToyConfig]": ...}``.

    The built-in entries are in tables of names, and those that were registered later are in other tables (5.17 to
    5.23).
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
