"""A spec that a plugin registered, and the import of the classes that the spec names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import PluginLoadError

if TYPE_CHECKING:
    from ..specs import InterfaceT, Spec

__all__ = ["Registration", "TargetProblem", "describe_error", "resolve", "target_problems", "targets"]

SpecT = TypeVar("SpecT", bound="Spec[Any]", covariant=True)


@dataclass(frozen=True)
class Registration(Generic[SpecT]):
    """A spec that an active plugin registered.

    Args:
        kind: kind of the spec, for example ``"encoders"``.
        spec: the spec.
        plugin: id of the plugin, for example ``"cornstarch-vision"``.
        version: version of the plugin.
    """

    kind: str
    spec: SpecT
    plugin: str
    version: str

    @property
    def qualified_name(self) -> str:
        """The name with the plugin's id, which is unique: for example ``"cornstarch-vision/clip"``."""
        return f"{self.plugin}/{self.spec.name}"

    def load(self: Registration[Spec[InterfaceT]]) -> InterfaceT:
        """Import the class that is the spec's target, and create an instance of it.

        Returns:
            An object with the methods of the spec's interface.

        Raises:
            PluginLoadError: the class can't be imported or instantiated, or it lacks a method of the interface.
        """
        return _make(self.spec, self.plugin)

    def classes(self: Registration[Any]) -> list[type]:
        """Import the encoder classes that the spec of an encoder names.

        Raises:
            PluginLoadError: a class can't be imported.
        """
        return [resolve(path, self.plugin) for path in self.spec.classes]


def resolve(target: str, plugin: str | None = None) -> Any:
    """Import the object that a spec names.

    Args:
        target: path of the object, ``"package.module:attribute"``.
        plugin: id of the plugin whose spec names the object, for the error message.

    Returns:
        The object.

    Raises:
        PluginLoadError: the object can't be imported.

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
        where = f"{plugin}: " if plugin else ""
        raise PluginLoadError(f"{where}can't import {target!r}: {describe_error(error)}") from error
    return found


def describe_error(error: BaseException) -> str:
    """Describe an error in one line: ``"ImportError: no module named 'soundfile'"``."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(it can't be shown)"
    return f"{type(error).__name__}: {text}".removesuffix(": ")


# --- checks of targets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TargetProblem:
    """A problem with a field of a spec.

    Args:
        field: name of the field.
        text: description of the problem.
        fix: sentence that says how to fix the problem.
        error: exception that shows the problem, if there is one.
    """

    field: str
    text: str
    fix: str
    error: BaseException | None = None


def targets(spec: Spec[Any]) -> list[tuple[str, str]]:
    """Return all import paths in a spec, as pairs ``(field, path)``."""
    return [("target", spec.target), *(("classes", path) for path in getattr(spec, "classes", ()))]


def target_problems(spec: Spec[Any], announce: Callable[[str], None] = lambda path: None) -> Iterator[TargetProblem]:
    """Import all objects that a spec names, and yield a problem for each one that is not as the spec requires.

    Args:
        spec: spec of any kind.
        announce: function that is called with each import path before the import.
    """
    fixes = {
        "target": f"Name a class that inherits from {spec.interface.__name__}, and that can be made without arguments.",
        "classes": "Name each class by the module that defines it.",
    }
    for field, path in targets(spec):
        announce(path)
        try:
            if field == "target":
                _make(spec)
            else:
                _check_class(path)
        except PluginLoadError as error:
            yield TargetProblem(field, str(error), fixes[field], error)


def _make(spec: Spec[InterfaceT], plugin: str | None = None) -> InterfaceT:
    """Create an instance of the class that is the target of ``spec``."""
    path, interface, where = spec.target, spec.interface, f"{plugin}: " if plugin else ""
    cls = resolve(path, plugin)
    if not isinstance(cls, type):
        raise PluginLoadError(f"{where}{path!r} is not a class")
    methods = [name for name, value in vars(interface).items() if callable(value) and not name.startswith("_")]
    abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    if missing := [name for name in methods if name in abstract or not callable(getattr(cls, name, None))]:
        raise PluginLoadError(f"{where}{path!r} lacks the methods {', '.join(missing)} of {interface.__name__}")
    try:
        return cls()
    except Exception as error:
        raise PluginLoadError(f"{where}can't make {path!r}: {describe_error(error)}") from error


def _check_class(path: str) -> None:
    """Raise unless a class is defined at ``path``; encoders are found by the path at which their class is defined."""
    cls = resolve(path)
    if not isinstance(cls, type):
        raise PluginLoadError(f"{path!r} is not a class")
    if path != (home := f"{cls.__module__}:{cls.__qualname__}"):
        raise PluginLoadError(f"{path!r} is defined as {home!r}")
