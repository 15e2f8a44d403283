"""The command line: ``cornstarch plugins list | show | doctor | new``.

The command line works even if every plugin is broken, because it never imports a plugin: ``list`` reads metadata,
``show`` and ``doctor`` start a process for each plugin, and ``new`` writes files. Tests measure the start-up time, so
modules that only one command needs are imported in the function of that command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING

import cornstarch_core

from .errors import CornstarchError, UnknownNameError
from .plugins import registry
from .plugins.discovery import PluginInfo, normalise, unknown_in_environment

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace, _SubParsersAction

    from .plugins.doctor import Report

__all__ = ["main"]

_EPILOG = """\
exit codes:
  0  success
  1  there is a problem: the plugin is not installed, or the doctor finds a problem
  2  the command line is wrong

environment:
  CORNSTARCH_PLUGINS          comma-separated plugins to use; all if it is not set, none if it is empty
  CORNSTARCH_DISABLE_PLUGINS  comma-separated plugins to leave out
"""

_NONE = "No plugin is installed. Plugins are packages, for example: pip install cornstarch-vision"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: command-line arguments; default: the arguments of the process.

    Returns:
        The exit code: 0 for success, 1 if there is a problem.

    Raises:
        SystemExit: the arguments are wrong (code 2), or request help or the version (code 0).

    Example:
        >>> main(["plugins", "show", "cornstarch-unicorn"])
        1
    """
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a plugin's error can hold any character, even surrogates
    try:
        return arguments.run(arguments)
    except CornstarchError as error:
        print(f"cornstarch: {error}", file=sys.stderr)
        return 1


def _parser() -> ArgumentParser:
    from argparse import ArgumentParser

    parser = _with_epilog(ArgumentParser(prog="cornstarch", description=cornstarch_core.__doc__))
    parser.add_argument("--version", action="version", version=f"cornstarch-core {cornstarch_core.__version__}")
    topics = parser.add_subparsers(required=True, metavar="COMMAND")
    plugins = _with_epilog(topics.add_parser("plugins", help="manage plugins", description="Manage plugins."))
    commands = plugins.add_subparsers(required=True, metavar="COMMAND")
    listing = _add_command(commands, _list, "list", "list the installed plugins without importing them")
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    show = _add_command(commands, _show, "show", "show one plugin and what it registers")
    show.add_argument("name", metavar="NAME")
    doctor = _add_command(commands, _doctor, "doctor", "try plugins out, each in a separate process")
    doctor.add_argument("name", metavar="NAME", nargs="?", help="only this plugin")
    for command in (show, doctor):
        command.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="per plugin (default 120)")
    new = _add_command(commands, _new, "new", "write the project of a new plugin, which passes its tests")
    new.set_defaults(refuse=new.error)
    new.add_argument("name", metavar="NAME", help="name of the distribution, such as cornstarch-eeg")
    new.add_argument("--modality", metavar="M", required=True, help="what the plugin encodes, such as eeg")
    new.add_argument("--into", metavar="FOLDER", help="where to write it (default: a new folder NAME)")
    return parser


def _add_command(
    commands: _SubParsersAction[ArgumentParser], run: Callable[[Namespace], int], name: str, summary: str
) -> ArgumentParser:
    command = _with_epilog(commands.add_parser(name, help=summary, description=f"{summary.capitalize()}."))
    command.set_defaults(run=run)
    return command


def _with_epilog(parser: ArgumentParser) -> ArgumentParser:
    from argparse import RawDescriptionHelpFormatter

    parser.epilog, parser.formatter_class = _EPILOG, RawDescriptionHelpFormatter
    return parser


def _list(arguments: Namespace) -> int:
    infos = registry().plugins()
    if arguments.json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(info) for info in infos], indent=2))
    elif infos:
        rows = [(info.id, info.version or "?", info.state, info.reason) for info in infos]
        _print_table([("PLUGIN", "VERSION", "STATE", "REASON"), *rows])
    else:
        print(_NONE)
    for warning in unknown_in_environment(infos):
        print(f"cornstarch: warning: {warning}", file=sys.stderr)
    return 0


def _print_table(rows: Sequence[tuple[str, ...]], indent: str = "") -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print((indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip())


def _show(arguments: Namespace) -> int:
    from .plugins.doctor import examine

    info = _find(arguments.name)
    report = examine(info, registry().plugins(), thorough=False, timeout=arguments.timeout)
    reason = info.reason or "; ".join(problem.text for problem in report.problems)
    state = info.state if info.state != "available" else "failed" if report.problems else "active"
    print(f"{info.id} {info.version}")
    rows = [("state", state), ("reason", reason), ("entry point", info.entry_point), ("requires", info.requires)]
    _print_table([row for row in rows if row[1]], indent="  ")
    for kind in sorted({offer.kind for offer in report.offers}):
        print(f"{kind}:")
        _print_table([(offer.name, offer.summary) for offer in report.offers if offer.kind == kind], indent="  ")
    return 0


def _find(name: str) -> PluginInfo:
    infos = registry().plugins()
    for info in infos:
        if info.id == normalise(name):
            return info
    from difflib import get_close_matches

    ids = [info.id for info in infos]
    close = get_close_matches(normalise(name), ids)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there is {', '.join(ids) or 'none'}"
    raise UnknownNameError(f"no plugin {name!r} is installed; {hint}")


def _doctor(arguments: Namespace) -> int:
    from .plugins.doctor import collisions, examine

    infos = registry().plugins()
    chosen = [_find(arguments.name)] if arguments.name else infos
    reports = []
    for number, info in enumerate(chosen, start=1):
        print(f"checking {info.id} ({number}/{len(chosen)}) ...", file=sys.stderr, flush=True)
        reports.append(examine(info, infos, timeout=arguments.timeout))
        _print_report(reports[-1])
    names, classes = collisions(reports)
    _print_lines([*(f"note: {text}" for text in names), *(f"problem: {text}" for text in classes)])
    if not chosen:
        print(_NONE)
    return int(bool(classes) or any(report.problems for report in reports))


def _print_report(report: Report) -> None:
    print(f"{report.info.id} {report.info.version}: {_verdict(report)}")
    _print_lines(f"  warning: {text}" for text in report.warnings)
    for problem in report.problems:
        print(f"  problem: {problem.text}")
        _print_lines(f"    | {line}" for line in problem.details.splitlines())


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _verdict(report: Report) -> str:
    if report.info.state == "blocked":
        return f"skipped, blocked: {report.info.reason}"
    found = f"{len(report.problems)} problem{'s' * (len(report.problems) > 1)}" if report.problems else "ok"
    times = f"imported in {report.import_seconds * 1000:.0f} ms, all done in {report.seconds:.1f} s"
    return f"{found} ({report.targets} target{'s' * (report.targets != 1)}; {times})"


def _new(arguments: Namespace) -> int:
    import shlex
    from pathlib import Path

    from .scaffold.names import Names
    from .scaffold.project import write

    folder = Path(arguments.into or arguments.name)
    try:
        write(Names(arguments.name, arguments.modality), folder)
    except (ValueError, FileExistsError) as error:
        arguments.refuse(str(error))  # ends with exit code 2
    except OSError as error:
        print(f"cornstarch: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.name} is written to {folder}. Next:")
    _print_lines([f"  cd {shlex.quote(str(folder))}", '  pip install -e ".[test]"', "  pytest"])
    return 0
