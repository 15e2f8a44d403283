"""What this plugin registers. Targets are imported when something is built, so this needs no torch and no numpy."""

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
    """``"audio"``: the Hugging Face feature extractor of the encoder's family, for clips of any length and rate."""
    return [
        ProcessorSpec(
            name="audio",
            modality="audio",
            target="cornstarch_audio.extractors:Audio",
            media_names=("audio", "audios"),
            content_types=("audio", "audio_url"),
        )
    ]


@hookimpl
def cornstarch_register_callbacks() -> list[CallbackSpec]:
    """``"audio"``: the mask that the encoder needs, and only the frames of audio, without those of padding."""
    return [CallbackSpec(name="audio", modality="audio", target="cornstarch_audio.callbacks:AudioCallbacks")]


@hookimpl
def cornstarch_register_projectors() -> list[ProjectorSpec]:
    """``"frame_stack"``, ``"conv_downsample"`` and ``"resampler"``: fewer tokens out of many frames."""
    return [
        ProjectorSpec(name="frame_stack", target="cornstarch_audio.frame_stack:FrameStack"),
        ProjectorSpec(name="conv_downsample", target="cornstarch_audio.conv_downsample:ConvDownsample"),
        ProjectorSpec(name="resampler", target="cornstarch_audio.resampler:Resampler"),
    ]


@hookimpl
def cornstarch_register_checkpoints() -> list[CheckpointSpec]:
    """Reads and writes Qwen2-Audio, Voxtral and Audio Flamingo 3."""
    return [
        CheckpointSpec(
            name=model_type, target=f"cornstarch_audio.checkpoints:{family}", encoder=encoder, callback="audio"
        )
        for model_type, family, encoder in (
            ("qwen2_audio", "Qwen2AudioFamily", "qwen2_audio"),
            ("voxtral", "VoxtralFamily", "voxtral"),
            ("audioflamingo3", "AudioFlamingo3Family", "audio_flamingo3"),
        )
    ]
