"""A composed LLaVA-1.5 beside Hugging Face's own class, with the same weights: time of a step, and what autograd saves.

    python benchmarks/llava_step.py --device cpu --steps 20

Both run in one process and take turns, so that a slow moment hits both. The figures to read are the ratios.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from cornstarch_core import ModalEncoderModule, MultimodalModel

SIZES = {
    "small": {"vision": (64, 192, 4, 12), "text": (192, 4, 12), "vocabulary": 2000},
    "large": {"vision": (336, 1024, 24, 16), "text": (2048, 16, 16), "vocabulary": 32000},
}
IMAGES, TEXT = 8, 32


def build(size: str, device: str, dtype: torch.dtype) -> tuple[LlavaForConditionalGeneration, MultimodalModel]:
    """The peer, and a composition of its very modules. The vision tower is frozen in both."""
    pixels, width, layers, heads = SIZES[size]["vision"]
    text_width, text_layers, text_heads = SIZES[size]["text"]
    vocabulary = SIZES[size]["vocabulary"]
    tower = CLIPVisionConfig(
        image_size=pixels, patch_size=14 if size == "large" else 8, hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=layers, num_attention_heads=heads,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=vocabulary, hidden_size=text_width, intermediate_size=4 * text_width, num_hidden_layers=text_layers,
        num_attention_heads=text_heads, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    peer = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=tower, text_config=text, image_token_id=vocabulary - 1)
    ).to(device, dtype)
    with torch.device("meta"):
        llama = LlamaForCausalLM(text)
    llama.model, llama.lm_head = peer.model.language_model, peer.lm_head
    encoder = ModalEncoderModule(peer.model.vision_tower, peer.model.multi_modal_projector, callbacks="llava")
    composed = MultimodalModel(encoders={"vision": encoder}, language_model=llama)
    composed.set_modality_token_ids({"vision": vocabulary - 1})
    composed.set_trainable(encoders={"vision": (False, True)}, language_model=True)
    return peer, composed


def make_batch(peer: LlavaForConditionalGeneration, device: str, dtype: torch.dtype) -> tuple[dict, dict]:
    """The same samples for the peer, and with positions for the composition; one image a sample."""
    vision, token_id = peer.config.vision_config, peer.config.image_token_id
    patches = (vision.image_size // vision.patch_size) ** 2
    ids = torch.randint(3, token_id, (IMAGES, TEXT + patches))
    ids[:, 4 : 4 + patches] = token_id
    labels = ids.masked_fill(ids == token_id, -100)
    positions = (ids.flatten() == token_id).nonzero().squeeze(1)
    pixels = torch.randn(IMAGES, 3, vision.image_size, vision.image_size, dtype=dtype)
    shared = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    shared = {name: tensor.to(device) for name, tensor in shared.items()}
    media = {"pixel_values": pixels.to(device), "positions": positions.to(device)}
    return {**shared, "pixel_values": media["pixel_values"]}, {**shared, "encoder_inputs": {"vision": media}}


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


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="small", choices=list(SIZES))
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
        "size": options.size, "device": device, "dtype": str(dtype).removeprefix("torch."), "images": IMAGES,
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "results": compare(peer, composed, batches, options),
    }  # fmt: skip
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
