"""Time series for Cornstarch: PatchTST, an encoder for series of any length, their processor and a projector."""

__all__ = ["__version__"]

__version__ = "0.1.0"
