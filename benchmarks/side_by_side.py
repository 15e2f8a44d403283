"""A composition beside its peer, with the same weights: time of a step and of generating, and what autograd saves.

Both run in one process and take turns, so that a slow moment hits both. The figures to read are the ratios. Must not
know which models they are.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm


def step(model: torch.nn.Module, batch: dict) -> None:
    """One forward and backward."""
    model(**batch).loss.backward()
    model.zero_grad()


def generate(model: torch.nn.Module, batch: dict) -> None:
    """Sixteen new tokens, greedily."""
    prompt = {name: value for name, value in batch.items() if name != "labels"}
    model.generate(**prompt, max_new_tokens=16, min_new_tokens=16, do_sample=False)


def seconds(run: Callable[[], None], device: str) -> float:
    """How long ``run`` takes, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def saved_bytes(model: torch.nn.Module, batch: dict) -> int:
    """What autograd keeps for backward, each storage once."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()) and tensor
        ),
        lambda tensor: tensor,
    ):
        model(**batch).loss.backward()
    model.zero_grad()
    return sum(kept.values())


def compare(peer: torch.nn.Module, composed: torch.nn.Module, batches: tuple[dict, dict], options) -> dict:
    """Medians of alternating runs, and their ratios (below one: the composition is cheaper)."""
    results: dict = {}
    for name, run, repeats in (("train_step_s", step, options.steps), ("generate_s", generate, options.steps // 4)):
        times: tuple[list, list] = ([], [])
        for _ in tqdm(range(repeats + 1), desc=name):
            for model, batch, kept in zip((peer, composed), batches, times, strict=True):
                kept.append(seconds(lambda model=model, batch=batch, run=run: run(model, batch), options.device))
        results[name] = [statistics.median(kept[1:]) for kept in times]
    results["saved_bytes"] = [saved_bytes(model, batch) for model, batch in zip((peer, composed), batches, strict=True)]
    return {name: {"peer": a, "composed": b, "ratio": round(b / a, 4)} for name, (a, b) in results.items()}


def run(
    description: str | None, sizes: Iterable[str], build: Callable[..., Any], make_batch: Callable[..., Any]
) -> None:
    """Parse the command line, measure, print, write.

    Args:
        description: of the script.
        sizes: that it knows.
        build: ``(size, device, dtype) -> (peer, composition)``.
        make_batch: ``(peer, device, dtype) -> (batch for the peer, the same for the composition)``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="small", choices=list(sizes))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    peer, composed = build(options.size, options.device, dtype)
    batches = make_batch(peer, options.device, dtype)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread(s)"
    report = {
        "peer": type(peer).__name__, "size": options.size, "device": device, "dtype": str(dtype).removeprefix("torch."),
        "samples": len(batches[0]["input_ids"]), "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "results": compare(peer, composed, batches, options),
    }  # fmt: skip
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
