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
import textwrap
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

import pytest
from pages import DOCS, PLUGINS, ROOT, SOURCES, blocks, entries, read, rows

import cornstarch_core
from cornstarch_core import cli, errors, hookspecs, specs

HOOKS = [name for name in hookspecs.__all__ if name.startswith("cornstarch_")]
PLUGIN_PACKAGES = [plugin.name.replace("-", "_") for plugin in PLUGINS]

FOR_USERS = (
    "cornstarch_core",
    "cornstarch_core.interop",
    "cornstarch_core.plugins",
    "cornstarch_core.specs",
    "cornstarch_core.testing",
    "cornstarch_core.training",
    "cornstarch_vision.llava_data",
)
"""Modules of which every name in ``__all__`` is public, and stands on the page of reference under the module's own name."""

SINGLE = (
    "cornstarch_core.interop.export_pretrained",
    "cornstarch_audio.conv_downsample.ConvDownsampleProjector",
    "cornstarch_audio.frame_stack.FrameStackProjector",
    "cornstarch_audio.resampler.ResamplerProjector",
    "cornstarch_audio.waveforms.prepare_audio",
    "cornstarch_vision.images.prepare_image",
    "cornstarch_vision.pixel_shuffle.PixelShuffleProjector",
)
"""Public names of modules that are not for users as a whole."""

ELSEWHERE = {"cornstarch_core.specs.ModalCallbacks": "cornstarch_core.ModalCallbacks"}
"""Public names that stand on the page under another name, which is the same thing."""

INHERITED = ("args", "kwargs")
"""Arguments that need no description: they are a base class's of transformers."""

IN_PROSE = {
    "CheckpointFamily.check_media_processor",
    "CheckpointFamily.export",
    "CheckpointFamily.options",
    "CheckpointFamily.processor_arguments",
    "CheckpointFamily.projection",
    "CheckpointFamily.projector",
    "CheckpointFamily.projector_settings",
    "CheckpointFamily.refusal",
    "CheckpointFamily.settings",
    "CompositeModel.set_input_embeddings",
    "CompositeModel.set_output_embeddings",
    "ConvDownsampleProjector.forward",
    "EncoderUnderTest.compose",
    "EncoderUnderTest.fail",
    "EncoderUnderTest.failing",
    "EncoderUnderTest.features",
    "EncoderUnderTest.items",
    "EncoderUnderTest.make_items",
    "EncoderUnderTest.prepare",
    "FrameStackProjector.forward",
    "MultimodalProcessor.template",
    "MultimodalProjector.forward",
    "PixelShuffleProjector.forward",
    "Promises.holds",
    "Promises.keep",
    "ResamplerProjector.forward",
}
"""Methods whose docstring tells of their arguments in sentences, or whose arguments are those of transformers or ``forward``."""


# --- what has to be there ---------------------------------------------------------------------------------------------


def of_plugins() -> Iterator[str]:
    """The targets that the plugins of this project register for users: of callbacks, projectors and processors."""
    for package in PLUGIN_PACKAGES:
        module = importlib.import_module(f"{package}.plugin")
        for kind in ("callbacks", "projectors", "processors"):
            for spec in getattr(module, f"cornstarch_register_{kind}", list)():
                if spec.target.startswith(package):  # not another plugin's, which has it already
                    yield spec.target.replace(":", ".")


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


def public_methods() -> dict[str, Any]:
    """The public methods and properties that classes of ours define, each as ``Class.method``; an inherited one once."""
    classes = [base for name in public_names() if inspect.isclass(find(name)) for base in find(name).__mro__]
    found: dict[str, Any] = {}
    for one in classes:
        if one.__module__.partition(".")[0] in ("cornstarch_core", *PLUGIN_PACKAGES):
            for name, value in vars(one).items():
                is_method = inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
                if is_method and not name.startswith("_"):
                    found[f"{one.__name__}.{name}"] = getattr(value, "__func__", value)
    return found


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


def method_problems(name: str, method: Any) -> list[str]:
    """What the docstring of a method lacks; it has to be its own, and not a base class's."""
    is_function = inspect.isfunction(method) and name not in IN_PROSE
    known = {"cls", *(interface_arguments(method) if is_function else ())}
    needed = [argument for argument in arguments(method) if argument not in known] if is_function else []
    return docstring_problems(name, inspect.cleandoc(method.__doc__ or ""), needed)


