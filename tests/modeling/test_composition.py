"""The tree of a composed model: a language model, and one encoder for each modality."""

from __future__ import annotations

import tiny
from torch import nn

from cornstarch_core import ModalEncoderModule, MultimodalModel


def compose(**encoders) -> MultimodalModel:
    """A model with these modules as encoders."""
    return MultimodalModel(
        encoders={key: ModalEncoderModule(module) for key, module in encoders.items()}, language_model=tiny.llama()
    ).eval()


def test_children_are_named_after_their_modality():
    """Beside ``language_model`` there is ``<key>_encoder``, with ``module`` and ``projector``."""
    model = compose(vision=tiny.clip(), whatever=tiny.siglip())
    assert {name for name, _ in model.named_children()} == {"vision_encoder", "whatever_encoder", "language_model"}
    assert model.encoders == {"vision": model.vision_encoder, "whatever": model.whatever_encoder}
    prefixes = {".".join(name.split(".")[:2]) for name in model.state_dict() if not name.startswith("language_model")}
    assert prefixes == {f"{key}_encoder.{part}" for key in ("vision", "whatever") for part in ("module", "projector")}


def test_encoders_keep_the_order_in_which_they_were_given():
    """All ranks run their encoders in this order, so it must not depend on the keys."""
    assert [*compose(zebra=tiny.clip(), ant=tiny.siglip()).encoders] == ["zebra", "ant"]


def test_encoders_are_read_from_the_tree():
    """An encoder that is replaced is seen at once; a child of another kind is none, whatever its name."""
    model = compose(vision=tiny.clip())
    other = ModalEncoderModule(tiny.siglip())
    model.vision_encoder = other
    model.add_module("text_encoder", nn.Linear(1, 1))
    assert model.encoders == {"vision": other}
