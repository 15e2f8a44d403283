"""The conformance kit: what a plugin has to hold, as tests that its author's suite inherits.

Needs pytest, as ``pip install "cornstarch-core[test]"`` brings it. Nothing here loads itself: a check runs because a
test class inherits it. Importing this package is cheap; the classes bring torch and transformers with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoder import EncoderConformance
    from .package import PluginConformance

__all__ = ["EncoderConformance", "PluginConformance"]

_HOME = {"EncoderConformance": "encoder", "PluginConformance": "package"}


def __getattr__(name: str) -> Any:
    # Lazy, so that the processes in which a plugin is tried out load no more than they have to.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
