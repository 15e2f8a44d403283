"""Find the installed plugins by their metadata, and say which of them may be loaded.

This file must not know what a plugin registers, and must not import one, nor pluggy: ``cornstarch plugins list`` lives
on it and has 60 ms.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import cornstarch_core

from .metadata import Distribution, find, normalise

__all__ = ["CORE", "GROUP", "NAME", "PluginInfo", "State", "discover", "unknown_in_environment"]

GROUP = "cornstarch.plugins"
CORE = "cornstarch-core"
ALLOW = "CORNSTARCH_PLUGINS"
BLOCK = "CORNSTARCH_DISABLE_PLUGINS"
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
"""The grammar of a distribution name (PEP 508); the names of specs follow it too."""

State = Literal["available", "active", "blocked", "incompatible", "failed"]

_REQUIREMENT = re.compile(r"\s*[A-Za-z0-9._-]+\s*\(?([^;@\[()]*)\)?\s*", re.ASCII)
_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|<|>)\s*(\d+(?:\.\d+)*)\s*", re.ASCII)
_RELEASE = re.compile(r"\d+(\.\d+)*", re.ASCII)
_VERBS = {"failed": "failed to load", "blocked": "is blocked", "incompatible": "is incompatible"}


@dataclass(frozen=True)
class PluginInfo:
    """What is known about one installed plugin.

    Args:
        id: normalised name of its distribution, for example ``"cornstarch-vision"``.
        version: version of its distribution.
        entry_point: the module that its entry point names.
        requires: its ``cornstarch-core`` requirement as its metadata state it, ``""`` if they state none.
        state: ``"available"`` until plugins are activated, then ``"active"`` or ``"failed"``; ``"blocked"`` and
            ``"incompatible"`` plugins are never imported.
        reason: why it is neither available nor active, ``""`` if it is.
        depends: normalised names of the distributions that it depends on.
    """

    id: str
    version: str
    entry_point: str
    requires: str = ""
    state: State = "available"
    reason: str = ""
    depends: tuple[str, ...] = ()

    def explain(self) -> str:
        """Say in one clause why the plugin is not there.

        Returns:
            For example ``"cornstarch-audio failed to load: ImportError: no module named 'soundfile'"``.
        """
        return f"{self.id} {_VERBS.get(self.state, self.state)}: {self.reason}".removesuffix(": ")


def discover() -> list[PluginInfo]:
    """List the installed plugins, also the ones that can't be used.

    Returns:
        One entry per distribution, sorted by id. Where two have the same id, the one that Python imports stands first.
    """
    found = find(GROUP)
    return sorted((_inspect(dist, found) for dist in found), key=lambda info: info.id)


def unknown_in_environment(infos: Iterable[PluginInfo]) -> list[str]:
    """Find ids in the environment variables that no installed plugin has, such as misspelt ones.

    Args:
        infos: the installed plugins.

    Returns:
        One sentence for each.
    """
    known = {info.id for info in infos}
    listed = [(variable, name) for variable in (ALLOW, BLOCK) for name in sorted(_listed(variable) or ())]
    return [f"{variable} names {name!r}, which is not installed" for variable, name in listed if name not in known]


def _inspect(dist: Distribution, found: list[Distribution]) -> PluginInfo:
    requires = [text for text in dist.requires if _name_of(text) == CORE]
    depends = {_name_of(text) for text in dist.requires if "extra" not in text.partition(";")[2]}
    state, reason = _judge(dist, found, requires)
    return PluginInfo(
        id=normalise(dist.name),
        version=dist.version,
        entry_point=", ".join(dist.entry_points),
        requires=", ".join(requires),
        state=state,
        reason=reason,
        depends=tuple(sorted(depends)),
    )


def _judge(dist: Distribution, found: list[Distribution], requires: list[str]) -> tuple[State, str]:
    if blocked := _blocked(normalise(dist.name)) or _shadowed(dist, found):
        return "blocked", blocked
    if broken := _broken(dist, found):
        return "failed", broken
    if unmet := next(filter(None, map(_unmet, requires)), ""):
        return "incompatible", unmet
    return "available", ""


def _blocked(plugin: str) -> str:
    if plugin in (_listed(BLOCK) or ()):
        return f"{BLOCK} names it"
    allowed = _listed(ALLOW)
    return "" if allowed is None or plugin in allowed else f"{ALLOW}={os.environ[ALLOW]!r} does not name it"


def _listed(variable: str) -> set[str] | None:
    value = os.environ.get(variable)
    return None if value is None else {normalise(name) for name in value.split(",") if name.strip()}


def _shadowed(dist: Distribution, found: list[Distribution]) -> str:
    first = next(other for other in found if normalise(other.name) == normalise(dist.name))
    if first.folder == dist.folder:
        return ""
    return f"the one in {dist.folder} is shadowed by version {first.version} in {first.folder}"


def _broken(dist: Distribution, found: list[Distribution]) -> str:
    versions = sorted(other.version for other in _namesakes(dist, found))
    if len(versions) > 1:
        return f"{dist.folder} holds it {len(versions)} times ({', '.join(versions)}); reinstall it"
    if len(dist.entry_points) > 1:
        return f"it has {len(dist.entry_points)} entry points in {GROUP!r}, and one is allowed"
    if not NAME.fullmatch(dist.name) or not dist.version:
        return f"its metadata in {dist.folder} have no valid name and version; reinstall it"
    if not all(part.isidentifier() for part in dist.entry_points[0].split(".")):
        return f"its entry point is {dist.entry_points[0]!r}, and should name a module, such as 'package.plugin'"
    return ""


def _namesakes(dist: Distribution, found: list[Distribution]) -> list[Distribution]:
    key = (dist.folder, normalise(dist.name))
    return [other for other in found if (other.folder, normalise(other.name)) == key]


def _name_of(requirement: str) -> str:
    return normalise(re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0])


def _unmet(requirement: str) -> str:
    version = cornstarch_core.__version__
    try:
        met = _met_simply(requirement, version)
        met = _met(requirement, version) if met is None else met
    except ValueError:  # packaging's InvalidRequirement is one
        return f"its requirement {requirement!r} is malformed"
    return "" if met else f"it needs {requirement}, and this is {CORE} {version}"


def _met_simply(requirement: str, version: str) -> bool | None:
    """Compare plain releases, and answer None to all else: importing packaging would take 35 ms of our 60."""
    match = _REQUIREMENT.fullmatch(requirement)
    clauses = [_CLAUSE.fullmatch(text) for text in match[1].split(",") if text.strip()] if match else [None]
    if not _RELEASE.fullmatch(version) or None in clauses:
        return None
    return all(_compare(_release(version), clause[1], _release(clause[2])) for clause in clauses if clause)


def _release(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in version.split(".")]
    while numbers and numbers[-1] == 0:  # 1.0 and 1 are equal
        numbers.pop()
    return tuple(numbers)


def _compare(left: tuple[int, ...], sign: str, right: tuple[int, ...]) -> bool:
    functions = {"<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">=": operator.ge}
    return functions.get(sign, operator.gt)(left, right)


def _met(requirement: str, version: str) -> bool:
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    if parsed.marker and not parsed.marker.evaluate({"extra": ""}):
        return True
    return parsed.specifier.contains(version, prereleases=True)