def interface_arguments(method: Any) -> list[str]:
    """The arguments that a target's method has from its interface, which describes them."""
    owner = getattr(sys.modules[method.__module__], method.__qualname__.partition(".")[0], None)
    declared = (vars(base).get(method.__name__) for base in getattr(owner, "__mro__", ())[1:])
    of_interface = next((one for one in declared if one is not None and one.__module__ == specs.__name__), None)
    return arguments(of_interface) if of_interface is not None else []


def hook_problems(page: str, docstrings: dict[str, str | None]) -> list[str]:
    """What is wrong with the page of hooks and the docstrings that it shows: one entry for each hook, and no other."""
    entered = [entry.removeprefix("cornstarch_core.hookspecs.") for entry in entries(page)]
    shown = [name for name in entered if name.startswith("cornstarch_")]
    problems = [f"{hook} has no entry" for hook in docstrings if hook not in shown]
    problems += [f"{name} has an entry, but there is no such hook" for name in shown if name not in docstrings]
    problems += [f"{name} has two entries" for name in set(shown) if shown.count(name) > 1]
    for hook, text in docstrings.items():
        problems += docstring_problems(hook, text, arguments(getattr(hookspecs, hook)), returns=True)
        first, _, rest = (text or "...").partition("\n")
        if text and not re.fullmatch(r"[A-Z].*\.", first):
            problems.append(f"{hook}: its docstring does not begin with a sentence on one line")
        if text and not re.search(r"\bRuns \w", rest):
            problems.append(f"{hook}: its docstring does not say when it runs")
    return problems


def navigation(text: str) -> list[str]:
    """The pages that a configuration of mkdocs leads to."""
    return re.findall(r"^ *- [^#:]+: (\S+\.md)$", text, re.MULTILINE)


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


def interfaces() -> dict[str, type]:
    """The specs with the interfaces of their targets, as the table in the docstring of specs.py has them."""
    table = re.findall(r"^:class:`(\w+Spec)`\s+:class:`(\w+)`$", specs.__doc__, re.MULTILINE)
    return {spec: getattr(specs, interface) for spec, interface in table}


def signatures(interface: type) -> dict[str, str]:
    """The methods of an interface, each with its arguments; ``*args`` only lets a type checker accept further names."""
    found = {}
    for name, method in vars(interface).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            _, *parameters = inspect.signature(method).parameters.values()
            shown = [str(one.replace(annotation=one.empty)) for one in parameters if one.kind is not one.VAR_POSITIONAL]
            found[f"{interface.__name__}.{name}"] = f"({', '.join(shown)})"
    return found


def target_problems(page: str, table: dict[str, type]) -> list[str]:
    """Specs whose row on the page lacks or names another interface, and methods whose row lacks or has other arguments."""
    expected = {spec: interface.__name__ for spec, interface in table.items()}
    documented = {spec: cells[0].strip("`") for spec, cells in rows(page, "Spec").items()}
    for interface in table.values():
        expected |= signatures(interface)
    documented |= {method: cells[0].strip("`") for method, cells in rows(page, "Method").items()}
    return [name for name in {**expected, **documented} if expected.get(name) != documented.get(name)]


def commands(parser: argparse.ArgumentParser, name: str = "cornstarch") -> Iterator[str]:
    """Every command with the arguments that it needs; and again with each argument and option that it can do without."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    others = [action for action in parser._actions if action not in nested and "--help" not in action.option_strings]
    name = " ".join([name, *(_written(action) for action in others if action.required)])
    if not nested:
        yield name
    yield from (f"{name} {_written(action)}" for action in others if not action.required)
    for action in nested:
        for word, child in action.choices.items():
            yield from commands(child, f"{name} {word}")


def _written(action: argparse.Action) -> str:
    """An argument or option as the table has it, with its value."""
    return " ".join([*action.option_strings[-1:], *([action.metavar] if action.metavar else [])])


def row_problems(page: str, heading: str, known: Iterable[str]) -> list[str]:
    """What a table lacks, or leaves without a meaning; and rows for what is not there."""
    documented = rows(page, heading)
    wrong = [name for name in known if not all(documented.get(name, [""]))]
    return wrong + [name for name in documented if name not in set(known)]


def error_tree(text: str) -> list[str]:
    """The lines of a tree of errors, each up to the error's name."""
    tree = "".join(line for line in text.splitlines(keepends=True) if "Error" in line)
    return re.findall(r"^[│├└─ ]*\w+Error", textwrap.dedent(tree), re.MULTILINE)


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
    """The tables on the page have the interfaces of specs.py, and their methods with their arguments."""
    table = interfaces()
    assert {
        name: getattr(specs, name).interface for name in specs.__all__ if name.endswith("Spec") and name != "Spec"
    } == table
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
    if inspect.isclass(value) or inspect.isroutine(value):
        assert docstring_problems(name, inspect.getdoc(value), arguments(value)) == []


