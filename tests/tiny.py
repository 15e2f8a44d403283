"""Tiny real models, built from configs without a network; a seed always gives the same random weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

VOCABULARY = 100
IMAGE_TOKEN = 100  # outside the embedding table on purpose
WIDTH = 64  # the hidden size of the language model
PATCHES = 16  # patches of an image of 32 x 32 pixels
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "image_size": 32,
    "patch_size": 8,
}


def clip(seed: int = 0, **changes: object) -> CLIPVisionModel:
    """Make a CLIP that gives 17 features of width 32 for an image: CLS and 16 patches."""
    torch.manual_seed(seed)
    return CLIPVisionModel(CLIPVisionConfig(**{**VISION, **changes})).eval()


def siglip(seed: int = 0, **changes: object) -> SiglipVisionModel:
    """Make a SigLIP that gives 16 features of width 32 for an image."""
    torch.manual_seed(seed)
    return SiglipVisionModel(SiglipVisionConfig(**{**VISION, **changes})).eval()


def llama(seed: int = 1, **changes: object) -> LlamaForCausalLM:
    """Make a Llama with two layers of width 64 and 100 tokens: 0 is padding, 1 is BOS, 2 is EOS."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


class ToyEncoder(nn.Module):
    """A plain module that maps ``(items, tokens, 5)`` to ``(items, tokens, 32)``, with a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 32)
        self.norm = nn.LayerNorm(32)
        self.scale = nn.Parameter(torch.full((1,), 3.0))
        self.register_buffer("offset", torch.tensor([7.0, 8.0]), persistent=False)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """Return a feature for each step of the signal."""
        return self.norm(self.linear(signal)) * self.scale + self.offset.sum()


def prompt(*images: int, tokens: int = PATCHES + 1, length: int = 60, token_id: int = IMAGE_TOKEN) -> dict:
    """Make a right-padded batch with ``images[i]`` images in sample ``i``: input_ids, attention_mask and labels."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for count in images:
        row = [1]
        for _ in range(count):
            row += [*torch.randint(3, VOCABULARY, (2,), generator=generator).tolist(), *[token_id] * tokens]
        row += torch.randint(3, VOCABULARY, (5,), generator=generator).tolist()
        rows.append(row)
    length = max(length, *(len(row) for row in rows)) if len(rows) > 1 else max(len(rows[0]), 0)
    input_ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    attention_mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    labels = input_ids.masked_fill((attention_mask == 0) | (input_ids == token_id), -100)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def pixels(count: int, seed: int = 3) -> torch.Tensor:
    """Make ``count`` random images, ``(count, 3, 32, 32)``."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def copies(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copy the state dict of a module, to compare it with later."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors of a module equal those copied before."""
    after = module.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
