"""One rank among several: whose encoders run without media, and whose plugins differ.

Here this process takes the part of one rank or the other; tests/distributed starts processes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager

import pytest
import tiny
import torch
from fake_plugins import isolated, sound, write_plugin
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers a backend without other processes

from cornstarch_core import ModalEncoderModule
from cornstarch_core.errors import PluginError
from cornstarch_core.modeling.distributed import check_plugins, dummy_forward, needs_dummy_forward
from cornstarch_core.plugins import reset_registry


@pytest.fixture
def as_rank() -> Callable[..., AbstractContextManager[None]]:
    """Makes this process one rank of a group; all ranks of a test meet in one store."""
    store = distributed.HashStore()

    @contextmanager
    def join(rank: int = 0, world_size: int = 2):
        distributed.init_process_group("fake", store=store, rank=rank, world_size=world_size)
        try:
            yield
        finally:
            distributed.destroy_process_group()

    return join


# --- encoders without media -------------------------------------------------------------------------------------------


def test_an_encoder_that_trains_runs_on_every_rank(as_rank, mllm):
    """A batch of text alone has the loss of one process, and gradients of zero in place of none."""
    batch = tiny.prompt(0)
    expected = mllm(**batch).loss
    with as_rank():
        loss = mllm(**batch).loss
        loss.backward()
    assert mllm.vision_encoder.runs == 1
    assert torch.equal(loss, expected)
    assert mllm.vision_encoder.projector.projection.weight.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("world_size", "trains", "with_gradients", "needed"),
    [(2, True, True, True), (2, False, True, False), (2, True, False, False), (1, True, True, False)],
    ids=["trains", "frozen", "no gradients", "alone"],
)
def test_a_dummy_forward_is_needed_where_other_ranks_reduce_gradients(
    as_rank, world_size, trains, with_gradients, needed
):
    """Frozen weights, evaluation and a single rank wait for nobody."""
    module = nn.Linear(2, 2).requires_grad_(trains)
    with as_rank(world_size=world_size), torch.set_grad_enabled(with_gradients):
        assert needs_dummy_forward(module) == needed


@pytest.mark.parametrize("placement", [Shard(0), Replicate()], ids=str)
def test_sharded_weights_need_one_even_if_they_are_frozen(as_rank, placement):
    """Each rank holds a part, which the others gather whenever they run the module."""
    with as_rank(), torch.no_grad():
        weight = distribute_tensor(torch.zeros(4, 2), init_device_mesh("cpu", (2,)), [placement])
        module = nn.Linear(2, 4)
        module.weight = nn.Parameter(weight, requires_grad=False)
        assert needs_dummy_forward(module)


def test_the_zero_stays_zero_where_the_sum_of_features_overflows():
    """In half precision the sum of many features is infinite, and infinity times zero is not a number."""
    projector = nn.Linear(1, tiny.WIDTH)
    nn.init.constant_(projector.bias, 60000)
    encoder = ModalEncoderModule(None, projector, hidden_size=1).half()
    encoder.complete("vision", tiny.WIDTH)
    assert encoder(**encoder.info.dummy_inputs())[0].sum().isinf()
    zero = dummy_forward(encoder)
    assert zero == 0
    zero.backward()
    assert projector.bias.grad.abs().sum() == 0


def test_dummy_inputs_are_made_on_the_device_of_the_encoder(mllm):
    """They are small tensors of the host, and the weights may be elsewhere."""
    assert dummy_forward(mllm.vision_encoder.to("meta")).device.type == "meta"


# --- plugins ----------------------------------------------------------------------------------------------------------


def test_the_plugins_of_the_first_rank_are_those_that_all_others_need(as_rank, tmp_path, monkeypatch):
    """A rank with another plugin is refused, and the variable that the error names is a way out."""
    with isolated(tmp_path) as site:
        write_plugin(site, "fake-a", sound("a"))
        with as_rank(0):
            check_plugins()
            check_plugins()  # composes a second model
        write_plugin(site, "fake-b", sound("b"))
        reset_registry()
        with as_rank(1), pytest.raises(PluginError, match="fake-b 0.1.0 is not active on rank 0.*CORNSTARCH_DISABLE"):
            check_plugins()
        monkeypatch.setenv("CORNSTARCH_DISABLE_PLUGINS", "fake-b")
        reset_registry()
        with as_rank(1):
            check_plugins()
