"""Vision encoders, image processing and LLaVA feature selection for Cornstarch."""

__all__ = ["__version__"]

__version__ = "0.1.0"
