"""The plugins of this process: discover, check, activate, look up.

Discovery reads metadata (:mod:`.discovery`); activation imports the plugins (:mod:`.activation`), once, on first need.
A plugin that can't be loaded is kept with its reason, which is said again wherever something is not found; the others
work on. This file must not know torch, transformers, or what a spec is used for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cornstarch_core

from ..errors import AmbiguousNameError, PluginError, UnknownNameError
from .discovery import CORE, PluginInfo, discover, normalise
from .registration import Registration, describe_error

if TYPE_CHECKING:
    from pluggy import PluginManager


__all__ = ["PluginRegistry", "registry", "reset_registry"]

_DOCTOR = "see `cornstarch plugins doctor`"

BUILT_IN = "cornstarch_core.modeling.builtin_projectors"
"""The module that registers what the core itself offers, loaded as the module of a plugin is."""


@dataclass
class _Activation:
    """What came of activating the plugins."""

    manager: PluginManager
    infos: list[PluginInfo] = field(default_factory=list)
    registrations: list[Registration[Any]] = field(default_factory=list)
    tracebacks: dict[str, str] = field(default_factory=dict)
    classes: dict[str, list[Registration[Any]]] = field(default_factory=dict)


class PluginRegistry:
    """All plugins of one process. Use :func:`registry`; make one yourself only in tests.

    Example:
        >>> from cornstarch_core.plugins import PluginRegistry
        >>> PluginRegistry().names("unicorns")
        Traceback (most recent call last):
        ...
        ValueError: there is no kind 'unicorns'; the kinds are callbacks, checkpoints, encoders, processors, projectors
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._discovered: list[PluginInfo] | None = None
        self._activation: _Activation | None = None
        self._busy = False

    def plugins(self) -> list[PluginInfo]:
        """List the installed plugins. This imports none of them.

        Returns:
            One entry per distribution, sorted by id; metadata and environment are read once per process.
        """
        with self._lock:
            if self._activation:
                return list(self._activation.infos)
            if self._discovered is None:
                self._discovered = discover()
            return list(self._discovered)

    def activate(self) -> None:
        """Import the available plugins and take what they register, if that was not done yet.

        Whatever goes wrong in one plugin removes that plugin alone, and is kept as its state and reason.

        Raises:
            PluginError: a plugin looks something up while it is being imported.
        """
        self._activated()

    def names(self, kind: str) -> list[str]:
        """List what the plugins register.

        Args:
            kind: one of :meth:`kinds`.

        Returns:
            Sorted qualified names, such as ``"cornstarch-vision/clip"``.

        Raises:
            ValueError: there is no such kind.
        """
        return sorted(one.qualified_name for one in self._of_kind(kind))

    def kinds(self) -> list[str]:
        """List the kinds of things that plugins register, such as ``"encoders"``: one for each registering hook.

        Returns:
            The kinds, sorted.
        """
        from .activation import spec_types

        return sorted(spec_types())

    def lookup(self, kind: str, name: str, *, prefer: str | None = None) -> Registration[Any]:
        """Look up one thing that a plugin registers.

        Args:
            kind: one of :meth:`kinds`.
            name: bare (``"clip"``) or qualified (``"cornstarch-vision/clip"``).
            prefer: id of the plugin that a bare name means if that plugin offers it, for names in a plugin's own specs.

        Returns:
            The thing, with its spec and its plugin.

        Raises:
            AmbiguousNameError: the name is bare and several plugins offer it.
            UnknownNameError: no active plugin offers it.
            ValueError: there is no such kind.
        """
        plugin, slash, bare = name.rpartition("/")
        found = [one for one in self._of_kind(kind) if one.spec.name == bare]
        if slash:
            found = [one for one in found if one.plugin == normalise(plugin)]
        elif own := [one for one in found if one.plugin == prefer]:
            found = own
        if not found:
            raise UnknownNameError(self._not_found(kind, name))
        if len(found) > 1:
            raise AmbiguousNameError(f"{name!r} is offered by several plugins; name one of {_qualified(found)}")
        return found[0]

    def find_encoder(self, module: object) -> Registration[Any] | None:
        """Find the encoder spec that describes an object by its class, or else by the nearest of its base classes.

        Args:
            module: an encoder; one that PEFT wraps has to be unwrapped before.

        Returns:
            The spec and its plugin, or None if no active plugin describes such a class.

        Raises:
            AmbiguousNameError: two specs claim the same class.
        """
        classes = self._activated().classes
        for cls in type(module).__mro__:
            found = classes.get(f"{cls.__module__}:{cls.__qualname__}", [])
            if len(found) > 1:
                raise AmbiguousNameError(
                    f"{cls.__module__}:{cls.__qualname__} is claimed by {_qualified(found)}; "
                    "block one of the plugins with CORNSTARCH_DISABLE_PLUGINS"
                )
            if found:
                return found[0]
        return None

    def unavailable(self) -> list[PluginInfo]:
        """List the installed plugins that are not active.

        Returns:
            The blocked, the incompatible and the failed ones, sorted by id.
        """
        return [info for info in self._activated().infos if info.state != "active"]

    def fingerprint(self) -> dict[str, str]:
        """Tell what this process composes models with, to compare it with another process.

        Returns:
            The version of ``cornstarch-core`` and of every active plugin, by distribution.

        Example:
            >>> "cornstarch-core" in registry().fingerprint()
            True
        """
        active = {info.id: info.version for info in self._activated().infos if info.state == "active"}
        return {CORE: cornstarch_core.__version__, **active}

    def explain_unavailable(self) -> str:
        """Say which installed plugins are not active, for the error of somebody who misses something.

        Returns:
            One sentence with the reason of each and what to do next, or ``""`` if all are active.
        """
        infos = self.unavailable()
        return "; ".join([*(info.explain() for info in infos), _DOCTOR]) if infos else ""

    def traceback(self, plugin: str) -> str:
        """Tell where a plugin failed to load.

        Args:
            plugin: its id.

        Returns:
            The formatted traceback, or ``""`` if none of its code failed.
        """
        return self._activated().tracebacks.get(plugin, "")

    def call_hook(self, hook: str, **arguments: object) -> None:
        """Call one hook of all active plugins, in the order of their ids.

        Args:
            hook: name of a hook in :mod:`cornstarch_core.hookspecs`.
            **arguments: its arguments; a plugin gets those that it asks for.

        Raises:
            PluginError: a plugin's hook raised.
        """
        impls = getattr(self._activated().manager.hook, hook).get_hookimpls()
        # pluggy would call the plugin first that was registered last
        for impl in sorted(impls, key=lambda impl: impl.trylast - impl.tryfirst):
            try:
                optional = {name: arguments[name] for name in impl.kwargnames if name in arguments}
                impl.function(*(arguments[name] for name in impl.argnames), **optional)
            except (Exception, SystemExit) as error:
                raise PluginError(f"{impl.plugin_name}: {hook} failed: {describe_error(error)}") from error

    def record(self, used: Iterable[Registration[Any]]) -> list[dict[str, Any]]:
        """Write down, for a saved model, which plugins made it.

        Args:
            used: what was looked up for the model.

        Returns:
            ``[{"distribution": …, "version": …, "used": ["encoders/clip", …]}, …]``, sorted.
        """
        from . import records

        return records.write(used)

    def check_record(self, record: object) -> None:
        """Hold the record of a saved model against the plugins of this process.

        Args:
            record: what stood in the checkpoint; it is not trusted.

        Raises:
            CheckpointError: it is no record.
            MissingPluginError: a plugin is missing, not active or of an incompatible version; says what to install.
        """
        from . import records

        records.check(record, self._activated().infos)

    def _activated(self) -> _Activation:
        if self._activation:  # without the lock: it is set once, when all is done
            return self._activation
        with self._lock:
            if self._busy:
                raise PluginError("a plugin can't look anything up while it is being imported; do that later")
            if not self._activation:
                self._busy = True
                try:
                    self._activation = _activate(self.plugins())
                finally:
                    self._busy = False
            return self._activation

    def _of_kind(self, kind: str) -> list[Registration[Any]]:
        if kind not in self.kinds():
            raise ValueError(f"there is no kind {kind!r}; the kinds are {', '.join(self.kinds())}")
        return [one for one in self._activated().registrations if one.kind == kind]

    def _not_found(self, kind: str, name: str) -> str:
        from difflib import get_close_matches

        names = {qualified: qualified for qualified in self.names(kind)}
        names |= {qualified.rpartition("/")[2]: qualified for qualified in names}
        close = [names[match] for match in get_close_matches(name, names)]
        offered = ", ".join(dict.fromkeys([*close, *names.values()]))
        there_is = f"there is {offered}" if offered else f"no plugin offers any of the {kind}"
        reasons = [info.explain() for info in self.unavailable()]
        return "; ".join([f"no {kind[:-1]} for {name!r}", *reasons, there_is, _DOCTOR])


