"""The conformance kit: checks of a plugin, as test classes that the tests of the plugin inherit from.

The kit needs pytest, which ``pip install "cornstarch-core[test]"`` installs. A check runs only if a test class inherits
it. Importing this package is fast; accessing the classes imports torch and transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoder import EncoderConformance
    from .package import PluginConformance

__all__ = ["EncoderConformance", "PluginConformance"]

_HOME = {"EncoderConformance": "encoder", "PluginConformance": "package"}


def __getattr__(name: str) -> Any:
    # The import is lazy, so that the child processes that load a plugin import neither pytest nor torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
