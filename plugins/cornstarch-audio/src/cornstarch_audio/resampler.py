"""The ``"resampler"`` projector: learned queries read an item's features, and are its tokens.

The Perceiver Resampler of Flamingo (https://arxiv.org/abs/2204.14198): however long an item is, it becomes
``num_queries`` tokens. For any modality: sound, images (their patches in order) or else. Unlike Flamingo's,
positions are sinusoids over all the features of an item (https://arxiv.org/abs/1706.03762), so that it may be of any
length.

Must not know what the features are.

Shapes: B items, N features, Q queries, D width (``out_features``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from cornstarch_core.errors import CompositionError

from . import options

if TYPE_CHECKING:
    from cornstarch_core import MultimodalProjectorConfig

__all__ = ["ResamplerProjector", "num_tokens", "sinusoids"]

_NAME = "resampler"


class ResamplerProjector(nn.Module):
    """Projects ``(N, in_features)`` or ``(items, N, in_features)`` to ``num_queries`` tokens an item, dtype unchanged.

    For any modality, images as well as sound. Each layer is pre-norm cross-attention, from the queries to the features
    and the queries together, and a feed-forward of four times the width. An item without features gives no tokens.

    Args:
        config: ``in_features``, ``out_features`` (the width of all layers), ``activation`` (a name from ``ACT2CLS``, in
            the feed-forward, default ``"gelu"``) and

            - ``num_queries``: tokens that an item becomes, default 64;
            - ``num_layers``: default 2;
            - ``num_heads``: default 8; it divides ``out_features``. A head's width is usually 64 to 128.

    Raises:
        CompositionError: a width is missing, or an option makes no sense.

    Example:
        >>> import torch
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> config = MultimodalProjectorConfig(in_features=8, out_features=32, num_queries=4)
        >>> ResamplerProjector(config)(torch.zeros(1, 100, 8)).shape
        torch.Size([1, 4, 32])
    """

    def __init__(self, config: MultimodalProjectorConfig) -> None:
        super().__init__()
        in_features, width = options.widths(_NAME, config)
        activation = options.activation(_NAME, config)
        heads, layers = _num_heads(config, width), options.positive(_NAME, config, "num_layers", 2)
        self.num_queries = _num_queries(config)
        self.linear = nn.Linear(in_features, width)
        # A table, not a bare parameter: transformers draws tables that a checkpoint lacks, but leaves memory as it
        # finds it for a parameter that it doesn't know (5.23).
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
        if items.shape[1] == 0:  # nothing to read; cut off at the end, to keep every parameter in the graph
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
    """Sinusoidal positions 0, 1, ... (https://arxiv.org/abs/1706.03762, all sines before all cosines).

    Made when they are used: a buffer would bound the length, and one that isn't saved comes back empty from loading.

    Args:
        length: how many positions.
        width: D, even or odd.
        like: tensor whose dtype and device the result has. They are computed in float32, since bfloat16 can't tell
            position 257 from 256.

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


def num_tokens(config: MultimodalProjectorConfig, counts: list[int]) -> list[int]:
    """Tokens per item after the projector: ``num_queries``, and none for an item without features.

    Raises:
        CompositionError: the number of queries makes no sense.

    Example:
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> num_tokens(MultimodalProjectorConfig(num_queries=32), [1500, 5, 0])
        [32, 32, 0]
    """
    queries = _num_queries(config)
    return [queries if count else 0 for count in counts]


def _num_queries(config: MultimodalProjectorConfig) -> int:
    return options.positive(_NAME, config, "num_queries", 64)


def _num_heads(config: MultimodalProjectorConfig, width: int) -> int:
    heads = options.positive(_NAME, config, "num_heads", 8)
    if width % heads:
        divisors = [str(n) for n in range(1, width + 1) if width % n == 0]
        raise CompositionError(
            f"{_NAME}: num_heads={heads} does not divide out_features={width}; choose one of {', '.join(divisors)}."
        )
    return heads
