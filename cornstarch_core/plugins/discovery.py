"""Find the installed plugins by their metadata, and decide which of them may be loaded.

This file must not import a plugin or pluggy, so that ``cornstarch plugins list``, which needs only this file, takes at
most 120 ms.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from email import message_from_string
from typing import TYPE_CHECKING, Literal

from importlib_metadata import MetadataPathFinder, distributions
from packaging.requirements import InvalidRequirement, Requirement

import cornstarch_core

if TYPE_CHECKING:
    from importlib_metadata import IDistribution

__all__ = ["CORE", "GROUP", "NAME", "PluginInfo", "State", "discover", "normalise", "unknown_in_environment"]

GROUP = "cornstarch.plugins"
CORE = "cornstarch-core"
ALLOW = "CORNSTARCH_PLUGINS"
BLOCK = "CORNSTARCH_DISABLE_PLUGINS"
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
"""The grammar of a distribution name (PEP 508); the names of specs follow it too."""

State = Literal["available", "active", "blocked", "incompatible", "failed"]

_VERBS = {"failed": "failed to load", "blocked": "is blocked", "incompatible": "is incompatible"}


@dataclass(frozen=True)
class PluginInfo:
    """The metadata and the state of one installed plugin.

    Args:
        id: normalised name of the plugin's distribution, for example ``"cornstarch-vision"``.
        version: version of the distribution.
        entry_point: name of the module in the distribution's entry point.
        requires: requirement on ``cornstarch-core`` in the distribution's metadata, ``""`` if there is none.
        state: state of the plugin: ``"available"`` until plugins are activated, then ``"active"`` or ``"failed"``.
            ``"blocked"`` and ``"incompatible"`` plugins are never imported.
        reason: reason for which the plugin can't be used, ``""`` if its state is ``"available"`` or ``"active"``.
        depends: normalised names of the distributions that the plugin depends on.
    """

    id: str
    version: str
    entry_point: str
    requires: str = ""
    state: State = "available"
    reason: str = ""
    depends: tuple[str, ...] = ()

    def explain(self) -> str:
        """Say in one clause why the plugin can't be used.

        Returns:
            A clause such as ``"cornstarch-audio failed to load: ImportError: no module named 'soundfile'"``.
        """
        return f"{self.id} {_VERBS.get(self.state, self.state)}: {self.reason}".removesuffix(": ")


def normalise(name: str) -> str:
    """Normalise the name of a distribution (PEP 503).

    Args:
        name: name of a distribution in any spelling.

    Returns:
        The normalised name, which is the same for all spellings of a name.

    Example:
        >>> normalise("Cornstarch_Vision")
        'cornstarch-vision'
    """
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def discover() -> list[PluginInfo]:
    """List the installed plugins, including those that can't be used.

    Returns:
        One entry for each distribution, sorted by id. If two distributions have the same id, the one that Python
        imports comes first.
    """
    found = _installed()
    return sorted((_inspect(dist, found) for dist in found), key=lambda info: info.id)


def unknown_in_environment(infos: Iterable[PluginInfo]) -> list[str]:
    """Find names in the environment variables that are not ids of installed plugins, for example misspelt ones.

    Args:
        infos: the installed plugins.

    Returns:
        One sentence for each name.
    """
    known = {info.id for info in infos}
    listed = [(variable, name) for variable in (ALLOW, BLOCK) for name in sorted(_listed(variable) or ())]
    return [f"{variable} names {name!r}, which is not installed" for variable, name in listed if name not in known]


# --- metadata ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Installed:
    """The metadata of a distribution with an entry point in :data:`GROUP`; ``""`` for a field that can't be read."""

    folder: str
    name: str
    version: str
    requires: tuple[str, ...]
    entry_points: tuple[str, ...]
    is_legacy: bool


