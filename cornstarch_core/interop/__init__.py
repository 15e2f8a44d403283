"""Checkpoint families of other libraries: reading and writing them."""

from .checkpoint_family import CheckpointFamily, adopt_layers, callback_options, encoder_description, is_activation
from .export import export_pretrained

__all__ = [
    "CheckpointFamily",
    "adopt_layers",
    "callback_options",
    "encoder_description",
    "export_pretrained",
    "is_activation",
]
