"""Tests of examples/finetune_llava.py: it trains the right parts, resumes a run, and runs on two ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytest.importorskip("matplotlib")  # installed by the extra "demo"
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = str(EXAMPLES / "finetune_llava.py")
WATCHDOG = 240  # seconds


def run(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run the script in a new process, or in several with a launcher."""
    command = [sys.executable, *launcher, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    """The output folder and the printed text of a short run."""
    folder = tmp_path_factory.mktemp("finetune")
    ended = run("--tiny", "--max-steps", "8", "--save-every", "4", "--show-every", "4", "--output", str(folder))
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, ended.stdout


def test_the_loss_falls_in_both_stages_and_trained_weights_load(done):
    """Eight steps reduce the loss of each stage, and a new model with the trained weights gives the same answers."""
    folder, _ = done
    metrics = json.loads((folder / "metrics.json").read_text())
    for stage in ("projector", "trained"):
        first, last = metrics["stages"][stage]["loss"]
        assert last < first
        assert metrics["stages"][stage]["tokens_per_second"] > 0
    assert metrics["reloaded_equal"] is True
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_tiny_data_have_the_layout_of_llavas_files(done):
    """The entries have ids of both kinds, some have no image, and all their images exist."""
    entries = json.loads((done[0] / "tiny" / "finetune.json").read_text())
    assert {type(entry["id"]) for entry in entries} == {int, str}
    assert {"image" in entry for entry in entries} == {True, False}
    assert all((done[0] / "tiny" / "images" / one["image"]).exists() for one in entries if "image" in one)
    assert {turn["from"] for entry in entries for turn in entry["conversations"]} == {"human", "gpt"}


def test_each_stage_trains_its_parts(done):
    """The first stage trains the projector, the second also LoRA; CLIP and the language model's own weights stay."""
    folder, said = done
    first, second = (load_file(folder / name / "trained.safetensors").keys() for name in ("projector", "trained"))
    assert {name.rpartition(".projector.")[0] for name in first} == {"vision_encoder"}
    assert set(first) < set(second)
    assert all("lora_" in name for name in set(second) - set(first))
    assert "vision.projector" in said  # the audit's table
    assert ", wanted " in said


def test_entries_with_a_missing_image_are_left_out_and_listed(done, monkeypatch, tmp_path, capsys):
    """An entry whose image is missing is left out of the data, and a file in the output folder names it."""
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
def test_a_second_start_resumes_the_run(done):
    """Finished stages are loaded, an unfinished stage resumes from its checkpoint, and other settings are refused."""
    folder, _ = done
    answers = (folder / "answers.json").read_text()
    (folder / "trained.json").unlink()  # as if the run had stopped in the second stage
    refused = run("--tiny", "--max-steps", "9", "--output", str(folder))
    assert refused.returncode == 1
    assert "a run with other settings" in refused.stderr
    ended = run("--tiny", "--max-steps", "8", "--output", str(folder))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "projector: trained already" in ended.stdout
    assert f"trained: going on from {folder / 'checkpoints' / 'trained' / 'checkpoint-8'}" in ended.stdout
    assert (folder / "answers.json").read_text() == answers


@pytest.mark.slow
def test_the_script_runs_on_two_ranks(tmp_path):
    """torchrun trains on two ranks, which do not always both have images, and one rank prints the result."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    ended = run("--tiny", "--max-steps", "3", "--batch", "2", "--output", str(tmp_path), launcher=launcher)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (tmp_path / "trained" / "trained.safetensors").exists()
    assert ended.stdout.count("look at") == 1


def test_missing_arguments_are_named():
    """Without --tiny the script requires all paths, and its error names the missing arguments."""
    ended = run("--language-model", "a", "--vision", "b")
    assert ended.returncode == 2
    assert "give --pretrain-data, --pretrain-images, --finetune-data, --finetune-images; or --tiny" in ended.stderr
