"""The plugins of this process: discover, gate, activate, look up.

Discovery reads metadata (:mod:`.discovery`); activation imports the plugins (:mod:`.activation`), once, on first need.
A plugin that can't be loaded is kept with its reason, which is said again wherever something is not found; the others
work on. This file must not know torch, transformers, or what a spec is used for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import cornstarch_core

from .errors import AmbiguousNameError, PluginError, PluginLoadError, UnknownNameError
from .runtime.discovery import CORE, PluginInfo, discover
from .runtime.metadata import normalise

if TYPE_CHECKING:
    from pluggy import PluginManager


__all__ = ["KINDS", "PluginInfo", "PluginRegistry", "Provided", "registry", "reset_registry", "resolve"]

KINDS = ("callbacks", "checkpoints", "encoders", "processors", "projectors")
"""The kinds of things that plugins register."""

_DOCTOR = "see `cornstarch plugins doctor`"


@dataclass(frozen=True)
class Provided:
    """One thing that an active plugin registered.

    Args:
        kind: what it is, for example ``"encoders"``.
        spec: how the plugin describes it.
        plugin: id of the plugin, for example ``"cornstarch-vision"``.
        version: version of the plugin.
    """

    kind: str
    spec: Any  # of the kind's spec class
    plugin: str
    version: str

    @property
    def qualified_name(self) -> str:
        """The name that no other plugin can offer, for example ``"cornstarch-vision/clip"``."""
        return f"{self.plugin}/{self.spec.name}"


@dataclass
class _Activation:
    """What came of activating the plugins."""

    manager: PluginManager
    infos: list[PluginInfo]
    provided: list[Provided] = field(default_factory=list)
    tracebacks: dict[str, str] = field(default_factory=dict)
    classes: dict[str, list[Provided]] = field(default_factory=dict)


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
            kind: one of :data:`KINDS`.

        Returns:
            Sorted qualified names, such as ``"cornstarch-vision/clip"``.

        Raises:
            ValueError: there is no such kind.
        """
        return sorted(provided.qualified_name for provided in self._of_kind(kind))

    def lookup(self, kind: str, name: str, *, prefer: str | None = None) -> Provided:
        """Look up one thing that a plugin registers.

        Args:
            kind: one of :data:`KINDS`.
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
        found = [provided for provided in self._of_kind(kind) if provided.spec.name == bare]
        if slash:
            found = [provided for provided in found if provided.plugin == normalise(plugin)]
        elif own := [provided for provided in found if provided.plugin == prefer]:
            found = own
        if not found:
            raise UnknownNameError(self._not_found(kind, name))
        if len(found) > 1:
            raise AmbiguousNameError(f"{name!r} is offered by several plugins; name one of {_qualified(found)}")
        return found[0]

    def find_encoder(self, module: object) -> Provided | None:
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

    def model_composed(self, model: Any) -> None:
        """Let the plugins touch a finished model (hook ``cornstarch_model_composed``).

        Args:
            model: the composed model.

        Raises:
            PluginError: a plugin's hook raised.
        """
        available = {"model": model}
        impls = self._activated().manager.hook.cornstarch_model_composed.get_hookimpls()
        # pluggy would call the plugin first that was registered last
        for impl in sorted(impls, key=lambda impl: impl.trylast - impl.tryfirst):
            try:
                optional = {name: available[name] for name in impl.kwargnames if name in available}
                impl.function(*(available[name] for name in impl.argnames), **optional)
            except (Exception, SystemExit) as error:
                raise PluginError(f"{impl.plugin_name}: cornstarch_model_composed failed: {_say(error)}") from error

    def record(self, used: Iterable[Provided]) -> list[dict[str, Any]]:
        """Write down, for a saved model, which plugins made it.

        Args:
            used: what was looked up for the model.

        Returns:
            ``[{"distribution": …, "version": …, "used": ["encoders/clip", …]}, …]``, sorted.
        """
        from .runtime import records

        return records.write(used)

    def check_record(self, record: Any) -> None:
        """Hold the record of a saved model against the plugins of this process.

        Args:
            record: what stood in the checkpoint; it is not trusted.

        Raises:
            CheckpointError: it is no record.
            MissingPluginError: a plugin is missing, not active or of an incompatible version; says what to install.
        """
        from .runtime import records

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

    def _of_kind(self, kind: str) -> list[Provided]:
        if kind not in KINDS:
            raise ValueError(f"there is no kind {kind!r}; the kinds are {', '.join(KINDS)}")
        return [provided for provided in self._activated().provided if provided.kind == kind]

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


def resolve(target: str, plugin: str | None = None) -> Any:
    """Import what a spec names.

    Args:
        target: ``"package.module:attribute"``.
        plugin: id of the plugin whose spec names it, for the error.

    Returns:
        The attribute.

    Raises:
        PluginLoadError: that is not possible.

    Example:
        >>> resolve("math:pi")
        3.141592653589793
    """
    module, _, attribute = target.partition(":")
    try:
        found = import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except PluginLoadError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginLoadError(f"{plugin + ': ' if plugin else ''}can't import {target!r}: {_say(error)}") from error
    return found


def _activate(infos: list[PluginInfo]) -> _Activation:
    from .runtime import activation

    result = _Activation(activation.new_manager(), [])
    for info in infos:
        result.infos.append(_activate_one(result, info) if info.state == "available" else info)
    for provided in result.provided:
        for target in getattr(provided.spec, "classes", ()):
            result.classes.setdefault(target, []).append(provided)
    return result


def _activate_one(result: _Activation, info: PluginInfo) -> PluginInfo:
    from .runtime.activation import load

    try:
        offers = load(result.manager, info)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # compiled extensions panic with one that is no Exception
        import traceback

        result.tracebacks[info.id] = "".join(traceback.format_exception(error))
        return replace(info, state="failed", reason=_say(error))
    result.provided += [Provided(kind, spec, info.id, info.version) for kind, spec in offers]
    return replace(info, state="active")


def _qualified(found: list[Provided]) -> str:
    return " and ".join(repr(provided.qualified_name) for provided in found)


def _say(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(it can't be shown)"
    return f"{type(error).__name__}: {text}".removesuffix(": ")
