"""Tiny real models of several families, a tokenizer of a few words, and a counter of operations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch_core.specs import EncoderContext

CROP, PATCH = 32, 8  # a crop has a grid of 4x4 patches
WIDTH = 48  # of the language models
WORDS = ["<pad>", "<s>", "</s>", "?", "what", "is", "in", "the", "picture", "a", "cat", "and", "dog", "USER:", "A:"]

VISION = {
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", {}),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", {}),
    "dinov2": ("Dinov2Config", "Dinov2Model", {}),
    "registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {"num_register_tokens": 2}),
    "vit": ("ViTConfig", "ViTModel", {}),
}
PREFIX = {"clip": 1, "siglip": 0, "dinov2": 1, "registers": 3, "vit": 1}
TEXT = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 2}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"num_key_value_heads": 2}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_positions": 1024}),
}


def _build(config_name: str, model_name: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, model_name)(getattr(transformers, config_name)(**settings)).eval()


def encoder(family: str, **changes: Any) -> Any:
    """Three blocks of width 32."""
    config, model, own = VISION[family]
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
    return _build(config, model, {**sizes, "image_size": CROP, "patch_size": PATCH, **own, **changes})


def language_model(family: str, **changes: Any) -> Any:
    """Two blocks; 0 pads, 1 begins, 2 ends."""
    config, model, own = TEXT[family]
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    special = {"vocab_size": len(WORDS) + 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return _build(config, model, {**sizes, **special, **own, **changes})


def words() -> PreTrainedTokenizerFast:
    """One id a word."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "?"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


class Composition:
    """A model and its processor."""

    def __init__(self, vision: str = "clip", text: str = "llama", seed: int = 0, **options: Any) -> None:
        tower, llm = encoder(vision), language_model(text)
        torch.manual_seed(seed)
        part = ModalEncoderModule(tower, callbacks="llava-next", callback_options=options)
        self.model = MultimodalModel(encoders={"vision": part}, language_model=llm, init_projector_type="mlp").eval()
        self.processor = MultimodalProcessor(tokenizer=words(), model=self.model, tokens={"vision": "<image>"})

    def batch(self, *samples: list[Any]) -> Any:
        """One question a sample, about these images or images of these sizes ``(height, width)``."""
        images = [[picture(one) if isinstance(one, tuple) else one for one in sample] for sample in samples]
        texts = [" ".join(["USER:", *["<image>"] * len(sample), "what is in the picture"]) for sample in samples]
        return self.processor(text=texts, images=images)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A random RGB image of ``(height, width)``."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def describe(vision: str = "clip", **changes: Any) -> EncoderContext:
    """The context that the core gives plugins; ``changes`` are of the encoder's config."""
    config = encoder(vision, **changes).config
    return EncoderContext(
        key="vision",
        config=config,
        hidden_size=config.hidden_size,
        text_hidden_size=WIDTH,
        prefix_tokens=PREFIX[vision],
        layers="encoder.layers",
    )


class Operations(TorchDispatchMode):
    """Records operations: their names, those that copy or compute, and those that make the host wait for a device."""

    VIEWS = ("view", "slice", "split", "expand", "unsqueeze", "detach", "alias", "squeeze", "transpose", "t.default")
    SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal.", "item")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.syncs: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        indices = args[1] if "index." in name or "index_put" in name else []
        by_mask = any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in indices)
        if by_mask or any(sync in name for sync in self.SYNCS):
            self.syncs.append(name)
        if not any(f"aten.{view}" in name for view in self.VIEWS):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="session")
def tower() -> Callable[..., Any]:
    """``tower(family, **config) -> encoder``."""
    return encoder


@pytest.fixture(scope="session")
def context() -> Callable[..., EncoderContext]:
    """``context(family, **config) -> EncoderContext``."""
    return describe


@pytest.fixture(scope="session")
def compose() -> type[Composition]:
    """``compose(vision, text, **options)``, with ``.model``, ``.processor`` and ``.batch(sizes, ...)``."""
    return Composition


@pytest.fixture(scope="session")
def image() -> Callable[..., Image.Image]:
    """``image((height, width), seed)``."""
    return picture


@pytest.fixture(scope="session")
def tokenizer() -> Callable[[], PreTrainedTokenizerFast]:
    """``tokenizer()``, one id a word."""
    return words


@pytest.fixture
def operations() -> Operations:
    """A context manager with ``.names`` and ``.syncs``."""
    return Operations()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny models are quicker so, and random weights the same in every run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
