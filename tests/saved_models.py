"""Composed models and folders that tests of saving and loading share."""

from __future__ import annotations

import json

import tiny
import torch
from torch import nn

from cornstarch_core import ModalEncoderModule, MultimodalModel


def logits(model: MultimodalModel) -> torch.Tensor:
    """The logits of a model for one image."""
    return model.eval()(**tiny.prompt(1), pixel_values=tiny.pixels(1)).logits


def with_own_parts() -> MultimodalModel:
    """A model with a custom encoder and a custom projector, with weights that no initialiser would draw."""
    projector = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64))
    nn.init.uniform_(projector[1].weight)
    encoder = ModalEncoderModule(tiny.ToyEncoder(), projector, hidden_size=32, input_names=["signal"])
    model = MultimodalModel(encoders={"toy": encoder}, language_model=tiny.llama())
    model.set_modality_token_ids({"toy": tiny.IMAGE_TOKEN})
    return model.eval()


class Newline(nn.Module):
    """A callback with a parameter, which it adds to every feature."""

    def __init__(self):
        super().__init__()
        self.newline = nn.Parameter(torch.zeros(64))

    def forward(self, inputs, output):
        """Add the newline."""
        output.last_hidden_state = output.last_hidden_state + self.newline
        return output


def edit(folder, **changes) -> None:
    """Change entries of a folder's ``config.json``."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
