"""Hugging Face's LLaVA checkpoints, and the structure that other families share with them.

What all such families have in common, for any modality, is in :mod:`cornstarch_core.interop`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.processing_utils import ProcessorMixin

from cornstarch_core import ModalEncoderModule, MultimodalProcessor, MultimodalProjector, MultimodalProjectorConfig
from cornstarch_core.interop import CheckpointFamily, adopt_layers, callback_options, encoder_description, is_activation

from .families import native_image

__all__ = ["LlavaFamily"]


class LlavaFamily(CheckpointFamily):
    """LLaVA-1.5: a vision tower, an MLP and a decoder.

    Another family with these parts is a subclass that names its classes and overrides what differs.
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

    def options(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The callbacks' options for a config of this family."""
        strategy = config.vision_feature_select_strategy
        # the class drops one token under "default", also where the tower has no CLS, or has registers beside it
        drop = {"drop_tokens": 1} if strategy == "default" else {}
        return {
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": strategy,
            **drop,
        }

    def settings(self, encoder: ModalEncoderModule, options: dict[str, Any]) -> dict[str, Any]:
        """Entries of the family's config for the callbacks' options, all of which are given.

        Raises:
            CheckpointError: the family's class can't do what an option says.
        """
        strategy, drop = options["vision_feature_select_strategy"], options["drop_tokens"]
        config, family = encoder.module.config, encoder_description(encoder).load()
        if drop is None:
            drop = family.prefix_tokens(config) if strategy == "default" else 0
        if strategy == "default" and drop != 1:
            raise self.refusal(
                f"it drops {drop} tokens of each image, and that class always drops one under 'default'. Compose with "
                "drop_tokens=1, or with vision_feature_select_strategy='full', and train on that."
            )
        layer = options["vision_feature_layer"]
        return {
            "vision_feature_layer": list(layer) if isinstance(layer, (list, tuple)) else layer,
            "vision_feature_select_strategy": strategy,
            "image_seq_length": family.num_tokens(config, native_image(config))[0] - drop,
        }

    def projector(self, theirs: PreTrainedModel) -> MultimodalProjector:
        """An ``"mlp"`` that holds the layers of their projector; a custom one if they have no biases."""
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
            CheckpointError: the projector is of another kind.
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
        """Entries of the family's config for the MLP."""
        return {
            "projector_hidden_act": encoder.projector.config.activation,
            "multimodal_projector_bias": encoder.projector.projection.linear_1.bias is not None,
        }

    def processor_arguments(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> dict[str, Any]:
        """The arguments of the family's processor.

        Raises:
            CheckpointError: the family's processor can't count the tower's patches.
        """
        config = encoder.module.config
        if not isinstance(config.patch_size, int):
            raise self.refusal(f"its processor counts in square patches, and the tower has {config.patch_size}.")
        return {
            **super().processor_arguments(encoder, processor),
            "patch_size": config.patch_size,
            "vision_feature_select_strategy": callback_options(encoder)["vision_feature_select_strategy"],
            "num_additional_image_tokens": encoder_description(encoder).load().prefix_tokens(config),
        }
