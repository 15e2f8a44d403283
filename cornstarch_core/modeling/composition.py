"""The tree of a composed model, without how it runs: what saving, loading and training look at."""

from __future__ import annotations

from typing import Any

from .._hf.composite import CompositeModel
from ..config import MultimodalConfig
from .encoder import ModalEncoderModule

__all__ = ["Composition"]


class Composition(CompositeModel):
    """A language model, and an encoder for each modality: ``language_model`` and ``<key>_encoder``."""

    config_class = MultimodalConfig
    config: MultimodalConfig
    language_model: Any  # a causal one of transformers, wrapped by PEFT or not

    @property
    def encoders(self) -> dict[str, ModalEncoderModule]:
        """The encoders by modality key."""
        parts = self._modules.items()
        return {name.removesuffix("_encoder"): part for name, part in parts if isinstance(part, ModalEncoderModule)}