def _installed() -> list[_Installed]:
    """Return all plugins in the order of ``sys.path``. A name can occur twice."""
    MetadataPathFinder.invalidate_caches()  # the cache misses a second change within one tick of the clock
    places = dict.fromkeys(os.path.realpath(entry) for entry in sys.path if isinstance(entry, str))
    # importlib_metadata opens a missing folder as an archive, and importing zipfile takes 10 ms
    dists = distributions(path=[place for place in places if os.path.exists(place)])
    found = dict.fromkeys(filter(None, map(_read, dists)))  # several finders can return the same folder
    proper = {normalise(one.name) for one in found if not one.is_legacy}
    # an editable install with setuptools leaves an .egg-info in the source folder, which is also on sys.path
    return [one for one in found if not (one.is_legacy and normalise(one.name) in proper)]


def _read(dist: IDistribution) -> _Installed | None:
    """Return the metadata of a distribution, or ``None`` if it is not a plugin."""
    place = getattr(getattr(dist, "_path", None), "name", "")  # distributions of other finders have no _path
    # pip renames a package that it removes to "~name", and an interrupted pip leaves that folder behind
    if place.startswith("~") or GROUP not in _text(dist, "entry_points.txt"):
        return None
    try:
        values = tuple(entry.value for entry in dist.entry_points if entry.group == GROUP)
    except TypeError:  # a line has no "="
        values = ("",)
    if not values:
        return None
    text = _text(dist, "METADATA") or _text(dist, "PKG-INFO")
    headers = message_from_string(text)
    return _Installed(
        folder=str(dist.locate_file("")),
        name=headers.get("Name") or place.removesuffix(".dist-info").partition("-")[0],
        version=headers.get("Version") or "",
        requires=tuple(headers.get_all("Requires-Dist") or (text and dist.requires) or ()),
        entry_points=values,
        is_legacy=place.endswith(".egg-info"),
    )


def _text(dist: IDistribution, file: str) -> str:
    try:
        return dist.read_text(file) or ""
    except UnicodeDecodeError:  # any installed distribution may be broken
        return ""


# --- what may be loaded -----------------------------------------------------------------------------------------------


def _inspect(dist: _Installed, found: list[_Installed]) -> PluginInfo:
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


def _judge(dist: _Installed, found: list[_Installed], requires: list[str]) -> tuple[State, str]:
    namesakes = [other for other in found if normalise(other.name) == normalise(dist.name)]
    if blocked := _blocked(normalise(dist.name)):
        return "blocked", blocked
    if (first := namesakes[0]).folder != dist.folder:
        return "blocked", f"the one in {dist.folder} is shadowed by version {first.version} in {first.folder}"
    if broken := _broken(dist, [other.version for other in namesakes if other.folder == dist.folder]):
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


def _broken(dist: _Installed, versions: list[str]) -> str:
    if len(versions) > 1:
        return f"{dist.folder} holds it {len(versions)} times ({', '.join(sorted(versions))}); reinstall it"
    if len(dist.entry_points) > 1:
        return f"it has {len(dist.entry_points)} entry points in {GROUP!r}, and one is allowed"
    if not NAME.fullmatch(dist.name) or not dist.version:
        return f"its metadata in {dist.folder} have no valid name and version; reinstall it"
    if not all(part.isidentifier() for part in dist.entry_points[0].split(".")):
        return f"its entry point is {dist.entry_points[0]!r}, and should name a module, such as 'package.plugin'"
    return ""


def _name_of(requirement: str) -> str:
    return normalise(re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0])


def _unmet(requirement: str) -> str:
    """Return why the running core does not meet a requirement, or ``""`` if it does."""
    version = cornstarch_core.__version__
    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        return f"its requirement {requirement!r} is malformed"
    applies = parsed.marker is None or parsed.marker.evaluate({"extra": ""})
    met = not applies or parsed.specifier.contains(version, prereleases=True)
    return "" if met else f"it needs {requirement}, and this is {CORE} {version}"
