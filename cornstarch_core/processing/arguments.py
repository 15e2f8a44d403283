"""Assign the keyword arguments of a processor to modalities, by the names that plugins declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .modality import Modality, processor_specs

__all__ = ["Arguments"]

_USUAL_NAMES = ("audio", "images", "videos")  # names of media in Hugging Face's processors
_OPTIONS = "_kwargs"


@dataclass(frozen=True)
class Arguments:
    """Sorts keyword arguments by modality.

    Args:
        modalities: modalities of the processor, by key.
    """

    modalities: Mapping[str, Modality]

    def sort(
        self, kwargs: Mapping[str, Any], sampling_rate: int | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Return the media by modality key, and the options of image processors and feature extractors by key.

        Raises:
            InputError: media are given for a modality that the model does not have.
            TypeError: a keyword belongs to no modality or to several, or a modality's media are given twice.
        """
        media = self.media({name: value for name, value in kwargs.items() if not name.endswith(_OPTIONS)})
        given = {name: value for name, value in kwargs.items() if name.endswith(_OPTIONS) and value is not None}
        options = {self._key(name): dict(value) for name, value in given.items()}
        for key, modality in self.modalities.items():
            if sampling_rate is not None and hasattr(modality.processor, "sampling_rate"):
                options[key] = {"sampling_rate": sampling_rate, **options.get(key, {})}
        return media, options

    def media(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the media by modality key, without ``None``. It raises the same errors as :meth:`sort`."""
        media: dict[str, Any] = {}
        for name, value in given.items():
            if value is not None or not self.is_media(name):
                key = self._key(name)
                if key in media:
                    raise TypeError(f"{key}: its media are given twice, once as {name}=.")
                media[key] = value
        return media

    def is_own(self, name: str) -> bool:
        """Whether a keyword is a name of media or of their options, for a modality of this model or of any plugin."""
        return self.is_media(name.removesuffix(_OPTIONS))

    def is_media(self, name: str) -> bool:
        """Whether a keyword is a name of media, for a modality of this model or of any plugin."""
        of_plugins = (one for spec in processor_specs() for one in (spec.modality, *spec.media_names))
        return bool(self._keys(name)) or name in _USUAL_NAMES or name in of_plugins

    def _keys(self, name: str) -> list[str]:
        """Return the keys of the modalities that a name may refer to. A modality's key refers only to that modality."""
        if name in self.modalities:
            return [name]
        return [key for key, modality in self.modalities.items() if name in modality.media_names]

    def _key(self, argument: str) -> str:
        name = argument.removesuffix(_OPTIONS)
        keys = self._keys(name)
        if len(keys) == 1:
            return keys[0]
        if keys:
            raise TypeError(f"{argument}= could be for any of {', '.join(keys)}; use the key, such as {keys[0]}=.")
        there = f"this model has {', '.join(self.modalities) or 'no modality'}"
        if self.is_media(name):
            raise InputError(f"{argument}= is given, but {there}. Leave it out, or compose a model that takes it.")
        raise TypeError(
            f"nothing takes {argument}=; {there}. Options of an image processor or feature extractor go into "
            f"{next(iter(self.modalities), 'vision')}{_OPTIONS}={{...}}."
        )
