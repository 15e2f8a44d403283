"""Vision encoders, image processing and LLaVA feature selection for Cornstarch."""

__version__ = "0.1.0"
