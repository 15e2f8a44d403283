"""How the kit compares features."""

from __future__ import annotations

import torch

from cornstarch_core.testing.composed import distance


def test_distances_are_relative():
    """They are relative to the largest entry of the second tensor, and infinite for different shapes."""
    assert distance(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 4.0])) == 0.25
    assert distance(torch.zeros(2, 3), torch.zeros(3, 3)) == float("inf")
    assert distance(torch.zeros(0, 3), torch.zeros(0, 3)) == 0
    assert not distance(torch.tensor([float("nan")]), torch.ones(1)) <= 1
