"""Names and shapes of tensors: in two state dicts, and in files."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from cornstarch_core.saving.tensors import different_names, shapes_in


def test_names_and_shapes_are_compared():
    """A tensor counts as different if one side lacks it or has another shape; values do not matter."""
    one = {"same": torch.zeros(2), "shape": torch.zeros(2), "only here": torch.zeros(1)}
    other = {"same": torch.ones(2), "shape": torch.zeros(1, 2), "also here": torch.zeros(1)}
    assert different_names(one, other) == ["also here", "only here", "shape"]
    assert different_names(one, {name: tensor + 1 for name, tensor in one.items()}) == []
    assert different_names({"a": torch.zeros(3, device="meta")}, {"a": torch.zeros(3)}) == []


def test_shapes_in_a_folder_are_those_of_all_its_safetensors_files(tmp_path):
    """Other files do not count."""
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(())}, tmp_path / "model-2.safetensors")
    (tmp_path / "notes.txt").write_text("c")
    assert shapes_in(tmp_path) == {"a": [2, 3], "b": []}
