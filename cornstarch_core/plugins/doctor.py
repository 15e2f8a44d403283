"""Activate a plugin in a separate process, and report the problems with it.

A plugin can hang, exit or crash. The calling process must survive this, so it never imports a plugin. Before each step,
the child process appends the step to a file, so that the last line of the file shows where the child stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import PluginError
from .discovery import ALLOW, PluginInfo
from .manager import registry
from .registration import Registration, TargetProblem, target_problems

if TYPE_CHECKING:
    from ..specs import Spec

__all__ = ["Offer", "Problem", "Report", "collisions", "examine", "registered_by", "spec_problems"]

_HEAVY = ("torch", "transformers")


@dataclass(frozen=True)
class Offer:
    """A spec that a plugin registers: its kind, its name, a summary in one line, and the encoder classes in it."""

    kind: str
    name: str
    summary: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A problem with a plugin, and the end of the traceback if there is one."""

    text: str
    details: str = ""


@dataclass
class Report:
    """The result of activating one plugin in a separate process.

    Args:
        info: metadata of the plugin.
        problems: problems that have to be fixed.
        warnings: descriptions of things that should be fixed.
        offers: specs that the plugin registers.
        targets: number of targets of the specs that were imported.
        import_seconds: time in seconds to import the plugin's module.
        seconds: time in seconds of the whole examination.
    """

    info: PluginInfo
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    targets: int = 0
    import_seconds: float = 0.0
    seconds: float = 0.0


def examine(info: PluginInfo, infos: Iterable[PluginInfo], *, thorough: bool = True, timeout: float = 120.0) -> Report:
    """Activate one plugin in a separate process.

    Args:
        info: description of the plugin.
        infos: descriptions of all installed plugins; those that the plugin depends on are activated with it.
        thorough: whether to import also every target of the plugin's specs.
        timeout: time in seconds after which the process is killed.

    Returns:
        The report. If the plugin can't be loaded, the report has a problem.
    """
    if info.state not in ("available", "active"):
        return Report(info, [] if info.state == "blocked" else [Problem(info.reason)])
    allowed = [info.id, *(other.id for other in infos if other.id in info.depends and other.state == "available")]
    started = time.perf_counter()
    events, ending, output = _run_child([info.id, str(int(thorough))], {ALLOW: ",".join(allowed)}, timeout)
    report = _report(info, events)
    report.seconds = time.perf_counter() - started
    if not any("done" in event for event in events):
        doing = next((event["doing"] for event in reversed(events) if "doing" in event), "starting Python")
        report.problems.append(Problem(f"the process {ending} while {doing}", output))
    return report


def collisions(reports: Iterable[Report]) -> tuple[list[str], list[str]]:
    """Find names and encoder classes that several plugins register.

    Args:
        reports: one report for each plugin.

    Returns:
        Two lists of sentences: about names, which users have to qualify, and about encoder classes, which are errors
        until one of the plugins is blocked.
    """
    names: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    for plugin, offer in ((report.info.id, offer) for report in reports for offer in report.offers):
        names.setdefault(f"{offer.kind} {offer.name!r}", []).append(f"{plugin}/{offer.name}")
        for cls in offer.classes:
            classes.setdefault(cls, []).append(f"{plugin}/{offer.name}")
    return (
        [f"{name} is ambiguous: {' and '.join(by)}; use these names" for name, by in names.items() if len(by) > 1],
        [f"{cls} is claimed by {' and '.join(by)}; block one" for cls, by in classes.items() if len(by) > 1],
    )


def registered_by(plugin: str) -> list[Registration[Any]]:
    """Return all registrations of an active plugin.

    Args:
        plugin: id of the plugin.
    """
    names = ((kind, name) for kind in registry().kinds() for name in registry().names(kind))
    return [registry().lookup(kind, name) for kind, name in names if name.startswith(f"{plugin}/")]


def spec_problems(
    registration: Registration[Any], announce: Callable[[str], None] = lambda path: None
) -> Iterator[TargetProblem]:
    """Check everything that a spec names: import its targets and classes, and look up the other specs.

    Args:
        registration: registration of the spec.
        announce: function that is called with each import path before the import.

    Returns:
        The problems that were found.
    """
    yield from target_problems(registration.spec, announce)
    if name := getattr(registration.spec, "processor", None):
        try:
            registry().lookup("processors", name, prefer=registration.plugin)
        except PluginError as error:
            yield TargetProblem("processor", str(error), "Register a ProcessorSpec of that name.")


