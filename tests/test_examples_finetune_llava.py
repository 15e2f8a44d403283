"""The recipe of LLaVA's two stages: runs, goes on where it was, also on two ranks, and trains what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytest.importorskip("matplotlib")  # of the extra "demo"
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = str(EXAMPLES / "finetune_llava.py")
WATCHDOG = 240  # seconds


def run(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """The script in a process of its own, or in several."""
    command = [sys.executable, *launcher, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    """A short run: its folder and what it said."""
    folder = tmp_path_factory.mktemp("finetune")
    ended = run("--tiny", "--max-steps", "8", "--save-every", "4", "--show-every", "4", "--output", str(folder))
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, ended.stdout


def test_the_loss_falls_in_both_stages_and_the_result_comes_back(done):
    """Eight steps each; a fresh composition with what was trained answers the same."""
    folder, _ = done
    metrics = json.loads((folder / "metrics.json").read_text())
    for stage in ("projector", "trained"):
        first, last = metrics["stages"][stage]["loss"]
        assert last < first
        assert metrics["stages"][stage]["tokens_per_second"] > 0
    assert metrics["reloaded_equal"] is True
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_data_are_in_the_layout_that_llava_publishes(done):
    """Ids of both kinds, samples without an image, and images beside the file."""
    entries = json.loads((done[0] / "tiny" / "finetune.json").read_text())
    assert {type(entry["id"]) for entry in entries} == {int, str}
    assert {"image" in entry for entry in entries} == {True, False}
    assert all((done[0] / "tiny" / "images" / one["image"]).exists() for one in entries if "image" in one)
    assert {turn["from"] for entry in entries for turn in entry["conversations"]} == {"human", "gpt"}


def test_each_stage_trains_its_parts(done):
    """The projector alone; then LoRA, too. CLIP and the language model's own weights stay."""
    folder, said = done
    first, second = (load_file(folder / name / "trained.safetensors").keys() for name in ("projector", "trained"))
    assert {name.rpartition(".projector.")[0] for name in first} == {"vision_encoder"}
    assert set(first) < set(second)
    assert all("lora_" in name for name in set(second) - set(first))
    assert "vision.projector" in said  # the audit's table
    assert ", wanted " in said


def test_entries_without_their_image_are_left_out_and_listed(done, monkeypatch, tmp_path, capsys):
    """They would end a run in its middle; the samples to look at are the last ones that are whole."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import finetune_llava

    tiny = done[0] / "tiny"
    entries = json.loads((tiny / "finetune.json").read_text())
    last = max(index for index, one in enumerate(entries) if "image" in one)
    entries[last]["image"] = "gone.png"
    (tmp_path / "data.json").write_text(json.dumps(entries))
    data = finetune_llava.usable(tmp_path / "data.json", tiny / "images", tmp_path / "out")
    assert list(data.indices) == [index for index in range(len(entries)) if index != last]
    (line,) = (tmp_path / "out" / "left-out-data.txt").read_text().splitlines()
    assert line.endswith(f"there is no image {tiny / 'images' / 'gone.png'}")
    assert f"data.json: 1 of {len(entries)} entries are left out" in capsys.readouterr().out


@pytest.mark.slow
def test_started_again_it_goes_on(done):
    """Stages that are done are loaded, one that is not goes on from its checkpoint."""
    folder, _ = done
    answers = (folder / "answers.json").read_text()
    (folder / "trained.json").unlink()  # as if it had been stopped in the second stage
    refused = run("--tiny", "--max-steps", "9", "--output", str(folder))
    assert refused.returncode == 1
    assert "a run with other settings" in refused.stderr
    ended = run("--tiny", "--max-steps", "8", "--output", str(folder))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "projector: trained already" in ended.stdout
    assert f"trained: going on from {folder / 'checkpoints' / 'trained' / 'checkpoint-8'}" in ended.stdout
    assert (folder / "answers.json").read_text() == answers


@pytest.mark.slow
def test_two_ranks_run_it_together(tmp_path):
    """By torchrun; one rank at a time has samples without an image."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    ended = run("--tiny", "--max-steps", "3", "--batch", "2", "--output", str(tmp_path), launcher=launcher)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (tmp_path / "trained" / "trained.safetensors").exists()
    assert ended.stdout.count("look at") == 1


def test_what_is_missing_is_named():
    """Without --tiny all paths are needed, and have to be there."""
    ended = run("--language-model", "a", "--vision", "b")
    assert ended.returncode == 2
    assert "give --pretrain-data, --pretrain-images, --finetune-data, --finetune-images; or --tiny" in ended.stderr
