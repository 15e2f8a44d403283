"""``cornstarch plugins new`` writes a project that works without changes, and refuses names that can't work."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from fake_plugins import isolated
from scaffolded import new, python

import cornstarch_core
from cornstarch_core import scaffold
from cornstarch_core.cli import main
from cornstarch_core.plugins import registry
from cornstarch_core.scaffold.names import Names
from cornstarch_core.scaffold.project import FILES, _compatible, render

ROOT = Path(__file__).parents[2]
TEMPLATES = Path(scaffold.__file__).parent / "template"
NAMES = [
    Names("cornstarch-eeg", "eeg"),
    Names("My.Plugin", "point_cloud"),
    Names("cornstarch_readings-of-a-very-long-name", "torch"),
]


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.id)
def test_every_file_is_complete(names):
    """Python files compile, no name is left to fill in, and each template is used."""
    files = render(names)
    assert {f"{name}.template" for name in FILES.values()} == {file.name for file in TEMPLATES.iterdir()}
    assert f"src/{names.package}/plugin.py" in files
    for path, text in files.items():
        assert not re.search(r"\$(?!\{\{)", text), path
        if path.endswith(".py"):
            compile(text, path, "exec")
    assert "python-version: ${{ matrix.python }}" in files[".github/workflows/test.yml"]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.id)
def test_the_linter_and_formatter_find_nothing(names, tmp_path):
    """Ruff passes with the project's own settings, and with the rules of this repository."""
    pytest.importorskip("ruff")  # of the extra "dev"
    project = new(tmp_path, names)
    for arguments in (["format", "--check"], ["check"], ["check", "--extend-select", "B,C4,E,F,I,N,PT,RUF,SIM,UP,W"]):
        python([], project, "-m", "ruff", *arguments, "--no-cache", ".")


def test_every_function_is_typed():
    """A type checker sees the package's functions, because all arguments and results are annotated."""
    sources = [ast.parse(text) for path, text in render(NAMES[0]).items() if path.startswith("src/") and text]
    functions = [node for tree in sources for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert len(functions) > 10
    for one in functions:
        arguments = [*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs, one.args.vararg, one.args.kwarg]
        assert one.returns is not None, one.name
        assert all(argument.annotation for argument in arguments if argument and argument.arg != "self"), one.name


def test_the_licence_is_that_of_this_project():
    """The text is equal."""
    assert render(NAMES[0])["LICENSE"] == (ROOT / "LICENSE").read_text()


def test_it_requires_a_compatible_core():
    """The range is the running minor version before 1.0, and the major version after it."""
    assert (
        f'dependencies = ["cornstarch-core{_compatible(cornstarch_core.__version__)}"'
        in render(NAMES[0])["pyproject.toml"]
    )
    assert [_compatible(version) for version in ("0.1.0", "0.12.3.dev1", "2.3.4")] == [
        ">=0.1,<0.2",
        ">=0.12,<0.13",
        ">=2.3,<3",
    ]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.id)
def test_it_is_found_and_registers_what_it_says(names, tmp_path):
    """Without torch on the path, the plugin is active, and registers an encoder and its processor."""
    project = new(tmp_path, names)
    with isolated(tmp_path):
        sys.path.insert(0, str(project / "src"))
        assert [(info.id, info.state) for info in registry().plugins()] == [(names.id, "available")]
        spec = registry().lookup("encoders", f"{names.id}/{names.modality}").spec
        assert spec.modality == names.modality
        assert spec.classes == (f"{names.package}.encoder:{names.prefix}Encoder",)
        assert registry().lookup("processors", spec.processor).plugin == names.id


@pytest.mark.slow
def test_its_own_tests_pass_and_its_readme_runs(tmp_path):
    """The conformance kit passes; a model that is composed as in the README trains, and loads equal.

    One slow check, which starts a process that imports transformers, runs in the smoke tests only.
    """
    project = new(tmp_path, NAMES[1])
    shutil.copy(ROOT / "tests" / "smoke" / "use_readme.py", project / "tests" / "test_use.py")
    out = python(
        [project],
        project,
        "-m",
        "pytest",
        "-q",
        "-Werror:::my_plugin",
        "-p",
        "no:cacheprovider",
        "-k",
        "not auto_mappings",
    )
    own, of_the_kit, readme = 8, 18, 1
    assert f"{own + of_the_kit + readme} passed, 1 deselected" in out


# --- where it is written ----------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path, capsys):
    """Neither a folder with a file in it nor a file is written to, but an empty folder is."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for folder, message in (("full", "full is not empty; name"), ("full/notes.txt", "notes.txt is a file; name")):
        with pytest.raises(SystemExit) as caught:
            main(["plugins", "new", "a-b", "--modality", "eeg", "--into", str(tmp_path / folder)])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["notes.txt"]
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert main(["plugins", "new", "a-b", "--modality", "eeg", "--into", str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "pyproject.toml").exists()


def test_a_folder_that_cannot_be_made_is_a_problem(tmp_path, capsys):
    """The exit code is 1, and the message has the reason."""
    (tmp_path / "file").touch()
    assert main(["plugins", "new", "a-b", "--modality", "eeg", "--into", str(tmp_path / "file" / "inside")]) == 1
    assert capsys.readouterr().err.startswith("cornstarch: [Errno")


# --- the command ------------------------------------------------------------------------------------------------------


def test_it_prints_the_next_commands(tmp_path, monkeypatch, capsys):
    """The three commands can be copied; the folder is named after the plugin."""
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "cornstarch-eeg", "--modality", "eeg"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "cornstarch-eeg is written to cornstarch-eeg. Next:",
        "  cd cornstarch-eeg",
        '  pip install -e ".[test]"',
        "  pytest",
    ]
    assert main(["plugins", "new", "a-b", "--modality", "eeg", "--into", "my plugin"]) == 0
    assert "  cd 'my plugin'\n" in capsys.readouterr().out


def test_it_imports_nothing_heavy(tmp_path):
    """Writing a project does not import torch."""
    code = (
        "import sys, json; from cornstarch_core.cli import main\n"
        "main(['plugins', 'new', 'a-b', '--modality', 'eeg'])\n"
        "print(json.dumps([name for name in ('numpy', 'torch', 'transformers') if name in sys.modules]))"
    )
    assert json.loads(python([], tmp_path, "-c", code).splitlines()[-1]) == []
