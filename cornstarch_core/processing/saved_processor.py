"""Image processors and feature extractors as plain data and back.

A saved class name is not trusted: it only selects among the classes that transformers exports, or is compared with the
class of what a plugin builds.
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
    """The record of an image processor or feature extractor.

    Args:
        class_path: ``"package.module:Class"``.
        config: its own ``to_dict()``, or ``None`` if it has none.
    """

    class_path: str
    config: dict[str, Any] | None

    @classmethod
    def of(cls, processor: object) -> SavedProcessor:
        """Describe ``processor``."""
        owner = processor if hasattr(processor, "__qualname__") else type(processor)  # a function describes itself
        config = plain(processor.to_dict()) if hasattr(processor, "to_dict") else None
        return cls(f"{owner.__module__}:{owner.__qualname__}", config)

    @property
    def is_transformers(self) -> bool:
        """Whether it is of a class that transformers exports, so that no plugin is needed to make it again."""
        return self._transformers_class() is not None

    def load(self, key: str = "", built: object = None) -> Any:
        """Make it again.

        Args:
            key: modality, for error messages.
            built: what the modality's plugin builds.

        Raises:
            CheckpointError: neither transformers nor the plugin knows its class.
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
        # Without the backend of the saved class, its variant for another backend is equally good (5.23).
        for name in (match[2], _BACKEND.sub("", match[2])) if match is not None else ():
            found = getattr(transformers, name, None)
            if isinstance(found, type) and found.__module__.startswith("transformers.") and hasattr(found, "from_dict"):
                return found
        return None