_registry = PluginRegistry()


def registry() -> PluginRegistry:
    """Get the registry of this process.

    Returns:
        The same one every time.
    """
    return _registry


def reset_registry() -> None:
    """Forget all plugins, so that they are discovered again. For tests: modules stay imported."""
    global _registry
    _registry = PluginRegistry()


def _activate(infos: list[PluginInfo]) -> _Activation:
    from .activation import new_manager

    result = _Activation(new_manager())
    built_in = PluginInfo(id=CORE, version=cornstarch_core.__version__, entry_point=BUILT_IN)
    if _activate_one(result, built_in).state == "failed":
        raise PluginError(f"the core itself is broken: {result.tracebacks[CORE]}")
    for info in infos:
        result.infos.append(_activate_one(result, info) if info.state == "available" else info)
    for one in result.registrations:
        for path in getattr(one.spec, "classes", ()):
            result.classes.setdefault(path, []).append(one)
    return result


def _activate_one(result: _Activation, info: PluginInfo) -> PluginInfo:
    from .activation import load

    try:
        offers = load(result.manager, info)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # compiled extensions panic with one that is no Exception
        import traceback

        result.tracebacks[info.id] = "".join(traceback.format_exception(error))
        return replace(info, state="failed", reason=describe_error(error))
    result.registrations += [Registration(kind, spec, info.id, info.version) for kind, spec in offers]
    return replace(info, state="active")


def _qualified(found: list[Registration[Any]]) -> str:
    return " and ".join(repr(one.qualified_name) for one in found)
