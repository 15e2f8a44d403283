"""Import one plugin, hold it against the hook specs, and take what it registers.

This file must not know about the environment, the other plugins' offers or what a lookup is. Whatever is wrong with a
plugin is raised here, when it is activated, and not when it is first used.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from types import ModuleType
from typing import Any

from pluggy import PluginManager

from .. import hookspecs, specs
from ..errors import PluginLoadError
from .discovery import NAME, PluginInfo

__all__ = ["SPEC_TYPES", "TARGETS", "Spec", "load", "new_manager"]

Spec = specs.EncoderSpec | specs.ProjectorSpec | specs.ProcessorSpec | specs.CallbackSpec | specs.CheckpointSpec

SPEC_TYPES: dict[str, type[Spec]] = {
    "callbacks": specs.CallbackSpec,
    "checkpoints": specs.CheckpointSpec,
    "encoders": specs.EncoderSpec,
    "processors": specs.ProcessorSpec,
    "projectors": specs.ProjectorSpec,
}
"""What each registering hook, ``cornstarch_register_<kind>``, returns a list of."""

TARGETS = (
    "build",
    "dummy_inputs",
    "export",
    "hidden_size",
    "load",
    "load_processor",
    "num_tokens",
    "prefix_tokens",
    "prepare",
    "wrap",
)
"""The fields of the specs that hold a target."""

_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def new_manager() -> PluginManager:
    """Make a plugin manager that knows the hooks.

    Returns:
        One without any plugin.
    """
    manager = PluginManager("cornstarch")
    manager.add_hookspecs(hookspecs)
    return manager


def load(manager: PluginManager, info: PluginInfo) -> list[tuple[str, Spec]]:
    """Import a plugin, register it with pluggy and ask it for what it has.

    Args:
        manager: where to register it; it is not there when this raises.
        info: an available plugin.

    Returns:
        What the plugin registers, each with its kind.

    Raises:
        PluginLoadError: it breaks the contract.
        BaseException: whatever its own code raises.
    """
    try:
        module = import_module(info.entry_point)
        _check_hooks(manager, module)
        manager.register(module, name=info.id)
        return [(kind, spec) for kind in SPEC_TYPES for spec in _collect(manager, module, kind)]
    except BaseException:
        if manager.has_plugin(info.id):
            manager.unregister(name=info.id)
        raise


def _check_hooks(manager: PluginManager, module: ModuleType) -> None:
    for name in dir(module):
        options = manager.parse_hookimpl_opts(module, name)
        if options is not None:
            hook = options.get("specname") or name
            _check_hook(hook, getattr(module, name), dict(options))
        elif _is_hook(name) and getattr(getattr(module, name), "__module__", None) == module.__name__:
            raise PluginLoadError(f"{name} lacks the @hookimpl marker of cornstarch_core.hookspecs")


def _is_hook(name: str) -> bool:
    return name.startswith("cornstarch_") and name in hookspecs.__all__


def _check_hook(hook: str, function: Any, options: dict[str, Any]) -> None:
    if not _is_hook(hook):
        if not options.get("optionalhook"):
            raise PluginLoadError(f"there is no hook {hook!r}; {_hooks_like(hook)}")
    elif options.get("wrapper") or options.get("hookwrapper"):
        raise PluginLoadError(f"{hook} is a hook wrapper, and those are not supported")
    elif unknown := _unknown_arguments(hook, function):
        known = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters) or "none"
        raise PluginLoadError(f"{hook} asks for an unknown argument {unknown[0]!r}; its arguments: {known}")


def _hooks_like(name: str) -> str:
    from difflib import get_close_matches

    hooks = [hook for hook in hookspecs.__all__ if _is_hook(hook)]
    close = get_close_matches(name, hooks, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the hooks are {', '.join(hooks)}"


def _unknown_arguments(hook: str, function: Any) -> list[str]:
    known = inspect.signature(getattr(hookspecs, hook)).parameters
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, argument in inspect.signature(function).parameters.items()
        if name not in known and argument.default is argument.empty and argument.kind not in optional
    ]


def _collect(manager: PluginManager, module: ModuleType, kind: str) -> Iterator[Spec]:
    hook = f"cornstarch_register_{kind}"
    names: set[str] = set()
    for impl in getattr(manager.hook, hook).get_hookimpls():
        for spec in _check_list(hook, impl.function(), SPEC_TYPES[kind]) if impl.plugin is module else ():
            if spec.name in names:
                raise PluginLoadError(f"{hook} returned {spec.name!r} twice")
            names.add(spec.name)
            yield spec


def _check_list(hook: str, returned: Any, expected: type[Spec]) -> list[Spec]:
    if not isinstance(returned, list):
        raise PluginLoadError(f"{hook} returned {_type(returned)}, expected a list of {expected.__name__}")
    for position, spec in enumerate(returned):
        if not isinstance(spec, expected):
            raise PluginLoadError(f"{hook} returned {_type(spec)} at [{position}], expected {expected.__name__}")
        if problem := next(_problems(spec), ""):
            raise PluginLoadError(f"{hook} returned a faulty {expected.__name__} at [{position}]: {problem}")
    return returned


def _problems(spec: Spec) -> Iterator[str]:
    for field in fields(spec):
        value, kind = getattr(spec, field.name), str(field.type)
        if value is None and kind.endswith("None"):
            continue
        if kind.startswith("tuple") != isinstance(value, tuple) or not all(map(_is_text, _texts(value))):
            yield f"{field.name} is {_type(value)}, expected {kind}"
        elif field.name in (*TARGETS, "classes") and not all(map(_TARGET.fullmatch, _texts(value))):
            yield f"{field.name} is {value!r}, expected 'package.module:attribute'"
        elif field.name == "name" and not NAME.fullmatch(value):
            yield f"name is {value!r}, expected letters and digits, with '.', '-' and '_' between them"


def _texts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _type(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
