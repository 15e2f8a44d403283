"""Hugging Face's LLaVA checkpoints in and out; and the build that others share with them.

In: their class loads itself, and its very modules become the parts of a composition. Out: their class is built without
memory and given the weights of a composition. Either way no weight is copied, and the logits stay equal to the bit;
what would make them differ is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.processing_utils import ProcessorMixin

from cornstarch_core import (
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    MultimodalProjector,
    MultimodalProjectorConfig,
)
from cornstarch_core.checkpoint import check_loaded, read_config
from cornstarch_core.errors import CheckpointError
from cornstarch_core.plugins import registry, resolve
from cornstarch_core.processing.subprocessors import SavedProcessor

from .decoders import check_run, copied_config, decoder_and_head, language_model, with_rows
from .families import native_dummy_inputs

__all__ = ["LLAVA", "LlavaFamily"]

KEY = "vision"  # modality key of an imported model


class LlavaFamily:
    """A family of checkpoints built as LLaVA's: a tower, an MLP and a decoder in ``model``, and a head beside it.

    Another family of that build is a subclass that names its classes and says what is its own.
    """

    config_class: ClassVar[type[PreTrainedConfig]] = LlavaConfig
    model_class: ClassVar[Any] = LlavaForConditionalGeneration
    processor_class: ClassVar[type[ProcessorMixin]] = LlavaProcessor
    projector_class: ClassVar[type[nn.Module]] = LlavaMultiModalProjector
    callback: ClassVar[str] = "cornstarch-vision/llava"
    own_weights: ClassVar[Mapping[str, str]] = {}
    """Parameters beside the three parts: the name in their class, and the one in a ``ModalEncoderModule``."""

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
        config = encoder.module.config
        spec, plugin = _described(encoder)
        return {
            "vision_feature_layer": list(layer) if isinstance(layer, (list, tuple)) else layer,
            "vision_feature_select_strategy": strategy,
            "image_seq_length": resolve(spec.num_tokens, plugin)(config, native_dummy_inputs(config))[0] - drop,
        }

    def check_image_processor(self, encoder: ModalEncoderModule, image_processor: Any) -> None:
        """Refuse an image processor that their processor or model could not use.

        Raises:
            CheckpointError: says why.
        """
        if not SavedProcessor.of(image_processor).is_transformers:
            raise self.refusal(
                f"its image processor is a {type(image_processor).__name__}, which transformers can't load. Give "
                f"MultimodalProcessor(processors={{{encoder.key!r}: ...}}) one of transformers, or export without "
                "processor=."
            )

    def refusal(self, reason: str) -> CheckpointError:
        """The error of those who can't be exported."""
        return CheckpointError(f"{self.model_class.__name__} can't hold this model: {reason}")

    # --- in -----------------------------------------------------------------------------------------------------------

    def load(self, folder: Any, **kwargs: Any) -> MultimodalModel | tuple[MultimodalModel, dict[str, Any]]:
        """Load a checkpoint as a composed model.

        Args:
            folder: folder or hub name.
            **kwargs: as in ``PreTrainedModel.from_pretrained``, for example ``dtype="bfloat16"``.

        Returns:
            The model; with ``output_loading_info=True`` also what ``transformers`` says about the loading.

        Raises:
            CheckpointError: weights are missing, or a composed model would not give the same logits.
        """
        want_info = kwargs.pop("output_loading_info", False)
        theirs, info = self.model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
        check_loaded(folder, {**info, "unexpected_keys": ()})  # published checkpoints may hold buffers of old versions
        model = self._compose(folder, theirs)
        check_run(str(folder), model.language_model)
        return (model, info) if want_info else model

    def load_processor(self, folder: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint's processor: arguments of ``MultimodalProcessor``. No weights are read.

        Args:
            folder: folder or hub name.
            **kwargs: as in ``ProcessorMixin.from_pretrained``.

        Raises:
            CheckpointError: there is none, or its placeholder is not the model's.
        """
        config = self.config_class.from_dict(read_config(folder, kwargs))
        try:
            theirs: Any = self.processor_class.from_pretrained(folder, **kwargs)
        except (OSError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder} holds no processor that can be read: {error}") from error
        token_id = theirs.tokenizer.convert_tokens_to_ids(theirs.image_token)
        if token_id != config.image_token_id:
            raise CheckpointError(
                f"{folder}: the processor's placeholder {theirs.image_token!r} has id {token_id}, the model's is "
                f"{config.image_token_id}; correct image_token in processor_config.json."
            )
        with torch.device("meta"):
            model = self._compose(folder, self.model_class(config))
        return {
            "processors": {KEY: theirs.image_processor},
            "tokenizer": theirs.tokenizer,
            "model": model.config,
            "tokens": {KEY: theirs.image_token},
            "chat_template": theirs.chat_template,
        }

    def _compose(self, folder: Any, theirs: Any) -> MultimodalModel:
        tower = theirs.model.vision_tower
        if registry().find_encoder(tower) is None:
            raise CheckpointError(
                f"{folder}: no plugin describes its vision tower, a {type(tower).__name__}, so its features can't be "
                f"counted. Register it as an encoder. {registry().explain_unavailable()}".rstrip()
            )
        encoder = ModalEncoderModule(
            tower, _projector(theirs), callbacks=self.callback, callback_options=self.options(theirs.config)
        )
        model = MultimodalModel(encoders={KEY: encoder}, language_model=language_model(str(folder), theirs))
        for name, ours in self.own_weights.items():
            parent, _, leaf = ours.rpartition(".")
            setattr(encoder.get_submodule(parent), leaf, theirs.model.get_parameter(name))
        model.set_modality_token_ids({KEY: theirs.config.image_token_id})
        return model.eval()

    # --- out ----------------------------------------------------------------------------------------------------------

    def export(
        self, model: MultimodalModel, processor: MultimodalProcessor | None
    ) -> tuple[PreTrainedModel, ProcessorMixin | None]:
        """Make their model and processor, which share the weights of ``model``. Their model is for saving, not to run.

        Raises:
            CheckpointError: their class can't hold the model; says why and what to do.
        """
        (encoder, *others) = model.encoders.values()
        if others:
            raise self.refusal(f"it has {1 + len(others)} encoders ({', '.join(model.encoders)}), that class has one.")
        if encoder.overrides:
            raise self.refusal(
                f"callbacks of your own ({', '.join(encoder.overrides)}) stand in place of {self.callback}'s. Compose "
                "without them."
            )
        token_id = model.config.modality_token_ids.get(encoder.key)
        if token_id is None:
            raise self.refusal(
                "its placeholder has no id; make a MultimodalProcessor(model=mllm), which tells it, or "
                "mllm.set_modality_token_ids."
            )
        theirs = self._build(model, encoder, token_id)
        return theirs, self._export_processor(encoder, processor) if processor is not None else None

    def _build(self, model: MultimodalModel, encoder: ModalEncoderModule, token_id: int) -> PreTrainedModel:
        decoder, head = decoder_and_head(self.model_class.__name__, model.language_model)
        check_run(self.model_class.__name__, model.language_model)
        settings = self.settings(encoder, _options(encoder))
        weights = self._weights(encoder, decoder, head, token_id + 1)
        tied = head.weight is decoder.get_input_embeddings().weight
        text_config = copied_config(decoder)
        text_config.vocab_size, text_config.tie_word_embeddings = len(weights["lm_head.weight"]), tied
        theirs = self._empty(
            vision_config=copied_config(encoder.module),
            text_config=text_config,
            image_token_index=token_id,
            projector_hidden_act=encoder.projector.config.activation,
            multimodal_projector_bias=encoder.projector.projection.linear_1.bias is not None,
            tie_word_embeddings=tied,
            **settings,
        )
        self._check_classes({"vision tower": encoder.module, "decoder": decoder}, theirs)
        self._check_weights(weights, theirs)
        theirs.load_state_dict(weights, assign=True)
        theirs.tie_weights()
        theirs.generation_config = model.language_model.generation_config
        return theirs

    def _weights(
        self, encoder: ModalEncoderModule, decoder: Any, head: nn.Module, rows: int
    ) -> dict[str, torch.Tensor]:
        """All of them by their names, with at least so many rows in the embeddings and the head."""
        parts = {
            "model.vision_tower": encoder.module,
            "model.multi_modal_projector": self._projection(encoder),
            "model.language_model": decoder,
            "lm_head": head,
        }
        weights = {f"{prefix}.{name}": w for prefix, part in parts.items() for name, w in part.state_dict().items()}
        for name, ours in self.own_weights.items():
            weights[f"model.{name}"] = encoder.get_parameter(ours).detach()
        return with_rows(weights, rows, decoder, head)

    def _projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The MLP, if it is one."""
        projector, projection = encoder.projector, encoder.projector.projection
        if projector.is_custom:
            fits = isinstance(projection, self.projector_class) and _is_named(projector.config.activation, projection)
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

    def _empty(self, **config: Any) -> Any:
        try:
            with torch.device("meta"):
                return self.model_class(self.config_class(**config))
        except Exception as error:  # unknown configs and missing layers raise all kinds of errors (5.23)
            raise self.refusal(f"it can't be built for a {config['text_config'].model_type} model: {error}") from error

    def _check_classes(self, parts: dict[str, nn.Module], theirs: Any) -> None:
        made = {"vision tower": theirs.model.vision_tower, "decoder": theirs.model.language_model}
        for what, part in parts.items():
            if type(part) is not type(made[what]):
                raise self.refusal(
                    f"its {what} is a {type(part).__name__}, but from its config that class makes a "
                    f"{type(made[what]).__name__}."
                )

    def _check_weights(self, weights: dict[str, torch.Tensor], theirs: nn.Module) -> None:
        expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
        got = {name: tensor.shape for name, tensor in weights.items()}
        different = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        if different:
            raise self.refusal(
                f"{len(different)} of its tensors are missing, of another shape or without a place there "
                f"({', '.join(different[:3])}, …). A part is not what its config describes, or was made with other "
                "arguments, such as add_pooling_layer=False."
            )

    def _export_processor(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> ProcessorMixin:
        image_processor = processor.processors[encoder.key]
        self.check_image_processor(encoder, image_processor)
        config, patch = encoder.module.config, encoder.module.config.patch_size
        if not isinstance(patch, int):
            raise self.refusal(f"its processor counts in square patches, and the tower has {config.patch_size}.")
        theirs: Any = self.processor_class(
            image_processor=image_processor,
            tokenizer=processor.tokenizer,
            patch_size=patch,
            vision_feature_select_strategy=_options(encoder)["vision_feature_select_strategy"],
            chat_template=processor.chat_template,
            image_token=processor.tokens[encoder.key],
            num_additional_image_tokens=_prefix_tokens(encoder),
        )
        if theirs.image_token != processor.tokens[encoder.key]:  # a tokenizer may bring one of its own
            raise self.refusal(
                f"the tokenizer names {theirs.image_token!r} as the image token; make the processor with "
                f"tokens={{{encoder.key!r}: {theirs.image_token!r}}}."
            )
        return theirs


LLAVA = LlavaFamily()
"""LLaVA-1.5."""


def _projector(theirs: Any) -> MultimodalProjector:
    """Their projector's very layers in a ``MultimodalProjector``: an ``"mlp"``, or without biases a custom one."""
    projection = theirs.model.multi_modal_projector
    config = MultimodalProjectorConfig(
        projection_type="mlp",
        activation=theirs.config.projector_hidden_act,
        in_features=projection.linear_1.in_features,
        out_features=projection.linear_2.out_features,
    )
    if projection.linear_1.bias is None:
        config.projection_type = "custom"
        return MultimodalProjector(config, projection)
    with torch.device("meta"):
        projector = MultimodalProjector(config)
    for name, layer in projection.named_children():
        setattr(projector.projection, name, layer)
    return projector


def _is_named(name: str, projection: Any) -> bool:
    """Whether this is the projection's activation."""
    samples = torch.linspace(-4, 4, 33)
    return torch.equal(ACT2FN[name](samples), projection.act(samples))


def _described(encoder: ModalEncoderModule) -> tuple[Any, str]:
    """The spec of the encoder's family, and its plugin."""
    if encoder.provided is None or not isinstance(encoder.module.config, PreTrainedConfig):
        raise CheckpointError(
            f"{encoder.key}: no plugin describes {type(encoder.module).__name__} as an encoder of transformers; only "
            f"such encoders can be exported. {registry().explain_unavailable()}".rstrip()
        )
    return encoder.provided.spec, encoder.provided.plugin


def _prefix_tokens(encoder: ModalEncoderModule) -> int:
    spec, plugin = _described(encoder)
    return resolve(spec.prefix_tokens, plugin)(encoder.module.config) if spec.prefix_tokens is not None else 0


def _options(encoder: ModalEncoderModule) -> dict[str, Any]:
    """All options of the encoder's callback, defaults included."""
    assert encoder.callback_provided is not None  # by it the family was found
    build = resolve(encoder.callback_provided.spec.build, encoder.callback_provided.plugin)
    bound = inspect.signature(build).bind(None, **encoder.callback_options)
    bound.apply_defaults()
    return bound.arguments
