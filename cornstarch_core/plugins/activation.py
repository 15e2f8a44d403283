"""Import one plugin, check it against the hook specs, and collect the specs that it registers.

The functions raise every error in a plugin when it is activated, not when it is first used. This file must not depend
on environment variables, on the specs of other plugins, or on how specs are looked up.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any, get_args, get_type_hints

from pluggy import PluginManager

from .. import hookspecs
from ..errors import PluginLoadError
from ..specs import Spec
from .discovery import NAME, PluginInfo

__all__ = ["hooks", "load", "new_manager", "spec_types"]

_REGISTER = "cornstarch_register_"
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def hooks() -> list[str]:
    """Return the names of all hooks that :mod:`cornstarch_core.hookspecs` declares."""
    return sorted(name for name, value in vars(hookspecs).items() if hasattr(value, "cornstarch_spec"))


def spec_types() -> dict[str, type[Spec[Any]]]:
    """Return, by kind, the type of spec that each hook ``cornstarch_register_<kind>() -> list[...]`` returns."""
    found: dict[str, type[Spec[Any]]] = {}
    for hook in hooks():
        if hook.startswith(_REGISTER):
            returned = get_args(get_type_hints(getattr(hookspecs, hook)).get("return"))
            found |= {hook.removeprefix(_REGISTER): spec_type for spec_type in returned}
    return found


def new_manager() -> PluginManager:
    """Make a plugin manager with the hook specs.

    Returns:
        A plugin manager in which no plugin is registered.
    """
    manager = PluginManager("cornstarch")
    manager.add_hookspecs(hookspecs)
    return manager


def load(manager: PluginManager, info: PluginInfo) -> list[tuple[str, Spec[Any]]]:
    """Import a plugin, register it with pluggy, and collect its specs.

    Args:
        manager: plugin manager to register the plugin with; after an error, the plugin is not registered.
        info: description of an available plugin.

    Returns:
        The specs of the plugin, as pairs ``(kind, spec)``.

    Raises:
        PluginLoadError: the plugin breaks a rule of the hooks or specs.
        BaseException: any error that the plugin's own code raises.
    """
    try:
        module = import_module(info.entry_point)
        _check_hooks(manager, module)
        manager.register(module, name=info.id)
        types = spec_types()
        return [(kind, spec) for kind in types for spec in _collect(manager, module, kind, types[kind])]
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
        elif name in hooks() and getattr(getattr(module, name), "__module__", None) == module.__name__:
            raise PluginLoadError(f"{name} lacks the @hookimpl marker of cornstarch_core.hookspecs")


def _check_hook(hook: str, function: Callable[..., object], options: Mapping[str, object]) -> None:
    if hook not in hooks():
        if not options.get("optionalhook"):
            close = get_close_matches(hook, hooks(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the hooks are {', '.join(hooks())}"
            raise PluginLoadError(f"there is no hook {hook!r}; {hint}")
        return
    if options.get("wrapper") or options.get("hookwrapper"):
        raise PluginLoadError(f"{hook} is a hook wrapper, and those are not supported")
    known = inspect.signature(getattr(hookspecs, hook)).parameters
    for argument in inspect.signature(function).parameters.values():
        is_optional = argument.default is not argument.empty or argument.kind in _VARIABLE
        if argument.name not in known and not is_optional:
            raise PluginLoadError(
                f"{hook} asks for an unknown argument {argument.name!r}; its arguments: {', '.join(known) or 'none'}"
            )


def _collect(manager: PluginManager, module: ModuleType, kind: str, expected: type[Spec[Any]]) -> Iterator[Spec[Any]]:
    hook = f"{_REGISTER}{kind}"
    names: set[str] = set()
    for impl in getattr(manager.hook, hook).get_hookimpls():
        for spec in _check_list(hook, impl.function(), expected) if impl.plugin is module else ():
            if spec.name in names:
                raise PluginLoadError(f"{hook} returned {spec.name!r} twice")
            names.add(spec.name)
            yield spec


def _check_list(hook: str, returned: object, expected: type[Spec[Any]]) -> list[Spec[Any]]:
    if not isinstance(returned, list):
        raise PluginLoadError(f"{hook} returned {_type(returned)}, expected a list of {expected.__name__}")
    for position, spec in enumerate(returned):
        if not isinstance(spec, expected):
            raise PluginLoadError(f"{hook} returned {_type(spec)} at [{position}], expected {expected.__name__}")
        if problem := next(_problems(spec), ""):
            raise PluginLoadError(f"{hook} returned a faulty {expected.__name__} at [{position}]: {problem}")
    return returned


def _problems(spec: Spec[Any]) -> Iterator[str]:
    for field in fields(spec):
        value, kind = getattr(spec, field.name), str(field.type)
        if (value is None and kind.endswith("None")) or (kind == "bool" and isinstance(value, bool)):
            continue
        if kind.startswith("tuple") != isinstance(value, tuple) or not all(map(_is_text, _texts(value))):
            yield f"{field.name} is {_type(value)}, expected {kind}"
        elif field.name in ("target", "classes") and not all(map(_TARGET.fullmatch, _texts(value))):
            yield f"{field.name} is {value!r}, expected 'package.module:Class'"
        elif field.name == "name" and not NAME.fullmatch(value):
            yield f"name is {value!r}, expected letters and digits, with '.', '-' and '_' between them"


def _texts(value: object) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _type(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
