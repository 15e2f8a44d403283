"""Hugging Face's Qwen2-Audio, Voxtral and Audio Flamingo 3 checkpoints in and out.

What towers, decoders and heads have in common, whatever they see or hear, is :mod:`cornstarch_core.families`' to know.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
)

from cornstarch_core import ModalEncoderModule, MultimodalProcessor, MultimodalProjector, MultimodalProjectorConfig
from cornstarch_core.families import CheckpointFamily, adopt_layers

from .extractors import AudioFeatureExtractor

__all__ = ["AUDIO_FLAMINGO3", "QWEN2_AUDIO", "VOXTRAL"]


class AudioFamily(CheckpointFamily):
    """A family of checkpoints with a tower that is kin to Whisper's encoder."""

    callback = "cornstarch-audio/audio"
    key = "audio"
    tower = "audio_tower"
    tower_config = "audio_config"
    token_id = "audio_token_id"
    token_id_argument = "audio_token_id"
    token = "audio_token"
    media_processor = "feature_extractor"
    keeps_padding: ClassVar[bool] = False
    """Whether the decoder gets the frames of silence after the sound, too."""
    projector_type: ClassVar[str]
    """Of the projector that the class has."""

    def options(self, config: Any) -> dict[str, Any]:
        """The callback's options for a config of theirs."""
        return {"keep_padding": True} if self.keeps_padding else {}

    def settings(self, encoder: ModalEncoderModule, options: dict[str, Any]) -> dict[str, Any]:
        """No entries of their config; the frames that are passed on have to be theirs.

        Raises:
            CheckpointError: they pass on others.
        """
        if options["keep_padding"] != self.keeps_padding:
            raise self.refusal(
                f"keep_padding={options['keep_padding']}, and that class has the other. Compose with "
                f"callback_options={{'keep_padding': {self.keeps_padding}}} and train on that."
            )
        return {}

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The projector's layers, if it is of their type.

        Raises:
            CheckpointError: it is of another.
        """
        projector = encoder.projector
        kind = "custom" if projector.is_custom else projector.config.projection_type
        if kind != self.projector_type:
            raise self.refusal(
                f"its projector is of type {kind!r}; that class has one of type {self.projector_type!r}. Compose with that "
                "one, and train it."
            )
        return projector.projection

    def check_media_processor(self, encoder: ModalEncoderModule, media_processor: Any) -> None:
        """Refuse a feature extractor that their processor could not use.

        Raises:
            CheckpointError: it is not Whisper's.
        """
        super().check_media_processor(encoder, _unwrapped(media_processor))

    def processor_arguments(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> dict[str, Any]:
        """What their processor is made with: of our feature extractor the one of transformers that is inside."""
        arguments = super().processor_arguments(encoder, processor)
        return {**arguments, self.media_processor: _unwrapped(arguments[self.media_processor])}


class Qwen2AudioFamily(AudioFamily):
    """Qwen2-Audio: frames of sound through one linear layer."""

    config_class = Qwen2AudioConfig
    model_class = Qwen2AudioForConditionalGeneration
    processor_class = Qwen2AudioProcessor
    token_id_argument = "audio_token_index"
    projector_type = "linear"

    def projector(self, theirs: Any) -> MultimodalProjector:
        """A ``"linear"`` one with their very layer."""
        layer = theirs.model.multi_modal_projector.linear
        config = MultimodalProjectorConfig(in_features=layer.in_features, out_features=layer.out_features)
        return adopt_layers(config, layer)

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The linear layer, under their name for it."""
        return nn.ModuleDict({"linear": super().projection(encoder)})


class AudioFlamingo3Family(AudioFamily):
    """Audio Flamingo 3: frames of sound through an MLP."""

    config_class = AudioFlamingo3Config
    model_class = AudioFlamingo3ForConditionalGeneration
    processor_class = AudioFlamingo3Processor
    projector_type = "mlp"

    def projector(self, theirs: Any) -> MultimodalProjector:
        """An ``"mlp"`` of their very layers; a custom one if they have no biases."""
        return _adopted(theirs, projection_type=self.projector_type)

    def projector_settings(self, encoder: ModalEncoderModule) -> dict[str, Any]:
        """Entries of their config for the MLP."""
        return {"projector_hidden_act": encoder.projector.config.activation, "projector_bias": True}


class VoxtralFamily(AudioFamily):
    """Voxtral: all frames of each window, stacked, through an MLP without biases."""

    config_class = VoxtralConfig
    model_class = VoxtralForConditionalGeneration
    processor_class = VoxtralProcessor
    keeps_padding = True
    projector_type = "frame_stack"

    def projector(self, theirs: Any) -> MultimodalProjector:
        """A ``"frame_stack"`` one of their very layers."""
        width = theirs.config.audio_config.hidden_size
        stacked = theirs.model.multi_modal_projector.linear_1.in_features
        settings = {"in_features": width, "stack_factor": stacked // width, "norm": False, "bias": False}
        return _adopted(theirs, projection_type=self.projector_type, **settings)

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The layers behind the stacking.

        Raises:
            CheckpointError: the projector is another, or stacks other than that class.
        """
        projection, config = super().projection(encoder), encoder.module.config
        wide = encoder.feature_size * encoder.projector.config.stack_factor
        if wide != config.intermediate_size or config.max_source_positions % encoder.projector.config.stack_factor:
            raise self.refusal(
                f"its projector stacks {encoder.projector.config.stack_factor} frames to a width of {wide}; that class takes "
                f"the encoder's intermediate_size, {config.intermediate_size}, and windows that it divides."
            )
        return projection

    def projector_settings(self, encoder: ModalEncoderModule) -> dict[str, Any]:
        """Entries of their config for the MLP."""
        return {"projector_hidden_act": encoder.projector.config.activation}

    def processor_arguments(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> dict[str, Any]:
        """Feature extractor and tokenizer: the rest is fixed in their processor."""
        arguments = super().processor_arguments(encoder, processor)
        return {name: arguments[name] for name in (self.media_processor, "tokenizer")}


QWEN2_AUDIO = Qwen2AudioFamily()
"""Qwen2-Audio."""
AUDIO_FLAMINGO3 = AudioFlamingo3Family()
"""Audio Flamingo 3."""
VOXTRAL = VoxtralFamily()
"""Voxtral."""


def _adopted(theirs: Any, **settings: Any) -> MultimodalProjector:
    """A projector of the layers ``linear_1`` and ``linear_2`` of theirs."""
    projection = theirs.model.multi_modal_projector
    widths = {"in_features": projection.linear_1.in_features, "out_features": projection.linear_2.out_features}
    activation = theirs.config.projector_hidden_act
    return adopt_layers(MultimodalProjectorConfig(activation=activation, **{**widths, **settings}), projection)


def _unwrapped(media_processor: Any) -> Any:
    return media_processor.extractor if isinstance(media_processor, AudioFeatureExtractor) else media_processor
