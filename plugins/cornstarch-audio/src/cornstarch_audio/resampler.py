"""The ``"resampler"`` projector: learned queries attend to an item's features, and become its tokens.

It is the Perceiver Resampler of Flamingo (https://arxiv.org/abs/2204.14198): an item of any length becomes
``num_queries`` tokens. It fits any modality, such as audio or images (their patches in order). Unlike Flamingo's,
positions are sinusoids over all features of an item (https://arxiv.org/abs/1706.03762), so that its length is not
limited.

This module must not know what the features are.

Shapes: B items, N features, Q queries, D width (``out_features``).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from cornstarch_core.errors import CompositionError
from cornstarch_core.specs import ProjectorInterface

from . import options

__all__ = ["Resampler", "ResamplerProjector", "sinusoids"]

_NAME = "resampler"


class Resampler(ProjectorInterface):
    """The projection type ``"resampler"``."""

    def build(self, config: PreTrainedConfig) -> ResamplerProjector:
        """Make a :class:`ResamplerProjector`, which describes the config and the errors."""
        return ResamplerProjector(config)

    def num_tokens(self, config: PreTrainedConfig, counts: list[int]) -> list[int]:
        """Count the tokens of each item after the projector: ``num_queries``, and none for an item without features.

        Args:
            config: the projector's config.
            counts: features of each item.

        Raises:
            CompositionError: the number of queries is not valid.

        Example:
            >>> from cornstarch_core import MultimodalProjectorConfig
            >>> Resampler().num_tokens(MultimodalProjectorConfig(num_queries=32), [1500, 5, 0])
            [32, 32, 0]
        """
        queries = _num_queries(config)
        return [queries if count else 0 for count in counts]


class ResamplerProjector(nn.Module):
    """Projects ``(N, in_features)`` or ``(items, N, in_features)`` to ``num_queries`` tokens an item, dtype unchanged.

    It fits any modality, images as well as audio. Each layer has pre-norm cross-attention, from the queries to the
    features and the queries together, and a feed-forward of four times the width. An item without features gives no
    tokens.

    Args:
        config: ``in_features``, ``out_features`` (the width of all layers), ``activation`` (a name from ``ACT2CLS``, in
            the feed-forward, default ``"gelu"``) and

            - ``num_queries``: number of tokens of an item, default 64;
            - ``num_layers``: number of layers, default 2;
            - ``num_heads``: number of attention heads, default 8; it divides ``out_features``. The width of a head is
              usually 64 to 128.

    Raises:
        CompositionError: a width is missing, or an option is not valid.

    Example:
        >>> import torch
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> config = MultimodalProjectorConfig(in_features=8, out_features=32, num_queries=4)
        >>> ResamplerProjector(config)(torch.zeros(1, 100, 8)).shape
        torch.Size([1, 4, 32])
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        in_features, width = options.widths(_NAME, config)
        activation = options.activation(_NAME, config)
        heads, layers = _num_heads(config, width), options.positive(_NAME, config, "num_layers", 2)
        self.num_queries = _num_queries(config)
        self.linear = nn.Linear(in_features, width)
        # An embedding, not a bare parameter: transformers initialises embeddings that a checkpoint lacks, but leaves
        # uninitialised memory in a parameter that it doesn't know (5.23).
        self.queries = nn.Embedding(self.num_queries, width)
        nn.init.normal_(self.queries.weight, std=0.02)
        self.layers = nn.ModuleList(ResamplerLayer(width, heads, activation) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Add positions, read the features layer by layer, normalise."""
        items = self.linear(features if features.dim() == 3 else features[None])  # (B, N, D)
        items = items + sinusoids(*items.shape[1:], like=items)
        queries = self.queries(torch.arange(self.num_queries, device=features.device))
        queries = queries.expand(len(items), -1, -1)  # (B, Q, D)
        for layer in self.layers:
            queries = layer(queries, items)
        if items.shape[1] == 0:  # no features, so no tokens; removed at the end, to keep every parameter in the graph
            queries = queries[:, :0]
        tokens = self.norm(queries)
        return tokens if features.dim() == 3 else tokens[0]


class ResamplerLayer(nn.Module):
    """One layer: attention from the queries to features and queries, then a feed-forward. Norms come first.

    Args:
        width: of queries and features.
        heads: of the attention; it divides ``width``.
        activation: a name from ``ACT2CLS``.
    """

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm_features = nn.LayerNorm(width)
        self.norm_queries = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width, bias=False)
        self.to_output = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            ACT2FN[activation],
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """``(B, Q, D)`` and ``(B, N, D)`` to ``(B, Q, D)``."""
        queries = queries + self._attend(self.norm_queries(queries), self.norm_features(features))
        return queries + self.feed_forward(queries)

    def _attend(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        read = torch.cat([features, queries], dim=1)  # (B, N + Q, D)
        attended = functional.scaled_dot_product_attention(
            self._split(self.to_query(queries)), self._split(self.to_key(read)), self._split(self.to_value(read))
        )
        return self.to_output(attended.transpose(1, 2).flatten(2))

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(B, T, D)`` to ``(B, heads, T, D / heads)``."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def sinusoids(length: int, width: int, *, like: torch.Tensor) -> torch.Tensor:
    """Make sinusoidal positions 0, 1, ... (https://arxiv.org/abs/1706.03762, all sines before all cosines).

    They are made when they are used: a buffer would limit the length, and a buffer that isn't saved has no values after
    loading.

    Args:
        length: number of positions.
        width: D, even or odd.
        like: tensor whose dtype and device the result has. Positions are computed in float32, since bfloat16 can't tell
            257 from 256.

    Returns:
        ``(length, width)``; frequencies fall from 1 to nearly 1/10000.

    Example:
        >>> import torch
        >>> sinusoids(2, 2, like=torch.zeros(()))
        tensor([[0.0000, 1.0000],
                [0.8415, 0.5403]])
    """
    half = (width + 1) // 2
    steps = torch.arange(half, dtype=torch.float32, device=like.device)
    positions = torch.arange(length, dtype=torch.float32, device=like.device)
    angles = positions[:, None] * torch.exp(steps * (-math.log(10_000) / half))
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width].to(like.dtype)


def _num_queries(config: PreTrainedConfig) -> int:
    return options.positive(_NAME, config, "num_queries", 64)


def _num_heads(config: PreTrainedConfig, width: int) -> int:
    heads = options.positive(_NAME, config, "num_heads", 8)
    if width % heads:
        divisors = [str(n) for n in range(1, width + 1) if width % n == 0]
        raise CompositionError(
            f"{_NAME}: num_heads={heads} does not divide out_features={width}; choose one of {', '.join(divisors)}."
        )
    return heads
