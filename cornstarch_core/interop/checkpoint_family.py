"""Checkpoint families: how to read and write the checkpoints of the multimodal classes of transformers.

Many of these classes have the same structure: a tower and a decoder, a projector between them, and a head. This module
implements this structure. For each family, a plugin adds a subclass of :class:`CheckpointFamily` that names the parts
and overrides the methods whose defaults don't fit.

To read a checkpoint, the family's class loads the checkpoint, and its modules become the parts of a composed model. To
write a checkpoint, the family's class is built on the meta device, and receives the weights of a composed model. Both
directions copy no weight, except for a tied head if the family's class never ties its head. The logits are bitwise
equal. A model whose logits would differ is refused.

This module contains no code for a particular modality or family.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.activations import ACT2FN

from ..errors import CheckpointError
from ..model import MultimodalModel
from ..modeling.encoder import ModalEncoderModule
from ..modeling.projector import MultimodalProjector, MultimodalProjectorConfig
from ..plugins import Registration, registry
from ..processing.saved_processor import SavedProcessor
from ..processor import MultimodalProcessor
from ..saving.load import FolderName, check_loaded, read_config
from ..saving.tensors import different_names
from ..specs import CheckpointInterface, EncoderSpec
from .decoder_and_head import check_run, copied_config, language_model, with_rows

__all__ = ["CheckpointFamily", "adopt_layers", "callback_options", "encoder_description", "is_activation"]


class CheckpointFamily(CheckpointInterface):
    """A family of checkpoints: one tower, a projector and a decoder in ``model``, and ``lm_head`` beside it.

    A subclass sets the class variables. It overrides :meth:`projector` and :meth:`projection`, and other methods if the
    family differs from their defaults. The subclass is the target of a
    :class:`~cornstarch_core.specs.CheckpointSpec`. ``LlavaFamily`` in cornstarch-vision is an example.

    The family's model holds the projector as ``model.multi_modal_projector`` and the decoder as
    ``model.language_model``. Its config holds the decoder's config as ``text_config``.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    """Class of the family's config."""
    model_class: ClassVar[Any]
    """Class of the family's model with its head."""
    processor_class: ClassVar[type[ProcessorMixin]]
    """Class of the family's processor."""
    callback: ClassVar[str]
    """Qualified name of the callback of an imported model, for example ``"cornstarch-vision/llava"``."""
    key: ClassVar[str]
    """Modality key of an imported model, for example ``"vision"``."""
    tower: ClassVar[str]
    """Name of the encoder in ``model``, for example ``"vision_tower"``."""
    tower_config: ClassVar[str]
    """Constructor argument of the family's config for the tower's config, for example ``"vision_config"``."""
    token_id: ClassVar[str]
    """Attribute of the family's config that holds the placeholder's id, for example ``"image_token_id"``."""
    token_id_argument: ClassVar[str]
    """Constructor argument of the family's config for the placeholder's id, for example ``"image_token_index"``."""
    token: ClassVar[str]
    """Attribute and constructor argument of the family's processor for the placeholder, such as ``"image_token"``."""
    media_processor: ClassVar[str]
    """Attribute and constructor argument of the family's processor for the part that prepares the media, for example
    ``"image_processor"``."""
    own_weights: ClassVar[Mapping[str, str]] = {}
    """Parameters outside the tower, projector and decoder. Each key is a parameter's name in the family's ``model``;
    its value is the parameter's name in a ``ModalEncoderModule``."""

    # --- methods for subclasses to override ---------------------------------------------------------------------------

    def options(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the options of the callbacks for a config of the family; default: no options."""
        return {}

    def settings(self, encoder: ModalEncoderModule, options: dict[str, Any]) -> dict[str, Any]:
        """Return the entries of the family's config for the options of the callbacks; default: no entries.

        ``options`` contains all options, including those that have their default.

        Raises:
            CheckpointError: the family's class doesn't support the value of an option; see :meth:`refusal`.
        """
        return {}

    def projector(self, theirs: PreTrainedModel) -> MultimodalProjector:
        """Return a projector that holds the layers of the family's own projector; see :func:`adopt_layers`."""
        raise NotImplementedError(f"{type(self).__name__}.projector")

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """Return a module whose state dict has the names and shapes of the family's ``multi_modal_projector``.

        Raises:
            CheckpointError: the encoder's projector has another structure; see :meth:`refusal`.
        """
        raise NotImplementedError(f"{type(self).__name__}.projection")

    def projector_settings(self, encoder: ModalEncoderModule) -> dict[str, Any]:
        """Return the entries of the family's config for the encoder's projector; default: no entries.

        The projector is one that :meth:`projection` accepts.
        """
        return {}

    def check_media_processor(self, encoder: ModalEncoderModule, media_processor: object) -> None:
        """Refuse an image processor or feature extractor that the family's processor or model can't use.

        Raises:
            CheckpointError: the family can't use it. The message says why.
        """
        if not SavedProcessor.of(media_processor).is_transformers:
            raise self.refusal(
                f"its {_words(self.media_processor)} is a {type(media_processor).__name__}, which transformers can't "
                "load. Give MultimodalProcessor(processors=...) one of transformers, or export without processor=."
            )

    def processor_arguments(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> dict[str, Any]:
        """Return the constructor arguments of the family's processor.

        Raises:
            CheckpointError: the family can't represent the processor; see :meth:`refusal`.
        """
        return {
            self.media_processor: processor.processors[encoder.key],
            "tokenizer": processor.tokenizer,
            "chat_template": processor.chat_template,
            self.token: processor.tokens[encoder.key],
        }

    def refusal(self, reason: str) -> CheckpointError:
        """Return the error to raise for a model that can't be exported for this reason."""
        return CheckpointError(f"{self.model_class.__name__} can't hold this model: {reason}")

    # --- reading ------------------------------------------------------------------------------------------------------

    def load(self, folder: FolderName, **kwargs: Any) -> MultimodalModel | tuple[MultimodalModel, dict[str, Any]]:
        """Load a checkpoint as a composed model.

        Args:
            folder: folder or hub name.
            **kwargs: arguments passed to ``PreTrainedModel.from_pretrained``, for example ``dtype="bfloat16"``.

        Returns:
            The model. With ``output_loading_info=True``, a pair of the model and the loading info of transformers.

        Raises:
            CheckpointError: weights are missing, or a composed model would not give the same logits.
        """
        want_info = kwargs.pop("output_loading_info", False)
        theirs, info = self.model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
        check_loaded(folder, {**info, "unexpected_keys": ()})  # published checkpoints may hold buffers of old versions
        model = self._compose(folder, theirs)
        check_run(str(folder), model.language_model)
        return (model, info) if want_info else model

    def load_processor(self, folder: FolderName, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint's processor as arguments of ``MultimodalProcessor``, without reading weights.

        Args:
            folder: folder or hub name.
            **kwargs: arguments passed to ``ProcessorMixin.from_pretrained``.

        Raises:
            CheckpointError: the checkpoint has no processor that can be read, or the processor's placeholder has
                another id than the model's.
        """
        with torch.device("meta"):
            model = self._compose(folder, self.model_class(self.config_class.from_dict(read_config(folder, kwargs))))
        try:
            theirs: Any = self.processor_class.from_pretrained(folder, **kwargs)
        except (OSError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder} holds no processor that can be read: {error}") from error
        token, expected = getattr(theirs, self.token), model.config.modality_token_ids[self.key]
        token_id = theirs.tokenizer.convert_tokens_to_ids(token)
        if token_id != expected:
            raise CheckpointError(
                f"{folder}: the processor's placeholder {token!r} has id {token_id}, the model's is {expected}; "
                f"correct {self.token} in processor_config.json."
            )
        return {
            "processors": {self.key: getattr(theirs, self.media_processor)},
            "tokenizer": theirs.tokenizer,
            "model": model.config,
            "tokens": {self.key: token},
            "chat_template": theirs.chat_template,
        }

    def _compose(self, folder: FolderName, theirs: PreTrainedModel) -> MultimodalModel:
        tower = getattr(theirs.model, self.tower)
        if registry().find_encoder(tower) is None:
            raise CheckpointError(
                f"{folder}: no plugin describes its {_words(self.tower)}, a {type(tower).__name__}, so its features "
                f"can't be counted. Register it as an encoder. {registry().explain_unavailable()}".rstrip()
            )
        options = self.options(theirs.config)
        encoder = ModalEncoderModule(tower, self.projector(theirs), callbacks=self.callback, callback_options=options)
        model = MultimodalModel(encoders={self.key: encoder}, language_model=language_model(str(folder), theirs))
        for name, ours in self.own_weights.items():
            parent, _, leaf = ours.rpartition(".")
            setattr(encoder.get_submodule(parent), leaf, theirs.model.get_parameter(name))
        model.set_modality_token_ids({self.key: getattr(theirs.config, self.token_id)})
        return model.eval()

    # --- writing ------------------------------------------------------------------------------------------------------

    def export(
        self, model: MultimodalModel, processor: MultimodalProcessor | None
    ) -> tuple[PreTrainedModel, ProcessorMixin | None]:
        """Make the family's model, which shares the weights of ``model``, and the family's processor.

        The family's model is only for saving; its ``forward`` may not work.

        Raises:
            CheckpointError: the family's class can't represent the model. The message says why and what to do.
        """
        encoder, *others = model.encoders.values()
        if others:
            raise self.refusal(f"it has {1 + len(others)} encoders ({', '.join(model.encoders)}), that class has one.")
        if encoder.overrides:
            own = ", ".join(encoder.overrides)
            raise self.refusal(f"callbacks of your own ({own}) stand in place of {self.callback}'s. Leave them out.")
        token_id = model.config.modality_token_ids.get(encoder.key)
        if token_id is None:
            raise self.refusal("its placeholder has no id; make a MultimodalProcessor, or set_modality_token_ids.")
        theirs = self._build(model, encoder, token_id)
        return theirs, self._build_processor(encoder, processor) if processor is not None else None

    def _build(self, model: MultimodalModel, encoder: ModalEncoderModule, token_id: int) -> PreTrainedModel:
        decoder, head = check_run(self.model_class.__name__, model.language_model)
        settings = {**self.settings(encoder, callback_options(encoder)), self.token_id_argument: token_id}
        projection = self.projection(encoder)
        parts = {self.tower: encoder.module, "multi_modal_projector": projection, "language_model": decoder}
        weights = {f"model.{place}.{name}": w for place, part in parts.items() for name, w in part.state_dict().items()}
        weights |= {f"model.{name}": encoder.get_parameter(ours).detach() for name, ours in self.own_weights.items()}
        weights |= {f"lm_head.{name}": weight for name, weight in head.state_dict().items()}
        weights = with_rows(weights, token_id + 1, decoder, head)
        tied = head.weight is decoder.get_input_embeddings().weight
        text_config = copied_config(decoder)
        text_config.vocab_size, text_config.tie_word_embeddings = len(weights["lm_head.weight"]), tied
        settings |= {self.tower_config: copied_config(encoder.module), "text_config": text_config}
        settings |= {**self.projector_settings(encoder), "tie_word_embeddings": tied}
        theirs = self._build_empty(settings, parts, weights)
        theirs.load_state_dict(weights, assign=True)
        theirs.tie_weights()
        if tied and theirs.lm_head.weight is not theirs.model.language_model.get_input_embeddings().weight:
            # Some classes never tie, such as Voxtral's (5.23). They can't save one tensor under two names.
            theirs.lm_head.weight = nn.Parameter(theirs.lm_head.weight.detach().clone())
            theirs.config.tie_word_embeddings = theirs.config.text_config.tie_word_embeddings = False
        theirs.generation_config = model.language_model.generation_config
        return theirs

    def _build_empty(self, settings: dict[str, Any], parts: dict[str, Any], weights: dict[str, Any]) -> Any:
        """Build the family's model on the meta device. Refuse ``parts`` and ``weights`` that do not match its class."""
        try:
            with torch.device("meta"):
                theirs = self.model_class(self.config_class(**settings))
        except Exception as error:  # unknown configs and missing layers raise all kinds of errors (5.23)
            model_type = settings["text_config"].model_type
            raise self.refusal(f"it can't be built for a {model_type} model: {error}") from error
        for place, what in ((self.tower, _words(self.tower)), ("language_model", "decoder")):
            ours, made = type(parts[place]), type(getattr(theirs.model, place))
            if ours is not made:
                raise self.refusal(
                    f"its {what} is a {ours.__name__}, but from its config that class makes a {made.__name__}."
                )
        if different := different_names(theirs.state_dict(), weights):
            raise self.refusal(
                f"{len(different)} of its tensors are missing, extra or reshaped ({', '.join(different[:3])}, …). "
                "A part is not what its config says, or was made with other arguments, such as add_pooling_layer=False."
            )
        return theirs

    def _build_processor(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> ProcessorMixin:
        self.check_media_processor(encoder, processor.processors[encoder.key])
        theirs = self.processor_class(**self.processor_arguments(encoder, processor))
        token = getattr(theirs, self.token)
        if token != processor.tokens[encoder.key]:  # the family's processor prefers the tokenizer's placeholder
            raise self.refusal(
                f"the tokenizer names {token!r} as the {_words(self.token)}; make the processor with "
                f"tokens={{{encoder.key!r}: {token!r}}}."
            )
        return theirs


# --- functions for subclasses -----------------------------------------------------------------------------------------


def adopt_layers(config: MultimodalProjectorConfig, projection: nn.Module) -> MultimodalProjector:
    """Make a projector that holds the layers of another class's projector, so that no weight is copied.

    Args:
        config: config of the projector to make, for example of type ``"mlp"``.
        projection: module whose layers to use: one layer, or a module whose layers have the same names as those of the
            config's type.

    Returns:
        A projector of the config's type, which saves and loads like any other projector. If the weights don't match
        that type, for example because of a missing bias or another inner width, a custom projector around
        ``projection``.

    Example:
        >>> from torch import nn
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> theirs = nn.Linear(32, 64)
        >>> projector = adopt_layers(MultimodalProjectorConfig(in_features=32, out_features=64), theirs)
        >>> projector.projection is theirs, projector.is_custom
        (True, False)
        >>> without_bias = nn.Linear(32, 64, bias=False)
        >>> adopt_layers(MultimodalProjectorConfig(in_features=32, out_features=64), without_bias).is_custom
        True
    """
    with torch.device("meta"):
        projector = MultimodalProjector(config)
    if different_names(projector.projection.state_dict(), projection.state_dict()):
        custom = copy.deepcopy(config)
        custom.projection_type = "custom"
        return MultimodalProjector(custom, projection)
    for name, layer in projection.named_children():
        setattr(projector.projection, name, layer)
    if not [*projection.children()]:
        projector.projection = projection
    return projector


def is_activation(name: str, activation: object) -> bool:
    """Whether a function computes the same values as the activation of that name.

    Args:
        name: name of an activation in ``transformers.activations.ACT2FN``.
        activation: function or module to compare.

    Example:
        >>> from torch import nn
        >>> is_activation("gelu", nn.GELU()), is_activation("gelu", nn.ReLU())
        (True, False)
    """
    samples = torch.linspace(-4, 4, 33)
    return callable(activation) and torch.equal(ACT2FN[name](samples), torch.as_tensor(activation(samples)))


def encoder_description(encoder: ModalEncoderModule) -> Registration[EncoderSpec]:
    """Return the registration of an encoder of transformers, with its plugin and its spec.

    The spec is an :class:`~cornstarch_core.specs.EncoderSpec`.

    Args:
        encoder: an encoder of a composed model.

    Raises:
        CheckpointError: no plugin describes the encoder, or its class is not one of transformers.
    """
    if encoder.registration is None or not isinstance(encoder.module.config, PreTrainedConfig):
        raise CheckpointError(
            f"{encoder.key}: no plugin describes {type(encoder.module).__name__} as an encoder of transformers; only "
            f"such encoders can be exported. {registry().explain_unavailable()}".rstrip()
        )
    return encoder.registration


def callback_options(encoder: ModalEncoderModule) -> dict[str, Any]:
    """Return all options of the encoder's registered callbacks, including those that have their default.

    The dictionary also contains ``context``, which is ``None``.

    Args:
        encoder: an encoder whose callbacks a plugin registers.
    """
    assert encoder.callback_registration is not None  # the family was found by it
    build = encoder.callback_registration.load().build
    bound = inspect.signature(build).bind(None, **encoder.callback_options)
    bound.apply_defaults()
    return bound.arguments


def _words(name: str) -> str:
    """Convert a name in code to words for a sentence."""
    return name.replace("_", " ")
