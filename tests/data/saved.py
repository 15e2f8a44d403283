"""Writes the files that all versions of a minor version have to read: python tests/data/saved.py, once for each.

The files are a model, its trained weights, and the public names with their arguments. Every version with the same minor
number must read the first two without changes, and keep the third. Never write them again to make a test pass.
"""

from __future__ import annotations

import importlib
import inspect
import json
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

import cornstarch_core
from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor, errors
from cornstarch_core.plugins.activation import spec_types
from cornstarch_core.training import save_trained

MINOR = ".".join(cornstarch_core.__version__.split(".")[:2])
FOLDER = Path(__file__).parent / f"saved-{MINOR}"
MODULES = ("cornstarch_core", "cornstarch_core.training", "cornstarch_core.interop", "cornstarch_core.testing")
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
TEXT = ["What is in <vision> and <vision>?", "A dog."]


def images() -> list[list[Image.Image]]:
    """Two images for the first text, none for the second."""
    values = np.arange(2 * 20 * 30 * 3).reshape(2, 20, 30, 3)
    return [[Image.fromarray((one % 251).astype(np.uint8)) for one in values], []]


def main() -> None:
    """Save a model with an encoder, a callback, a projector and adapters, and its logits."""
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
    save_trained(model, FOLDER / "trained")
    (FOLDER / "public.json").write_text(json.dumps(public(), indent=1) + "\n")


def public() -> dict[str, dict]:
    """What other code may rely on: names with their arguments, base classes of errors, and methods of interfaces."""
    names = [(module, name) for module in MODULES for name in importlib.import_module(module).__all__]
    found = {f"{module}.{name}": getattr(importlib.import_module(module), name) for module, name in names}
    interfaces = [cls.interface for cls in spec_types().values()]
    return {
        "arguments": {name: _arguments(value) for name, value in found.items()},
        "errors": {name: sorted(base.__name__ for base in getattr(errors, name).__mro__) for name in errors.__all__},
        "interfaces": {
            f"{cls.__name__}.{name}": [*inspect.signature(method).parameters][1:]  # without self
            for cls in interfaces
            for name, method in _methods(cls).items()
        },
    }


def _arguments(value: object) -> list[str]:
    methods = {"": value} if not inspect.isclass(value) else {"": value, **_methods(value)}
    return sorted(
        f"{method}({name})"
        for method, function in methods.items()
        if callable(function)
        for name in inspect.signature(function).parameters
        if name not in ("self", "cls", "args", "kwargs")
    )


def _methods(cls: type) -> dict[str, object]:
    return {
        name: getattr(cls, name)
        for name, value in vars(cls).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod)))
    }


if __name__ == "__main__":
    main()
