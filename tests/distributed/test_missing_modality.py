"""Two ranks with different modalities do not hang, and get the gradients of one process with the whole batch."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import tiny
import torch
import two_modalities
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FSDPModule

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import CompositionError
from cornstarch_core.modeling.distributed import dummy_forward, needs_dummy_forward
from cornstarch_core.training import load_trained, sharding_units

WATCHDOG = 240  # seconds for all mixes; a process that hangs is stopped, and the test fails


@pytest.mark.parametrize("kind", ranks.MIXES)
def test_gradients_are_those_of_the_whole_batch(kind, tmp_path):
    """The gradients are equal if all ranks have media, if one or all have text only, and if their modalities differ."""
    run(kind, tmp_path)
    for mix in ranks.MIXES[kind]:
        model = ranks.compose(kind)
        batches = [two_modalities.make_batch(model, share) for share in mix.split("|")]
        learned = sum(map(two_modalities.learned, batches))
        for batch in batches:
            model(**batch, num_items_in_batch=learned).loss.backward()
        expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        for rank in range(ranks.WORLD):
            given = torch.load(tmp_path / f"{mix.replace('|', '_')}-{rank}.pt")
            assert given.keys() == {name for name in expected if "embed_positions" not in name}
            for name, gradient in given.items():
                whole = expected[name] if expected[name] is not None else torch.zeros_like(gradient)
                torch.testing.assert_close(gradient, whole, atol=1e-6, rtol=1e-5, msg=f"{mix}, rank {rank}: {name}")
    if kind == "accelerate":
        _saved_models_are_whole(tmp_path)


def _saved_models_are_whole(folder: Path) -> None:
    """The model and its trained weights, saved by ranks that each hold a shard, give the logits of the unsharded model."""
    logits = torch.load(folder / "logits-0.pt")
    fresh = two_modalities.compose()
    for encoder in fresh.encoders.values():
        torch.nn.init.zeros_(encoder.projector.projection.weight)
    for model in (MultimodalModel.from_pretrained(folder / "whole"), load_trained(fresh, folder / "trained")):
        with torch.no_grad():
            found = model.eval()(**two_modalities.make_batch(model, "v a t")).logits
        assert torch.equal(found, logits)


def run(kind: str, folder: Path) -> None:
    """Run one step for each mix in two processes."""
    command = [sys.executable, ranks.__file__, kind, str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(ranks.WORLD)
    ]
    try:
        said = [process.communicate(timeout=WATCHDOG)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(text[-3000:] for text in said)


def test_blocks_of_an_encoder_with_data_dependent_calls_are_not_sharded():
    """sharding_units leaves these blocks out; a model that shards them raises an error instead of waiting for ever."""
    model = two_modalities.compose(two_modalities.wav2vec2)
    units = {type(unit).__name__ for unit in sharding_units(model)}
    assert units == {"CLIPEncoderLayer", "CLIPVisionEmbeddings", "LlamaDecoderLayer"}
    batch = two_modalities.make_batch(model, "a t")
    layer = model.audio_encoder.module.encoder.layers[0]
    layer.__class__ = type("FSDPLayer", (FSDPModule, type(layer)), {})  # as fully_shard marks it
    with pytest.raises(CompositionError, match=r"audio: .*differently often.*\(Layer\).*sharding_units"):
        model(**batch)


def test_accelerate_reads_the_example_configs():
    """fsdp2.yaml shards the model without its frozen encoders, and ddp.yaml replicates it."""
    sharded, replicated = ranks.launched("fsdp2.yaml"), ranks.launched("ddp.yaml")
    assert sharded["ACCELERATE_USE_FSDP"] == "true"
    assert re.fullmatch(sharded["FSDP_IGNORED_MODULES"], "vision_encoder.module")
    assert not re.fullmatch(sharded["FSDP_IGNORED_MODULES"], "vision_encoder.projector")
    assert "ACCELERATE_USE_FSDP" not in replicated
    assert replicated["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_sharding_units_come_from_the_parts_also_with_peft():
    """Units are found inside PEFT wrappers; replicate= keeps a frozen encoder whole, and refuses one that trains."""
    model = two_modalities.compose()
    model.language_model = get_peft_model(model.language_model, LoraConfig(target_modules=["q_proj"]))
    model.audio_encoder.module = get_peft_model(model.audio_encoder.module, LoraConfig(target_modules=["q_proj"]))
    model.set_trainable(encoders={"vision": (False, True)})
    names = [type(unit).__name__ for unit in sharding_units(model, replicate=["vision.module"])]
    assert sorted(names) == ["LlamaDecoderLayer"] * 2 + ["WhisperEncoderLayer"] * 2
    whole = get_peft_model(two_modalities.compose(), LoraConfig(target_modules=r"language_model.*q_proj"))
    assert {type(unit).__name__ for unit in sharding_units(whole)} > set(names)
    with pytest.raises(ValueError, match="replicate= names audio.module, which trains"):
        sharding_units(model, replicate=["audio.module"])
    with pytest.raises(ValueError, match="replicate= names smell; choose from vision.module"):
        sharding_units(model, replicate=["smell"])


def test_one_process_does_not_run_the_encoder_of_a_missing_modality(mllm):
    """Without other ranks, the encoder of a missing modality does not run, and its weights get no gradient."""
    mllm.train()
    mllm(**tiny.prompt(0)).loss.backward()
    assert not needs_dummy_forward(mllm.vision_encoder)
    assert mllm.vision_encoder.runs == 0
    assert mllm.vision_encoder.projector.projection.weight.grad is None


def test_the_dummy_forward_gives_a_zero_that_depends_on_every_weight(mllm):
    """All weights that run get a gradient of zeros from the dummy forward."""
    output = dummy_forward(mllm.vision_encoder)
    assert output == 0
    output.backward()
    for name, parameter in mllm.vision_encoder.named_parameters():
        assert "post_layernorm" in name or not parameter.grad.any(), name


@pytest.mark.parametrize("callbacks", [None, "llava", "llava-next"])
def test_registered_callbacks_run_on_dummy_inputs(callbacks):
    """The dummy forward runs without callbacks and with each registered one; those of LLaVA-NeXT add image sizes."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(), callbacks=callbacks)}, language_model=tiny.llama()
    )
    assert dummy_forward(model.vision_encoder) == 0


def test_ready_made_embeddings_have_dummy_inputs():
    """The dummy forward runs for an encoder without a module, also in a pickled copy of the model."""
    model = MultimodalModel(encoders={"eeg": ModalEncoderModule(None, hidden_size=32)}, language_model=tiny.llama())
    assert dummy_forward(model.eeg_encoder) == 0
    assert dummy_forward(pickle.loads(pickle.dumps(model)).eeg_encoder) == 0


def test_an_unregistered_encoder_needs_a_callback_for_dummy_inputs():
    """Without ModalCallbacks(dummy_inputs=) the error names it; with it the dummy forward runs."""
    encoder = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal")
    MultimodalModel(encoders={"eeg": encoder}, language_model=tiny.llama())
    with pytest.raises(
        CompositionError, match=r"eeg: this rank has a batch without any.*ModalCallbacks\(dummy_inputs=f\)"
    ):
        dummy_forward(encoder)
    callbacks = ModalCallbacks(dummy_inputs=lambda inputs: {"signal": torch.zeros(1, 2, 5)})
    encoder = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal", callbacks=callbacks)
    MultimodalModel(encoders={"eeg": encoder}, language_model=tiny.llama())
    assert dummy_forward(encoder) == 0
