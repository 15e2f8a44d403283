"""Write the record, in a saved model, of the plugins that the model needs, and check a record that was read.

A record is part of a checkpoint and therefore not trusted: messages show only values that follow the grammar of names
and versions, and no package is imported or installed because a record names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from packaging.version import InvalidVersion, Version

from ..errors import CheckpointError, MissingPluginError
from .discovery import CORE, NAME, PluginInfo, normalise
from .registration import Registration

__all__ = ["check", "write"]

_LONGEST = 100
_MALFORMED = "the record of plugins in this checkpoint is malformed"


def write(used: Iterable[Registration[Any]]) -> list[dict[str, Any]]:
    """Make the record of the plugins that a model was made with.

    Args:
        used: registrations that were looked up for the model.

    Returns:
        For each distribution a dictionary with its name, its version and the specs that were used, as sorted plain
        data for JSON.
    """
    parts: dict[tuple[str, str], set[str]] = {}
    for one in used:
        if one.plugin != CORE:  # the core's own specs are always installed
            parts.setdefault((one.plugin, one.version), set()).add(f"{one.kind}/{one.spec.name}")
    return [
        {"distribution": plugin, "version": version, "used": sorted(names)}
        for (plugin, version), names in sorted(parts.items())
    ]


def check(record: object, infos: Iterable[PluginInfo]) -> None:
    """Compare a record with the installed plugins.

    Args:
        record: value from the checkpoint: the result of :func:`write`, or any other value if the file was changed.
        infos: the installed plugins, after activation.

    Raises:
        CheckpointError: the value is not a record.
        MissingPluginError: a plugin is missing, not active, or not compatible with the recorded version.
    """
    needs = list(_parse(record))
    installed: dict[str, PluginInfo] = {}
    for info in infos:
        installed.setdefault(info.id, info)
    problems = [text for need in needs if (text := _problem(need, installed.get(need.name)))]
    if problems:
        raise MissingPluginError("this model can't be loaded: " + "; ".join(problems))


@dataclass(frozen=True)
class _Need:
    name: str
    version: Version

    @property
    def command(self) -> str:
        return f'pip install "{self.name}>={_shortest(self.version)},<{_bound(self.version)}"'


def _parse(record: object) -> Iterator[_Need]:
    if not isinstance(record, list):
        raise CheckpointError(f"{_MALFORMED}: expected a list, got a value of type {type(record).__name__}")
    for position, entry in enumerate(record):
        if not isinstance(entry, dict) or not {"distribution", "version", "used"} <= entry.keys():
            raise CheckpointError(f"{_MALFORMED}: entry {position} lacks one of 'distribution', 'version' and 'used'")
        name, version, used = entry["distribution"], _version(entry["version"]), entry["used"]
        if not (_is_name(name) and version and isinstance(used, list) and all(isinstance(one, str) for one in used)):
            raise CheckpointError(
                f"{_MALFORMED}: entry {position} does not hold a valid name, version and list of uses"
            )
        yield _Need(normalise(name), version)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and NAME.fullmatch(value) is not None


def _version(value: object) -> Version | None:
    try:
        return Version(value) if isinstance(value, str) and len(value) <= _LONGEST else None
    except InvalidVersion:
        return None


def _problem(need: _Need, info: PluginInfo | None) -> str:
    if info is None:
        return f"it needs {need.name}, which is not installed: {need.command}"
    if info.state != "active":
        return f"it needs {need.name} ({need.command}), but {info.explain()}; see `cornstarch plugins doctor {info.id}`"
    if not _compatible(need.version, _version(info.version)):
        return f"it needs {need.name} as of version {need.version}, and {info.version} is installed: {need.command}"
    return ""


def _compatible(recorded: Version, installed: Version | None) -> bool:
    # a local version ("+cu12") is a build of the same release
    return installed is not None and Version(recorded.public) <= installed < Version(f"{_bound(recorded)}.dev0")


def _shortest(version: Version) -> str:
    text = version.public
    while text.count(".") > 1 and text.endswith(".0"):
        text = text.removesuffix(".0")
    return text


def _bound(version: Version) -> str:
    epoch = f"{version.epoch}!" if version.epoch else ""
    return f"{epoch}0.{version.minor + 1}" if version.major == 0 else f"{epoch}{version.major + 1}"
