"""The section "Add a hook" of CONTRIBUTING.md: its steps give hooks that the core collects, looks up and calls."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_plugins import clean_path, write_plugin
from pages import ROOT, Block, blocks, read

import cornstarch_core

BLOCKS = [block for block in blocks(read(ROOT / "CONTRIBUTING.md")) if block.language == "python"]
EDITED = ("specs.py", "hookspecs.py")
"""The files that the steps add definitions to. Blocks for other files of the core are calls."""

START = """
import sys
sys.path[:] = {path!r}
from cornstarch_core.plugins import registry


def call(code, package, **names):
    exec(code, names | {{"__package__": package}})


"""


def of_file(block: Block) -> str:
    """The path of the file in the core that a block is for, or ``""``."""
    return block.title.removeprefix("cornstarch_core/") if block.title.startswith("cornstarch_core/") else ""


@pytest.fixture
def changed(tmp_path) -> str:
    """Code that starts a process with a changed copy of the core, and with the plugin of the page."""
    core = tmp_path / "changed" / "cornstarch_core"
    shutil.copytree(Path(cornstarch_core.__file__).parent, core, ignore=shutil.ignore_patterns("__pycache__"))
    for block in BLOCKS:
        if of_file(block) in EDITED:
            with open(core / of_file(block), "a", encoding="utf-8") as file:
                file.write("\n\n" + block.code)
    (plugin,) = (block for block in BLOCKS if not of_file(block))
    write_plugin(tmp_path / "site", plugin.title.removesuffix(".py"), plugin.code)
    write_plugin(tmp_path / "site", "wrong-spec", plugin.code.replace("AugmentationSpec(", "dict("))
    write_plugin(tmp_path / "site", "wrong-argument", plugin.code.replace("saved(folder)", "saved(place)"))
    return START.format(path=[str(core.parent), *clean_path(tmp_path / "site")])


def run(code: str) -> list[str]:
    """The lines that a new process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def calls(file: str) -> Block:
    """The block for a file that the steps add a call to."""
    (block,) = (block for block in BLOCKS if of_file(block) == file)
    return block


def test_the_page_has_a_block_for_every_step():
    """There are two definitions of hooks, one of a spec, a call of each hook, and a plugin with both."""
    files = [of_file(block) for block in BLOCKS]
    assert [file for file in files if file in EDITED] == ["specs.py", "hookspecs.py", "hookspecs.py"]
    assert [file for file in files if file not in EDITED] == ["processing/media.py", "", "saving/save.py"]
    assert all((ROOT / block.title).exists() for block in BLOCKS if of_file(block))


def test_a_new_registering_hook_is_collected_and_looked_up(changed):
    """The new kind is listed, the plugin's spec is found by name, and its target works as in the page."""
    look_up = calls("processing/media.py").code + "\nprint(item)\n"
    assert run(
        changed
        + "print(registry().kinds())\n"
        + "print(registry().names('augmentations'))\n"
        + f"call({look_up!r}, 'cornstarch_core.processing', item='abc')\n"
    ) == [
        "['augmentations', 'callbacks', 'checkpoints', 'encoders', 'processors', 'projectors']",
        "['my-plugin/flip']",
        "cba",
    ]


def test_a_new_event_hook_is_called(changed):
    """The implementation gets the arguments that it declares."""
    happens = calls("saving/save.py").code
    code = f"call({happens!r}, 'cornstarch_core.saving', model='a model', folder='a folder')\n"
    assert run(changed + code) == ["saved to a folder"]


def test_implementations_of_new_hooks_are_checked(changed):
    """A spec of another type and an unknown argument are refused, and the messages name the new hooks."""
    reasons = run(
        changed + "registry().activate()\nprint(*(info.explain() for info in registry().plugins()), sep='\\n')"
    )
    assert reasons == [
        "my-plugin active",
        "wrong-argument failed to load: PluginLoadError: cornstarch_model_saved asks for an unknown argument 'place'; "
        "its arguments: model, folder",
        "wrong-spec failed to load: PluginLoadError: cornstarch_register_augmentations returned a value of type dict at "
        "[0], expected AugmentationSpec",
    ]


def test_the_commands_know_the_new_kind(changed):
    """``plugins show`` lists what the plugin registers, and the doctor imports its target."""
    out = run(
        changed
        + "from cornstarch_core.cli import main\n"
        + "main(['plugins', 'show', 'my-plugin'])\nmain(['plugins', 'doctor', 'my-plugin'])\n"
    )
    assert out[-3:-1] == ["augmentations:", "  flip  vision, made by my_plugin:Flip"]
    assert out[-1].startswith("my-plugin 0.1.0: ok (1 target; ")
