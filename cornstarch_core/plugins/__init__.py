"""Discover, check and activate the plugins of this process, and look up what they register.

No module in this package imports torch.
"""

from .discovery import CORE, PluginInfo
from .manager import PluginRegistry, registry, reset_registry
from .registration import Registration, resolve

__all__ = ["CORE", "PluginInfo", "PluginRegistry", "Registration", "registry", "reset_registry", "resolve"]
