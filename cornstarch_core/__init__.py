"""Compose multimodal language models out of modality encoders, projectors and a language model.

Importing this package is cheap: a name is imported when it is first used, and torch with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collator import MultimodalCollator
    from .config import MultimodalConfig
    from .encoder import ModalEncoderModule
    from .model import MultimodalModel
    from .processor import MultimodalProcessor
    from .projector import MultimodalProjector, MultimodalProjectorConfig
    from .specs import ModalCallbacks

__version__ = "0.1.0"

__all__ = [
    "ModalCallbacks",
    "ModalEncoderModule",
    "MultimodalCollator",
    "MultimodalConfig",
    "MultimodalModel",
    "MultimodalProcessor",
    "MultimodalProjector",
    "MultimodalProjectorConfig",
]

_HOME = {
    "ModalCallbacks": "specs",
    "ModalEncoderModule": "encoder",
    "MultimodalCollator": "collator",
    "MultimodalConfig": "config",
    "MultimodalModel": "model",
    "MultimodalProcessor": "processor",
    "MultimodalProjector": "projector",
    "MultimodalProjectorConfig": "projector",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # next time without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
