"""Audio encoders, audio processing and projectors that shorten sequences, for Cornstarch."""

__all__ = ["__version__"]

__version__ = "0.1.0"
