"""What the kit looks at in a process of its own: a plugin's imports, its second activation, what it changes elsewhere.

Runs in the child. Must not import torch, transformers or pytest at the top; what it returns is plain data.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict
from importlib import import_module
from typing import Any

from ..errors import PluginError
from ..plugins import resolve
from ..runtime.activation import TARGETS, Spec, load, new_manager
from ..runtime.discovery import PluginInfo, discover

__all__ = ["Probe", "activate_twice", "changed_mappings", "heavy_imports", "main", "plain", "targets"]

Probe = Callable[..., Any]


def main(name: str, *arguments: Any) -> None:
    """Run one of the functions below, and print what it returns as the last line."""
    print("\n" + json.dumps(globals()[name](*arguments)))


def heavy_imports(plugin: str, heavy: Collection[str]) -> dict[str, str]:
    """Which of these modules are imported when a plugin is activated, each with the place that does it."""
    watcher = _Watcher(heavy)
    sys.meta_path.insert(0, watcher)
    _load(plugin)
    return watcher.found


def activate_twice(plugin: str) -> list[Any]:
    """What a plugin registers the first and the second time, or the reason why it can't, as :func:`plain` has it."""
    return [_try(lambda: plain(_load(plugin))) for _ in range(2)]


def changed_mappings(plugins: Collection[str]) -> list[str]:
    """Entries of transformers' auto mappings that are new or other once plugins and all their targets are imported."""
    for core in ("collator", "model", "processor"):  # the core registers its own
        import_module(f"cornstarch_core.{core}")
    before = _mappings()
    for plugin in plugins:
        for _, spec in _load(plugin):
            for _, target in targets(spec):
                _try(lambda target=target: resolve(target))  # type: ignore[misc]
    after = _mappings()
    return sorted(name for name, value in after.items() if before.get(name) != value)


def plain(offers: list[tuple[str, Spec]]) -> list[list[Any]]:
    """Specs with their kinds as JSON has them, sorted."""
    return sorted(json.loads(json.dumps([[kind, asdict(spec)] for kind, spec in offers])), key=json.dumps)


def targets(spec: Spec) -> list[tuple[str, str]]:
    """All targets of a spec, each with the name of its field; classes are among them."""
    fields = [(name, getattr(spec, name, None) or ()) for name in (*TARGETS, "classes")]
    return [(name, one) for name, value in fields for one in ((value,) if isinstance(value, str) else value)]


def _load(plugin: str) -> list[tuple[str, Spec]]:
    info: PluginInfo = next(info for info in discover() if info.id == plugin)
    return load(new_manager(), info)


def _try(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}" if not isinstance(error, PluginError) else str(error)


class _Watcher:
    """Sees every import, and finds nothing: the place in ``sys.meta_path`` before those that do."""

    def __init__(self, heavy: Collection[str]) -> None:
        self.heavy = heavy
        self.found: dict[str, str] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Note who imports one of the heavy modules first."""
        if name in self.heavy and name not in self.found:
            frame: Any = sys._getframe(1)
            while frame is not None and "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            self.found[name] = f"{_short(frame.f_code.co_filename)}, line {frame.f_lineno}" if frame else "?"


def _short(path: str) -> str:
    """The last folder and the file."""
    return os.sep.join(path.split(os.sep)[-2:])


def _mappings() -> dict[str, str]:
    """All that was registered, or written over, in transformers' auto classes: ``{"MODEL_MAPPING[ToyConfig]": ...}``.

    What it came with is in tables of names; what was registered since is apart from them (5.17 to 5.23).
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
