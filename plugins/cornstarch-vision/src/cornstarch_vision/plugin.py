"""What this plugin registers. Targets are imported when something is built, so this needs no torch and no PIL."""

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
    """The vision encoder families, see :data:`cornstarch_vision.families.ENCODERS`."""
    return list(ENCODERS)


@hookimpl
def cornstarch_register_processors() -> list[ProcessorSpec]:
    """``"image"``: checks each image, and prepares it with the Hugging Face image processor of the encoder's family."""
    return [
        ProcessorSpec(
            name="image",
            modality="vision",
            target="cornstarch_vision.images:Images",
            media_names=("images", "image"),
            content_types=("image", "image_url"),
        )
    ]


@hookimpl
def cornstarch_register_callbacks() -> list[CallbackSpec]:
    """``"llava"``: features of an earlier layer, without CLS."""
    return [CallbackSpec(name="llava", modality="vision", target="cornstarch_vision.llava:Llava")]


@hookimpl
def cornstarch_register_projectors() -> list[ProjectorSpec]:
    """``"pixel_shuffle"``: fewer, wider tokens, then an MLP."""
    return [ProjectorSpec(name="pixel_shuffle", target="cornstarch_vision.pixel_shuffle:PixelShuffle")]


@hookimpl
def cornstarch_register_checkpoints() -> list[CheckpointSpec]:
    """``"llava"``: reads and writes LLaVA-1.5."""
    return [CheckpointSpec(name="llava", target="cornstarch_vision.checkpoints:LlavaFamily", callback="llava")]
