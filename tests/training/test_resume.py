"""Runs that are killed again and again end bitwise equal to an uninterrupted run; incomplete checkpoints are skipped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cornstarch_core.training import last_checkpoint

WATCHDOG = 240  # seconds for one run
KILLS = ("step:5", "save:6:optimizer.pt", "save:6:trainer_state.json", "save:9:config.json")
"""In the middle of a step, and in the middle of writing the optimizer, the last file of a checkpoint, and the model's config."""


def run(kind: str, folder: Path, *kill: str) -> subprocess.CompletedProcess:
    """Run the training script in a process."""
    folder.mkdir(exist_ok=True)
    script = Path(__file__).parents[1] / "training_run.py"
    return subprocess.run(
        [sys.executable, script, kind, folder, *kill], capture_output=True, text=True, timeout=WATCHDOG, check=False
    )


def losses(folder: Path) -> list[tuple[int, str]]:
    """``(step, loss)`` of every step in order; a resumed run repeats the steps after its checkpoint."""
    return [tuple(json.loads(line)) for line in (folder / "losses.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trainer", "sft"])
def test_a_run_that_is_killed_again_and_again_ends_the_same(kind, tmp_path):
    """After kill -9 in a step and in a save, each loss and the last weights are bitwise equal to the uninterrupted run's."""
    pytest.importorskip("datasets")
    if kind == "sft":
        pytest.importorskip("trl")
    whole = run(kind, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    for kill in KILLS:
        died = run(kind, tmp_path / "killed", kill)
        assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
    last = run(kind, tmp_path / "killed")
    assert last.returncode == 0, last.stderr[-3000:]
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert [step for step, _ in expected] == list(range(1, 10))
    assert [step for step, _ in found] == [1, 2, 3, 4, 4, 5, 6, 4, 5, 6, 4, 5, 6, 7, 8, 9, 7, 8, 9]
    assert set(found) == set(expected)
    assert float.fromhex(expected[-1][1]) < float.fromhex(expected[0][1])
    weights = [(tmp_path / name / "checkpoint-9" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def make(folder: Path, step: int) -> Path:
    """Write a complete checkpoint of one process."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"weight": torch.zeros(3)}, path / "model.safetensors")
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"a": 1}, path / name)
    (path / "trainer_state.json").write_text("{}")
    return path


def test_the_newest_complete_checkpoint_is_taken(tmp_path):
    """The largest step number counts, not the order of names; other folders are ignored."""
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10, 100):
        make(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / ".checkpoint-200.saving-x").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("trainer_state.json", None, "no trainer_state.json"),
        ("trainer_state.json", b'{"a', "trainer_state.json is cut off"),
        ("optimizer.pt", b"PK\x03\x04", "optimizer.pt is cut off"),
        ("rng_state.pth", b"", "rng_state.pth is cut off"),
        ("model.safetensors", b"\x50\x00\x00\x00\x00\x00\x00\x00{", "model.safetensors is cut off"),
    ],
)
def test_incomplete_checkpoints_are_skipped_with_a_warning(name, content, problem, tmp_path):
    """A checkpoint is incomplete if any of its files is missing or cut off."""
    whole, half = make(tmp_path, 3), make(tmp_path, 6)
    (half / name).unlink() if content is None else (half / name).write_bytes(content)
    with pytest.warns(UserWarning, match=rf"checkpoint-6 can't be resumed from \({problem}\)"):
        assert last_checkpoint(tmp_path) == str(whole)
    shutil.rmtree(whole)
    with pytest.warns(UserWarning, match="looking for an older one"):
        assert last_checkpoint(tmp_path) is None


def test_another_number_of_ranks_gives_a_warning(tmp_path, monkeypatch):
    """The checkpoint is taken, but the random numbers differ from those of an uninterrupted run."""
    path = make(tmp_path, 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="random states of 1 ranks, and this run has 2"):
        assert last_checkpoint(tmp_path) == str(path)
    (path / "rng_state.pth").unlink()
    for rank in range(2):
        torch.save({}, path / f"rng_state_{rank}.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert last_checkpoint(tmp_path) == str(path)


@pytest.mark.parametrize(("name", "problem"), [("optimizer.pt", "no optimizer"), ("model.safetensors", "no weights")])
def test_a_checkpoint_without_optimizer_or_weights_is_skipped(name, problem, tmp_path):
    """``save_only_model`` leaves checkpoints without an optimizer."""
    (make(tmp_path, 3) / name).unlink()
    with pytest.warns(UserWarning, match=problem):
        assert last_checkpoint(tmp_path) is None


def test_checkpoints_of_shards_count(tmp_path):
    """FSDP writes a folder for the weights and one for the optimizer."""
    path = make(tmp_path, 3)
    for name in ("model.safetensors", "optimizer.pt"):
        (path / name).unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0", "x.pt"):
        (path / name).mkdir()
    assert last_checkpoint(tmp_path) == str(path)
