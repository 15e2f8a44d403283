"""Processes that train together must have the same plugins; composing raises an error on ranks that differ.

All other tests with two ranks show that ranks with the same plugins compose.
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
from cornstarch_core.modeling import distributed
from cornstarch_core.modeling.distributed import check_plugins
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
    """Compose a model on each of two ranks, with these folders at the front of its path, and return the printed texts."""
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


def test_ranks_with_different_plugins_get_an_error_that_names_them(tmp_path):
    """The second rank to compose names both versions and the plugins that one rank lacks, and no rank waits."""
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


def test_a_missing_store_or_one_that_fails_raises_no_error(monkeypatch):
    """The check is skipped if the rank with the store has ended, or if the backend has no store."""
    from torch.distributed import Store, distributed_c10d

    monkeypatch.setattr(distributed.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.distributed, "get_rank", lambda: 1)
    for store in (None, Store()):
        monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda store=store: store)
        check_plugins()


def test_one_process_does_not_check_its_plugins(monkeypatch):
    """Without a process group, the check does not call the registry."""
    monkeypatch.setattr(distributed, "registry", lambda: pytest.fail("asked"))
    check_plugins()


def test_the_fingerprint_has_the_versions_of_core_and_active_plugins(tmp_path):
    """The fingerprint maps the core and each active plugin to its version, without plugins that failed to load."""
    with isolated(tmp_path) as site:
        write_plugin(site, "Fake_A", sound("clip"), version="1.2")
        write_plugin(site, "fake-b", "raise RuntimeError")
        assert registry().fingerprint() == {"cornstarch-core": cornstarch_core.__version__, "fake-a": "1.2"}


class Fingerprints(Dataset):
    """A dataset whose only item is the fingerprint of the process that loads it."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return registry().fingerprint()


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder at the front of the path, in addition to installed plugins; its modules are removed afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    for name in (name for name, file in files.items() if file.startswith(str(tmp_path))):
        del sys.modules[name]
    monkeypatch.undo()
    reset_registry()


def test_spawned_workers_of_a_data_loader_see_the_same_plugins(beside, monkeypatch):
    """A worker has the plugin that was added to the path at run time, and not the one that the environment disables."""
    write_plugin(beside, "spawned-a", sound("a"))
    write_plugin(beside, "spawned-b", sound("b"))
    monkeypatch.setenv("CORNSTARCH_DISABLE_PLUGINS", "spawned-b")
    reset_registry()
    here = registry().fingerprint()
    assert here["spawned-a"] == "0.1.0"
    assert "spawned-b" not in here
    loader = DataLoader(Fingerprints(), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert list(loader) == [here]
