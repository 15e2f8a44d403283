"""Which input belongs to which encoder. By declared names only: nothing is guessed from signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .encoder import ModalEncoderModule
from .errors import InputError

__all__ = ["route"]


def route(
    encoders: Mapping[str, ModalEncoderModule],
    encoder_inputs: Mapping[str, Mapping[str, Any]] | None,
    kwargs: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Split arguments into inputs of encoders and the rest.

    Args:
        encoders: by modality key.
        encoder_inputs: inputs that are namespaced already.
        kwargs: flat arguments; a name that one encoder declares is that encoder's.

    Returns:
        ``(inputs by modality, the rest)``. Nothing given is changed; ``None`` values are left out.

    Raises:
        InputError: inputs for a modality that is not there.
        TypeError: two encoders declare a flat name, or an input is given twice.
    """
    media = {key: _given(inputs) for key, inputs in _by_key(encoder_inputs).items()}
    unknown = sorted(media.keys() - encoders.keys())
    if unknown:
        raise InputError(
            f"inputs for {', '.join(unknown)}, but this model has no such encoder; it has "
            f"{', '.join(encoders) or 'none'}."
        )
    owners = _owners(encoders)
    rest = {}
    for name, value in _given(kwargs).items():
        keys = owners.get(name, [])
        if len(keys) > 1:
            raise TypeError(
                f"{name}= could be for any of {', '.join(keys)}; pass "
                f"encoder_inputs={{{keys[0]!r}: {{{name!r}: ...}}}}."
            )
        if not keys:
            rest[name] = value
        elif name in media.setdefault(keys[0], {}):
            raise TypeError(f"{name} is given twice: flat, and in encoder_inputs[{keys[0]!r}].")
        else:
            media[keys[0]][name] = value
    return media, rest


def _by_key(encoder_inputs: Any) -> Mapping[str, Any]:
    inputs = {} if encoder_inputs is None else encoder_inputs
    if not isinstance(inputs, Mapping) or not all(isinstance(value, Mapping) for value in inputs.values()):
        raise TypeError("encoder_inputs= must be a dictionary of dictionaries: {modality: {input name: value}}.")
    return inputs


def _given(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if value is not None}


def _owners(encoders: Mapping[str, ModalEncoderModule]) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for key, encoder in encoders.items():
        for name in encoder.all_input_names:
            owners.setdefault(name, []).append(key)
    return owners
