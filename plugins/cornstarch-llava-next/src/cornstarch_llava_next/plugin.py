"""What this plugin registers. Imports no torch, transformers or PIL: targets are imported when something is built."""

from cornstarch_core.hookspecs import hookimpl
from cornstarch_core.specs import CallbackSpec, CheckpointSpec, ProcessorSpec

__all__ = [
    "cornstarch_register_callbacks",
    "cornstarch_register_checkpoints",
    "cornstarch_register_processors",
]


@hookimpl
def cornstarch_register_callbacks() -> list[CallbackSpec]:
    """``"llava-next"``: tiles of an image, packed into one row of features."""
    return [
        CallbackSpec(
            name="llava-next",
            modality="vision",
            build="cornstarch_llava_next.callbacks:llava_next",
            processor="llava-next",
        )
    ]


@hookimpl
def cornstarch_register_processors() -> list[ProcessorSpec]:
    """``"llava-next"``: Hugging Face's LLaVA-NeXT image processor, set to the encoder at hand."""
    return [
        ProcessorSpec(
            name="llava-next",
            modality="vision",
            build="cornstarch_llava_next.images:image_processor",
            media_names=("images", "image"),
            content_types=("image", "image_url"),
            prepare="cornstarch_vision.images:prepare_image",
        )
    ]


@hookimpl
def cornstarch_register_checkpoints() -> list[CheckpointSpec]:
    """``"llava_next"``: LLaVA-NeXT, also called LLaVA-1.6, in and out."""
    return [
        CheckpointSpec(
            name="llava_next",
            load="cornstarch_llava_next.checkpoints:LLAVA_NEXT.load",
            load_processor="cornstarch_llava_next.checkpoints:LLAVA_NEXT.load_processor",
            export="cornstarch_llava_next.checkpoints:LLAVA_NEXT.export",
            callback="llava-next",
        )
    ]
