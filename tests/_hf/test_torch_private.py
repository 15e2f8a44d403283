"""Private names of torch: which tensors may be read ahead of time, and the store of a process group."""

from __future__ import annotations

import tiny
import torch
from ops import Ops
from torch import distributed
from torch._subclasses import FakeTensorMode
from torch.distributed import distributed_c10d

from cornstarch_core._hf.torch_private import default_store, is_readable


def test_only_plain_tensors_on_the_host_are_readable():
    """A tensor on another device, or of another type, may cost time to read."""
    assert is_readable(torch.zeros(2))
    assert is_readable(torch.zeros(2, 2)[:, 0])
    assert not is_readable(torch.zeros(2, device="meta"))
    assert not is_readable(torch.nn.Parameter(torch.zeros(2)))


def test_nothing_is_readable_while_torch_only_traces():
    """Transforms, fake tensors and the compiler hold no values, and reading them would raise or break the graph."""
    seen = {}

    def look(name, tensor):
        seen[name] = is_readable(tensor)
        return tensor.sum()

    torch.func.grad(lambda tensor: look("grad", tensor))(torch.ones(2))
    torch.func.vmap(lambda tensor: look("vmap", tensor))(torch.ones(2, 2))
    torch.func.functionalize(lambda tensor: look("functionalize", tensor))(torch.ones(2))
    look("functional", torch._to_functional_tensor(torch.ones(2)))
    with FakeTensorMode():
        look("fake", torch.ones(2))
    with Ops():
        look("mode", torch.ones(2))
    assert seen == dict.fromkeys(("grad", "vmap", "functionalize", "functional", "fake", "mode"), False)
    traced = torch.compile(lambda tensor: tensor + 1 if is_readable(tensor) else tensor - 1, backend="eager")
    assert traced(torch.zeros(1)) == -1


def test_transforms_and_traces_of_torch_are_not_looked_into(mllm):
    """A model runs under gradients as a function, with fake tensors and under functionalisation."""
    ids = tiny.prompt(1, 1)["input_ids"]
    positions = (ids.flatten() == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
    inputs = {"vision": {"pixel_values": tiny.pixels(2), "positions": positions}}
    weights = dict(mllm.named_parameters())

    def loss(weights, ids):
        return torch.func.functional_call(mllm, weights, (ids,), {"encoder_inputs": inputs, "labels": ids % 100}).loss

    mllm(ids, labels=ids % 100, encoder_inputs=inputs).loss.backward()
    gradients = torch.func.grad(loss)(weights, ids)
    name = "vision_encoder.projector.projection.weight"
    torch.testing.assert_close(gradients[name], weights[name].grad)
    with torch.no_grad():
        assert torch.allclose(torch.func.functionalize(loss)(weights, ids), loss(weights, ids))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert loss(weights, ids).shape == ()


def test_the_store_of_a_process_group_is_the_one_that_it_was_made_with(tmp_path, monkeypatch):
    """What one rank writes another reads; where torch has no such function, there is no store."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        found = default_store()
        found.set("key", "value")
        assert distributed_c10d._get_default_store().get("key") == b"value"
        monkeypatch.delattr(distributed_c10d, "_get_default_store")
        assert default_store() is None
    finally:
        monkeypatch.undo()
        distributed.destroy_process_group()
