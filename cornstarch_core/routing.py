"""Which input belongs to which encoder, by declared names only, and whether what is given has the right shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .encoder import POSITIONS, ModalEncoderModule
from .errors import InputError

__all__ = ["batch_of", "check_labels", "check_places", "checked_positions", "has_media", "route"]

# A flat argument of this name is the language model's; an encoder's own goes into encoder_inputs.
_OF_TEXT = {"attention_mask", "input_ids", "inputs_embeds", "labels", "past_key_values", "position_ids", "use_cache"}


def route(
    encoders: Mapping[str, ModalEncoderModule],
    encoder_inputs: Mapping[str, Mapping[str, Any]] | None,
    kwargs: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Split arguments into inputs of encoders and the rest.

    Args:
        encoders: by modality key.
        encoder_inputs: inputs that are namespaced already.
        kwargs: flat arguments; a name that one encoder declares is that encoder's, unless language models use it too,
            as they do ``attention_mask``.

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


def batch_of(tokens: torch.Tensor, dimensions: int) -> tuple[int, int]:
    """``(B, S)`` of ids or embeddings, which must have so many dimensions."""
    if tokens.dim() != dimensions:
        expected = "(batch, tokens)" if dimensions == 2 else "(batch, tokens, width)"
        raise InputError(f"expected a tensor of shape {expected}, got {tuple(tokens.shape)}; add the batch dimension.")
    return tokens.shape[0], tokens.shape[1]


def checked_positions(key: str, positions: Any) -> torch.Tensor:
    """``positions``, if shape and dtype are right; their values are not looked at, which would cost a sync."""
    integers = (torch.int64, torch.int32)
    if not isinstance(positions, torch.Tensor) or positions.dim() != 1 or positions.dtype not in integers:
        shape = (
            f"{tuple(positions.shape)} {positions.dtype}" if isinstance(positions, torch.Tensor) else type(positions)
        )
        raise InputError(
            f"{key}: positions must be a tensor (P,) of int64, indices into the flat (batch * tokens); got {shape}."
        )
    return positions.long()


def check_places(key: str, positions: torch.Tensor, input_ids: torch.Tensor, token_id: int) -> None:
    """Raise if features would be placed beside the placeholders. On the host only: elsewhere looking would cost a sync.

    Placeholders may have another id than ``token_id``, from another processor, or one that was put in their place; but
    they all have the same one then, and ``token_id`` is nowhere else.

    Raises:
        InputError: so it is, as when a batch was cut after it was processed.
    """
    if not (_is_readable(input_ids) and _is_readable(positions)):
        return
    ids, places = input_ids.numpy(), positions.numpy()
    inside = places[(places >= 0) & (places < ids.size)]  # others are found when features are placed
    found = ids.ravel()[inside]
    wrong = inside[found != token_id]
    if len(wrong) and ((ids == token_id).any() or (found != found[0]).any()):
        sample, token = divmod(int(wrong[0]), ids.shape[1])
        raise InputError(
            f"{key}: sample {sample}, token {token}: a feature belongs here, but instead of the placeholder {token_id} "
            f"there is token {ids[sample, token]}. Was input_ids cut, padded or re-batched after processing? Process "
            "again, with max_length= or padding= if it has to have another length."
        )


def has_media(encoder: ModalEncoderModule, inputs: Mapping[str, Any]) -> bool:
    """Whether there is anything to encode. An empty batch of images is none."""
    given = [value for name, value in inputs.items() if name in encoder.input_names and value is not None]
    others = [name for name in inputs if name != POSITIONS]
    return bool(others) and all(len(value) > 0 for value in given if hasattr(value, "__len__"))


def check_labels(labels: torch.Tensor | None, batch: tuple[int, int]) -> None:
    """Raise unless there is one label a token."""
    if labels is not None and labels.shape != batch:
        raise InputError(
            f"labels are {tuple(labels.shape)}, the batch is {batch}; give one label a token, after "
            "the placeholders were expanded (MultimodalCollator does)."
        )


def _is_readable(tensor: torch.Tensor) -> bool:
    """Whether there are values at hand: on the host, and not within a transform or a mode that only traces."""
    return (
        tensor.device.type == "cpu"
        and type(tensor) is torch.Tensor
        and not torch.compiler.is_compiling()
        and not torch._is_functional_tensor(tensor)
        and not is_functorch_wrapped_tensor(tensor)
        and _get_current_dispatch_mode() is None
    )


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
        for name in {*encoder.all_input_names} - _OF_TEXT:
            owners.setdefault(name, []).append(key)
    return owners
