"""Compare the tensors of a model with the tensors of another model and with the tensors in its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

__all__ = ["different_names", "shapes_in"]


def different_names(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors that only one of two state dicts has, or whose shapes differ."""
    shapes = ({(name, tensor.shape) for name, tensor in tensors.items()} for tensors in (one, other))
    return sorted({name for name, _ in set.symmetric_difference(*shapes)})


def shapes_in(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of all tensors in the safetensors files of ``folder``, by name, without reading values."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found.update({name: tensors.get_slice(name).get_shape() for name in tensors.keys()})  # noqa: SIM118
    return found
