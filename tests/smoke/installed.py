"""Test the installed packages outside the checkout: python installed.py with|without PLUGIN FOLDER.

``with`` composes a model that needs the plugin, runs, saves and loads it, and runs the commands. ``without``, after the
plugin was uninstalled, checks that the plugin is not found, and that loading the saved model says what to install.
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
    """Run ``cornstarch plugins …``, which must succeed, and return what it prints."""
    output = subprocess.run([CORNSTARCH, "plugins", *arguments], check=True, capture_output=True, text=True).stdout
    print(f"$ cornstarch plugins {' '.join(arguments)}\n{output}", end="")
    return output


def plugins() -> list[str]:
    """The ids of the installed plugins."""
    return [info["id"] for info in json.loads(ask("list", "--json"))]


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}


def clip():
    """A tiny CLIP that gives four features, and its inputs."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    module = CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **SIZES))
    return module, {"pixel_values": torch.randn(1, 3, 16, 16)}


def wav2vec2():
    """A tiny wav2vec 2.0 that gives four features, and its inputs."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    return Wav2Vec2Model(Wav2Vec2Config(conv_dim=(8,) * 7, **SIZES)), {"input_values": torch.randn(1, 1500)}


PLUGINS = {
    "cornstarch-vision": (clip, "llava", "pixel_shuffle"),
    "cornstarch-audio": (wav2vec2, "audio", "frame_stack"),
}
"""An encoder, a callback and a projector type of each plugin."""


def compose(plugin: str):
    """A model with an encoder that the plugin describes, and inputs for it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    build, callback, _ = PLUGINS[plugin]
    module, media = build()
    mllm = cornstarch_core.MultimodalModel(
        encoders={"media": cornstarch_core.ModalEncoderModule(module, callbacks=callback)},
        language_model=LlamaForCausalLM(LlamaConfig(vocab_size=50, **SIZES)),
    )
    mllm.set_modality_token_ids({"media": 49})
    return mllm.eval(), {"input_ids": torch.tensor([[1, 49, 49, 49, 49, 2]]), **media}


def with_plugin(plugin: str, folder: str) -> None:
    """The model runs, is saved and loaded, and the commands find the plugin."""
    import torch

    assert plugin in plugins()
    assert PLUGINS[plugin][2] in ask("show", plugin)
    assert f"{plugin} 0" in ask("doctor")
    mllm, inputs = compose(plugin)
    with torch.no_grad():
        logits = mllm(**inputs).logits
        mllm.save_pretrained(folder)
        loaded = cornstarch_core.MultimodalModel.from_pretrained(folder).eval()
        assert torch.equal(loaded(**inputs).logits, logits)
    first, second = (model.generate(**inputs, max_new_tokens=3, do_sample=False) for model in (mllm, loaded))
    assert torch.equal(first, second)
    print(f"{plugin}: composed, run, saved and loaded: equal")


def without_plugin(plugin: str, folder: str) -> None:
    """The plugin is not found, the core works, and loading says what to install."""
    from cornstarch_core.errors import MissingPluginError

    assert plugin not in plugins()
    ask("list")
    major, minor = map(int, cornstarch_core.__version__.split(".")[:2])
    assert major == 0
    said = ""
    try:
        cornstarch_core.MultimodalModel.from_pretrained(folder)
    except MissingPluginError as error:
        said = str(error)
    print(f"MissingPluginError: {said}")
    assert f'pip install "{plugin}>=0.{minor},<0.{minor + 1}"' in said


if __name__ == "__main__":
    checkout = Path(cornstarch_core.__file__).parent.parent
    assert "site-packages" in checkout.parts, f"this tries what is installed, not {checkout}"
    {"with": with_plugin, "without": without_plugin}[sys.argv[1]](*sys.argv[2:])
