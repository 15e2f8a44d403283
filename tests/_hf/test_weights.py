"""Weights that were handed in stay as they are, and files of weights have the names that other libraries read."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, initialization

from cornstarch_core._hf.weights import keep_weights, shared_memory_refused, use_published_names
from cornstarch_core.errors import CheckpointError


class Parent(PreTrainedModel):
    """A model of transformers around a module, whose ``post_init`` draws weights; another layer shares the first ones."""

    config_class = PreTrainedConfig

    def __init__(self, child: nn.BatchNorm1d) -> None:
        super().__init__(PreTrainedConfig())
        self.child = child
        self.tied = nn.Module()
        self.tied.weight = child.weight
        self.tied.register_buffer("running_mean", child.running_mean)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            initialization.constant_(tensor, 7)


@pytest.mark.parametrize("kept", [True, False])
def test_post_init_of_a_parent_draws_only_weights_that_are_not_kept(kept):
    """Marked parameters and buffers keep their values, also if another layer shares them."""
    child = nn.BatchNorm1d(3)
    before = tiny.copies(child)
    if kept:
        keep_weights(child)
    Parent(child)
    assert tiny.same(child, before) == kept


def test_published_names_have_the_prefix_of_published_checkpoints(tmp_path):
    """CLIP's files say ``vision_model.``, as on the hub, and load again with equal weights."""
    clip = tiny.clip()
    use_published_names(clip)
    clip.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"vision_model"}
    assert tiny.same(CLIPVisionModel.from_pretrained(tmp_path), tiny.copies(clip))


def test_tensors_that_share_memory_are_a_checkpoint_error(tmp_path):
    """transformers' ``RuntimeError`` about shared tensors becomes an error that says what to do."""
    llama = tiny.llama()
    layers = llama.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with (
        pytest.raises(CheckpointError, match="share memory in a way that a folder can't hold; untie them: "),
        shared_memory_refused(),
    ):
        llama.save_pretrained(tmp_path)


def test_any_other_error_of_writing_stays_what_it_is(tmp_path):
    """Errors about something else come through, and without an error nothing happens."""
    with pytest.raises(RuntimeError, match="no space left"), shared_memory_refused():
        raise RuntimeError("no space left")
    llama = tiny.llama()
    with shared_memory_refused():
        llama.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path).lm_head.weight, llama.lm_head.weight)
