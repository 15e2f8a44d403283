"""The projector types of the core. To add a type, write its class here and add its spec to the list below.

Plugins register their projector types in the same way. This module must not import torch at the top, because activating
plugins imports this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import CompositionError
from ..hookspecs import hookimpl
from ..specs import ProjectorInterface, ProjectorSpec

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

__all__ = ["BUILT_IN", "MLP", "Linear", "cornstarch_register_projectors"]


class Linear(ProjectorInterface):
    """One linear layer."""

    def build(self, config: PreTrainedConfig) -> nn.Module:
        """Make the layer, which maps ``(..., in_features)`` to ``(..., out_features)``."""
        from torch import nn

        return nn.Linear(config.in_features, config.out_features)


class MLP(ProjectorInterface):
    """Two linear layers with an activation between them, as in LLaVA-1.5 (https://arxiv.org/abs/2310.03744)."""

    def build(self, config: PreTrainedConfig) -> nn.Module:
        """Make the module, which maps ``(..., in_features)`` to ``(..., out_features)``.

        Raises:
            CompositionError: the activation is unknown.
        """
        from collections import OrderedDict

        from torch import nn
        from transformers.activations import ACT2CLS, ACT2FN

        if config.activation not in ACT2CLS:
            raise CompositionError(
                f"projector: unknown activation {config.activation!r}; choose one of {', '.join(sorted(ACT2CLS))}."
            )
        return nn.Sequential(
            OrderedDict(
                linear_1=nn.Linear(config.in_features, config.out_features),
                act=ACT2FN[config.activation],
                linear_2=nn.Linear(config.out_features, config.out_features),
            )
        )


BUILT_IN = [
    ProjectorSpec(name="linear", target=f"{__name__}:Linear", per_token=True),
    ProjectorSpec(name="mlp", target=f"{__name__}:MLP", per_token=True),
]


@hookimpl
def cornstarch_register_projectors() -> list[ProjectorSpec]:
    """Register ``"linear"`` and ``"mlp"``."""
    return list(BUILT_IN)
