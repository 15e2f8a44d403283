"""Runs examples/finetune_llava.py at a realistic size, and measures tokens per second, peak memory and the loss.

    python benchmarks/finetune_at_size.py              a CLIP-L/336 and a Llama of 1.2 billion parameters
    python benchmarks/finetune_at_size.py --size tiny  checks that the script runs; the speed means nothing

Weights are random and data are generated, so nothing is downloaded. The script writes results to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from finetune_llava_tiny import make_tokenizer  # noqa: E402

CLIP_L_336 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
LLAMA_1B = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def write(folder: Path, size: str, samples: int) -> None:
    """Write checkpoints with random weights, and bright and dark images with a question that each answers."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    tokenizer = make_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    clip = CLIP_L_336 if size == "large" else {**TINY, "image_size": 32, "patch_size": 8}
    llama = LLAMA_1B if size == "large" else {**TINY, "vocab_size": len(tokenizer)}
    tokenizer.save_pretrained(folder / "llama")
    LlamaForCausalLM(LlamaConfig(**llama, **ids)).to(dtype).save_pretrained(folder / "llama")
    CLIPVisionModel(CLIPVisionConfig(**clip)).to(dtype).save_pretrained(folder / "clip")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    entries = []
    for index in range(samples):
        bright = int(random.integers(2))
        noise = random.integers(0, 128, (clip["image_size"], clip["image_size"], 3), dtype=np.uint8)
        Image.fromarray(noise + np.uint8(127 * bright)).save(folder / "images" / f"{index}.png")
        turns = [
            {"from": "human", "value": "<image>\nIs it even ?"},
            {"from": "gpt", "value": "yes" if bright else "no"},
        ]
        entries.append({"id": index, "image": f"{index}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(entries))


def train(folder: Path, options: argparse.Namespace, *more: str) -> dict:
    """Run the example in a separate process, and return its measurements."""
    paths = {"language-model": "llama", "vision": "clip"}
    paths |= {f"{stage}-data": "data.json" for stage in ("pretrain", "finetune")}
    paths |= {f"{stage}-images": "images" for stage in ("pretrain", "finetune")}
    arguments = [part for name, path in paths.items() for part in (f"--{name}", str(folder / path))]
    steps = ("--max-steps", str(options.steps), "--log-every", "5", "--save-every", "1000000", "--workers", "4")
    batch = tuple(
        part for name in ("batch", "pretrain-batch", "finetune-batch") for part in (f"--{name}", str(options.batch))
    )
    output = folder / "output"
    script = str(ROOT / "examples" / "finetune_llava.py")
    subprocess.run([sys.executable, script, *arguments, *steps, *batch, *more, "--output", str(output)], check=True)
    return json.loads((output / "metrics.json").read_text())


def main() -> None:
    """Write the data, train, and write the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=["large", "tiny"], default="large")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.size, samples=24 + options.steps * options.batch)
        metrics = train(Path(folder), options)
    found = {"device": device, "size": options.size, "batch": options.batch, "steps": options.steps, **metrics}
    found |= {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(found, indent=2))
    if options.size == "large":
        file = ROOT / "benchmarks" / "results" / f"finetune_llava-{device.lower().replace(' ', '-')}.json"
        file.write_text(json.dumps(found, indent=2) + "\n")
        print(f"written to {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
