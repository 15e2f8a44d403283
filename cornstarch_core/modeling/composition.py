"""The module tree of a composed model, without ``forward``. The code for saving, loading and training uses it."""

from __future__ import annotations

from typing import Any

from .._hf.composite import CompositeModel
from ..config import MultimodalConfig
from .encoder import ModalEncoderModule

__all__ = ["Composition"]


class Composition(CompositeModel):
    """A language model ``language_model``, and one encoder ``<key>_encoder`` for each modality key."""

    config_class = MultimodalConfig
    config: MultimodalConfig
    language_model: Any  # a causal language model of transformers, wrapped by PEFT or not

    @property
    def encoders(self) -> dict[str, ModalEncoderModule]:
        """The encoders by modality key."""
        parts = self._modules.items()
        return {name.removesuffix("_encoder"): part for name, part in parts if isinstance(part, ModalEncoderModule)}
