"""Hugging Face's Qwen2-Audio, Voxtral and Audio Flamingo 3 checkpoints.

What all such families have in common, for any modality, is in :mod:`cornstarch_core.interop`.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from torch import nn
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)

from cornstarch_core import ModalEncoderModule, MultimodalProcessor, MultimodalProjector, MultimodalProjectorConfig
from cornstarch_core.interop import CheckpointFamily, adopt_layers

from .extractors import AudioFeatureExtractor
from .frame_stack import FrameStackProjector

__all__ = ["AudioFlamingo3Family", "Qwen2AudioFamily", "VoxtralFamily"]

_VOXTRAL_TOKEN_ID = 24  # a constant in transformers' code (5.23)


class AudioFamily(CheckpointFamily):
    """A family of checkpoints whose tower is related to Whisper's encoder."""

    callback = "cornstarch-audio/audio"
    key = "audio"
    tower = "audio_tower"
    tower_config = "audio_config"
    token_id = "audio_token_id"
    token_id_argument = "audio_token_id"
    token = "audio_token"
    media_processor = "feature_extractor"
    keeps_padding: ClassVar[bool] = False
    """Whether the decoder gets the frames of the padding after the audio, too."""
    projector_type: ClassVar[str]
    """Type of the projector that the family's class has."""

    def options(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The callbacks' options for a config of this family."""
        return {"keep_padding": True} if self.keeps_padding else {}

    def settings(self, encoder: ModalEncoderModule, options: dict[str, Any]) -> dict[str, Any]:
        """Check the callbacks' options; there are no entries for them in the family's config.

        Raises:
            CheckpointError: the family's class passes on other frames.
        """
        if options["keep_padding"] != self.keeps_padding:
            raise self.refusal(
                f"keep_padding={options['keep_padding']}, but that class does the opposite. Compose with "
                f"callback_options={{'keep_padding': {self.keeps_padding}}} and train on that."
            )
        return {}

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The projector's layers.

        Raises:
            CheckpointError: the projector is of another type than the family's.
        """
        projector = encoder.projector
        kind = "custom" if projector.is_custom else projector.config.projection_type
        if kind != self.projector_type:
            raise self.refusal(
                f"its projector is of type {kind!r}; that class has one of type {self.projector_type!r}. Compose with "
                "that type, and train it."
            )
        return projector.projection

    def check_media_processor(self, encoder: ModalEncoderModule, media_processor: Any) -> None:
        """Refuse a feature extractor that the family's processor can't use.

        Raises:
            CheckpointError: it is not Whisper's, or it pads clips to another window than the encoder's.
        """
        extractor = _unwrapped(media_processor)
        super().check_media_processor(encoder, extractor)
        if not isinstance(extractor, WhisperFeatureExtractor):
            raise self.refusal(
                f"its feature extractor is a {type(extractor).__name__}, and that class's processor works with a "
                f"WhisperFeatureExtractor only. Leave {encoder.key!r} out of MultimodalProcessor(processors=...) to "
                "get the right one, or export without processor=."
            )
        # AudioFeatureExtractor pads to the encoder's window, the family's processor to the extractor's own length
        if extractor.n_samples != media_processor.window:
            raise self.refusal(
                f"its feature extractor pads clips to {extractor.n_samples:,} samples by itself, but the encoder takes "
                f"{media_processor.window:,}. Give one whose chunk_length, in whole seconds, fits; or export without "
                "processor=."
            )

    def processor_arguments(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> dict[str, Any]:
        """The arguments of the family's processor, with transformers' feature extractor in place of the wrapper."""
        arguments = super().processor_arguments(encoder, processor)
        return {**arguments, self.media_processor: _unwrapped(arguments[self.media_processor])}


class Qwen2AudioFamily(AudioFamily):
    """Qwen2-Audio: frames of audio through one linear layer."""

    config_class = Qwen2AudioConfig
    model_class = Qwen2AudioForConditionalGeneration
    processor_class = Qwen2AudioProcessor
    token_id_argument = "audio_token_index"
    projector_type = "linear"

    def projector(self, theirs: PreTrainedModel) -> MultimodalProjector:
        """A ``"linear"`` projector that holds their layer."""
        layer = theirs.model.multi_modal_projector.linear
        config = MultimodalProjectorConfig(in_features=layer.in_features, out_features=layer.out_features)
        return adopt_layers(config, layer)

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The linear layer, under the family's name for it."""
        return nn.ModuleDict({"linear": super().projection(encoder)})


class AudioFlamingo3Family(AudioFamily):
    """Audio Flamingo 3: frames of audio through an MLP."""

    config_class = AudioFlamingo3Config
    model_class = AudioFlamingo3ForConditionalGeneration
    processor_class = AudioFlamingo3Processor
    projector_type = "mlp"

    def projector(self, theirs: PreTrainedModel) -> MultimodalProjector:
        """An ``"mlp"`` that holds their layers; if they have no biases, a ``"frame_stack"`` of single frames."""
        if theirs.config.projector_bias:
            return _adopted(theirs, projection_type=self.projector_type)
        return _adopted(theirs, projection_type="frame_stack", **_without_biases(1))

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The MLP, with or without biases.

        Raises:
            CheckpointError: the projector is of another kind.
        """
        projection = encoder.projector.projection
        if isinstance(projection, FrameStackProjector) and _stacking(projection) == _without_biases(1):
            return projection
        return super().projection(encoder)

    def projector_settings(self, encoder: ModalEncoderModule) -> dict[str, Any]:
        """Entries of the family's config for the MLP."""
        projector = encoder.projector
        return {
            "projector_hidden_act": projector.config.activation,
            "projector_bias": projector.projection.linear_1.bias is not None,
        }


class VoxtralFamily(AudioFamily):
    """Voxtral: all frames of each window, stacked, through an MLP without biases."""

    config_class = VoxtralConfig
    model_class = VoxtralForConditionalGeneration
    processor_class = VoxtralProcessor
    keeps_padding = True
    projector_type = "frame_stack"

    def projector(self, theirs: PreTrainedModel) -> MultimodalProjector:
        """A ``"frame_stack"`` projector that holds their layers."""
        width = theirs.config.audio_config.hidden_size
        stacked = theirs.model.multi_modal_projector.linear_1.in_features
        settings = {"in_features": width, **_without_biases(stacked // width)}
        return _adopted(theirs, projection_type=self.projector_type, **settings)

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The layers after the stacking.

        Raises:
            CheckpointError: the projector is of another type, or has other options than the family's.
        """
        projection: Any = super().projection(encoder)
        config = encoder.module.config
        found, wanted = _stacking(projection), _without_biases(config.intermediate_size // config.hidden_size)
        if found != wanted or config.max_source_positions % projection.stack_factor:
            raise self.refusal(
                f"its projector has {_written(found)}, for windows of {config.max_source_positions} frames; that class "
                f"has {_written(wanted)}, as its encoder's intermediate_size says, and windows of whole stacks. "
                f"Compose with MultimodalProjectorConfig(projection_type={self.projector_type!r}, {_written(wanted)}, "
                "...), and train it."
            )
        return projection

    def projector_settings(self, encoder: ModalEncoderModule) -> dict[str, Any]:
        """Entries of the family's config for the MLP."""
        return {"projector_hidden_act": encoder.projector.config.activation}

    def load_processor(self, folder: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint's processor, with a tokenizer that finds placeholders in a text.

        If mistral-common is installed, transformers 5.23 loads a tokenizer that reads placeholders as plain text. The
        tokenizer that is loaded here instead, from the same file, gives the same ids and knows placeholders.

        Args:
            folder: a folder or a hub name.
            **kwargs: as in ``ProcessorMixin.from_pretrained``.
        """
        arguments = super().load_processor(folder, **kwargs)
        if not hasattr(arguments["tokenizer"], "get_added_vocab"):
            arguments["tokenizer"] = PreTrainedTokenizerFast.from_pretrained(folder, **kwargs)
        return arguments

    def processor_arguments(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> dict[str, Any]:
        """Feature extractor and tokenizer; the rest is constant in the family's processor.

        Raises:
            CheckpointError: the placeholder has another id than the constant one.
        """
        token, token_id = processor.tokens[encoder.key], processor.token_ids[encoder.key]
        if token_id != _VOXTRAL_TOKEN_ID:
            raise self.refusal(
                f"its placeholder {token!r} has id {token_id}, but that class's processor uses {_VOXTRAL_TOKEN_ID} "
                "with every tokenizer. Use the tokenizer of a Voxtral, or export without processor=."
            )
        arguments = super().processor_arguments(encoder, processor)
        return {name: arguments[name] for name in (self.media_processor, "tokenizer")}


def _without_biases(frames: int) -> dict[str, Any]:
    """Options of a ``"frame_stack"`` projector of stacking and two linear layers without biases."""
    return {"stack_factor": frames, "norm": False, "bias": False}


def _stacking(projection: FrameStackProjector) -> dict[str, Any]:
    """The same options, of a given projector."""
    norm, bias = isinstance(projection.norm_before, nn.RMSNorm), projection.linear_1.bias is not None
    return {"stack_factor": projection.stack_factor, "norm": norm, "bias": bias}


def _written(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _adopted(theirs: PreTrainedModel, **settings: Any) -> MultimodalProjector:
    """A projector that holds ``linear_1`` and ``linear_2`` of a model of this family."""
    projection = theirs.model.multi_modal_projector
    widths = {"in_features": projection.linear_1.in_features, "out_features": projection.linear_2.out_features}
    activation = theirs.config.projector_hidden_act
    return adopt_layers(MultimodalProjectorConfig(activation=activation, **{**widths, **settings}), projection)


def _unwrapped(media_processor: object) -> object:
    return media_processor.extractor if isinstance(media_processor, AudioFeatureExtractor) else media_processor
