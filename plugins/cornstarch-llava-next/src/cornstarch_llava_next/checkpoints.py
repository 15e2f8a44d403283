"""Hugging Face's LLaVA-NeXT checkpoints in and out: LLaVA's build, with pinpoints and a newline."""

from __future__ import annotations

from typing import Any

from cornstarch_vision.checkpoints import LlavaFamily
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from cornstarch_core import ModalEncoderModule

__all__ = ["LLAVA_NEXT", "LlavaNextFamily"]


class LlavaNextFamily(LlavaFamily):
    """LLaVA-NeXT, also called LLaVA-1.6."""

    config_class = LlavaNextConfig
    model_class = LlavaNextForConditionalGeneration
    processor_class = LlavaNextProcessor
    projector_class = LlavaNextMultiModalProjector
    callback = "cornstarch-llava-next/llava-next"
    own_weights = {"image_newline": "postprocess_projector_callback.image_newline"}  # noqa: RUF012 - ClassVar in the base

    def options(self, config: Any) -> dict[str, Any]:
        """The callback's options for a config of theirs."""
        return {**super().options(config), "image_grid_pinpoints": config.image_grid_pinpoints}

    def settings(self, encoder: ModalEncoderModule, options: dict[str, Any]) -> dict[str, Any]:
        """Entries of their config for the callback's options, all of which are given.

        Raises:
            CheckpointError: they can't do what an option says.
        """
        if not options["use_image_newline"]:
            raise self.refusal("use_image_newline=False, and that class always has newlines. Train with them.")
        if options["tokens_per_crop"] is not None:
            raise self.refusal("tokens_per_crop is given, and the projector of that class keeps all tokens.")
        return {**super().settings(encoder, options), "image_grid_pinpoints": _pinpoints(encoder)}

    def check_media_processor(self, encoder: ModalEncoderModule, media_processor: Any) -> None:
        """Refuse an image processor that their processor or model could not use.

        Raises:
            CheckpointError: says why.
        """
        super().check_media_processor(encoder, media_processor)
        found = getattr(media_processor, "image_grid_pinpoints", None)
        if found is None or [list(pinpoint) for pinpoint in found] != _pinpoints(encoder):
            raise self.refusal(
                f"its image processor tiles for image_grid_pinpoints={found}, the model for {_pinpoints(encoder)}. "
                f"Leave {encoder.key!r} out of MultimodalProcessor(processors=...), and the right one is made."
            )


LLAVA_NEXT = LlavaNextFamily()
"""LLaVA-NeXT."""


def _pinpoints(encoder: ModalEncoderModule) -> list[list[int]]:
    """Those in use, also where they were left to the default, in LLaVA-NeXT's form."""
    packing: Any = encoder.postprocess_projector_callback
    return [list(pinpoint) for pinpoint in packing.anyres.tiler.pinpoints]
