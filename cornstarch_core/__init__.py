"""Compose multimodal language models out of modality encoders, projectors and a language model.

Importing this package is cheap: a name is imported when it is first used, and torch with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collator import MultimodalCollator as MultimodalCollator
    from .config import MultimodalConfig as MultimodalConfig
    from .model import MultimodalModel as MultimodalModel
    from .modeling.encoder import ModalEncoderModule as ModalEncoderModule
    from .modeling.projector import MultimodalProjector as MultimodalProjector
    from .modeling.projector import MultimodalProjectorConfig as MultimodalProjectorConfig
    from .processor import MultimodalProcessor as MultimodalProcessor
    from .specs import ModalCallbacks as ModalCallbacks

__version__ = "0.1.0"

_HOME = {
    "ModalCallbacks": "specs",
    "ModalEncoderModule": "modeling.encoder",
    "MultimodalCollator": "collator",
    "MultimodalConfig": "config",
    "MultimodalModel": "model",
    "MultimodalProcessor": "processor",
    "MultimodalProjector": "modeling.projector",
    "MultimodalProjectorConfig": "modeling.projector",
}
"""The module of each public name."""

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # next time without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
