"""Hugging Face's LLaVA-NeXT checkpoints: LLaVA's parts, with pinpoints and a newline."""

from __future__ import annotations

from typing import Any

from cornstarch_vision.checkpoints import LlavaFamily
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor, PreTrainedConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from cornstarch_core import ModalEncoderModule

__all__ = ["LlavaNextFamily"]


class LlavaNextFamily(LlavaFamily):
    """LLaVA-NeXT, also called LLaVA-1.6."""

    config_class = LlavaNextConfig
    model_class = LlavaNextForConditionalGeneration
    processor_class = LlavaNextProcessor
    projector_class = LlavaNextMultiModalProjector
    callback = "cornstarch-llava-next/llava-next"
    own_weights = {"image_newline": "postprocess_projector_callback.image_newline"}  # noqa: RUF012 - ClassVar in the base

    def options(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The callbacks' options for a config of this family."""
        return {**super().options(config), "image_grid_pinpoints": config.image_grid_pinpoints}

    def settings(self, encoder: ModalEncoderModule, options: dict[str, Any]) -> dict[str, Any]:
        """Entries of the family's config for the callbacks' options, all of which are given.

        Raises:
            CheckpointError: the family's class can't do what an option says.
        """
        if not options["use_image_newline"]:
            raise self.refusal("use_image_newline=False, but that class always has newlines. Train with them.")
        if options["tokens_per_crop"] is not None:
            raise self.refusal("tokens_per_crop is given, but the projector of that class keeps all tokens.")
        return {**super().settings(encoder, options), "image_grid_pinpoints": _pinpoints(encoder)}

    def check_media_processor(self, encoder: ModalEncoderModule, media_processor: Any) -> None:
        """Refuse an image processor that the family's processor or model can't use.

        Raises:
            CheckpointError: transformers can't load it, or it tiles otherwise than the model.
        """
        super().check_media_processor(encoder, media_processor)
        found = getattr(media_processor, "image_grid_pinpoints", None)
        if found is None or [list(pinpoint) for pinpoint in found] != _pinpoints(encoder):
            raise self.refusal(
                f"its image processor tiles for image_grid_pinpoints={found}, the model for {_pinpoints(encoder)}. "
                f"Leave {encoder.key!r} out of MultimodalProcessor(processors=...) to get the right one."
            )


def _pinpoints(encoder: ModalEncoderModule) -> list[list[int]]:
    """The pinpoints in use, given or the default, as LLaVA-NeXT's config writes them."""
    packing: Any = encoder.postprocess_projector_callback
    return [list(pinpoint) for pinpoint in packing.anyres.tiler.pinpoints]
