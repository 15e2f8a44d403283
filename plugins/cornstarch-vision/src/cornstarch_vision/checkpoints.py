"""Hugging Face's LLaVA checkpoints in and out; and the build that LLaVA's relatives share with them.

What towers, decoders and heads have in common, whatever they see or hear, is :mod:`cornstarch_core.families`' to know.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.processing_utils import ProcessorMixin

from cornstarch_core import ModalEncoderModule, MultimodalProcessor, MultimodalProjector, MultimodalProjectorConfig
from cornstarch_core.families import (
    CheckpointFamily,
    adopt_layers,
    callback_options,
    encoder_description,
    is_activation,
)
from cornstarch_core.plugins import resolve

from .families import native_dummy_inputs

__all__ = ["LLAVA", "LlavaFamily"]


class LlavaFamily(CheckpointFamily):
    """A family of checkpoints built as LLaVA's: a vision tower, an MLP and a decoder.

    Another family of that build is a subclass that names its classes and says what is its own.
    """

    config_class: ClassVar[type[PreTrainedConfig]] = LlavaConfig
    model_class: ClassVar[Any] = LlavaForConditionalGeneration
    processor_class: ClassVar[type[ProcessorMixin]] = LlavaProcessor
    projector_class: ClassVar[type[nn.Module]] = LlavaMultiModalProjector
    callback = "cornstarch-vision/llava"
    key = "vision"
    tower = "vision_tower"
    tower_config = "vision_config"
    token_id = "image_token_id"
    token_id_argument = "image_token_index"
    token = "image_token"
    media_processor = "image_processor"

    def options(self, config: Any) -> dict[str, Any]:
        """The callback's options for a config of theirs."""
        strategy = config.vision_feature_select_strategy
        # They drop one token under "default", also where the tower has no CLS or has registers beside it.
        drop = {"drop_tokens": 1} if strategy == "default" else {}
        return {
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": strategy,
            **drop,
        }

    def settings(self, encoder: ModalEncoderModule, options: dict[str, Any]) -> dict[str, Any]:
        """Entries of their config for the callback's options, all of which are given.

        Raises:
            CheckpointError: they can't do what an option says.
        """
        strategy, drop = options["vision_feature_select_strategy"], options["drop_tokens"]
        prefix = _prefix_tokens(encoder)
        drop = (prefix if strategy == "default" else 0) if drop is None else drop
        if strategy == "default" and drop != 1:
            raise self.refusal(
                f"it drops {drop} tokens of each image, and that class always drops one under 'default'. Compose with "
                "drop_tokens=1, or with vision_feature_select_strategy='full', and train on that."
            )
        layer = options["vision_feature_layer"]
        config, provided = encoder.module.config, encoder_description(encoder)
        count = resolve(provided.spec.num_tokens, provided.plugin)
        return {
            "vision_feature_layer": list(layer) if isinstance(layer, (list, tuple)) else layer,
            "vision_feature_select_strategy": strategy,
            "image_seq_length": count(config, native_dummy_inputs(config))[0] - drop,
        }

    def projector(self, theirs: Any) -> MultimodalProjector:
        """An ``"mlp"`` of their projector's very layers; a custom one if they have no biases."""
        projection = theirs.model.multi_modal_projector
        config = MultimodalProjectorConfig(
            projection_type="mlp",
            activation=theirs.config.projector_hidden_act,
            in_features=projection.linear_1.in_features,
            out_features=projection.linear_2.out_features,
        )
        return adopt_layers(config, projection)

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The MLP.

        Raises:
            CheckpointError: the projector is another.
        """
        projector, projection = encoder.projector, encoder.projector.projection
        if projector.is_custom:
            fits = isinstance(projection, self.projector_class) and is_activation(
                projector.config.activation, projection.act
            )
            kind = f"a {type(projection).__name__} of your own"
        else:
            fits = projector.config.projection_type == "mlp"
            kind = f"of type {projector.config.projection_type!r}"
        if not fits:
            raise self.refusal(
                f"its projector is {kind}; that class has an MLP of two linear layers. Compose with "
                "init_projector_type='mlp' and train it."
            )
        return projection

    def projector_settings(self, encoder: ModalEncoderModule) -> dict[str, Any]:
        """Entries of their config for the MLP."""
        return {
            "projector_hidden_act": encoder.projector.config.activation,
            "multimodal_projector_bias": encoder.projector.projection.linear_1.bias is not None,
        }

    def processor_arguments(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> dict[str, Any]:
        """What their processor is made with.

        Raises:
            CheckpointError: theirs can't count the tower's patches.
        """
        patch = encoder.module.config.patch_size
        if not isinstance(patch, int):
            raise self.refusal(f"its processor counts in square patches, and the tower has {patch}.")
        return {
            **super().processor_arguments(encoder, processor),
            "patch_size": patch,
            "vision_feature_select_strategy": callback_options(encoder)["vision_feature_select_strategy"],
            "num_additional_image_tokens": _prefix_tokens(encoder),
        }


LLAVA = LlavaFamily()
"""LLaVA-1.5."""


def _prefix_tokens(encoder: ModalEncoderModule) -> int:
    provided = encoder_description(encoder)
    if provided.spec.prefix_tokens is None:
        return 0
    return resolve(provided.spec.prefix_tokens, provided.plugin)(encoder.module.config)
