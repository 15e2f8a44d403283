"""The plugins of this process: discover, check, activate, look up. No module in here imports torch."""

from .discovery import CORE, PluginInfo
from .manager import PluginRegistry, registry, reset_registry
from .registration import Registration, resolve

__all__ = ["CORE", "PluginInfo", "PluginRegistry", "Registration", "registry", "reset_registry", "resolve"]
