"""PatchTST of transformers (https://arxiv.org/abs/2211.14730): its count, its inputs, and the callback ``"series"``.

Shapes: N items, T values over time, C channels, P patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from cornstarch_core.errors import CompositionError
from cornstarch_core.specs import EncoderContext, ModalCallbacks

__all__ = ["dummy_inputs", "num_tokens", "series"]


def num_patches(config: Any) -> int:
    """Patches of one channel, and CLS if there is one. The first values are left out if patches don't fit exactly."""
    return (config.context_length - config.patch_length) // config.patch_stride + 1 + bool(config.use_cls_token)


def num_tokens(config: Any, encoder_inputs: dict[str, Any]) -> list[int]:
    """Tokens of each item: the patches of all its channels.

    Example:
        >>> from transformers import PatchTSTConfig
        >>> config = PatchTSTConfig(context_length=32, patch_length=8, patch_stride=4, num_input_channels=3)
        >>> num_tokens(config, {"past_values": torch.zeros(2, 32, 3)})
        [21, 21]
    """
    return [config.num_input_channels * num_patches(config)] * len(encoder_inputs["past_values"])


def dummy_inputs(config: Any) -> dict[str, torch.Tensor]:
    """One item: it has but one size."""
    return {"past_values": torch.zeros(1, config.context_length, config.num_input_channels)}


def series(context: EncoderContext, channels: str = "apart") -> ModalCallbacks:
    """Callback ``"series"``: PatchTST gives ``(N, C, P, D)``, a language model reads one sequence.

    Args:
        context: the encoder.
        channels: ``"apart"``: ``C * P`` tokens of width D, channel after channel; ``"joined"``: P tokens of width
            ``C * D``, each of them one moment in all channels.

    Raises:
        CompositionError: the encoder is no PatchTST, or hides patches at random; or ``channels`` is something else.

    Example:
        >>> from transformers import PatchTSTConfig
        >>> config = PatchTSTConfig(context_length=32, patch_length=8, patch_stride=8, num_input_channels=3, d_model=16)
        >>> context = EncoderContext(key="series", config=config, hidden_size=16, text_hidden_size=64)
        >>> callbacks = series(context, channels="joined")
        >>> callbacks.hidden_size, callbacks.num_tokens({"past_values": torch.zeros(2, 32, 3)}, [12, 12])
        (48, [4, 4])
    """
    config = context.config
    if getattr(config, "model_type", None) != "patchtst":
        raise CompositionError(
            f"{context.key}: the callback 'series' is for PatchTST, which keeps channels apart; leave it out for "
            f"a {type(config).__name__}."
        )
    if channels not in ("apart", "joined"):
        raise CompositionError(f"{context.key}: channels={channels!r}; choose 'apart' or 'joined'.")
    if config.do_mask_input:  # as checkpoints of PatchTSTForPretraining say; in eval mode, too (transformers 5.23)
        raise CompositionError(
            f"{context.key}: this PatchTST hides patches of its input at random, for pretraining. Load it with "
            "PatchTSTModel.from_pretrained(..., do_mask_input=False)."
        )
    if channels == "apart":
        return ModalCallbacks(postprocess_module=ChannelsApart())
    joined = ChannelsJoined(config)
    return ModalCallbacks(
        postprocess_module=joined, num_tokens=joined.num_tokens, hidden_size=config.num_input_channels * config.d_model
    )


@dataclass(frozen=True)
class ChannelsApart:
    """``(N, C, P, D)`` to ``(N, C * P, D)``."""

    def __call__(self, inputs: dict[str, Any], output: Any) -> Any:
        """The output with its features in one sequence."""
        return _with_first(output, output[0].flatten(1, 2))


@dataclass(frozen=True)
class ChannelsJoined:
    """``(N, C, P, D)`` to ``(N, P, C * D)``.

    Args:
        config: the encoder's.
    """

    config: Any

    def __call__(self, inputs: dict[str, Any], output: Any) -> Any:
        """The output with its features in one sequence."""
        return _with_first(output, output[0].transpose(1, 2).flatten(2))

    def num_tokens(self, encoder_inputs: dict[str, Any], counts: list[int]) -> list[int]:
        """As many as one channel has."""
        return [num_patches(self.config)] * len(counts)


def _with_first(output: Any, features: torch.Tensor) -> Any:
    return (features, *output[1:]) if isinstance(output, tuple) else replace(output, last_hidden_state=features)