def _run_child(
    arguments: list[str], environment: dict[str, str], timeout: float
) -> tuple[list[dict[str, Any]], str, str]:
    # the child gets the sys.path of this process
    start = f"import sys; sys.path[:] = {sys.path!r}"
    code = f"{start}; from cornstarch_core.plugins import doctor; doctor._child(*sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        events, output = os.path.join(folder, "events"), os.path.join(folder, "output")
        command = [sys.executable, "-c", code, events, *arguments]
        ending = _wait(command, output, {**os.environ, **environment}, timeout)
        return list(_events(events)), ending, _tail(_read(output))


def _wait(command: list[str], output: str, environment: dict[str, str], timeout: float) -> str:
    # a file instead of a pipe: a grandchild that outlives the child would keep a pipe open
    with open(output, "wb") as sink:
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment, timeout=timeout
            ).returncode
        except subprocess.TimeoutExpired:
            return f"was still busy after {timeout:g} s"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _events(path: str) -> Iterator[dict[str, Any]]:
    for line in _read(path).splitlines():
        if line.endswith("}"):  # the last line of a killed process may be cut
            yield json.loads(line)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _tail(text: str, lines: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def _report(info: PluginInfo, events: list[dict[str, Any]]) -> Report:
    report = Report(info)
    for event in events:
        if "problem" in event:
            report.problems.append(Problem(event["problem"], event["details"]))
        if "warning" in event:
            report.warnings.append(event["warning"])
        if "offer" in event:
            report.offers.append(Offer(**event["offer"]))
        report.targets += event.get("targets", 0)
        report.import_seconds += event.get("import_seconds", 0.0)
    return report


def _child(path: str, plugin: str, thorough: str) -> None:
    def tell(**event: object) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    if _activate(plugin, tell):
        found = registered_by(plugin)
        for one in found:
            classes = getattr(one.spec, "classes", ())
            tell(offer=asdict(Offer(one.kind, one.spec.name, _summary(one.spec, classes), classes)))
        for one in found if thorough == "1" else ():
            for problem in spec_problems(one, lambda path: tell(doing=f"importing {path}", targets=1)):
                text = f"{one.kind} {one.spec.name!r}: {problem.field}: {problem.text}"
                tell(problem=text, details=_cause(problem.error))
    tell(done=True)


def _activate(plugin: str, tell: Callable[..., None]) -> bool:
    from . import activation  # noqa: F401  (so that the time below is only the plugin's)

    before = {name for name in _HEAVY if name in sys.modules}
    info = next(info for info in registry().plugins() if info.id == plugin)
    tell(doing=f"importing {info.entry_point}")
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry().activate()
    tell(import_seconds=time.perf_counter() - started)
    for warning in caught:  # warnings that a hook, or an argument of a hook, is deprecated
        if issubclass(warning.category, DeprecationWarning) and _is_own(warning.filename, info.entry_point):
            tell(warning=str(warning.message))
    for name in _HEAVY:
        if name in sys.modules and name not in before:
            tell(warning=f"importing {info.entry_point} imports {name}; name heavy things in the specs instead")
    info = next(info for info in registry().plugins() if info.id == plugin)
    if info.state != "active":
        tell(problem=info.reason, details=_tail(registry().traceback(plugin)))
    return info.state == "active"


def _is_own(file: str, entry_point: str) -> bool:
    """Whether a file belongs to the plugin's own package, and not to a package that it imports."""
    home = getattr(sys.modules.get(entry_point.partition(".")[0]), "__file__", None) or ""
    folder, name = os.path.split(home)
    return file == home if name != "__init__.py" else file.startswith(folder + os.sep)


def _cause(error: BaseException | None) -> str:
    """Return the end of the traceback in the plugin's own code, or ``""`` if the plugin's code raised no error."""
    import traceback

    cause = error and error.__cause__
    return _tail("".join(traceback.format_exception(cause))) if cause else ""


def _summary(spec: Spec[Any], classes: tuple[str, ...]) -> str:
    names = ", ".join(path.rpartition(":")[2] for path in classes)
    parts = [getattr(spec, "modality", ""), f"for {names}" if names else f"made by {spec.target}"]
    return ", ".join(filter(None, parts))
