"""LLaVA-NeXT's any-resolution tiling and feature packing for Cornstarch."""

__all__ = ["__version__"]

__version__ = "0.1.0"
