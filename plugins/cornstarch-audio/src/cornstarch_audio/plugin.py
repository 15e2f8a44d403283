"""What this plugin registers. Imports no torch, transformers or numpy: targets are imported when something is built."""

from cornstarch_core.hookspecs import hookimpl
from cornstarch_core.specs import CallbackSpec, CheckpointSpec, EncoderSpec, ProcessorSpec, ProjectorSpec

from .families import ENCODERS

__all__ = [
    "cornstarch_register_callbacks",
    "cornstarch_register_checkpoints",
    "cornstarch_register_encoders",
    "cornstarch_register_processors",
    "cornstarch_register_projectors",
]


@hookimpl
def cornstarch_register_encoders() -> list[EncoderSpec]:
    """The audio encoder families, see :data:`cornstarch_audio.families.ENCODERS`."""
    return list(ENCODERS)


@hookimpl
def cornstarch_register_processors() -> list[ProcessorSpec]:
    """``"audio"``: the family's own Hugging Face feature extractor, for clips of any length and sampling rate."""
    return [
        ProcessorSpec(
            name="audio",
            modality="audio",
            build="cornstarch_audio.extractors:audio_processor",
            wrap="cornstarch_audio.extractors:wrap_extractor",
            media_names=("audio", "audios"),
            content_types=("audio", "audio_url"),
            prepare="cornstarch_audio.waveforms:prepare_audio",
        )
    ]


@hookimpl
def cornstarch_register_callbacks() -> list[CallbackSpec]:
    """``"audio"``: the mask that the encoder needs, and only the frames that hold sound."""
    return [CallbackSpec(name="audio", modality="audio", build="cornstarch_audio.callbacks:audio")]


@hookimpl
def cornstarch_register_projectors() -> list[ProjectorSpec]:
    """``"frame_stack"``, ``"conv_downsample"`` and ``"resampler"``: fewer tokens out of many frames."""
    return [
        ProjectorSpec(
            name=name,
            build=f"cornstarch_audio.{name}:{projector}",
            num_tokens=f"cornstarch_audio.{name}:num_tokens",
        )
        for name, projector in (
            ("frame_stack", "FrameStackProjector"),
            ("conv_downsample", "ConvDownsampleProjector"),
            ("resampler", "ResamplerProjector"),
        )
    ]


@hookimpl
def cornstarch_register_checkpoints() -> list[CheckpointSpec]:
    """Qwen2-Audio, Voxtral and Audio Flamingo 3, in and out."""
    return [
        CheckpointSpec(
            name=model_type,
            load=f"cornstarch_audio.checkpoints:{family}.load",
            load_processor=f"cornstarch_audio.checkpoints:{family}.load_processor",
            export=f"cornstarch_audio.checkpoints:{family}.export",
            encoder=encoder,
            callback="audio",
        )
        for model_type, family, encoder in (
            ("qwen2_audio", "QWEN2_AUDIO", "qwen2_audio"),
            ("voxtral", "VOXTRAL", "voxtral"),
            ("audioflamingo3", "AUDIO_FLAMINGO3", "audio_flamingo3"),
        )
    ]
