"""The projector: maps an encoder's features to the width of the language model's embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .._hf.weights import keep_weights
from ..errors import CompositionError
from ..plugins import CORE, Registration, registry
from ..specs import ProjectorSpec

__all__ = ["MultimodalProjector", "MultimodalProjectorConfig", "find_projector"]

Features = torch.Tensor | list[torch.Tensor]


class MultimodalProjectorConfig(PreTrainedConfig):
    """Config of a projector.

    Args:
        encoder_config: config of the encoder; its ``hidden_size`` is the default of ``in_features``.
        text_config: config of the language model; its ``hidden_size`` is the default of ``out_features``.
        projection_type: ``"linear"`` (one ``nn.Linear``), ``"mlp"`` (two ``nn.Linear`` with an activation between them,
            as in LLaVA-1.5) or a type that a plugin registers.
        activation: name of the activation that ``"mlp"`` uses, from ``transformers.activations.ACT2CLS``.
        in_features: width of the input features; overrides ``encoder_config``.
        out_features: width of the output features; overrides ``text_config``.
        **kwargs: options of a plugin's projection type, for example ``scale_factor=2``.

    Example:
        >>> from cornstarch_core import MultimodalProjector, MultimodalProjectorConfig
        >>> config = MultimodalProjectorConfig(projection_type="mlp", in_features=32, out_features=64)
        >>> projector = MultimodalProjector(config)
    """

    model_type = "cornstarch_projector"

    def __init__(
        self,
        encoder_config: PreTrainedConfig | None = None,
        text_config: PreTrainedConfig | None = None,
        projection_type: str = "linear",
        activation: str = "gelu",
        in_features: int | None = None,
        out_features: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.projection_type = projection_type
        self.activation = activation
        self.in_features = in_features if in_features is not None else getattr(encoder_config, "hidden_size", None)
        self.out_features = out_features if out_features is not None else getattr(text_config, "hidden_size", None)
        self.initializer_range = kwargs.pop("initializer_range", 0.02)
        super().__init__(**kwargs)


class MultimodalProjector(PreTrainedModel):
    """Maps features ``(..., in_features)`` to ``(..., out_features)``.

    Args:
        config: config of the projector to build, or config that describes ``projection``.
        projection: a module of your own to use as the projector. It keeps its weights.

    Raises:
        CompositionError: the activation is unknown, or a width is missing.
        UnknownNameError: no plugin registers the type.

    Example:
        >>> import torch
        >>> from cornstarch_core import MultimodalProjector, MultimodalProjectorConfig
        >>> mine = torch.nn.Linear(32, 64, bias=False)
        >>> projector = MultimodalProjector(MultimodalProjectorConfig(in_features=32, out_features=64), mine)
        >>> projector(torch.zeros(2, 9, 32)).shape
        torch.Size([2, 9, 64])
    """

    config_class = MultimodalProjectorConfig
    config: MultimodalProjectorConfig
    base_model_prefix = ""
    main_input_name = "features"
    # transformers (5.23) reads these attributes of every part. A projector has no attention layer of transformers, so
    # it supports every setting.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: MultimodalProjectorConfig, projection: nn.Module | None = None) -> None:
        super().__init__(config)
        self.registration: Registration[ProjectorSpec] | None = None
        self.is_custom = projection is not None
        if projection is not None:
            keep_weights(projection)  # otherwise post_init() below would initialise them again
            self.projection = projection
        elif isinstance(config.in_features, int) and isinstance(config.out_features, int):
            self.registration = find_projector(config)
            self.projection = self.registration.load().build(config)
        else:
            raise CompositionError(
                f"projector: widths are in_features={config.in_features}, out_features={config.out_features}; give "
                "both to MultimodalProjectorConfig, or the encoder's and the language model's configs."
            )
        self.post_init()

    def forward(self, features: Features) -> Features:
        """Project features ``(N, D)``, ``(items, tokens, D)`` or a list of ``(tokens_i, D)``, and keep their form.

        ``N`` is the number of features, and ``D`` their width.
        """
        if isinstance(features, torch.Tensor):
            return self.projection(features)
        if self.registration is not None and self.registration.spec.per_token:
            return list(self.projection(torch.cat(features)).split([len(item) for item in features]))
        return [self.projection(item) for item in features]  # the projector may mix the tokens of an item


def find_projector(config: MultimodalProjectorConfig) -> Registration[ProjectorSpec]:
    """Return the registration of ``config.projection_type``. The core's types take precedence for bare names.

    Raises:
        UnknownNameError: no plugin registers this type.
    """
    return registry().lookup("projectors", config.projection_type, prefer=CORE)
