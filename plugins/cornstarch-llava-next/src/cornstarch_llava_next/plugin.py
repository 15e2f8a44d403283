"""What this plugin registers. Targets are imported when something is built, so this needs no torch and no PIL."""

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
            target="cornstarch_llava_next.callbacks:LlavaNext",
            processor="llava-next",
        )
    ]


@hookimpl
def cornstarch_register_processors() -> list[ProcessorSpec]:
    """``"llava-next"``: Hugging Face's LLaVA-NeXT image processor, set to the encoder."""
    return [
        ProcessorSpec(
            name="llava-next",
            modality="vision",
            target="cornstarch_llava_next.images:AnyResolutionImages",
            media_names=("images", "image"),
            content_types=("image", "image_url"),
        )
    ]


@hookimpl
def cornstarch_register_checkpoints() -> list[CheckpointSpec]:
    """``"llava_next"``: reads and writes LLaVA-NeXT, also called LLaVA-1.6."""
    return [
        CheckpointSpec(
            name="llava_next",
            target="cornstarch_llava_next.checkpoints:LlavaNextFamily",
            callback="llava-next",
        )
    ]
