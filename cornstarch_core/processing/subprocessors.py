"""Image processors and feature extractors as plain data and back.

A saved class name is untrusted: it only ever selects a class that transformers exports, or is compared with the class
of what a plugin built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers

from ..errors import CheckpointError

__all__ = ["SavedProcessor"]

_TRANSFORMERS = re.compile(r"transformers(\.[A-Za-z0-9_]+)*:([A-Za-z][A-Za-z0-9_]*)")
_BACKEND = re.compile(r"(Pil|Fast)$")


@dataclass(frozen=True)
class SavedProcessor:
    """What is saved of an image processor or feature extractor.

    Args:
        class_path: ``"package.module:Class"``.
        settings: its own ``to_dict()``, or ``None`` if it has none.
    """

    class_path: str
    settings: dict[str, Any] | None

    @classmethod
    def of(cls, processor: Any) -> SavedProcessor:
        """Describe ``processor``."""
        owner = processor if hasattr(processor, "__qualname__") else type(processor)
        settings = _plain(processor.to_dict()) if hasattr(processor, "to_dict") else None
        return cls(f"{owner.__module__}:{owner.__qualname__}", settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"class": self.class_path, "config": self.settings}

    @property
    def is_transformers(self) -> bool:
        """Whether a class that transformers exports can be made again without asking anyone."""
        return self._transformers_class() is not None

    def load(self, key: str = "", built: Any = None) -> Any:
        """Make it again.

        Args:
            key: modality, for messages.
            built: what the modality's plugin builds.

        Raises:
            CheckpointError: it is of a class that neither transformers nor the plugin knows.
        """
        cls = self._transformers_class()
        if cls is None and built is not None and self.class_path == SavedProcessor.of(built).class_path:
            if not hasattr(built, "from_dict") or self.settings is None:
                return built
            cls = type(built)
        if cls is None:
            raise CheckpointError(
                f"{key}: its processor is neither of a class of transformers nor the one that a plugin builds, so that "
                f"it can't be made again; pass it: MultimodalProcessor.from_pretrained(folder, processors={{{key!r}: "
                "the_processor})."
            )
        return cls.from_dict(dict(self.settings or {}))

    def _transformers_class(self) -> Any:
        match = _TRANSFORMERS.fullmatch(self.class_path)
        if match is None:
            return None
        # The variant for another backend does when this machine lacks the one that was saved (5.23).
        for name in (match[2], _BACKEND.sub("", match[2])):
            found = getattr(transformers, name, None)
            if isinstance(found, type) and found.__module__.startswith("transformers.") and hasattr(found, "from_dict"):
                return found
        return None


def _plain(value: Any) -> Any:
    """Arrays, tuples and enums as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
