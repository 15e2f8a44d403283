"""Assign the inputs of a call to encoders by the names that the encoders declare, and check that the inputs match.

:meth:`cornstarch_core.MultimodalModel.forward` defines the symbols in the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from .._hf.language_model import accepted_names
from .._hf.torch_private import is_readable
from ..errors import InputError, PlaceholderMismatchError
from .encoder import ModalEncoderModule

__all__ = ["split_inputs", "validate_inputs"]

# Keyword arguments with these names belong to the language model. An encoder gets such an input through encoder_inputs.
_OF_TEXT = {"attention_mask", "input_ids", "inputs_embeds", "labels", "past_key_values", "position_ids", "use_cache"}
_POSITIONS = ((torch.int64, 1), (torch.int32, 1))  # dtype and number of dimensions


def split_inputs(
    encoders: Mapping[str, ModalEncoderModule],
    encoder_inputs: Mapping[str, Mapping[str, Any]] | None,
    kwargs: Mapping[str, Any],
    language_model: type[nn.Module] | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Split the arguments of a call into inputs of encoders and the rest.

    Args:
        encoders: dictionary of encoders by modality key.
        encoder_inputs: dictionary of inputs for each modality key.
        kwargs: keyword arguments by their bare names. A name that one encoder declares belongs to that encoder, unless
            language models use the name, too, such as ``attention_mask``.
        language_model: class of the language model, whose ``forward`` has to accept the rest; default: not checked.

    Returns:
        ``(inputs by modality, the rest)``. The arguments of this function are not changed. ``None`` values are left
        out.

    Raises:
        InputError: there are inputs for a modality that the model doesn't have.
        TypeError: two encoders declare a bare name, an input is given twice, or no part accepts an input.
    """
    given = {} if encoder_inputs is None else encoder_inputs
    if not isinstance(given, Mapping) or not all(isinstance(value, Mapping) for value in given.values()):
        raise TypeError("encoder_inputs= must be a dictionary of dictionaries: {modality: {input name: value}}.")
    if unknown := sorted(given.keys() - encoders.keys()):
        raise InputError(
            f"inputs for {', '.join(unknown)}, but this model has no such encoder; it has "
            f"{', '.join(encoders) or 'none'}."
        )
    media = {key: {name: value for name, value in given.get(key, {}).items() if value is not None} for key in encoders}
    owners: dict[str, list[str]] = {}
    for key, encoder in encoders.items():
        for name in {*encoder.input_names, *encoder.callbacks.input_names} - _OF_TEXT:
            owners.setdefault(name, []).append(key)
    rest = {}
    for name, value in kwargs.items():
        if value is None:
            continue
        keys = owners.get(name, [])
        if len(keys) > 1:
            raise TypeError(
                f"{name}= could be for any of {', '.join(keys)}; pass "
                f"encoder_inputs={{{keys[0]!r}: {{{name!r}: ...}}}}."
            )
        if not keys:
            rest[name] = value
        elif name in media[keys[0]]:
            raise TypeError(f"{name} is given twice: flat, and in encoder_inputs[{keys[0]!r}].")
        else:
            media[keys[0]][name] = value
    if language_model is not None and (unknown := sorted(rest.keys() - accepted_names(language_model.forward))):
        takers = [f"{key}: {', '.join(encoder.info.all_input_names)}" for key, encoder in encoders.items()]
        raise TypeError(
            f"nothing takes {', '.join(unknown)}: neither {language_model.__name__} nor an encoder "
            f"({'; '.join(takers) or 'there is none'})."
        )
    return media, rest


