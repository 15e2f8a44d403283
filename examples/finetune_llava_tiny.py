"""Writes the models and data of finetune_llava.py --tiny: small checkpoints and data in the layouts of the large ones.

The images are scikit-learn's scans of handwritten digits; the checkpoints have random weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import PartialState
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CAPTION, QUESTION, PARITY, GREETING = "Describe it .", "Which digit is this ?", "Is it even ?", "Who are you ?"
SETTINGS = {
    "pretrain_batch": 32,
    "finetune_batch": 32,
    "batch": 16,
    "epochs": 6,
    "lora_rank": 16,
    "pretrain_lr": 5e-3,
    "finetune_lr": 5e-3,
    "projector_lr": 2e-3,
    "max_length": 64,
    "workers": 0,
    "log_every": 2,
    "save_every": 50,
    "show_every": 50,
}
"""These values replace the defaults, which are for large models."""
CHAT = (
    "{% for message in messages %}<{{ message.role }}> {% for part in message.content %}"
    "{% if part.type == 'image' %}<vision> {% else %}{{ part.text }} {% endif %}{% endfor %}<end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def write_tiny(args: argparse.Namespace) -> None:
    """Write all files below ``args.output`` unless they exist, and set their paths in ``args``."""
    folder = args.output / "tiny"
    with PartialState().main_process_first():
        if not (folder / "finetune.json").exists():
            write(folder)
    args.language_model, args.vision = str(folder / "llama"), str(folder / "clip")
    args.pretrain_data, args.finetune_data = folder / "pretrain.json", folder / "finetune.json"
    args.pretrain_images = args.finetune_images = folder / "images"


def write(folder: Path) -> None:
    """Write both checkpoints, then images and JSON as LLaVA publishes them. The last file marks that all exist."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "llama")
    make_llama(tokenizer).save_pretrained(folder / "llama")
    make_clip().save_pretrained(folder / "clip")
    digits = load_digits()
    names = [write_image(folder / "images", i, scan) for i, scan in enumerate(digits.images)]
    captions = [caption(i, names[i], digits.target[i]) for i in range(600)]
    (folder / "pretrain.json").write_text(json.dumps(captions))
    (folder / "finetune.json").write_text(
        json.dumps([conversation(i, names[i], digits.target[i]) for i in range(600, 1400)])
    )


def write_image(folder: Path, index: int, scan) -> str:
    """Write a scan as an image of 32 x 32 pixels; return its path below the folder."""
    name = f"digits/{index:06}.png"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((scan * 255 / 16).astype("uint8")).resize((32, 32), Image.Resampling.BICUBIC)
    image.convert("RGB").save(folder / name)
    return name


def caption(index: int, image: str, digit: int) -> dict:
    """Make an entry as in blip_laion_cc_sbu_558k.json: an instruction before or after the image, and a caption."""
    value = f"<image>\n{CAPTION}" if index % 2 else f"{CAPTION}\n<image>"
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": f"the digit {WORDS[digit]}"}]
    return {"id": f"{index:09}", "image": image, "conversations": turns}


def conversation(index: int, image: str, digit: int) -> dict:
    """Make an entry as in llava_v1_5_mix665k.json: two questions about an image, or one in ten without an image."""
    if index % 10 == 0 and index < 1370:
        turns = [{"from": "human", "value": GREETING}, {"from": "gpt", "value": "a small model"}]
        return {"id": f"text_{index}", "model": "", "conversations": turns}
    turns = [
        {"from": "human", "value": f"<image>\n{QUESTION}"},
        {"from": "gpt", "value": f"{WORDS[digit]}"},
        {"from": "human", "value": PARITY},
        {"from": "gpt", "value": "no" if digit % 2 else "yes"},
    ]
    return {"id": index, "image": image, "conversations": turns}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer for the words of these conversations."""
    special = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
    words = f"{CAPTION} {QUESTION} {PARITY} {GREETING} the digit a small model yes no".split()
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words, *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens=special[3:],
        chat_template=CHAT,
    )


def make_clip() -> CLIPVisionModel:
    """Make a CLIP vision encoder for 16 patches, with random weights."""
    config = CLIPVisionConfig(
        image_size=32, patch_size=8, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return CLIPVisionModel(config)


def make_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make a Llama of two layers, with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)
