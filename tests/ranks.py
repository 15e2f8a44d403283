"""Two processes make one training step: python ranks.py KIND FOLDER RANK; see distributed/test_missing_modality.py.

Each process takes its share of a batch, and saves the gradients that it has after the step.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent))

import sounds
import two_modalities

from cornstarch_core.training import save_trained, sharding_units

WORLD = 2


MIXES = {
    "ddp": two_modalities.MIXES,
    "fsdp2": two_modalities.MIXES,
    "accelerate": ("v t|t t", "v t|a a"),
    "data-dependent calls": ("a a v|t a", "v t|a a"),
}
"""The batches for each kind; in the last kind, the number of calls of the audio encoder differs between ranks."""


def compose(kind: str) -> torch.nn.Module:
    """The model, the same in every process; for accelerate, its encoders are frozen."""
    model = two_modalities.compose(two_modalities.wav2vec2 if kind == "data-dependent calls" else sounds.whisper)
    if kind == "accelerate":
        model.set_trainable(encoders={"vision": (False, True), "audio": (False, True)})
    return model.train()


def shard(model: torch.nn.Module) -> None:
    """Shard with torch alone."""
    mesh = init_device_mesh("cpu", (WORLD,))
    for unit in sharding_units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def shard_by_accelerate(model: torch.nn.Module) -> None:
    """Shard with accelerate's own function and the settings in examples/accelerate; its caller needs a GPU."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    os.environ.update({name: value for name, value in launched().items() if name.startswith("FSDP_")})
    one = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin()),
        device=torch.device("cpu"),
        mixed_precision="no",
        is_main_process=True,
        torch_device_mesh=None,
        parallelism_config=None,
    )
    fsdp2_prepare_model(one, model)


def launched(file: str = "fsdp2.yaml") -> dict[str, str]:
    """The environment variables that ``accelerate launch --config_file`` sets for its processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    config = Path(__file__).parents[1] / "examples" / "accelerate" / file
    given = launch_command_parser().parse_args(["--config_file", str(config), "script.py"])
    return prepare_multi_gpu_env(_validate_launch_command(given)[0])


def save(folder: Path, rank: int) -> None:
    """Save the logits, then the sharded model as a whole and its trained weights."""
    model = compose("accelerate").eval()
    with torch.no_grad():
        logits = model(**two_modalities.make_batch(model, "v a t")).logits
    shard_by_accelerate(model)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    model.save_pretrained(folder / "whole", state_dict=whole, is_main_process=rank == 0)
    save_trained(model, folder / "trained", is_main_process=rank == 0)
    torch.save(logits, folder / f"logits-{rank}.pt")


def step(kind: str, mix: str, rank: int) -> dict[str, torch.Tensor]:
    """The gathered gradients of one step."""
    model = compose(kind)
    batches = [two_modalities.make_batch(model, share) for share in mix.split("|")]
    learned = sum(two_modalities.learned(batch) for batch in batches)
    run = model
    if kind == "ddp":
        run = DistributedDataParallel(model)
    elif kind == "accelerate":
        shard_by_accelerate(model)
    else:
        shard(model)
    # each rank's loss is WORLD / learned times its sum over tokens, so the mean over ranks is the mean over all tokens
    run(**batches[rank], num_items_in_batch=learned / WORLD).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in gradients.items()}


def main(kind: str, folder: str, rank: int) -> None:
    """Run all mixes in one process."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", timedelta(seconds=60), world_size=WORLD, rank=rank
    )
    for mix in MIXES[kind]:
        torch.save(step(kind, mix, rank), Path(folder) / f"{mix.replace('|', '_')}-{rank}.pt")
        distributed.barrier()
    if kind == "accelerate":
        save(Path(folder), rank)
        distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
