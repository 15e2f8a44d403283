"""The documentation is complete: every hook, public name, variable, command and error is there, and nothing that is not.

What checks it are plain functions of a page's text, which return what is wrong; the last tests hand them pages that lack
something. Whether what the pages say is true is a matter of test_docs.py.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pytest
from pages import DOCS, PLUGINS, ROOT, SOURCES, entries, read, rows

import cornstarch_core
from cornstarch_core import cli, errors, hookspecs, specs

HOOKS = [name for name in hookspecs.__all__ if name.startswith("cornstarch_")]
PLUGIN_PACKAGES = [plugin.name.replace("-", "_") for plugin in PLUGINS]

FOR_USERS = (
    "cornstarch_core",
    "cornstarch_core.families",
    "cornstarch_core.plugins",
    "cornstarch_core.specs",
    "cornstarch_core.testing",
    "cornstarch_core.training",
    "cornstarch_vision.llava_data",
)
"""Modules of which every name in ``__all__`` is public, and stands on the page of reference under the module's own name."""

SINGLE = ("cornstarch_core.checkpoint.export_pretrained",)
"""Public names of modules that are not for users as a whole."""

ELSEWHERE = {"cornstarch_core.specs.ModalCallbacks": "cornstarch_core.ModalCallbacks"}
"""Public names that stand on the page under another name, which is the same thing."""

INHERITED = ("kwargs",)
"""Arguments that need no description: they are a base class's of transformers."""


# --- what has to be there ---------------------------------------------------------------------------------------------


def of_plugins() -> Iterator[str]:
    """What the plugins of this project register that users call or set options of: callbacks, projectors, checks of items."""
    for package in PLUGIN_PACKAGES:
        module = importlib.import_module(f"{package}.plugin")
        for kind, field in (("callbacks", "build"), ("projectors", "build"), ("processors", "prepare")):
            for spec in getattr(module, f"cornstarch_register_{kind}", list)():
                target = getattr(spec, field)
                if target is not None and target.startswith(package):  # not another plugin's, which has it already
                    yield target.replace(":", ".")


def public_names() -> list[str]:
    """All public names beside hooks and errors, each as ``module.name``."""
    of_modules = [f"{module}.{name}" for module in FOR_USERS for name in importlib.import_module(module).__all__]
    return [*of_modules, *SINGLE, *dict.fromkeys(of_plugins())]


def find(name: str) -> Any:
    """What a public name stands for."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def arguments(value: Any) -> list[str]:
    """Names of the arguments of a function or class that need a description."""
    if not callable(value):
        return []
    return [name for name in inspect.signature(value).parameters if name != "self" and name not in INHERITED]


# --- checks -----------------------------------------------------------------------------------------------------------


def docstring_problems(name: str, text: str | None, needed: Iterable[str], returns: bool = False) -> list[str]:
    """What a docstring lacks: each argument on a line of its own, and what is returned."""
    if not text or not text.strip():
        return [f"{name} has no docstring"]
    problems = [
        f"{name}: its docstring does not describe {argument!r}"
        for argument in needed
        if not re.search(rf"^ +(?:[\w*`]+, )*[*`]*{argument}\b[^:]*: \S", text, re.MULTILINE)
    ]
    if returns and not re.search(r"^Returns:\n +\S", text, re.MULTILINE):
        problems.append(f"{name}: its docstring does not say what is returned")
    return problems


def hook_problems(page: str, docstrings: dict[str, str | None]) -> list[str]:
    """What is wrong with the page of hooks and the docstrings that it shows: one entry for each hook, and no other."""
    entered = [entry.removeprefix("cornstarch_core.hookspecs.") for entry in entries(page)]
    shown = [name for name in entered if name.startswith("cornstarch_")]
    problems = [f"{hook} has no entry" for hook in docstrings if hook not in shown]
    problems += [f"{name} has an entry, but there is no such hook" for name in shown if name not in docstrings]
    problems += [f"{name} has two entries" for name in set(shown) if shown.count(name) > 1]
    for hook, text in docstrings.items():
        problems += docstring_problems(hook, text, arguments(getattr(hookspecs, hook)), returns=True)
    return problems


def hook_docstrings() -> dict[str, str | None]:
    """Of each hook."""
    return {hook: inspect.getdoc(getattr(hookspecs, hook)) for hook in HOOKS}


def missing_entries(page: str, names: Iterable[str]) -> list[str]:
    """Public names that the page of reference does not show."""
    shown = set(entries(page))
    return [name for name in names if ELSEWHERE.get(name, name) not in shown]


def wrong_entries(page: str) -> list[str]:
    """Entries of a page that are not there, or are there twice."""
    shown = entries(page)
    return [name for name in shown if shown.count(name) > 1 or not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        find(name)
    except (AttributeError, ImportError):
        return False
    return True


def target_problems(page: str, table: dict[str, str]) -> list[str]:
    """Targets whose row on the page lacks, or begins with another signature than in the docstring of specs.py."""
    documented = {name: cells[0] for name, cells in rows(page, "Field").items()}
    wrong = [name for name in table if not documented.get(name, "").startswith(f"`{table[name]}`")]
    return wrong + [name for name in documented if name not in table]


def commands(parser: argparse.ArgumentParser, name: str = "cornstarch") -> Iterator[str]:
    """Every command, and every option of one."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in nested:
        for word, child in action.choices.items():
            yield from commands(child, f"{name} {word}")
    if not nested:
        yield name
    for action in parser._actions:
        if action.option_strings and "--help" not in action.option_strings:
            yield f"{name} {action.option_strings[-1]}"
        elif not action.option_strings and action not in nested:
            yield f"{name} {action.metavar}"


