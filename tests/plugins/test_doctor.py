"""The doctor tries each plugin out in a separate process, and reports its problems."""

from __future__ import annotations

from fake_plugins import HEADER, SPEC, hook, sound, was_imported, write_plugin

from cornstarch_core.cli import main
from cornstarch_core.plugins import doctor, reset_registry


def _encoder(**changes: str) -> str:
    fields = ", ".join(f"{name}={value}" for name, value in changes.items())
    return hook(
        "register_encoders", f"return [replace({SPEC.format(name='clip', cls='fractions:Fraction')}, {fields})]"
    )


def _write_changed(site, name: str, **changes: str) -> None:
    write_plugin(site, name, "from dataclasses import replace\n" + _encoder(**changes))


def test_doctor_survives_what_ends_a_process(site, capsys):
    """os._exit, a hang and a crash end only the child; the report says what it was doing, and shows its output."""
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
    _write_changed(site, "fake-a", target="'math:flor'")
    _write_changed(site, "fake-b", target="'math:pi'")
    _write_changed(site, "fake-c", target="'fake_missing:x'", classes="('fake_gone:x',)")
    _write_changed(site, "fake-d", target="'fake_exit:x'")
    _write_changed(site, "fake-e", target="'fractions:Fraction'")
    assert main(["plugins", "doctor"]) == 1
    out = capsys.readouterr().out
    assert "problem: encoders 'clip': target: can't import 'math:flor': AttributeError: " in out
    assert "problem: encoders 'clip': target: 'math:pi' is not a class" in out
    assert "fake-c 0.1.0: 2 problems (" in out
    assert "    | ModuleNotFoundError: No module named 'fake_missing'" in out
    assert "problem: the process ended with exit code 3 while importing fake_exit:x" in out
    assert "target: 'fractions:Fraction' lacks the methods num_tokens, dummy_inputs, hidden_size, prefix_tokens" in out


def test_doctor_checks_that_classes_can_match(site, capsys):
    """A class that is named by another path than where it is defined would never match, and is a problem."""
    _write_changed(site, "fake-a", classes="('decimal:Fraction',)")
    _write_changed(site, "fake-b", classes="('math:pi',)")
    _write_changed(site, "fake-c", classes="('statistics:Fraction',)")
    assert main(["plugins", "doctor"]) == 1
    out = capsys.readouterr().out
    assert "classes: can't import 'decimal:Fraction'" in out
    assert "classes: 'math:pi' is not a class" in out
    assert "classes: 'statistics:Fraction' is defined as 'fractions:Fraction'" in out


def test_doctor_checks_references(site, capsys):
    """A processor that no plugin registers is a problem; one of a plugin that this plugin depends on is not."""
    code = (
        "return [ProcessorSpec(name='image', modality='vision', target=__name__ + ':Images')]\n"
        "class Images(ProcessorInterface):\n    def build(self, context):\n        return dict"
    )
    write_plugin(site, "fake-base", hook("register_processors", code))
    code = "from dataclasses import replace\n" + _encoder(processor="'image'")
    write_plugin(site, "fake-a", code, requires=("cornstarch-core", "Fake_Base>=0.1"))
    write_plugin(site, "fake-b", code)
    assert main(["plugins", "doctor"]) == 1
    out = capsys.readouterr().out
    assert "fake-a 0.1.0: ok (" in out
    assert "problem: encoders 'clip': processor: no processor for 'image'" in out
    assert "fake-b 0.1.0: 1 problem (" in out


def test_doctor_leaves_a_blocked_dependency_blocked(site, capsys, monkeypatch):
    """A plugin is tried out together with the plugins that it depends on, unless the environment blocks them."""
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
    """A plugin whose entry point imports torch gets a warning, and the exit code stays 0."""
    (site / "torch.py").write_text("")
    write_plugin(site, "fake-a", "import torch\n" + sound("clip"))
    assert main(["plugins", "doctor"]) == 0
    assert (
        "  warning: importing fake_a imports torch; name heavy things in the specs instead" in capsys.readouterr().out
    )


def test_doctor_does_not_count_targets_as_heavy_imports(site, capsys):
    """Targets may import torch."""
    (site / "torch.py").write_text(HEADER)
    _write_changed(site, "fake-a", target="'torch:Fake'")
    assert main(["plugins", "doctor"]) == 0
    assert "warning" not in capsys.readouterr().out
