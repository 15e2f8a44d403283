"""Processes that work together see the same plugins; ranks that don't are told, before anything is trained.

That ranks with the same plugins compose is what every other test of two ranks begins with.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from fake_plugins import isolated, sound, write_plugin
from torch.utils.data import DataLoader, Dataset

import cornstarch_core
from cornstarch_core import distributed
from cornstarch_core.distributed import check_plugins
from cornstarch_core.plugins import registry, reset_registry

RANK = """
import sys
from torch import distributed
from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import PluginError

sys.path[:0] = sys.argv[3:]
import tiny

distributed.init_process_group("gloo", f"file://{sys.argv[1]}/meeting", world_size=2, rank=int(sys.argv[2]))
for turn in range(2):  # rank 0 composes first
    if turn == distributed.get_rank():
        try:
            MultimodalModel(encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=tiny.llama())
            print("composed")
        except PluginError as error:
            print(error)
    distributed.barrier()
distributed.destroy_process_group()
"""
TESTS = str(Path(tiny.__file__).parent)


def run_ranks(folder: Path, *paths: list[str]) -> list[str]:
    """What each of two ranks says that composes a model, with these folders in front of its path."""
    commands = [[sys.executable, "-c", RANK, str(folder), str(rank), *path, TESTS] for rank, path in enumerate(paths)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    said = []
    try:
        for process in processes:
            out, error = process.communicate(timeout=240)
            assert process.returncode == 0, error
            said.append(out.strip())
    finally:
        for process in processes:
            process.kill()
    return said


def test_ranks_with_other_plugins_are_told_which(tmp_path):
    """The rank that composes second names both versions, and what only one of them has; nobody waits for anybody."""
    for rank, version in enumerate(("0.1.0", "0.2.0")):
        write_plugin(tmp_path / f"rank{rank}", "fake-both", sound("a"), version=version)
        write_plugin(tmp_path / f"rank{rank}", f"fake-only-{rank}", sound("b"))
    write_plugin(tmp_path / "rank1", "fake-only-0", "raise RuntimeError('no GPU')")
    first, second = run_ranks(tmp_path, [str(tmp_path / "rank0")], [str(tmp_path / "rank1")])
    assert first == "composed"
    assert second == (
        "rank 1 has other plugins than rank 0: fake-both is 0.2.0 here and 0.1.0 on rank 0; "
        "fake-only-0 0.1.0 is not active here (fake-only-0 failed to load: RuntimeError: no GPU); "
        "fake-only-1 0.1.0 is not active on rank 0. "
        "Install the same on all of them, or leave out what differs with CORNSTARCH_DISABLE_PLUGINS."
    )


def test_a_store_that_does_not_answer_is_no_reason_to_stop(monkeypatch):
    """As when the rank that keeps it has ended; and some backends have none."""
    from torch.distributed import Store, distributed_c10d

    monkeypatch.setattr(distributed.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.distributed, "get_rank", lambda: 1)
    for store in (None, Store()):
        monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda store=store: store)
        check_plugins()


def test_one_process_has_nobody_to_differ_from(monkeypatch):
    """Without a process group, nothing is activated and nothing is asked."""
    monkeypatch.setattr(distributed, "registry", lambda: pytest.fail("asked"))
    check_plugins()


def test_the_fingerprint_holds_what_models_are_composed_with(tmp_path):
    """The core and the active plugins, with their versions; not what failed."""
    with isolated(tmp_path) as site:
        write_plugin(site, "Fake_A", sound("clip"), version="1.2")
        write_plugin(site, "fake-b", "raise RuntimeError")
        assert registry().fingerprint() == {"cornstarch-core": cornstarch_core.__version__, "fake-a": "1.2"}


class Fingerprints(Dataset):
    """Its one item is the fingerprint of the process that fetches it."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return registry().fingerprint()


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder at the front of the path, beside all that is installed; its modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    for name in (name for name, file in files.items() if file.startswith(str(tmp_path))):
        del sys.modules[name]
    monkeypatch.undo()
    reset_registry()


def test_spawned_workers_of_a_data_loader_see_the_same_plugins(beside, monkeypatch):
    """Also what was put onto the path at run time, and what the environment leaves out."""
    write_plugin(beside, "spawned-a", sound("a"))
    write_plugin(beside, "spawned-b", sound("b"))
    monkeypatch.setenv("CORNSTARCH_DISABLE_PLUGINS", "spawned-b")
    reset_registry()
    here = registry().fingerprint()
    assert here["spawned-a"] == "0.1.0"
    assert "spawned-b" not in here
    loader = DataLoader(Fingerprints(), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert list(loader) == [here]
