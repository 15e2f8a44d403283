"""Checkpoint families: how to read and write the checkpoints of the multimodal classes of transformers.

Many of those classes have one structure: a tower and a decoder, a projector between them, and a head. This module knows
that structure. A plugin adds a subclass of :class:`CheckpointFamily` that says how its classes name the parts, and what
is special about them.

Reading: the family's class loads itself, and its modules become the parts of a composition. Writing: the family's class
is built without memory, and given the weights of a composition. Either way no weight is copied, except for a tied head
if the class never ties, and the logits stay equal to the bit. A model whose logits would differ is refused.

Knows no modality and no particular family.
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

    A subclass sets the class variables and overrides what is special about its family: :meth:`projector` and
    :meth:`projection` always, the other methods if needed. It is the target of a
    :class:`~cornstarch_core.specs.CheckpointSpec`. ``LlavaFamily`` in cornstarch-vision is an example.

    The family's model holds the projector as ``model.multi_modal_projector`` and the decoder as
    ``model.language_model``. Its config holds the decoder's config as ``text_config``.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    """The family's config."""
    model_class: ClassVar[Any]
    """The family's model, with its head."""
    processor_class: ClassVar[type[ProcessorMixin]]
    """The family's processor."""
    callback: ClassVar[str]
    """Qualified name of the callback of an imported model, for example ``"cornstarch-vision/llava"``."""
    key: ClassVar[str]
    """Modality key of an imported model, for example ``"vision"``."""
    tower: ClassVar[str]
    """Name of the encoder in ``model``, for example ``"vision_tower"``."""
    tower_config: ClassVar[str]
    """The config's argument for the config of the tower, for example ``"vision_config"``."""
    token_id: ClassVar[str]
    """Attribute of the config that holds the placeholder's id, for example ``"image_token_id"``."""
    token_id_argument: ClassVar[str]
    """The config's argument for it, for example ``"image_token_index"``."""
    token: ClassVar[str]
    """Attribute of the processor that holds the placeholder, and its argument, for example ``"image_token"``."""
    media_processor: ClassVar[str]
    """Attribute of the processor that prepares the media, and its argument, for example ``"image_processor"``."""
    own_weights: ClassVar[Mapping[str, str]] = {}
    """Parameters beside the parts: the name in the family's ``model``, and the one in a ``ModalEncoderModule``."""

    # --- what a subclass says of its family ---------------------------------------------------------------------------

    def options(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The callback's options for a config of the family; default: none."""
        return {}

    def settings(self, encoder: ModalEncoderModule, options: dict[str, Any]) -> dict[str, Any]:
        """Entries of the family's config for the callback's options, all of which are given; default: none.

        Raises:
            CheckpointError: the family's class can't do what an option says; see :meth:`refusal`.
        """
        return {}

    def projector(self, theirs: PreTrainedModel) -> MultimodalProjector:
        """A projector that holds the layers of the family's own projector; see :func:`adopt_layers`."""
        raise NotImplementedError(f"{type(self).__name__}.projector")

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The module whose state dict, names included, is that of the family's ``multi_modal_projector``.

        Raises:
            CheckpointError: the encoder's projector is of another kind; see :meth:`refusal`.
        """
        raise NotImplementedError(f"{type(self).__name__}.projection")

    def projector_settings(self, encoder: ModalEncoderModule) -> dict[str, Any]:
        """Entries of the family's config for a projector that :meth:`projection` takes; default: none."""
        return {}

    def check_media_processor(self, encoder: ModalEncoderModule, media_processor: object) -> None:
        """Refuse an image processor or feature extractor that the family's processor or model can't use.

        Raises:
            CheckpointError: says why.
        """
        if not SavedProcessor.of(media_processor).is_transformers:
            raise self.refusal(
                f"its {_words(self.media_processor)} is a {type(media_processor).__name__}, which transformers can't "
                "load. Give MultimodalProcessor(processors=...) one of transformers, or export without processor=."
            )

    def processor_arguments(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> dict[str, Any]:
        """The arguments of the family's processor.

        Raises:
            CheckpointError: there is no such processor; see :meth:`refusal`.
        """
        return {
            self.media_processor: processor.processors[encoder.key],
            "tokenizer": processor.tokenizer,
            "chat_template": processor.chat_template,
            self.token: processor.tokens[encoder.key],
        }

    def refusal(self, reason: str) -> CheckpointError:
        """The error to raise for a model that can't be exported."""
        return CheckpointError(f"{self.model_class.__name__} can't hold this model: {reason}")

    # --- reading ------------------------------------------------------------------------------------------------------

    def load(self, folder: FolderName, **kwargs: Any) -> MultimodalModel | tuple[MultimodalModel, dict[str, Any]]:
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

    def load_processor(self, folder: FolderName, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint's processor: arguments of ``MultimodalProcessor``. No weights are read.

        Args:
            folder: folder or hub name.
            **kwargs: as in ``ProcessorMixin.from_pretrained``.

        Raises:
            CheckpointError: there is none, or its placeholder is not the model's.
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
        """Make the family's model, which shares the weights of ``model``, and its processor.

        The family's model is for saving only: it may not run.

        Raises:
            CheckpointError: the family's class can't hold the model; says why and what to do.
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
            # Voxtral's class, for one, never ties (5.23), and one tensor under two names is not saved.
            theirs.lm_head.weight = nn.Parameter(theirs.lm_head.weight.detach().clone())
            theirs.config.tie_word_embeddings = theirs.config.text_config.tie_word_embeddings = False
        theirs.generation_config = model.language_model.generation_config
        return theirs

    def _build_empty(self, settings: dict[str, Any], parts: dict[str, Any], weights: dict[str, Any]) -> Any:
        """The family's model on the meta device; refused if ``parts`` and ``weights`` are not those of its class."""
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
        if token != processor.tokens[encoder.key]:  # the family's processor takes the tokenizer's, if it names one
            raise self.refusal(
                f"the tokenizer names {token!r} as the {_words(self.token)}; make the processor with "
                f"tokens={{{encoder.key!r}: {token!r}}}."
            )
        return theirs


# --- functions for subclasses -----------------------------------------------------------------------------------------


def adopt_layers(config: MultimodalProjectorConfig, projection: nn.Module) -> MultimodalProjector:
    """Make a projector that holds the layers of another class's projector, so that no weight is copied.

    Args:
        config: what the projector should be, for example of type ``"mlp"``.
        projection: the module whose layers to take: one layer, or a module with layers that are named as those of the
            config's type.

    Returns:
        A projector of the config's type, which saves and loads like any other. If the weights don't fit that type (no
        bias, another width inside): a custom projector around ``projection``.

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
    """Whether a function is the activation of that name: it gives the same values.

    Args:
        name: from ``transformers.activations.ACT2FN``.
        activation: function or module.

    Example:
        >>> from torch import nn
        >>> is_activation("gelu", nn.GELU()), is_activation("gelu", nn.ReLU())
        (True, False)
    """
    samples = torch.linspace(-4, 4, 33)
    return callable(activation) and torch.equal(ACT2FN[name](samples), torch.as_tensor(activation(samples)))


def encoder_description(encoder: ModalEncoderModule) -> Registration[EncoderSpec]:
    """The :class:`~cornstarch_core.specs.EncoderSpec` of an encoder of transformers, and its plugin.

    Args:
        encoder: one of a composed model.

    Raises:
        CheckpointError: no plugin describes it, or it is no encoder of transformers.
    """
    if encoder.registration is None or not isinstance(encoder.module.config, PreTrainedConfig):
        raise CheckpointError(
            f"{encoder.key}: no plugin describes {type(encoder.module).__name__} as an encoder of transformers; only "
            f"such encoders can be exported. {registry().explain_unavailable()}".rstrip()
        )
    return encoder.registration


def callback_options(encoder: ModalEncoderModule) -> dict[str, Any]:
    """All options of the encoder's registered callback, defaults included, and ``context``, which is ``None``.

    Args:
        encoder: one whose callback a plugin registers.
    """
    assert encoder.callback_registration is not None  # by it the family was found
    build = encoder.callback_registration.load().build
    bound = inspect.signature(build).bind(None, **encoder.callback_options)
    bound.apply_defaults()
    return bound.arguments


def _words(name: str) -> str:
    """A name in code as it reads in a sentence."""
    return name.replace("_", " ")
