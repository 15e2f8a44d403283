"""Two processes of one training step: python ranks.py KIND FOLDER RANK, started by test_missing_modality.py.

Each takes its share of a batch, and leaves the gradients that it holds after the step.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent.parent))

import two_modalities

WORLD = 2


def shard(model: torch.nn.Module) -> None:
    """Each encoder, each projector and each block of the language model, then the rest."""
    mesh = init_device_mesh("cpu", (WORLD,))
    for encoder in model.encoders.values():
        fully_shard(encoder.module, mesh=mesh)
        fully_shard(encoder.projector, mesh=mesh)
    for block in model.language_model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def step(kind: str, mix: str, rank: int) -> dict[str, torch.Tensor]:
    """The gradients of one step, whole."""
    model = two_modalities.compose()
    model.train()
    batches = [two_modalities.make_batch(model, share) for share in mix.split("|")]
    learned = sum(two_modalities.learned(batch) for batch in batches)
    run = model
    if kind == "ddp":
        run = DistributedDataParallel(model)
    else:
        shard(model)
    # a rank's loss is its sum over tokens; the mean over ranks is then the mean over all tokens
    run(**batches[rank], num_items_in_batch=learned / WORLD).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in gradients.items()}


def main(kind: str, folder: str, rank: int) -> None:
    """One process, all mixes."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/{kind}-meeting", timedelta(seconds=60), world_size=WORLD, rank=rank
    )
    for mix in two_modalities.MIXES:
        torch.save(step(kind, mix, rank), Path(folder) / f"{kind}-{mix.replace('|', '_')}-{rank}.pt")
        distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
