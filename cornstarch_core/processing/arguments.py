"""Which keyword of a processor belongs to which modality. By declared names only, as :mod:`.routing` for models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..plugins import registry
from .modality import Modality

__all__ = ["Arguments", "merge"]

_USUAL_NAMES = {"audio", "images", "videos"}  # of media, in Hugging Face's processors
_OPTIONS = "_kwargs"


@dataclass(frozen=True)
class Arguments:
    """Sorts keywords by modality.

    Args:
        modalities: by key.
    """

    modalities: Mapping[str, Modality]

    def sort(
        self, kwargs: Mapping[str, Any], sampling_rate: int | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """``(media by key, options of the image processors and feature extractors by key)``.

        Raises:
            InputError: media for a modality that is not there.
            TypeError: a keyword is for none, for two, or a modality's media are given twice.
        """
        media = self.media({name: value for name, value in kwargs.items() if not name.endswith(_OPTIONS)})
        options: dict[str, dict[str, Any]] = {}
        for name, value in kwargs.items():
            if name.endswith(_OPTIONS) and value is not None:
                options[self._key(name.removesuffix(_OPTIONS), name)] = dict(value)
        for key, modality in self.modalities.items():
            if sampling_rate is not None and hasattr(modality.processor, "sampling_rate"):
                options[key] = {"sampling_rate": sampling_rate, **options.get(key, {})}
        return media, options

    def media(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Media by key; what is ``None`` is left out. Raises as :meth:`sort`."""
        media: dict[str, Any] = {}
        for name, value in given.items():
            if value is None and self.is_media(name):
                continue
            key = self._key(name, name)
            if key in media:
                raise TypeError(f"{key}: its media are given twice, once as {name}=.")
            media[key] = value
        return media

    def is_media(self, name: str) -> bool:
        """Whether a keyword is a name of media, of this model or of others."""
        return name in self.modalities or bool(self._claimants(name)) or name in {*_USUAL_NAMES, *_names_of_plugins()}

    def is_own(self, name: str) -> bool:
        """Whether a keyword is one that :meth:`sort` takes."""
        return self.is_media(name.removesuffix(_OPTIONS))

    def _claimants(self, name: str) -> list[str]:
        return [key for key, modality in self.modalities.items() if name in modality.media_names]

    def _key(self, name: str, argument: str) -> str:
        keys = [name] if name in self.modalities else self._claimants(name)
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


def merge(found: Mapping[str, Any], beside: Mapping[str, Any], sample: int | None = None) -> dict[str, Any]:
    """Media found in conversations, and media given beside them.

    Raises:
        InputError: a modality's media are in both places.
    """
    twice = sorted(found.keys() & beside.keys())
    if twice:
        where = "" if sample is None else f"sample {sample}: "
        raise InputError(f"{twice[0]}: {where}media are in the messages and beside them; give them in one place.")
    return {**found, **beside}


def _names_of_plugins() -> Iterator[str]:
    for name in registry().names("processors"):
        spec = registry().lookup("processors", name).spec
        yield from (spec.modality, *spec.media_names)
