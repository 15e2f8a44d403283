"""Compares a composed model with its peer, with the same weights: time of a step and of generation, and saved bytes.

Both run in one process in alternating steps, so a slowdown of the machine affects both. The ratios are the result. This
module must not know which models it compares.
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
    """Run one forward and one backward pass."""
    model(**batch).loss.backward()
    model.zero_grad()


def generate(model: torch.nn.Module, batch: dict) -> None:
    """Generate 16 new tokens greedily."""
    prompt = {name: value for name, value in batch.items() if name != "labels"}
    model.generate(**prompt, max_new_tokens=16, min_new_tokens=16, do_sample=False)


def seconds(run: Callable[[], None], device: str) -> float:
    """Measure the duration of ``run``, including the work on the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def saved_bytes(model: torch.nn.Module, batch: dict) -> int:
    """The bytes that autograd keeps for the backward pass; each storage counts once."""
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
    """The medians of alternating runs, and their ratios (below one: the composed model is cheaper)."""
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
    """Parse the command line, measure, and print and write the results.

    Args:
        description: the description of the script.
        sizes: the names of the sizes that the script supports.
        build: ``(size, device, dtype) -> (peer, composed model)``.
        make_batch: ``(peer, device, dtype) -> (batch for the peer, the same batch for the composed model)``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="small", choices=list(sizes))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads")
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