@pytest.mark.parametrize(("name", "method"), public_methods().items(), ids=list(public_methods()))
def test_every_public_method_has_a_docstring_that_describes_its_arguments(name, method):
    """Each of them, unless the method is among those that tell of them in sentences."""
    assert method_problems(name, method) == []


def test_methods_that_tell_of_their_arguments_in_sentences_are_there():
    """None stays on the list that is gone, or takes no arguments."""
    assert set(public_methods()) >= IN_PROSE
    assert all(arguments(public_methods()[name]) for name in IN_PROSE)


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
    assert row_problems(read(DOCS / "plugins.md"), "Variable", used) == []


def test_every_command_and_option_is_documented():
    """Those of the parser are those in the table, each in a row of its own."""
    assert row_problems(read(DOCS / "plugins.md"), "Command", list(commands(cli._parser()))) == []


def test_every_error_is_documented_with_its_remedy():
    """The table has a row for each, in the order of the tree, and says what to do."""
    page = read(DOCS / "errors.md")
    assert row_problems(page, "Error", errors.__all__) == []
    (tree,) = (block.code for block in blocks(page) if block.language == "text")
    assert error_tree(tree) == error_tree(errors.__doc__)
    assert list(rows(page, "Error")) == [line.strip("│├└─ ") for line in error_tree(tree)]


def test_the_readme_lists_the_plugins_that_there_are():
    """No more and no fewer."""
    listed = re.findall(r"^\| \[([\w-]+)\]\(plugins/\1/README\.md\)", read(ROOT / "README.md"), re.MULTILINE)
    assert listed == [plugin.name for plugin in PLUGINS]


def test_the_navigation_lists_every_page():
    """A page that it lacks would not be found."""
    assert sorted(navigation(read(ROOT / "mkdocs.yml"))) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")
    )


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
    """Its entry, its docstring, the sentence that this begins with, when it runs, what it takes and what it returns."""
    page, docstrings = read(DOCS / "hooks.md"), hook_docstrings()
    short = without(page, f"::: cornstarch_core.hookspecs.{hook}\n")
    assert hook_problems(short, docstrings) == [f"{hook} has no entry"]
    assert hook_problems(page, {**docstrings, hook: None}) == [f"{hook} has no docstring"]
    text = docstrings[hook].replace("Returns:", "Gives:")
    assert hook_problems(page, {**docstrings, hook: text}) == [f"{hook}: its docstring does not say what is returned"]
    text = docstrings[hook].replace("\n", ",\n", 1).replace(".,\n", ",\n", 1)
    expected = [f"{hook}: its docstring does not begin with a sentence on one line"]
    assert hook_problems(page, {**docstrings, hook: text}) == expected
    text = docstrings[hook].replace("Runs", "Is called")
    assert hook_problems(page, {**docstrings, hook: text}) == [f"{hook}: its docstring does not say when it runs"]
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


@pytest.mark.parametrize("hidden", ["<!--\n{}\n-->\n", "```text\n{}\n```\n", "~~~text\n{}\n~~~\n"])
def test_an_entry_that_no_reader_sees_is_none(hidden):
    """In a comment or in a block it shows no docstring."""
    entry = "::: cornstarch_core.hookspecs.cornstarch_register_encoders"
    page = read(DOCS / "hooks.md")
    assert hook_problems(page.replace(entry, hidden.format(entry)), hook_docstrings()) == [
        "cornstarch_register_encoders has no entry"
    ]


def test_a_method_without_a_docstring_or_with_an_argument_that_it_does_not_describe_is_seen():
    """Also where a base class has a docstring for it, or where one below it is a property."""

    class Model(cornstarch_core.MultimodalModel):
        def set_trainable(self, encoders):
            pass

        def compose(self, parts, more):
            """Make one.

            Args:
                parts: of it.
            """

        kind = property(lambda self: None)

    assert method_problems("Model.set_trainable", Model.set_trainable) == ["Model.set_trainable has no docstring"]
    assert method_problems("Model.compose", Model.compose) == ["Model.compose: its docstring does not describe 'more'"]
    assert method_problems("Model.kind", Model.kind) == ["Model.kind has no docstring"]
    assert {"MultimodalModel.set_trainable", "MultimodalModel.generate", "Registration.qualified_name"} <= set(
        public_methods()
    )