def validate_inputs(
    encoders: Mapping[str, ModalEncoderModule],
    media: Mapping[str, dict[str, Any]],
    positions: Mapping[str, torch.Tensor],
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    labels: torch.Tensor | None,
    token_ids: Mapping[str, int],
) -> dict[str, torch.Tensor]:
    """Check the inputs of a call by their shapes and by values on the host.

    Values on a device are not read, because that would cost a sync. Placeholders may have an id that differs from the
    one in ``token_ids``, if another processor made the batch or the ids were replaced. In this case all placeholders of
    the modality must have the same id, and the id in ``token_ids`` must not occur in ``input_ids``.

    Args:
        encoders: dictionary of encoders by modality key.
        media: inputs by modality, from :func:`split_inputs`.
        positions: positions ``(P,)`` of the placeholders by modality, without modalities whose positions are unknown.
        input_ids: token ids ``(B, S)``, or ``None``.
        inputs_embeds: embeddings ``(B, S, D)``, or ``None``.
        labels: labels ``(B, S)``, or ``None``.
        token_ids: placeholder token ids by modality.

    Returns:
        The positions of the placeholders by modality, for the modalities that have media in this call.

    Raises:
        InputError: an input is missing or has a wrong shape, or features would be placed at tokens that are not their
            placeholders.
        PlaceholderMismatchError: there are placeholders, but no media for them.
    """
    tokens = input_ids if inputs_embeds is None else inputs_embeds
    if tokens is None:
        raise InputError("input_ids or inputs_embeds is missing; MultimodalProcessor makes input_ids from text.")
    if tokens.dim() != (2 if inputs_embeds is None else 3):
        expected = "(batch, tokens)" if inputs_embeds is None else "(batch, tokens, width)"
        raise InputError(f"expected a tensor of shape {expected}, got {tuple(tokens.shape)}; add the batch dimension.")
    if labels is not None and labels.shape != tokens.shape[:2]:
        raise InputError(
            f"labels are {tuple(labels.shape)}, the batch is {tuple(tokens.shape[:2])}; give one label a token, after "
            "the placeholders were expanded (MultimodalCollator does)."
        )
    there = {}
    for key, encoder in encoders.items():
        inputs, places = media[key], positions.get(key)
        if places is not None and (getattr(places, "dtype", None), getattr(places, "ndim", 0)) not in _POSITIONS:
            found = f"{tuple(places.shape)} {places.dtype}" if hasattr(places, "shape") else type(places).__name__
            raise InputError(
                f"{key}: positions must be a tensor (P,) of int64, indices into the flat (batch * tokens); got {found}."
            )
        sizes = [len(inputs[name]) for name in encoder.input_names if hasattr(inputs.get(name), "__len__")]
        if not inputs or 0 in sizes:  # an empty batch of images counts as no images
            if places is not None and len(places):
                raise PlaceholderMismatchError(
                    f"{key}: the prompt has {len(places)} placeholder tokens, but no media are given. "
                    f"Pass {encoder.input_names[0]}, or take the placeholders out of the text."
                )
            continue
        if places is None:
            raise InputError(
                f"{key}: where its features go is not known. Use MultimodalProcessor(model=...), which says so, or "
                f'tell the placeholder\'s token id, mllm.set_modality_token_ids({{"{key}": token_id}}), and pass ids.'
            )
        ids_fit = input_ids is not None and input_ids.shape == tokens.shape[:2]
        if input_ids is not None and ids_fit and key in token_ids and is_readable(input_ids) and is_readable(places):
            ids = input_ids.numpy()
            if (ids.take(places.numpy(), mode="clip") != token_ids[key]).any():
                _check_places(key, places.numpy(), ids, token_ids[key])
        there[key] = places.long()
    return there


def _check_places(key: str, places: np.ndarray, ids: np.ndarray, token_id: int) -> None:
    inside = places[(places >= 0) & (places < ids.size)]  # place_features raises an error for the others
    found = ids.ravel()[inside]
    wrong = inside[found != token_id]
    if len(wrong) and ((ids == token_id).any() or (found != found[0]).any()):
        sample, token = divmod(int(wrong[0]), ids.shape[1])
        raise InputError(
            f"{key}: sample {sample}, token {token}: a feature belongs here, but instead of the placeholder {token_id} "
            f"there is token {ids[sample, token]}. Was input_ids cut, padded or re-batched after processing? Process "
            "again, with max_length= or padding= if it has to have another length."
        )
