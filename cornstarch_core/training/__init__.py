"""Functions that help to train a model with other libraries' training loops, optimizers and sharding.

This package contains no code for a particular modality.

The *parts* of a model are ``"language_model"``, and for each modality ``"<key>.module"``, ``"<key>.projector"`` and
``"<key>.callbacks"``; ``"<key>"`` stands for all three.
"""

from .audit import Audit, PartReport, audit
from .rates import parameter_groups
from .resume import last_checkpoint
from .sharding import sharding_units
from .trained import load_trained, save_trained

__all__ = [
    "Audit",
    "PartReport",
    "audit",
    "last_checkpoint",
    "load_trained",
    "parameter_groups",
    "save_trained",
    "sharding_units",
]
