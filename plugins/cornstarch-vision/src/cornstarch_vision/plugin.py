"""What this plugin registers. Imports no torch, transformers or PIL: targets are imported when something is built."""

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
    """``"image"``: the family's own Hugging Face image processor, and the check of one image before it."""
    return [
        ProcessorSpec(
            name="image",
            modality="vision",
            build="cornstarch_vision.images:image_processor",
            media_names=("images", "image"),
            content_types=("image", "image_url"),
            prepare="cornstarch_vision.images:prepare_image",
        )
    ]


@hookimpl
def cornstarch_register_callbacks() -> list[CallbackSpec]:
    """``"llava"``: features of an earlier layer, without CLS."""
    return [CallbackSpec(name="llava", modality="vision", build="cornstarch_vision.llava:llava")]


@hookimpl
def cornstarch_register_projectors() -> list[ProjectorSpec]:
    """``"pixel_shuffle"``: fewer, wider tokens, then an MLP."""
    return [
        ProjectorSpec(
            name="pixel_shuffle",
            build="cornstarch_vision.pixel_shuffle:PixelShuffleProjector",
            num_tokens="cornstarch_vision.pixel_shuffle:num_tokens",
            dummy_inputs="cornstarch_vision.pixel_shuffle:dummy_inputs",
        )
    ]


@hookimpl
def cornstarch_register_checkpoints() -> list[CheckpointSpec]:
    """``"llava"``: LLaVA-1.5, in and out."""
    return [
        CheckpointSpec(
            name="llava",
            load="cornstarch_vision.checkpoints:LLAVA.load",
            load_processor="cornstarch_vision.checkpoints:LLAVA.load_processor",
            export="cornstarch_vision.checkpoints:LLAVA.export",
            callback="llava",
        )
    ]
