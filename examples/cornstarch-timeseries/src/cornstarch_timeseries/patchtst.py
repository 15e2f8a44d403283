"""PatchTST of transformers (https://arxiv.org/abs/2211.14730): its counts, its inputs, and the callbacks ``"series"``.

Shapes: N items, T values over time, C channels, P patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PatchTSTConfig
from transformers.models.patchtst.modeling_patchtst import PatchTSTModelOutput

from cornstarch_core.errors import CompositionError
from cornstarch_core.specs import CallbacksInterface, EncoderContext, EncoderInterface, ModalCallbacks

__all__ = ["PatchTST", "SeriesCallbacks"]

Output = PatchTSTModelOutput | tuple[torch.Tensor, ...]


class PatchTST(EncoderInterface[PatchTSTConfig]):
    """Counts the tokens of a PatchTST."""

    def num_tokens(self, config: PatchTSTConfig, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the tokens of each item: the patches of all its channels.

        Args:
            config: the encoder's config.
            encoder_inputs: ``past_values``, ``(N, T, C)``.

        Example:
            >>> config = PatchTSTConfig(context_length=32, patch_length=8, patch_stride=4, num_input_channels=3)
            >>> PatchTST().num_tokens(config, {"past_values": torch.zeros(2, 32, 3)})
            [21, 21]
        """
        return [config.num_input_channels * num_patches(config)] * len(encoder_inputs["past_values"])

    def dummy_inputs(self, config: PatchTSTConfig) -> dict[str, torch.Tensor]:
        """Make one item of the only size that the encoder takes.

        Args:
            config: the encoder's config.
        """
        return {"past_values": torch.zeros(1, config.context_length, config.num_input_channels)}


def num_patches(config: PatchTSTConfig) -> int:
    """Count the patches of one channel, and CLS if there is one.

    PatchTST leaves out the first values of a series if patches don't fit exactly.
    """
    return (config.context_length - config.patch_length) // config.patch_stride + 1 + bool(config.use_cls_token)


# --- callbacks --------------------------------------------------------------------------------------------------------


class SeriesCallbacks(CallbacksInterface):
    """Makes the ``"series"`` callbacks: PatchTST gives ``(N, C, P, D)``, and a language model reads one sequence."""

    def build(self, context: EncoderContext, channels: str = "apart") -> ModalCallbacks:
        """Make one sequence of PatchTST's features.

        Args:
            context: the encoder.
            channels: ``"apart"``: ``C * P`` tokens of width D, channel after channel; ``"joined"``: P tokens of width
                ``C * D``, each for one patch of time in all channels.

        Raises:
            CompositionError: the encoder is not a PatchTST, or masks patches at random; or ``channels`` is something
                else.

        Example:
            >>> config = PatchTSTConfig(
            ...     context_length=32, patch_length=8, patch_stride=8, num_input_channels=3, d_model=16
            ... )
            >>> context = EncoderContext(key="series", config=config, hidden_size=16, text_hidden_size=64)
            >>> callbacks = SeriesCallbacks().build(context, channels="joined")
            >>> callbacks.hidden_size
            48
            >>> callbacks.num_tokens_before_projector({"past_values": torch.zeros(2, 32, 3)}, [12, 12])
            [4, 4]
        """
        config = context.config
        if getattr(config, "model_type", None) != "patchtst":
            raise CompositionError(
                f"{context.key}: the callback 'series' is for PatchTST, which keeps channels apart; leave it out for "
                f"a {type(config).__name__}."
            )
        if channels not in ("apart", "joined"):
            raise CompositionError(f"{context.key}: channels={channels!r}; choose 'apart' or 'joined'.")
        if config.do_mask_input:  # set in checkpoints of PatchTSTForPretraining; it masks in eval mode too (5.23)
            raise CompositionError(
                f"{context.key}: this PatchTST masks patches of its input at random, for pretraining. Load it with "
                "PatchTSTModel.from_pretrained(..., do_mask_input=False)."
            )
        if channels == "apart":
            return ModalCallbacks(postprocess_module=ChannelsApart())
        joined = ChannelsJoined(config)
        return ModalCallbacks(
            postprocess_module=joined,
            num_tokens_before_projector=joined.num_tokens,
            hidden_size=config.num_input_channels * config.d_model,
        )


@dataclass(frozen=True)
class ChannelsApart:
    """``(N, C, P, D)`` to ``(N, C * P, D)``."""

    def __call__(self, inputs: dict[str, Any], output: Output) -> Output:
        """Put the features of ``output`` in one sequence."""
        return _with_features(output, output[0].flatten(1, 2))


@dataclass(frozen=True)
class ChannelsJoined:
    """``(N, C, P, D)`` to ``(N, P, C * D)``.

    Args:
        config: the encoder's config.
    """

    config: PatchTSTConfig

    def __call__(self, inputs: dict[str, Any], output: Output) -> Output:
        """Put the features of ``output`` in one sequence."""
        return _with_features(output, output[0].transpose(1, 2).flatten(2))

    def num_tokens(self, encoder_inputs: dict[str, Any], counts: list[int]) -> list[int]:
        """Count the tokens of each item: as many as one channel has."""
        return [num_patches(self.config)] * len(counts)


def _with_features(output: Output, features: torch.Tensor) -> Output:
    return (features, *output[1:]) if isinstance(output, tuple) else replace(output, last_hidden_state=features)
