"""The projector: maps an encoder's features to the width of the language model's embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2CLS, ACT2FN

from ._hf import keep_weights
from .errors import CompositionError, UnknownNameError
from .plugins import Provided, registry, resolve

__all__ = ["MultimodalProjector", "MultimodalProjectorConfig"]

Features = torch.Tensor | list[torch.Tensor]


class MultimodalProjectorConfig(PreTrainedConfig):
    """Describes a projector.

    Args:
        encoder_config: config of the encoder, to take ``in_features`` from its ``hidden_size``.
        text_config: config of the language model, to take ``out_features`` from its ``hidden_size``.
        projection_type: ``"linear"`` (one ``nn.Linear``), ``"mlp"`` (two, with an activation between them, as in
            LLaVA-1.5) or a type that a plugin registers.
        activation: a name from ``transformers.activations.ACT2CLS``, used by ``"mlp"``.
        in_features: width of the features that come in; wins over ``encoder_config``.
        out_features: width of the features that go out; wins over ``text_config``.
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
        config: what to build, or a description of ``projection``.
        projection: your own module, used as it is: its weights are kept, whatever it is.

    Raises:
        CompositionError: unknown type or activation, or a width is missing.

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
    # It attends to nothing, or a plugin's does so by itself: whatever the model is set to (5.23 asks every part).
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: MultimodalProjectorConfig, projection: nn.Module | None = None) -> None:
        super().__init__(config)
        self.provided: Provided | None = None
        self.is_custom = projection is not None
        if projection is not None:
            keep_weights(projection)  # else post_init() below would draw them anew
            self.projection = projection
        else:
            self.projection = self._build()
        self.post_init()

    def _build(self) -> nn.Module:
        """Make the module that the config describes."""
        config = self.config
        if not (isinstance(config.in_features, int) and isinstance(config.out_features, int)):
            raise CompositionError(
                f"projector: widths are in_features={config.in_features}, out_features={config.out_features}; give "
                "both to MultimodalProjectorConfig, or the encoder's and the language model's configs."
            )
        if config.projection_type == "linear":
            return nn.Linear(config.in_features, config.out_features)
        if config.projection_type == "mlp":
            return MLP(config)
        try:
            self.provided = registry().lookup("projectors", config.projection_type)
        except UnknownNameError as error:
            raise UnknownNameError(f"{error}; 'linear' and 'mlp' are built in") from None
        return resolve(self.provided.spec.build, self.provided.plugin)(config)

    def forward(self, features: Features) -> Features:
        """Project ``(N, D)``, ``(items, tokens, D)`` or a list of ``(tokens_i, D)``; the form stays."""
        if isinstance(features, torch.Tensor):
            return self.projection(features)
        if self.is_custom or self.provided is not None:  # may mix tokens of an item, so one item at a time
            return [self.projection(item) for item in features]
        return list(self.projection(torch.cat(features)).split([len(item) for item in features]))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: MultimodalProjectorConfig) -> None:
        super().__init__()
        if config.activation not in ACT2CLS:
            raise CompositionError(
                f"projector: unknown activation {config.activation!r}; choose one of {', '.join(sorted(ACT2CLS))}."
            )
        assert isinstance(config.in_features, int)
        assert isinstance(config.out_features, int)
        self.linear_1 = nn.Linear(config.in_features, config.out_features)
        self.act = ACT2FN[config.activation]
        self.linear_2 = nn.Linear(config.out_features, config.out_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return self.linear_2(self.act(self.linear_1(features)))
