"""Saving: what a folder holds, what replaces what in it, and what is refused."""

from __future__ import annotations

import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from saved_models import logits
from transformers import PreTrainedModel

import cornstarch_core
from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import CheckpointError


def test_the_folder_holds_safetensors_and_names_that_follow_the_tree(mllm, tmp_path):
    """Weights are in safetensors files, under the names of the state dict; no path of this machine is saved."""
    mllm.language_model.config._name_or_path = "/home/someone/llama"
    mllm.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    with safe_open(tmp_path / "model.safetensors", framework="pt") as tensors:
        assert set(tensors.keys()) == set(mllm.state_dict())
    assert "someone" not in (tmp_path / "config.json").read_text()


def test_a_copied_folder_loads(mllm, tmp_path):
    """A copy of the folder loads after the original is removed."""
    mllm.save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path / "b")), logits(mllm))


def test_a_model_in_shards_loads(mllm, tmp_path):
    """A model over the shard size is written in several files, which replace an old single file."""
    mllm.save_pretrained(tmp_path)
    mllm.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path), tiny.copies(mllm))


def test_variants_lie_side_by_side_and_replace_only_themselves(mllm, tmp_path):
    """Saving one variant keeps the other; saving it again in shards removes its old file."""
    mllm.save_pretrained(tmp_path)
    plain = tiny.copies(mllm)
    with torch.no_grad():
        mllm.vision_encoder.projector.projection.bias += 1
    mllm.save_pretrained(tmp_path, variant="fp16")
    with torch.no_grad():
        mllm.vision_encoder.projector.projection.bias += 1
    mllm.save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path), plain)
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path, variant="fp16"), tiny.copies(mllm))


def test_a_tied_language_model_may_be_wrapped_and_merged_after_composing(tmp_path):
    """Tied weights are found again each time that the model is saved."""
    from peft import LoraConfig, get_peft_model

    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=tiny.llama(tie_word_embeddings=True)
    )
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model.language_model = get_peft_model(model.language_model, config)
    model.save_pretrained(tmp_path / "wrapped")
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path / "wrapped")), logits(model))
    model.language_model = model.language_model.merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path / "merged")), logits(model))


def test_saving_over_a_model_keeps_other_files(mllm, tmp_path):
    """Files and folders that do not belong to the model stay."""
    folder = tmp_path / "model"
    mllm.save_pretrained(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "logs").mkdir()
    (folder / "logs" / "log").write_text("also mine")
    with torch.no_grad():
        mllm.vision_encoder.projector.projection.bias += 1
    mllm.save_pretrained(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "logs" / "log").read_text() == "also mine"
    assert tiny.same(MultimodalModel.from_pretrained(folder), tiny.copies(mllm))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_crash_while_saving_keeps_the_old_model(mllm, tmp_path, monkeypatch):
    """The old files are unchanged, and no other folder lies beside them."""
    folder = tmp_path / "model"
    mllm.save_pretrained(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    import transformers.modeling_utils as modeling

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(modeling, "safe_save_file", crash)
    mllm.set_modality_token_ids({"vision": 7})
    with pytest.raises(KeyboardInterrupt):
        mllm.save_pretrained(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tensors_that_share_memory_are_refused(mllm, tmp_path):
    """A projector that shares a weight with another part is refused, and nothing is written."""
    head = mllm.vision_encoder.projector.projection
    head.weight = mllm.vision_encoder.module.encoder.layers[0].mlp.fc2.weight
    with pytest.raises(CheckpointError, match="share memory in a way that a folder can't hold; untie them"):
        mllm.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_module_that_its_config_does_not_describe_is_refused(mllm, tmp_path):
    """A model without one of the layers that its config describes would not load again."""
    mllm.language_model.model.layers = mllm.language_model.model.layers[:1]
    with pytest.raises(CheckpointError, match=r"language_model: its config does not describe its weights \(.*layers.1"):
        mllm.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_that_would_lose_a_tensor_is_refused(mllm, tmp_path, monkeypatch):
    """If transformers writes fewer tensors than the state dict has, nothing is replaced."""
    save = PreTrainedModel.save_pretrained

    def lossy(self, *args, **kwargs):
        state = {name: tensor for name, tensor in self.state_dict().items() if "lm_head" not in name}
        save(self, *args, state_dict=state, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lossy)
    with pytest.raises(CheckpointError, match=r"1 tensors would be lost \(language_model.lm_head.weight, …\)"):
        mllm.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


ORDER = ["model", "saving.save", "saving.describe", "saving", "modeling", "config", "plugins", "_hf"]
"""Modules and packages of the core that take part in saving, from the top down."""


@cache
def place_in_order(file: str) -> int | None:
    """Where in :data:`ORDER` a file is; ``None`` if it is not one of the core's."""
    core = Path(cornstarch_core.__file__).parent
    if not Path(file).is_relative_to(core):
        return None
    parts = Path(file).relative_to(core).with_suffix("").parts
    return next(ORDER.index(name) for name in (".".join(parts), parts[0]) if name in ORDER)


def test_saving_walks_down_once(mllm, tmp_path):
    """No function calls back into a module above its own; ``transformers`` in between does not count."""
    climbs = []

    def watch(frame, event, _argument):
        end = place_in_order(frame.f_code.co_filename)
        if event != "call" or end is None:
            return
        caller = frame.f_back
        while caller is not None and place_in_order(caller.f_code.co_filename) is None:
            caller = caller.f_back
        if caller is not None and end < place_in_order(caller.f_code.co_filename):
            climbs.append(f"{caller.f_code.co_name} calls {frame.f_code.co_name}")

    mllm.save_pretrained(tmp_path)
    sys.setprofile(watch)
    try:
        mllm.save_pretrained(tmp_path)
    finally:
        sys.setprofile(None)
    assert climbs == []
