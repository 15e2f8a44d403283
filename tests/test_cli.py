"""The command line, with real distributions and real child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from fake_plugins import SPEC, hook, isolated, sound, was_imported, write_broken, write_plugin

from cornstarch_core import cli
from cornstarch_core.cli import main
from cornstarch_core.plugins import reset_registry
from cornstarch_core.runtime import doctor


@pytest.fixture
def site(tmp_path):
    """An empty folder: the only place where this process, and the children that the doctor starts, find plugins."""
    with isolated(tmp_path) as folder:
        yield folder


def _encoder(**changes: str) -> str:
    fields = ", ".join(f"{name}={value}" for name, value in changes.items())
    return hook(
        "register_encoders", f"return [replace({SPEC.format(name='clip', cls='fractions:Fraction')}, {fields})]"
    )


def _write_changed(site, name: str, **changes: str) -> None:
    write_plugin(site, name, "from dataclasses import replace\n" + _encoder(**changes))


def test_list_says_that_there_is_none(site, capsys):
    """Without plugins, list says so, and what to do about it."""
    assert main(["plugins", "list"]) == 0
    assert capsys.readouterr().out == (
        "No plugin is installed. Plugins are packages, for example: pip install cornstarch-vision\n"
    )


def test_list_aligns_a_table(site, capsys, monkeypatch):
    """One line per plugin, sorted, in columns, with state and reason; no plugin is imported."""
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
    """--json gives every field of every plugin, and an empty list if there is none."""
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
    """list looks at no code, so no code can stop it."""
    reasons = write_broken(site)
    assert main(["plugins", "list"]) == 0
    assert capsys.readouterr().out.count(" available") == len(reasons)


def test_show_tells_what_a_plugin_registers(site, capsys):
    """show prints the metadata and one line for each thing, by kind."""
    code = sound("clip", "vit", more=hook("register_projectors", "return [ProjectorSpec(name='shuffle', build='a:b')]"))
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


def test_doctor_finds_a_sound_plugin_sound(site, capsys):
    """A sound plugin is ok, with the number of its targets and times; progress goes to stderr."""
    write_plugin(site, "fake-a", sound("clip"))
    assert main(["plugins", "doctor"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("fake-a 0.1.0: ok (3 targets; imported in ")
    assert captured.out.count("\n") == 1
    assert captured.err == "checking fake-a (1/1) ...\n"


def test_doctor_without_plugins(site, capsys):
    """Nothing to check is no problem."""
    assert main(["plugins", "doctor"]) == 0
    assert "No plugin is installed." in capsys.readouterr().out


def test_doctor_reports_every_broken_plugin(site, capsys):
    """Each broken plugin is reported with its reason and the end of its traceback; the sound one is ok."""
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


def test_doctor_survives_what_ends_a_process(site, capsys):
    """os._exit, a hang and a crash take only the child down, and it is said what was going on; output is shown."""
    write_plugin(site, "fake-a", "import os\nprint('good bye', flush=True)\nos._exit(0)")
    write_plugin(site, "fake-b", "import time\ntime.sleep(60)")
    write_plugin(site, "fake-c", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    write_plugin(site, "fake-d", sound("clip"))
    assert main(["plugins", "doctor", "--timeout", "3"]) == 1
    out = capsys.readouterr().out
    assert "the process ended with exit code 0 while importing fake_a\n    | good bye\n" in out
    assert "the process was still busy after 3 s while importing fake_b\n" in out
    assert "the process was killed by signal 9 while importing fake_c\n" in out
    assert "fake-d 0.1.0: ok (" in out


def test_doctor_resolves_every_target(site, capsys):
    """A target that can't be imported or used is a problem that names the spec, the field and the reason."""
    (site / "fake_exit.py").write_text("import os\nos._exit(3)")
    _write_changed(site, "fake-a", num_tokens="'math:flor'")
    _write_changed(site, "fake-b", dummy_inputs="'math:pi'")
    _write_changed(site, "fake-c", hidden_size="'fake_missing:x'", build="'fake_gone:x'")
    _write_changed(site, "fake-d", build="'fake_exit:x'")
    assert main(["plugins", "doctor"]) == 1
    out = capsys.readouterr().out
    assert "problem: encoders 'clip': num_tokens: fake-a: can't import 'math:flor': AttributeError: " in out
    assert "problem: encoders 'clip': dummy_inputs: 'math:pi' can't be called" in out
    assert "fake-c 0.1.0: 2 problems (" in out
    assert "    | ModuleNotFoundError: No module named 'fake_missing'" in out
    assert "problem: the process ended with exit code 3 while importing fake_exit:x" in out


