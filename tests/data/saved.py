"""Make the folder saved-0.1, which was done once, with version 0.1: python tests/data/saved.py.

Later versions must read it as it is; never make it again to let a test pass.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import words
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor

FOLDER = Path(__file__).parent / "saved-0.1"
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
TEXT = ["What is in <vision> and <vision>?", "A dog."]


def images() -> list[list[Image.Image]]:
    """Two pictures for the first text, none for the second."""
    values = np.arange(2 * 20 * 30 * 3).reshape(2, 20, 30, 3)
    return [[Image.fromarray((one % 251).astype(np.uint8)) for one in values], []]


def main() -> None:
    """A tower, a callback, a projector and adapters; its logits beside it."""
    torch.manual_seed(0)
    tokenizer = words.tokenizer()
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES))
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    clip = CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **SIZES))
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(clip, callbacks="llava")},
        language_model=get_peft_model(llama, lora),
        init_projector_type="mlp",
    ).eval()
    processor = MultimodalProcessor(tokenizer=tokenizer, model=model)
    with torch.no_grad():
        logits = model(**processor(text=TEXT, images=images(), padding=True)).logits
    model.save_pretrained(FOLDER)
    processor.save_pretrained(FOLDER)
    save_file({"logits": logits}, FOLDER / "expected.safetensors")


if __name__ == "__main__":
    main()