def test_an_option_of_a_target_that_is_not_described_is_seen():
    """The interface describes its own arguments, and the target those that it adds."""
    build = public_methods()["Llava.build"]
    assert {"context", "callback_options"} == set(interface_arguments(build))
    text, method = build.__doc__, FunctionType(build.__code__, build.__globals__, "build", build.__defaults__)
    method.__qualname__, method.__doc__ = build.__qualname__, text.replace("drop_tokens: ", "it is ")
    assert method_problems("Llava.build", build) == []
    assert method_problems("Llava.build", method) == ["Llava.build: its docstring does not describe 'drop_tokens'"]


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


TABLES = [
    *(("plugins.md", "Command", name) for name in commands(cli._parser())),
    *(("plugins.md", "Variable", name) for name in ("CORNSTARCH_PLUGINS", "CORNSTARCH_DISABLE_PLUGINS")),
    *(("errors.md", "Error", name) for name in errors.__all__),
]


@pytest.mark.parametrize(("page", "heading", "name"), TABLES, ids=lambda value: str(value).replace(" ", "_"))
def test_a_row_that_is_taken_out_of_a_table_or_emptied_is_seen(page, heading, name):
    """Of each command, variable and error, though a longer row begin with the same words; and one that is not there."""
    text = read(DOCS / page)
    known = [known for *where, known in TABLES if where == [page, heading]]
    assert row_problems(text, heading, known) == []
    assert row_problems(without(text, f"| `{name}` |"), heading, known) == [name]
    emptied = re.sub(rf"^(\| `{re.escape(name)}` \|).*$", r"\1  |", text, flags=re.MULTILINE)
    assert row_problems(emptied, heading, known) == [name]
    assert row_problems(text, heading, [one for one in known if one != name]) == [name]


def test_a_row_of_a_target_that_is_taken_out_is_seen():
    """Or has other arguments; of the specs and of the methods of their interfaces."""
    page = read(DOCS / "hooks.md")
    for name in ("EncoderInterface.build", "EncoderSpec"):
        assert target_problems(without(page, f"| `{name}` |"), interfaces()) == [name]
    changed = page.replace("`(config, counts)`", "`(config)`")
    assert target_problems(changed, interfaces()) == ["ProjectorInterface.num_tokens"]


def test_commands_are_told_with_what_they_need_and_can_do_without():
    """An argument that may be left out makes two rows, and so does an option."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", action="version", version="1")
    command = parser.add_subparsers().add_parser("new")
    command.add_argument("name", metavar="NAME")
    command.add_argument("place", metavar="PLACE", nargs="?")
    command.add_argument("--kind", metavar="KIND", required=True)
    command.add_argument("--quiet", action="store_true")
    needed = "cornstarch new NAME --kind KIND"
    assert list(commands(parser)) == ["cornstarch --version", needed, f"{needed} PLACE", f"{needed} --quiet"]


def test_an_error_that_the_tree_lacks_or_has_elsewhere_is_seen():
    """The page's tree is compared line by line, without what is said beside the names."""
    lines = error_tree(errors.__doc__)
    assert [line.strip("│├└─ ") for line in lines if line.startswith("│")] == [
        "PluginLoadError",
        "UnknownNameError",
        "AmbiguousNameError",
        "PlaceholderMismatchError",
        "TruncatedSpanError",
        "MediaError",
    ]
    assert sorted(line.strip("│├└─ ") for line in lines) == sorted(errors.__all__)


def test_a_page_that_is_commented_out_of_the_navigation_is_not_in_it():
    """Nor is one that stands elsewhere in the configuration."""
    text = "nav:\n  - A: a.md\n  # - B: b.md\n  - C: how-to/c.md\n#  - D: d.md\nextra: e.md\n"
    assert navigation(text) == ["a.md", "how-to/c.md"]


def test_two_tables_of_one_heading_are_refused():
    """The second one would never be looked at."""
    page = read(DOCS / "errors.md")
    with pytest.raises(ValueError, match="2 tables begin with a column 'Error'"):
        rows(f"{page}\n| Error | When |\n| --- | --- |\n| `X` | y |\n", "Error")
    with pytest.raises(ValueError, match="0 tables begin with a column 'Mistake'"):
        rows(page, "Mistake")