def command_problems(page: str, known: Collection[str]) -> list[str]:
    """Commands and options that the page's table lacks, and rows with a word that no command has."""
    lines = list(rows(page, "Command"))
    problems = []
    for command in known:
        *words, last = command.split()
        if not any(line.split()[: len(words)] == words and last in line.split() for line in lines):
            problems.append(command)
    allowed = {word for command in known for word in command.split()} | {"SECONDS", "M", "FOLDER"}
    return problems + [line for line in lines if not set(line.split()) <= allowed]


def error_problems(page: str, names: Collection[str]) -> list[str]:
    """Errors that the page's table lacks or leaves without remedy, and rows for none."""
    documented = rows(page, "Error")
    wrong = [name for name in names if not all(documented.get(name, [""]))]
    return wrong + [name for name in documented if name not in names]


# --- the documentation ------------------------------------------------------------------------------------------------


def test_every_hook_is_documented_with_its_arguments_and_what_it_returns():
    """On the page, from a docstring that describes all of them; and no hook that is not there."""
    assert hook_problems(read(DOCS / "hooks.md"), hook_docstrings()) == []


def test_what_a_hook_returns_is_named_in_its_docstring():
    """The spec class of its signature, so that the page leads on to it."""
    for hook, text in hook_docstrings().items():
        returned = re.search(r"\w+Spec\b", str(inspect.signature(getattr(hookspecs, hook)).return_annotation))
        assert returned is None or f"specs.{returned[0]}`" in text.partition("Returns:\n")[2], hook


def test_targets_are_documented_with_their_signatures():
    """The table on the page is the one in specs.py."""
    table = dict(re.findall(r"^``(\w+Spec\.\w+)``\s+``([^`]+)``", specs.__doc__, re.MULTILINE))
    assert table
    assert target_problems(read(DOCS / "hooks.md"), table) == []


def test_every_public_name_is_in_the_reference():
    """So the page shows its docstring; the hooks and ``hookimpl`` are on a page of their own, errors in a table."""
    assert missing_entries(read(DOCS / "reference.md"), public_names()) == []
    assert "cornstarch_core.hookspecs.hookimpl" in entries(read(DOCS / "hooks.md"))
    assert set(hookspecs.__all__) - set(HOOKS) == {"hookimpl", "hookspec"}  # the latter is the core's own


@pytest.mark.parametrize("page", ["reference.md", "hooks.md"])
def test_the_reference_holds_only_what_is_there(page):
    """Every entry can be imported, and stands there once."""
    assert wrong_entries(read(DOCS / page)) == []


def test_a_name_that_stands_elsewhere_is_the_same_thing():
    """Otherwise its docstring would be shown nowhere."""
    assert all(find(name) is find(other) for name, other in ELSEWHERE.items())


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_has_a_docstring_that_describes_its_arguments(name):
    """Each of them, on a line of its own; a constant's stands below it, where Python does not see it."""
    value = find(name)
    if callable(value):
        assert docstring_problems(name, inspect.getdoc(value), arguments(value)) == []


def test_pages_show_names_for_roles_and_code_for_examples():
    """Of no public docstring a page shows the marks that it has for those who read the code."""
    pytest.importorskip("griffe")  # of the extra "docs"
    sys.path.insert(0, str(DOCS))
    try:
        shown = importlib.import_module("_roles").shown
    finally:
        sys.path.remove(str(DOCS))
    assert shown("A :class:`~a.B`.\n\nExample:\n    ::\n\n        x") == "A `B`.\n\nExamples:\n        x"
    texts = [shown(inspect.getdoc(find(name)) or "") for name in public_names()]
    assert not [text for text in texts if re.search(r":\w+:`|^Example:|\w::$", text, re.MULTILINE)]


def test_every_environment_variable_is_documented():
    """Those of the code are those in the table."""
    used = {name for file in SOURCES for name in re.findall(r"CORNSTARCH_[A-Z_]+", read(file))}
    assert used == rows(read(DOCS / "plugins.md"), "Variable").keys()


def test_every_command_and_option_is_documented():
    """Those of the parser are those in the table, with or without values."""
    assert command_problems(read(DOCS / "plugins.md"), list(commands(cli._parser()))) == []


