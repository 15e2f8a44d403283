"""The ``"patch_merge"`` projector: neighbouring patches become one token, for series of thousands of values.

It merges patches as Swin does between its stages (https://arxiv.org/abs/2103.14030), but over time: a norm and a linear
layer.

Shapes: P patches, D width, k merge factor.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig

from cornstarch_core.errors import CompositionError
from cornstarch_core.specs import ProjectorInterface

__all__ = ["PatchMerge", "PatchMergeProjector"]


class PatchMerge(ProjectorInterface):
    """The projection type ``"patch_merge"``."""

    def build(self, config: PreTrainedConfig) -> PatchMergeProjector:
        """Make a :class:`PatchMergeProjector`, which describes the config and the errors."""
        return PatchMergeProjector(config)

    def num_tokens(self, config: PreTrainedConfig, counts: list[int]) -> list[int]:
        """Count the tokens of each item after the projector: ``ceil(count / merge_factor)``.

        Args:
            config: the projector's config.
            counts: tokens of each item before the projector.

        Example:
            >>> from cornstarch_core import MultimodalProjectorConfig
            >>> PatchMerge().num_tokens(MultimodalProjectorConfig(merge_factor=4), [513, 4])
            [129, 1]
        """
        return [-(-count // _factor(config)) for count in counts]


class PatchMergeProjector(nn.Module):
    """Projects ``(..., P, in_features)`` to ``(..., ceil(P / k), out_features)``; the last run is padded with zeros.

    Args:
        config: ``in_features``, ``out_features`` and ``merge_factor``: number of patches k that become one token,
            default 2.

    Raises:
        CompositionError: a width is missing, or ``merge_factor`` is not a positive integer.

    Example:
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> config = MultimodalProjectorConfig(in_features=8, out_features=32, merge_factor=4)
        >>> PatchMergeProjector(config)(torch.zeros(1, 10, 8)).shape
        torch.Size([1, 3, 32])
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        if config.in_features is None or config.out_features is None:
            raise CompositionError(
                f"patch_merge: in_features={config.in_features}, out_features={config.out_features}; give both to "
                "MultimodalProjectorConfig, or the encoder's and the language model's configs."
            )
        self.factor = _factor(config)
        self.norm = nn.LayerNorm(config.in_features * self.factor)
        self.linear = nn.Linear(config.in_features * self.factor, config.out_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Merge, then project."""
        missing = -features.shape[-2] % self.factor
        runs = functional.pad(features, (0, 0, 0, missing)).unflatten(-2, (-1, self.factor)).flatten(-2)
        return self.linear(self.norm(runs))


def _factor(config: PreTrainedConfig) -> int:
    factor = getattr(config, "merge_factor", 2)
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise CompositionError(
            f"patch_merge: merge_factor={factor!r}; expected a positive integer; change it, or leave it out for 2."
        )
    return factor
