"""``cornstarch plugins new``: what it writes works as it is, whatever the names; and names that can't work are refused."""

from __future__ import annotations

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
from cornstarch_core.model import _RESERVED_CONFIGS, MultimodalModel
from cornstarch_core.plugins import registry
from cornstarch_core.processing.encoding import Options
from cornstarch_core.scaffold.names import TAKEN, Names
from cornstarch_core.scaffold.project import FILES, _compatible, render

ROOT = Path(__file__).parent.parent
TEMPLATES = Path(scaffold.__file__).parent / "template"
NAMES = [
    Names("cornstarch-eeg", "eeg"),
    Names("My.Plugin", "point_cloud"),
    Names("cornstarch_readings-of-a-very-long-name", "torch"),
]


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.id)
def test_every_file_is_complete(names):
    """Python compiles, no name is left to fill in, and there is a template for each file and no other."""
    files = render(names)
    assert {f"{name}.template" for name in FILES.values()} == {file.name for file in TEMPLATES.iterdir()}
    assert f"src/{names.package}/plugin.py" in files
    for path, text in files.items():
        assert not re.search(r"\$(?!\{\{)", text), path
        if path.endswith(".py"):
            compile(text, path, "exec")
    assert "python-version: ${{ matrix.python }}" in files[".github/workflows/test.yml"]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.id)
def test_the_linter_and_formatter_are_content(names, tmp_path):
    """With the project's own settings, and with the rules of this repository."""
    pytest.importorskip("ruff")  # of the extra "dev"
    project = new(tmp_path, names)
    for arguments in (["format", "--check"], ["check"], ["check", "--extend-select", "B,C4,E,F,I,N,PT,RUF,SIM,UP,W"]):
        python([], project, "-m", "ruff", *arguments, "--no-cache", ".")


def test_the_licence_is_that_of_this_project():
    """Word for word."""
    assert render(NAMES[0])["LICENSE"] == (ROOT / "LICENSE").read_text()


def test_it_asks_for_a_core_that_keeps_its_promises():
    """The running minor version before 1.0, the major one later."""
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
    """As the only plugin, without torch at hand: active, an encoder and its processor."""
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
    """The conformance kit among them; a model composed as the README says trains, is saved and comes back.

    One check, which starts a process with transformers in it, is left to smoke tests for the time that it takes.
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


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "modality", "message"),
    [
        ("cornstarch-", "eeg", "NAME is 'cornstarch-'; a distribution's name has ASCII letters"),
        ("corn starch", "eeg", "such as cornstarch-eeg"),
        ("", "eeg", "NAME is ''"),
        ("3d", "eeg", "would be '3d', which Python can't import; take another, such as cornstarch-3d"),
        ("class", "eeg", "would be 'class', which Python can't import"),
        ("Cornstarch.Core", "eeg", "would be 'cornstarch_core', and there is one already"),
        ("json", "eeg", "would be 'json', and there is one already"),
        ("a-b", "point-cloud", "--modality is 'point-cloud'; it has to be a Python identifier"),
        ("a-b", "_eeg", "--modality is '_eeg'"),
        ("a-b", "eeg_", "--modality is 'eeg_'"),
        ("a-b", "", "--modality is ''"),
        ("a-b", "lambda", "and no keyword"),
        ("a-b", "language_model", "--modality is 'language_model', which means something else"),
        ("a-b", "eeg_kwargs", "which means something else"),
    ],
)
def test_names_that_cannot_work_end_in_exit_code_2(name, modality, message, tmp_path, monkeypatch, capsys):
    """With what is wrong and what would be right; nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["plugins", "new", name, "--modality", modality])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: cornstarch plugins new")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_what_a_model_or_a_processor_means_something_else_by_is_taken():
    """Each is in the list: configs, methods, and arguments; so that no project is written that can't be composed."""
    configs = {name.removesuffix("_config") for name in _RESERVED_CONFIGS}
    methods = {name.removesuffix("_encoder").lstrip("_") for name in dir(MultimodalModel) if name.endswith("_encoder")}
    assert configs | methods | set(Options.__dataclass_fields__) <= TAKEN


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path, capsys):
    """Neither a folder with a file in it nor a file is written to; an empty folder is."""
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
    """Exit code 1, and the reason."""
    (tmp_path / "file").touch()
    assert main(["plugins", "new", "a-b", "--modality", "eeg", "--into", str(tmp_path / "file" / "inside")]) == 1
    assert capsys.readouterr().err.startswith("cornstarch: [Errno")


# --- the command ------------------------------------------------------------------------------------------------------


def test_it_says_what_comes_next(tmp_path, monkeypatch, capsys):
    """Three commands, ready to copy; the folder is named after the plugin."""
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
    """Writing a project takes no torch."""
    code = (
        "import sys, json; from cornstarch_core.cli import main\n"
        "main(['plugins', 'new', 'a-b', '--modality', 'eeg'])\n"
        "print(json.dumps([name for name in ('numpy', 'torch', 'transformers') if name in sys.modules]))"
    )
    assert json.loads(python([], tmp_path, "-c", code).splitlines()[-1]) == []
