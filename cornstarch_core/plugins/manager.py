"""The registry of the plugins of this process, which activates plugins and looks up what they register.

Discovery reads metadata (:mod:`.discovery`). Activation imports the plugins (:mod:`.activation`), once, when they are
needed for the first time. If a plugin can't be loaded, the registry stores the reason and activates the other plugins;
errors about names that are not found repeat the reason. This file must not import torch or transformers, and must not
depend on what specs are used for.
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
"""The module that registers the core's own specs; it is loaded like the module of a plugin."""


@dataclass
class _Activation:
    """The result of activating the plugins."""

    manager: PluginManager
    infos: list[PluginInfo] = field(default_factory=list)
    registrations: list[Registration[Any]] = field(default_factory=list)
    tracebacks: dict[str, str] = field(default_factory=dict)
    classes: dict[str, list[Registration[Any]]] = field(default_factory=dict)


class PluginRegistry:
    """All plugins of one process. Call :func:`registry` to get it; create an instance only in tests.

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
        """List the installed plugins without importing them.

        Returns:
            One entry for each distribution, sorted by id. Metadata and environment variables are read once per process.
        """
        with self._lock:
            if self._activation:
                return list(self._activation.infos)
            if self._discovered is None:
                self._discovered = discover()
            return list(self._discovered)

    def activate(self) -> None:
        """Import the available plugins and collect what they register; only the first call has an effect.

        An error in a plugin affects only that plugin, whose state becomes ``"failed"`` with the error as its reason.

        Raises:
            PluginError: a plugin calls the registry while it is being imported.
        """
        self._activated()

    def names(self, kind: str) -> list[str]:
        """List the names of the specs of one kind that the plugins register.

        Args:
            kind: kind of spec, one of :meth:`kinds`.

        Returns:
            Sorted qualified names, such as ``"cornstarch-vision/clip"``.

        Raises:
            ValueError: there is no such kind.
        """
        return sorted(one.qualified_name for one in self._of_kind(kind))

    def kinds(self) -> list[str]:
        """List the kinds of specs that plugins register, such as ``"encoders"``: one kind for each registering hook.

        Returns:
            The kinds, sorted.
        """
        from .activation import spec_types

        return sorted(spec_types())

    def lookup(self, kind: str, name: str, *, prefer: str | None = None) -> Registration[Any]:
        """Look up one spec that a plugin registers.

        Args:
            kind: kind of spec, one of :meth:`kinds`.
            name: name of the spec: bare (``"clip"``) or qualified (``"cornstarch-vision/clip"``).
            prefer: id of the plugin whose spec is returned if several plugins register the bare name. Names that a
                plugin uses in its own specs are looked up this way.

        Returns:
            The registration: the spec and its plugin.

        Raises:
            AmbiguousNameError: the name is bare and several plugins register it.
            UnknownNameError: no active plugin registers the name.
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
        """Find the encoder spec that names the class of an object, or else the nearest of its base classes.

        Args:
            module: encoder module; the caller has to unwrap a module that PEFT wraps.

        Returns:
            The registration (the spec and its plugin), or ``None`` if no spec of an active plugin names the class.

        Raises:
            AmbiguousNameError: two specs name the same class.
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
            The blocked, incompatible and failed plugins, sorted by id.
        """
        return [info for info in self._activated().infos if info.state != "active"]

    def fingerprint(self) -> dict[str, str]:
        """Return the versions of the core and the plugins, to compare this process with another one.

        Returns:
            A dictionary with the version of ``cornstarch-core`` and of every active plugin, by distribution name.

        Example:
            >>> "cornstarch-core" in registry().fingerprint()
            True
        """
        active = {info.id: info.version for info in self._activated().infos if info.state == "active"}
        return {CORE: cornstarch_core.__version__, **active}

    def explain_unavailable(self) -> str:
        """Describe the installed plugins that are not active, for an error message about something that is missing.

        Returns:
            One sentence with the reason of each plugin and what to do next, or ``""`` if all plugins are active.
        """
        infos = self.unavailable()
        return "; ".join([*(info.explain() for info in infos), _DOCTOR]) if infos else ""

    def traceback(self, plugin: str) -> str:
        """Return the traceback of the error with which a plugin failed to load.

        Args:
            plugin: id of the plugin.

        Returns:
            The formatted traceback, or ``""`` if the plugin's code raised no error.
        """
        return self._activated().tracebacks.get(plugin, "")

    def call_hook(self, hook: str, **arguments: object) -> None:
        """Call one hook of all active plugins, in the order of their ids.

        Args:
            hook: name of a hook in :mod:`cornstarch_core.hookspecs`.
            **arguments: arguments of the hook; each plugin gets those that its implementation declares.

        Raises:
            PluginError: a plugin's hook raised.
        """
        impls = getattr(self._activated().manager.hook, hook).get_hookimpls()
        # pluggy itself would call the plugins in the reverse order of their registration
        for impl in sorted(impls, key=lambda impl: impl.trylast - impl.tryfirst):
            try:
                optional = {name: arguments[name] for name in impl.kwargnames if name in arguments}
                impl.function(*(arguments[name] for name in impl.argnames), **optional)
            except (Exception, SystemExit) as error:
                raise PluginError(f"{impl.plugin_name}: {hook} failed: {describe_error(error)}") from error

    def record(self, used: Iterable[Registration[Any]]) -> list[dict[str, Any]]:
        """Make the record, in a saved model, of the plugins that the model needs.

        Args:
            used: registrations that were looked up for the model.

        Returns:
            ``[{"distribution": …, "version": …, "used": ["encoders/clip", …]}, …]``, sorted.
        """
        from . import records

        return records.write(used)

    def check_record(self, record: object) -> None:
        """Check that the plugins in the record of a saved model are active in this process.

        Args:
            record: value that was read from the checkpoint; it is not trusted.

        Raises:
            CheckpointError: the value is not a record.
            MissingPluginError: a plugin is missing, not active or of an incompatible version; the message says what to
                install.
        """
        from . import records

        records.check(record, self._activated().infos)

    def _activated(self) -> _Activation:
        if self._activation:  # no lock is needed: the attribute is set once, after activation
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
        The same registry in every call, until :func:`reset_registry` replaces it.
    """
    return _registry


def reset_registry() -> None:
    """Replace the registry by a new one that discovers the plugins again. For tests only: modules stay imported."""
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
    except BaseException as error:  # compiled extensions may raise one that is not an Exception
        import traceback

        result.tracebacks[info.id] = "".join(traceback.format_exception(error))
        return replace(info, state="failed", reason=describe_error(error))
    result.registrations += [Registration(kind, spec, info.id, info.version) for kind, spec in offers]
    return replace(info, state="active")


def _qualified(found: list[Registration[Any]]) -> str:
    return " and ".join(repr(one.qualified_name) for one in found)