def test_every_error_is_documented_with_its_remedy():
    """The table has a row for each, in the order of the tree, and says what to do."""
    page = read(DOCS / "errors.md")
    assert error_problems(page, errors.__all__) == []
    tree = re.findall(r"\w+Error", errors.__doc__.partition("Each message")[0].replace("LookupError", ""))
    assert list(rows(page, "Error")) == [name for name in tree if name in errors.__all__]


def test_the_readme_lists_the_plugins_that_there_are():
    """No more and no fewer."""
    listed = re.findall(r"^\| \[([\w-]+)\]\(plugins/\1/README\.md\)", read(ROOT / "README.md"), re.MULTILINE)
    assert listed == [plugin.name for plugin in PLUGINS]


def test_the_navigation_lists_every_page():
    """A page that it lacks would not be found."""
    listed = re.findall(r": (\S+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_continuous_integration_calls_the_test_command_of_the_readme():
    """What users are told is what is tried."""
    assert re.search(r"^make test\b", read(ROOT / "README.md"), re.MULTILINE)
    assert re.search(r"^make test$", read(ROOT / ".ci" / "run"), re.MULTILINE)


# --- the checks would see it ------------------------------------------------------------------------------------------


def without(text: str, line: str) -> str:
    """A page without the one line that begins so."""
    kept = [one for one in text.splitlines(keepends=True) if not one.startswith(line)]
    assert len(kept) == len(text.splitlines()) - 1, line
    return "".join(kept)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_is_taken_off_the_page_or_out_of_the_code_is_seen(hook):
    """Its entry, its docstring, an argument's description, and what it returns."""
    page, docstrings = read(DOCS / "hooks.md"), hook_docstrings()
    short = without(page, f"::: cornstarch_core.hookspecs.{hook}\n")
    assert hook_problems(short, docstrings) == [f"{hook} has no entry"]
    assert hook_problems(page, {**docstrings, hook: None}) == [f"{hook} has no docstring"]
    text = docstrings[hook].replace("Returns:", "Gives:")
    assert hook_problems(page, {**docstrings, hook: text}) == [f"{hook}: its docstring does not say what is returned"]
    for argument in arguments(getattr(hookspecs, hook)):
        text = docstrings[hook].replace(f"{argument}: ", "it is ")
        expected = [f"{hook}: its docstring does not describe {argument!r}"]
        assert hook_problems(page, {**docstrings, hook: text}) == expected


def test_a_hook_that_is_not_there_is_seen():
    """Made up on the page, or gone from the code."""
    page, docstrings = read(DOCS / "hooks.md"), hook_docstrings()
    made_up = f"{page}\n::: cornstarch_core.hookspecs.cornstarch_made_up\n"
    assert hook_problems(made_up, docstrings) == ["cornstarch_made_up has an entry, but there is no such hook"]
    assert wrong_entries(made_up) == ["cornstarch_core.hookspecs.cornstarch_made_up"]


@pytest.mark.parametrize("name", public_names())
def test_a_public_name_that_is_taken_off_the_reference_is_seen(name):
    """Each of them."""
    shown = ELSEWHERE.get(name, name)
    page = without(read(DOCS / "reference.md"), f"::: {shown}\n")
    assert name in missing_entries(page, public_names())


def test_a_name_that_becomes_public_is_asked_for(monkeypatch):
    """As soon as a module for users has it in ``__all__``."""
    monkeypatch.setattr(cornstarch_core, "__all__", [*cornstarch_core.__all__, "brand_new"])
    assert missing_entries(read(DOCS / "reference.md"), public_names()) == ["cornstarch_core.brand_new"]


def test_rows_that_are_taken_out_of_a_table_are_seen():
    """Of targets, commands and errors; an empty cell is none."""
    hooks, commands_page, errors_page = (read(DOCS / name) for name in ("hooks.md", "plugins.md", "errors.md"))
    table = dict(re.findall(r"^``(\w+Spec\.\w+)``\s+``([^`]+)``", specs.__doc__, re.MULTILINE))
    assert target_problems(without(hooks, "| `EncoderSpec.build` |"), table) == ["EncoderSpec.build"]
    known = list(commands(cli._parser()))
    short = without(commands_page, "| `cornstarch plugins list --json` |")
    assert command_problems(short, known) == ["cornstarch plugins list --json"]
    assert error_problems(without(errors_page, "| `MediaError` |"), errors.__all__) == ["MediaError"]
    emptied = re.sub(r"(\| `MediaError` \|).*", r"\1  |  |", errors_page)
    assert error_problems(emptied, errors.__all__) == ["MediaError"]


def test_two_tables_of_one_heading_are_refused():
    """The second one would never be looked at."""
    page = read(DOCS / "errors.md")
    with pytest.raises(ValueError, match="2 tables begin with a column 'Error'"):
        rows(f"{page}\n| Error | When |\n| --- | --- |\n| `X` | y |\n", "Error")
    with pytest.raises(ValueError, match="0 tables begin with a column 'Mistake'"):
        rows(page, "Mistake")
