"""Read the metadata of the installed distributions that have entry points in one group.

Reading ``entry_points.txt`` of every folder on ``sys.path`` by hand takes a few milliseconds; importing
``importlib_metadata`` alone takes forty. So that one is left for the places that only it can read: archives, eggs and
finders other than Python's own. This file must not know what a plugin is, and must not import anything that it finds.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Distribution", "find", "normalise"]


@dataclass(frozen=True)
class Distribution:
    """What the metadata of one distribution say.

    Args:
        folder: the folder on ``sys.path`` that it is installed in.
        name: its name, as it is written there; ``""`` if that can't be read.
        version: its version; ``""`` if that can't be read.
        requires: its requirements, each in the notation of PEP 508.
        entry_points: the values of its entry points in the group.
        legacy: whether it is an ``.egg-info``, which a build also leaves behind.
    """

    folder: str
    name: str
    version: str
    requires: tuple[str, ...]
    entry_points: tuple[str, ...]
    legacy: bool = False


def normalise(name: str) -> str:
    """Normalise the name of a distribution (PEP 503).

    Args:
        name: a name as somebody wrote it.

    Returns:
        The name in the one spelling that is compared.

    Example:
        >>> normalise("Cornstarch_Vision")
        'cornstarch-vision'
    """
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def find(group: str) -> list[Distribution]:
    """Find the distributions that have an entry point in a group.

    Args:
        group: for example ``"cornstarch.plugins"``.

    Returns:
        The distributions in the order of ``sys.path``. A name can be there twice.
    """
    found = [*_in_folders(group), *_elsewhere(group)]
    proper = {normalise(dist.name) for dist in found if not dist.legacy}
    # an editable install of setuptools leaves an .egg-info in the source folder, which is on sys.path as well
    return [dist for dist in found if not (dist.legacy and normalise(dist.name) in proper)]


def _in_folders(group: str) -> Iterator[Distribution]:
    for folder in _folders():
        for name in sorted(_listdir(folder)):
            # pip renames what it removes to "~name" and leaves that behind when it is interrupted
            if not name.endswith((".dist-info", ".egg-info")) or name.startswith("~"):
                continue
            text = _read(folder, name, "entry_points.txt")
            if group in text and (values := tuple(_entry_points(text, group))):
                legacy = name.endswith(".egg-info")
                yield _legacy(folder, name, values) if legacy else _read_dist_info(folder, name, values)


def _folders() -> list[str]:
    places = dict.fromkeys(os.path.realpath(entry) for entry in sys.path if isinstance(entry, str))
    return [place for place in places if not _is_archive(place)]


def _is_archive(place: str) -> bool:
    return place.endswith(".egg") or os.path.isfile(place)


def _listdir(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read(*parts: str) -> str:
    try:
        with open(os.path.join(*parts), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _entry_points(text: str, group: str) -> Iterator[str]:
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif section == group and line and not line.startswith("#"):
            yield line.partition("=")[2].strip()


def _read_dist_info(folder: str, name: str, entry_points: tuple[str, ...]) -> Distribution:
    headers = list(_headers(_read(folder, name, "METADATA")))
    stem = name.removesuffix(".dist-info").partition("-")
    return Distribution(
        folder=folder,
        name=_first(headers, "name") or stem[0],
        version=_first(headers, "version"),
        requires=tuple(value for key, value in headers if key == "requires-dist"),
        entry_points=entry_points,
    )


def _headers(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if not line.strip():
            return  # the description follows, and may hold anything
        key, colon, value = line.partition(":")
        if colon:
            yield key.lower(), value.strip()


def _first(headers: Iterable[tuple[str, str]], key: str) -> str:
    return next((value for name, value in headers if name == key), "")


def _legacy(folder: str, name: str, entry_points: tuple[str, ...]) -> Distribution:
    from pathlib import Path

    from importlib_metadata import PathDistribution

    return _convert(PathDistribution(Path(folder, name)), folder, entry_points, legacy=True)


def _elsewhere(group: str) -> Iterator[Distribution]:
    archives = [place for place in map(os.path.realpath, sys.path) if _is_archive(place)]
    finders: list[Any] = [finder for finder in sys.meta_path if _is_foreign(finder)]
    if not archives and not finders:
        return
    from importlib_metadata import DistributionFinder, MetadataPathFinder

    context = DistributionFinder.Context
    distributions = [*MetadataPathFinder.find_distributions(context(path=archives))]
    for finder in finders:
        distributions += finder.find_distributions(context())
    for dist in distributions:
        values = tuple(entry.value for entry in dist.entry_points if entry.group == group)
        if values:
            yield _convert(dist, str(dist.locate_file("")), values)


def _is_foreign(finder: Any) -> bool:
    name = getattr(finder, "__name__", type(finder).__name__)
    return hasattr(finder, "find_distributions") and name not in ("PathFinder", "MetadataPathFinder")


def _convert(dist: Any, folder: str, entry_points: tuple[str, ...], legacy: bool = False) -> Distribution:
    return Distribution(
        folder=folder,
        name=dist.metadata["Name"] or "",
        version=dist.metadata["Version"] or "",
        requires=tuple(dist.requires or ()),
        entry_points=entry_points,
        legacy=legacy,
    )