def test_doctor_checks_that_classes_can_match(site, capsys):
    """A class that is named by another path than where it is defined would never match, and is a problem."""
    _write_changed(site, "fake-a", classes="('decimal:Fraction',)")
    _write_changed(site, "fake-b", classes="('math:pi',)")
    _write_changed(site, "fake-c", classes="('statistics:Fraction',)")
    assert main(["plugins", "doctor"]) == 1
    out = capsys.readouterr().out
    assert "classes: fake-a: can't import 'decimal:Fraction'" in out
    assert "classes: 'math:pi' is no class" in out
    assert "classes: 'statistics:Fraction' is defined as 'fractions:Fraction'; write that" in out


def test_doctor_checks_references(site, capsys):
    """A spec that names a processor which nobody offers is a problem; one of a plugin that it depends on is none."""
    processor = "return [ProcessorSpec(name='image', modality='vision', build='math:floor')]"
    write_plugin(site, "fake-base", hook("register_processors", processor))
    code = "from dataclasses import replace\n" + _encoder(processor="'image'")
    write_plugin(site, "fake-a", code, requires=("cornstarch-core", "Fake_Base>=0.1"))
    write_plugin(site, "fake-b", code)
    assert main(["plugins", "doctor"]) == 1
    out = capsys.readouterr().out
    assert "fake-a 0.1.0: ok (" in out
    assert "problem: encoders 'clip': processor: no processor for 'image'" in out
    assert "fake-b 0.1.0: 1 problem (" in out


def test_doctor_leaves_a_blocked_dependency_blocked(site, capsys, monkeypatch):
    """A plugin is tried out under the conditions that the environment sets, and with what it depends on."""
    write_plugin(site, "fake-base", sound("vit"))
    write_plugin(site, "fake-a", sound("clip"), requires=("cornstarch-core", "fake-base"))
    assert main(["plugins", "doctor", "fake-a"]) == 0
    assert was_imported(site, "fake-base")
    (site / "fake_base.py.imported").unlink()
    monkeypatch.setenv("CORNSTARCH_PLUGINS", "fake-a")
    reset_registry()
    assert main(["plugins", "doctor", "fake-a"]) == 0
    assert not was_imported(site, "fake-base")


def test_a_cut_line_of_a_killed_child_is_left_out(tmp_path):
    """The last line that a killed child wrote may be half a line."""
    (tmp_path / "events").write_text('{"doing": "importing x"}\n{"doi')
    assert list(doctor._events(str(tmp_path / "events"))) == [{"doing": "importing x"}]


def test_doctor_warns_of_heavy_imports(site, capsys):
    """A plugin whose light module imports torch gets a warning, which is no problem."""
    (site / "torch.py").write_text("")
    write_plugin(site, "fake-a", "import torch\n" + sound("clip"))
    assert main(["plugins", "doctor"]) == 0
    assert (
        "  warning: importing fake_a imports torch; name heavy things in the specs instead" in capsys.readouterr().out
    )


def test_doctor_does_not_count_targets_as_heavy_imports(site, capsys):
    """What the targets import is heavy by right."""
    (site / "torch.py").write_text("def count():\n    pass")
    _write_changed(site, "fake-a", num_tokens="'torch:count'")
    assert main(["plugins", "doctor"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_doctor_skips_what_is_blocked(site, capsys, monkeypatch):
    """A blocked plugin is not imported and no problem; an incompatible one is not imported and a problem."""
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
    """A name that two plugins offer is a note, with the names to use; a class that two claim is a problem."""
    write_plugin(site, "fake-a", sound("clip"))
    write_plugin(site, "fake-b", sound("clip", cls="decimal:Decimal"))
    assert main(["plugins", "doctor"]) == 0
    assert "note: encoders 'clip' is ambiguous: fake-a/clip and fake-b/clip; use these" in capsys.readouterr().out
    write_plugin(site, "fake-c", sound("vit"))
    reset_registry()
    assert main(["plugins", "doctor"]) == 1
    assert "problem: fractions:Fraction is claimed by fake-a/clip and fake-c/vit; block one" in capsys.readouterr().out


def test_anything_can_be_printed(site):
    """An error message that the terminal can't show is escaped, and does not end the program."""
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
    """What can't be parsed is a usage error on stderr."""
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
