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
from cornstarch_core.families import CheckpointFamily, adopt_layers

from .extractors import AudioFeatureExtractor
from .frame_stack import FrameStackProjector

__all__ = ["AUDIO_FLAMINGO3", "QWEN2_AUDIO", "VOXTRAL"]

_VOXTRAL_TOKEN_ID = 24  # fixed in transformers' code (5.23)


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
                f"its projector is of type {kind!r}; that class has one of type {self.projector_type!r}. Compose with "
                "that one, and train it."
            )
        return projector.projection

    def check_media_processor(self, encoder: ModalEncoderModule, media_processor: Any) -> None:
        """Refuse a feature extractor that their processor could not use.

        Raises:
            CheckpointError: it is not Whisper's, or by itself it pads clips to another window than the encoder's.
        """
        extractor = _unwrapped(media_processor)
        super().check_media_processor(encoder, extractor)
        if not isinstance(extractor, WhisperFeatureExtractor):
            raise self.refusal(
                f"its feature extractor is a {type(extractor).__name__}, and that class's processor works with a "
                f"WhisperFeatureExtractor only. Leave {encoder.key!r} out of MultimodalProcessor(processors=...), and "
                "the right one is made; or export without processor=."
            )
        if extractor.n_samples != media_processor.window:  # ours pads to the window, theirs as the extractor says
            raise self.refusal(
                f"its feature extractor pads clips to {extractor.n_samples:,} samples by itself, and the encoder takes "
                f"{media_processor.window:,}. Give one whose chunk_length, in whole seconds, fits; or export without "
                "processor=."
            )

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
        """An ``"mlp"`` of their very layers; where they have no biases, a ``"frame_stack"`` of single frames."""
        if theirs.config.projector_bias:
            return _adopted(theirs, projection_type=self.projector_type)
        return _adopted(theirs, projection_type="frame_stack", **_without_biases(1))

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The MLP, or the one without biases.

        Raises:
            CheckpointError: the projector is another.
        """
        projection = encoder.projector.projection
        if isinstance(projection, FrameStackProjector) and _stacking(projection) == _without_biases(1):
            return projection
        return super().projection(encoder)

    def projector_settings(self, encoder: ModalEncoderModule) -> dict[str, Any]:
        """Entries of their config for the MLP."""
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

    def projector(self, theirs: Any) -> MultimodalProjector:
        """A ``"frame_stack"`` one of their very layers."""
        width = theirs.config.audio_config.hidden_size
        stacked = theirs.model.multi_modal_projector.linear_1.in_features
        settings = {"in_features": width, **_without_biases(stacked // width)}
        return _adopted(theirs, projection_type=self.projector_type, **settings)

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The layers behind the stacking.

        Raises:
            CheckpointError: the projector is another, or stacks other than that class.
        """
        projection: Any = super().projection(encoder)
        config = encoder.module.config
        found, wanted = _stacking(projection), _without_biases(config.intermediate_size // config.hidden_size)
        if found != wanted or config.max_source_positions % projection.stack_factor:
            raise self.refusal(
                f"its projector has {_said(found)}, for windows of {config.max_source_positions} frames; that class "
                f"has {_said(wanted)}, as its encoder's intermediate_size says, and windows that stacks divide. "
                f"Compose with MultimodalProjectorConfig(projection_type={self.projector_type!r}, {_said(wanted)}, "
                "...), and train it."
            )
        return projection

    def projector_settings(self, encoder: ModalEncoderModule) -> dict[str, Any]:
        """Entries of their config for the MLP."""
        return {"projector_hidden_act": encoder.projector.config.activation}

    def load_processor(self, folder: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint's processor, with a tokenizer that finds placeholders in a text.

        Where mistral-common is installed theirs has one that takes them for plain text (5.23); of the same file
        tokenizers makes one that gives the same ids, and knows them.
        """
        arguments = super().load_processor(folder, **kwargs)
        if not hasattr(arguments["tokenizer"], "get_added_vocab"):
            arguments["tokenizer"] = PreTrainedTokenizerFast.from_pretrained(folder, **kwargs)
        return arguments

    def processor_arguments(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> dict[str, Any]:
        """Feature extractor and tokenizer: the rest is fixed in their processor.

        Raises:
            CheckpointError: the placeholder has another id than the one that is fixed.
        """
        token, token_id = processor.tokens[encoder.key], processor.token_ids[encoder.key]
        if token_id != _VOXTRAL_TOKEN_ID:
            raise self.refusal(
                f"its placeholder {token!r} has id {token_id}, and that class's processor takes {_VOXTRAL_TOKEN_ID} "
                "for it, whatever the tokenizer. Take the tokenizer of a Voxtral, or export without processor=."
            )
        arguments = super().processor_arguments(encoder, processor)
        return {name: arguments[name] for name in (self.media_processor, "tokenizer")}


QWEN2_AUDIO = Qwen2AudioFamily()
"""Qwen2-Audio."""
AUDIO_FLAMINGO3 = AudioFlamingo3Family()
"""Audio Flamingo 3."""
VOXTRAL = VoxtralFamily()
"""Voxtral."""


def _without_biases(frames: int) -> dict[str, Any]:
    """Options of a ``"frame_stack"`` projector that is nothing but two linear layers, without biases, and stacking."""
    return {"stack_factor": frames, "norm": False, "bias": False}


def _stacking(projection: FrameStackProjector) -> dict[str, Any]:
    """The same options of one that is there."""
    norm, bias = isinstance(projection.norm_before, nn.RMSNorm), projection.linear_1.bias is not None
    return {"stack_factor": projection.stack_factor, "norm": norm, "bias": bias}


def _said(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _adopted(theirs: Any, **settings: Any) -> MultimodalProjector:
    """A projector of the layers ``linear_1`` and ``linear_2`` of theirs."""
    projection = theirs.model.multi_modal_projector
    widths = {"in_features": projection.linear_1.in_features, "out_features": projection.linear_2.out_features}
    activation = theirs.config.projector_hidden_act
    return adopt_layers(MultimodalProjectorConfig(activation=activation, **{**widths, **settings}), projection)


def _unwrapped(media_processor: Any) -> Any:
    return media_processor.extractor if isinstance(media_processor, AudioFeatureExtractor) else media_processor
