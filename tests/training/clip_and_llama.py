"""A small model of CLIP and Llama, and one step of training, for the tests of this folder."""

from __future__ import annotations

import tiny
import torch

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel


def compose(
    callbacks: ModalCallbacks | str | None = None, language_model: torch.nn.Module | None = None
) -> MultimodalModel:
    """CLIP is frozen; the projector and the language model are trainable."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(), callbacks=callbacks)},
        language_model=language_model or tiny.llama(),
    )
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    model.set_trainable(encoders={"vision": (False, True)})
    return model


def step(model: torch.nn.Module, images: int = 1, tokens: int = tiny.PATCHES) -> None:
    """One backward pass; with CLS an image has one token more than patches."""
    media = {"pixel_values": tiny.pixels(images)} if images else {}
    model(**tiny.prompt(images, tokens=tokens), **media).loss.backward()
