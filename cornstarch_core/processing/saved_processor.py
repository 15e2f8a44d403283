"""Convert image processors and feature extractors to plain data and back.

A saved class name is not trusted: it only selects one of the classes that transformers exports, or is compared with the
class of the object that a plugin builds. In this package, a *media processor* is an image processor, a feature
extractor or another callable that prepares media.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import transformers

from .._hf.plain import plain
from ..errors import CheckpointError

__all__ = ["SavedProcessor"]

_TRANSFORMERS = re.compile(r"transformers(\.[A-Za-z0-9_]+)*:([A-Za-z][A-Za-z0-9_]*)")
_BACKEND = re.compile(r"(Pil|Fast)$")


@dataclass(frozen=True)
class SavedProcessor:
    """The record of a media processor.

    Args:
        class_path: path of its class, ``"package.module:Class"``.
        config: result of its method ``to_dict``, or ``None`` if it has no such method.
    """

    class_path: str
    config: dict[str, Any] | None

    @classmethod
    def of(cls, processor: object) -> SavedProcessor:
        """Make the record of ``processor``."""
        owner = processor if hasattr(processor, "__qualname__") else type(processor)  # describe a function itself
        config = plain(processor.to_dict()) if hasattr(processor, "to_dict") else None
        return cls(f"{owner.__module__}:{owner.__qualname__}", config)

    @property
    def is_transformers(self) -> bool:
        """Whether transformers exports the class, so that the media processor can be loaded without a plugin."""
        return self._transformers_class() is not None

    def load(self, key: str = "", built: object = None) -> Any:
        """Build the media processor from the record.

        Args:
            key: modality key, for error messages.
            built: media processor that the modality's plugin builds, if there is a plugin.

        Raises:
            CheckpointError: transformers does not export the class, and the plugin builds no object of it.
        """
        cls = self._transformers_class()
        if cls is None and built is not None and self.class_path == SavedProcessor.of(built).class_path:
            if not hasattr(built, "from_dict") or self.config is None:
                return built
            cls = type(built)
        if cls is None:
            raise CheckpointError(
                f"{key}: its processor is neither of a class of transformers nor the one that a plugin builds, so that "
                f"it can't be made again; pass it: MultimodalProcessor.from_pretrained(folder, processors={{{key!r}: "
                "the_processor})."
            )
        return cls.from_dict(dict(self.config or {}))

    def _transformers_class(self) -> Any:
        match = _TRANSFORMERS.fullmatch(self.class_path)
        # If the saved class is missing, its variant for another backend, without the suffix, is used (5.23).
        for name in (match[2], _BACKEND.sub("", match[2])) if match is not None else ():
            found = getattr(transformers, name, None)
            if isinstance(found, type) and found.__module__.startswith("transformers.") and hasattr(found, "from_dict"):
                return found
        return None
