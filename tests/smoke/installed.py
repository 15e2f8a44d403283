"""Try the installed packages out, outside the checkout: python installed.py with-plugin|without-plugin FOLDER.

The first run composes a model, runs, saves and loads it, and asks the command line. The second, after the vision plugin
was uninstalled, sees it gone, and what loading the saved model says then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import cornstarch_core

CORNSTARCH = Path(sys.executable).with_name("cornstarch")


def ask(*arguments: str) -> str:
    """What ``cornstarch plugins …`` prints; it must succeed."""
    output = subprocess.run([CORNSTARCH, "plugins", *arguments], check=True, capture_output=True, text=True).stdout
    print(f"$ cornstarch plugins {' '.join(arguments)}\n{output}", end="")
    return output


def plugins() -> list[str]:
    """The ids of the installed plugins."""
    return [info["id"] for info in json.loads(ask("list", "--json"))]


def compose():
    """A tiny CLIP and a tiny Llama."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    clip = CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **sizes))
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
    mllm = cornstarch_core.MultimodalModel(
        encoders={"vision": cornstarch_core.ModalEncoderModule(clip, callbacks="llava")}, language_model=llama
    )
    mllm.set_modality_token_ids({"vision": 49})
    return mllm.eval()


def with_plugin(folder: str) -> None:
    """Compose, run, save, load; and the command line knows the plugin."""
    import torch

    assert "cornstarch-vision" in plugins()
    assert "llava" in ask("show", "cornstarch-vision")
    assert "cornstarch-vision 0" in ask("doctor")
    mllm = compose()
    inputs = {"input_ids": torch.tensor([[1, 49, 49, 49, 49, 2]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    with torch.no_grad():
        logits = mllm(**inputs).logits
        mllm.save_pretrained(folder)
        loaded = cornstarch_core.MultimodalModel.from_pretrained(folder).eval()
        assert torch.equal(loaded(**inputs).logits, logits)
    first, second = (model.generate(**inputs, max_new_tokens=3, do_sample=False) for model in (mllm, loaded))
    assert torch.equal(first, second)
    print("composed, run, saved and loaded: equal")


def without_plugin(folder: str) -> None:
    """The plugin is gone, the core works, and loading says what to install."""
    from cornstarch_core.errors import MissingPluginError

    assert "cornstarch-vision" not in plugins()
    ask("list")
    major, minor = map(int, cornstarch_core.__version__.split(".")[:2])
    assert major == 0
    said = ""
    try:
        cornstarch_core.MultimodalModel.from_pretrained(folder)
    except MissingPluginError as error:
        said = str(error)
    print(f"MissingPluginError: {said}")
    assert f'pip install "cornstarch-vision>=0.{minor},<0.{minor + 1}"' in said


if __name__ == "__main__":
    checkout = Path(cornstarch_core.__file__).parent.parent
    assert "site-packages" in checkout.parts, f"this tries what is installed, not {checkout}"
    {"with-plugin": with_plugin, "without-plugin": without_plugin}[sys.argv[1]](sys.argv[2])
