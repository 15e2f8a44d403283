"""The command line, with real distributions and real child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from fake_plugins import hook, isolated, sound, was_imported, write_broken, write_plugin

from cornstarch_core import cli
from cornstarch_core.cli import main
from cornstarch_core.plugins import reset_registry


@pytest.fixture
def site(tmp_path):
    """An empty folder: the only place where this process, and the children of the doctor, find plugins."""
    with isolated(tmp_path) as folder:
        yield folder


def test_list_says_that_no_plugin_is_installed(site, capsys):
    """Without plugins, list says so, and how to install one."""
    assert main(["plugins", "list"]) == 0
    assert capsys.readouterr().out == (
        "No plugin is installed. Plugins are packages, for example: pip install cornstarch-vision\n"
    )


def test_list_prints_a_table(site, capsys, monkeypatch):
    """The table has one line for each plugin, sorted, with state and reason; no plugin is imported."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-long", sound("vit"), version="0.10.2", requires=("cornstarch-core>=99",))
    write_plugin(site, "fake-z", sound("beit"))
    monkeypatch.setenv("CORNSTARCH_DISABLE_PLUGINS", "fake-z")
    monkeypatch.setattr("cornstarch_core.__version__", "0.1.0")
    assert main(["plugins", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "PLUGIN     VERSION  STATE         REASON",
        "fake-a     0.1.0    available",
        "fake-long  0.10.2   incompatible  it needs cornstarch-core>=99, and this is cornstarch-core 0.1.0",
        "fake-z     0.1.0    blocked       CORNSTARCH_DISABLE_PLUGINS names it",
    ]
    assert not any(was_imported(site, name) for name in ("fake-a", "fake-long", "fake-z"))


def test_list_as_json(site, capsys):
    """--json prints every field of every plugin, and an empty list without plugins."""
    assert main(["plugins", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    reset_registry()
    write_plugin(site, "fake-a", sound("clip"))
    assert main(["plugins", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "id": "fake-a",
            "version": "0.1.0",
            "entry_point": "fake_a",
            "requires": "cornstarch-core>=0.1,<0.2",
            "state": "available",
            "reason": "",
            "depends": ["cornstarch-core"],
        }
    ]


def test_list_warns_of_a_misspelt_variable(site, capsys, monkeypatch):
    """An id in the environment that is not installed is a warning on stderr, not an error."""
    monkeypatch.setenv("CORNSTARCH_DISABLE_PLUGINS", "fake-x")
    assert main(["plugins", "list"]) == 0
    assert capsys.readouterr().err == (
        "cornstarch: warning: CORNSTARCH_DISABLE_PLUGINS names 'fake-x', which is not installed\n"
    )


def test_list_works_with_every_plugin_broken(site, capsys):
    """list imports no plugin, so broken code does not stop it."""
    reasons = write_broken(site)
    assert main(["plugins", "list"]) == 0
    assert capsys.readouterr().out.count(" available") == len(reasons)


def test_show_tells_what_a_plugin_registers(site, capsys):
    """show prints the metadata and one line for each thing, by kind."""
    shuffle = hook("register_projectors", "return [ProjectorSpec(name='shuffle', target='a:b')]")
    code = sound("clip", "vit", more=shuffle)
    write_plugin(site, "fake-a", code)
    assert main(["plugins", "show", "Fake_A"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "fake-a 0.1.0",
        "  state        active",
        "  entry point  fake_a",
        "  requires     cornstarch-core>=0.1,<0.2",
        "encoders:",
        "  clip  vision, for Fraction",
        "  vit   vision, for Fraction",
        "projectors:",
        "  shuffle  made by a:b",
    ]


def test_show_works_with_a_plugin_that_is_broken(site, capsys):
    """A plugin that fails, or ends the process that imports it, is shown with its reason."""
    write_plugin(site, "fake-a", "raise RuntimeError('boom')")
    write_plugin(site, "fake-b", "import os\nos._exit(0)")
    write_plugin(site, "fake-c", requires=("cornstarch-core>=99",))
    for name, state, reason in (
        ("fake-a", "failed", "RuntimeError: boom"),
        ("fake-b", "failed", "the process ended with exit code 0 while importing fake_b"),
        ("fake-c", "incompatible", "it needs cornstarch-core>=99, and this is"),
    ):
        assert main(["plugins", "show", name]) == 0
        out = capsys.readouterr().out
        assert f"  state        {state}\n  reason       {reason}" in out


@pytest.mark.parametrize("command", ["show", "doctor"])
def test_an_unknown_name_ends_in_exit_code_1(site, capsys, command):
    """A name that is not installed is an error on stderr, with close matches, or with what there is."""
    assert main(["plugins", command, "fake"]) == 1
    assert capsys.readouterr().err == "cornstarch: no plugin 'fake' is installed; there is none\n"
    for name in ("fake-vision", "other"):
        write_plugin(site, name)
    reset_registry()
    for asked, answer in (("fake_viison", "did you mean fake-vision?"), ("x", "there is fake-vision, other")):
        assert main(["plugins", command, asked]) == 1
        captured = capsys.readouterr()
        assert captured.err == f"cornstarch: no plugin {asked!r} is installed; {answer}\n"
        assert captured.out == ""


def test_doctor_reports_that_a_plugin_is_ok(site, capsys):
    """The report has the number of targets and the times; progress goes to stderr."""
    write_plugin(site, "fake-a", sound("clip"))
    assert main(["plugins", "doctor"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("fake-a 0.1.0: ok (2 targets; imported in ")
    assert captured.out.count("\n") == 1
    assert captured.err == "checking fake-a (1/1) ...\n"


def test_doctor_without_plugins(site, capsys):
    """Without plugins, the doctor succeeds."""
    assert main(["plugins", "doctor"]) == 0
    assert "No plugin is installed." in capsys.readouterr().out


def test_doctor_reports_every_broken_plugin(site, capsys):
    """Each broken plugin is reported with its reason and the end of its traceback; the working one is ok."""
    reasons = write_broken(site)
    write_plugin(site, "fake-a", sound("clip"))
    assert main(["plugins", "doctor"]) == 1
    out = capsys.readouterr().out
    reports = {text.partition(" ")[0]: text for text in out.replace("\nbroken-", "\0broken-").split("\0")}
    for plugin, reason in reasons.items():
        assert f"{plugin} 0.1.0: 1 problem (0 targets" in reports[plugin]
        assert reason in reports[plugin]
        assert "    | " in reports[plugin]
    assert "\nfake-a 0.1.0: ok (" in out


def test_doctor_skips_what_is_blocked(site, capsys, monkeypatch):
    """A blocked plugin is skipped; an incompatible one is a problem; neither is imported."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("vit"), requires=("cornstarch-core>=99",))
    monkeypatch.setenv("CORNSTARCH_DISABLE_PLUGINS", "fake-a")
    assert main(["plugins", "doctor", "fake-a"]) == 0
    assert "fake-a 0.1.0: skipped, blocked: CORNSTARCH_DISABLE_PLUGINS names it" in capsys.readouterr().out
    assert main(["plugins", "doctor"]) == 1
    assert "  problem: it needs cornstarch-core>=99" in capsys.readouterr().out
    assert not was_imported(site, "fake-a")
    assert not was_imported(site, "fake-b")


def test_doctor_notes_what_several_plugins_offer(site, capsys):
    """A name that two plugins offer is a note with the names to use; a class that two claim is a problem."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("clip", cls="decimal:Decimal"))
    assert main(["plugins", "doctor"]) == 0
    assert "note: encoders 'clip' is ambiguous: fake-a/clip and fake-b/clip; use these" in capsys.readouterr().out
    write_plugin(site, "fake-c", sound("vit"))
    reset_registry()
    assert main(["plugins", "doctor"]) == 1
    assert "problem: fractions:Fraction is claimed by fake-a/clip and fake-c/vit; block one" in capsys.readouterr().out


def test_anything_can_be_printed(site):
    """A character that the terminal can't show is escaped, and does not end the program."""
    write_plugin(site, "fake-a", "raise RuntimeError('\\udcff \\u2026')")
    code = f"import sys; sys.path[:] = {sys.path!r}; from cornstarch_core.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "plugins", "doctor"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "problem: RuntimeError: \\udcff \\u2026" in done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["plugins"], ["plugins", "lsit"], ["plugins", "show"], ["plugins", "new", "a"], ["x"]]
)
def test_wrong_arguments_end_in_exit_code_2(arguments, capsys):
    """Arguments that can't be parsed are a usage error on stderr."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: cornstarch")


@pytest.mark.parametrize(
    "command", [[], *(["plugins", *name.split()] for name in ("", "list", "show", "doctor", "new"))]
)
def test_help_documents_exit_codes_and_environment(command, capsys):
    """Every --help lists the exit codes and the environment variables."""
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(" ".join(["usage: cornstarch", *command]))
    assert cli._EPILOG in out


def test_version(capsys):
    """--version tells the version of the core."""
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("cornstarch-core ")


def test_the_console_script_finds_plugins(site):
    """Run as a program, it finds the plugins on its own path and gives its exit code to the shell."""
    write_plugin(site, "fake-a", "raise RuntimeError('boom')")
    path = os.pathsep.join(sys.path[:2])
    code = "import sys; from cornstarch_core.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", code, "plugins", "doctor", "fake-a"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "problem: RuntimeError: boom" in done.stdout
    assert done.stderr == "checking fake-a (1/1) ...\n"
