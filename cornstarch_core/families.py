"""Checkpoint families: what it takes to read and write the checkpoints of Hugging Face's multimodal classes.

Many of those classes are built alike: a tower and a decoder, a projector between them, and a head. That build is here;
a plugin adds a subclass of :class:`CheckpointFamily` that says how its classes name things, and what is their own.

In: their class loads itself, and its very modules become the parts of a composition. Out: their class is built without
memory and given the weights of a composition. Either way no weight is copied (but a tied head, for a class that never
ties), and the logits stay equal to the bit; what would make them differ is refused.

Must not know any modality, nor what a particular family looks like.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.processing_utils import ProcessorMixin

from .checkpoint import check_loaded, read_config
from .decoders import check_run, copied_config, decoder_and_head, language_model, with_rows
from .encoder import ModalEncoderModule
from .errors import CheckpointError
from .model import MultimodalModel
from .plugins import Provided, registry, resolve
from .processing.subprocessors import SavedProcessor
from .projector import MultimodalProjector, MultimodalProjectorConfig

if TYPE_CHECKING:
    from .processor import MultimodalProcessor

__all__ = ["CheckpointFamily", "adopt_layers", "callback_options", "encoder_description", "is_activation"]


class CheckpointFamily:
    """A family of checkpoints: one tower, a projector and a decoder in ``model``, and ``lm_head`` beside it.

    A family is a subclass that fills in the class variables and overrides what is its own: :meth:`projector` and
    :meth:`projection` always, the others as need be. An instance's :meth:`load`, :meth:`load_processor` and
    :meth:`export` are the targets of a :class:`~cornstarch_core.specs.CheckpointSpec`. ``LlavaFamily`` in
    cornstarch-vision is one to look at.

    Their model holds the projector as ``model.multi_modal_projector`` and the decoder as ``model.language_model``, and
    their config the decoder's as ``text_config``.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    """Their config."""
    model_class: ClassVar[Any]
    """Their model, with its head."""
    processor_class: ClassVar[type[ProcessorMixin]]
    """Their processor."""
    callback: ClassVar[str]
    """Qualified name of the callback of an imported model, for example ``"cornstarch-vision/llava"``."""
    key: ClassVar[str]
    """Modality key of an imported model, for example ``"vision"``."""
    tower: ClassVar[str]
    """Where in ``model`` the encoder is, for example ``"vision_tower"``."""
    tower_config: ClassVar[str]
    """Their config's argument for the config of the tower, for example ``"vision_config"``."""
    token_id: ClassVar[str]
    """Attribute of their config that holds the placeholder's id, for example ``"image_token_id"``."""
    token_id_argument: ClassVar[str]
    """Their config's argument for it, for example ``"image_token_index"``."""
    token: ClassVar[str]
    """Attribute of their processor that holds the placeholder, and its argument, for example ``"image_token"``."""
    media_processor: ClassVar[str]
    """Attribute of their processor that prepares the media, and its argument, for example ``"image_processor"``."""
    own_weights: ClassVar[Mapping[str, str]] = {}
    """Parameters beside the parts: the name in their ``model``, and the one in a ``ModalEncoderModule``."""

    # --- what a family says of itself ---------------------------------------------------------------------------------

    def options(self, config: Any) -> dict[str, Any]:
        """The callback's options for a config of theirs; none unless overridden."""
        return {}

    def settings(self, encoder: ModalEncoderModule, options: dict[str, Any]) -> dict[str, Any]:
        """Entries of their config for the callback's options, all of which are given; none unless overridden.

        Raises:
            CheckpointError: they can't do what an option says; see :meth:`refusal`.
        """
        return {}

    def projector(self, theirs: Any) -> MultimodalProjector:
        """The projector that holds the very layers of their model's; see :func:`adopt_layers`."""
        raise NotImplementedError(f"{type(self).__name__}.projector")

    def projection(self, encoder: ModalEncoderModule) -> nn.Module:
        """The module whose state dict, names included, is that of their ``multi_modal_projector``.

        Raises:
            CheckpointError: the encoder's projector is of another kind; see :meth:`refusal`.
        """
        raise NotImplementedError(f"{type(self).__name__}.projection")

    def projector_settings(self, encoder: ModalEncoderModule) -> dict[str, Any]:
        """Entries of their config for a projector that :meth:`projection` takes; none unless overridden."""
        return {}

    def check_media_processor(self, encoder: ModalEncoderModule, media_processor: Any) -> None:
        """Refuse an image processor or feature extractor that their processor or model could not use.

        Raises:
            CheckpointError: says why.
        """
        if not SavedProcessor.of(media_processor).is_transformers:
            raise self.refusal(
                f"its {_words(self.media_processor)} is a {type(media_processor).__name__}, which transformers can't "
                f"load. Give MultimodalProcessor(processors={{{encoder.key!r}: ...}}) one of transformers, or export "
                "without processor=."
            )

    def processor_arguments(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> dict[str, Any]:
        """What their processor is made with.

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
        token, expected = getattr(theirs, self.token), getattr(config, self.token_id)
        token_id = theirs.tokenizer.convert_tokens_to_ids(token)
        if token_id != expected:
            raise CheckpointError(
                f"{folder}: the processor's placeholder {token!r} has id {token_id}, the model's is {expected}; "
                f"correct {self.token} in processor_config.json."
            )
        with torch.device("meta"):
            model = self._compose(folder, self.model_class(config))
        return {
            "processors": {self.key: getattr(theirs, self.media_processor)},
            "tokenizer": theirs.tokenizer,
            "model": model.config,
            "tokens": {self.key: token},
            "chat_template": theirs.chat_template,
        }

    def _compose(self, folder: Any, theirs: Any) -> MultimodalModel:
        tower = getattr(theirs.model, self.tower)
        if registry().find_encoder(tower) is None:
            raise CheckpointError(
                f"{folder}: no plugin describes its {_words(self.tower)}, a {type(tower).__name__}, so its features "
                f"can't be counted. Register it as an encoder. {registry().explain_unavailable()}".rstrip()
            )
        encoder = ModalEncoderModule(
            tower, self.projector(theirs), callbacks=self.callback, callback_options=self.options(theirs.config)
        )
        model = MultimodalModel(encoders={self.key: encoder}, language_model=language_model(str(folder), theirs))
        for name, ours in self.own_weights.items():
            parent, _, leaf = ours.rpartition(".")
            setattr(encoder.get_submodule(parent), leaf, theirs.model.get_parameter(name))
        model.set_modality_token_ids({self.key: getattr(theirs.config, self.token_id)})
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
        settings = self.settings(encoder, callback_options(encoder))
        weights = self._weights(encoder, decoder, head, token_id + 1)
        tied = head.weight is decoder.get_input_embeddings().weight
        text_config = copied_config(decoder)
        text_config.vocab_size, text_config.tie_word_embeddings = len(weights["lm_head.weight"]), tied
        configs = {self.tower_config: copied_config(encoder.module), "text_config": text_config}
        settings |= {self.token_id_argument: token_id, **self.projector_settings(encoder)}
        theirs = self._empty(**configs, **settings, tie_word_embeddings=tied)
        self._check_classes({self.tower: encoder.module, "language_model": decoder}, theirs)
        self._check_weights(weights, theirs)
        theirs.load_state_dict(weights, assign=True)
        theirs.tie_weights()
        if tied:
            _untie_unless_tied(theirs)
        theirs.generation_config = model.language_model.generation_config
        return theirs

    def _weights(
        self, encoder: ModalEncoderModule, decoder: Any, head: nn.Module, rows: int
    ) -> dict[str, torch.Tensor]:
        """All of them by their names, with at least so many rows in the embeddings and the head."""
        parts = {
            f"model.{self.tower}": encoder.module,
            "model.multi_modal_projector": self.projection(encoder),
            "model.language_model": decoder,
            "lm_head": head,
        }
        weights = {f"{prefix}.{name}": w for prefix, part in parts.items() for name, w in part.state_dict().items()}
        for name, ours in self.own_weights.items():
            weights[f"model.{name}"] = encoder.get_parameter(ours).detach()
        return with_rows(weights, rows, decoder, head)

    def _empty(self, **config: Any) -> Any:
        try:
            with torch.device("meta"):
                return self.model_class(self.config_class(**config))
        except Exception as error:  # unknown configs and missing layers raise all kinds of errors (5.23)
            raise self.refusal(f"it can't be built for a {config['text_config'].model_type} model: {error}") from error

    def _check_classes(self, parts: dict[str, nn.Module], theirs: Any) -> None:
        for place, part in parts.items():
            made = getattr(theirs.model, place)
            if type(part) is not type(made):
                what = "decoder" if place == "language_model" else _words(place)
                raise self.refusal(
                    f"its {what} is a {type(part).__name__}, but from its config that class makes a "
                    f"{type(made).__name__}."
                )

    def _check_weights(self, weights: dict[str, torch.Tensor], theirs: nn.Module) -> None:
        expected, got = _shapes(theirs.state_dict()), _shapes(weights)
        different = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        if different:
            raise self.refusal(
                f"{len(different)} of its tensors are missing, of another shape or without a place there "
                f"({', '.join(different[:3])}, …). A part is not what its config describes, or was made with other "
                "arguments, such as add_pooling_layer=False."
            )

    def _export_processor(self, encoder: ModalEncoderModule, processor: MultimodalProcessor) -> ProcessorMixin:
        self.check_media_processor(encoder, processor.processors[encoder.key])
        theirs = self.processor_class(**self.processor_arguments(encoder, processor))
        token = getattr(theirs, self.token)
        if token != processor.tokens[encoder.key]:  # a tokenizer may bring one of its own
            raise self.refusal(
                f"the tokenizer names {token!r} as the {_words(self.token)}; make the processor with "
                f"tokens={{{encoder.key!r}: {token!r}}}."
            )
        return theirs


# --- tools for families -----------------------------------------------------------------------------------------------


def adopt_layers(config: MultimodalProjectorConfig, projection: nn.Module) -> MultimodalProjector:
    """Make a projector that holds the very layers of another class's, so that no weight is copied.

    Args:
        config: what the projector should be, for example of type ``"mlp"``.
        projection: whose layers to take: one layer, or a module of layers that are named as those of that type.

    Returns:
        A projector of the config's type, which saves and loads like any other; or, where the weights don't fit that
        type (no bias, another width inside), a custom one around ``projection``.

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
    if _shapes(projector.projection.state_dict()) != _shapes(projection.state_dict()):
        custom = copy.deepcopy(config)
        custom.projection_type = "custom"
        return MultimodalProjector(custom, projection)
    layers = dict(projection.named_children())
    if not layers:
        projector.projection = projection
    for name, layer in layers.items():
        setattr(projector.projection, name, layer)
    return projector


def is_activation(name: str, activation: Any) -> bool:
    """Whether a function is the activation of that name, told by what it gives.

    Args:
        name: from ``transformers.activations.ACT2FN``.
        activation: function or module.

    Example:
        >>> from torch import nn
        >>> is_activation("gelu", nn.GELU()), is_activation("gelu", nn.ReLU())
        (True, False)
    """
    samples = torch.linspace(-4, 4, 33)
    return torch.equal(ACT2FN[name](samples), activation(samples))


def encoder_description(encoder: ModalEncoderModule) -> Provided:
    """The :class:`~cornstarch_core.specs.EncoderSpec` of an encoder of transformers, and its plugin.

    Args:
        encoder: one of a composed model.

    Raises:
        CheckpointError: no plugin describes it, or it is no encoder of transformers.
    """
    if encoder.provided is None or not isinstance(encoder.module.config, PreTrainedConfig):
        raise CheckpointError(
            f"{encoder.key}: no plugin describes {type(encoder.module).__name__} as an encoder of transformers; only "
            f"such encoders can be exported. {registry().explain_unavailable()}".rstrip()
        )
    return encoder.provided


def callback_options(encoder: ModalEncoderModule) -> dict[str, Any]:
    """All options of the encoder's registered callback, defaults included, and ``context``, which is ``None``.

    Args:
        encoder: one whose callback a plugin registers.
    """
    assert encoder.callback_provided is not None  # by it the family was found
    build = resolve(encoder.callback_provided.spec.build, encoder.callback_provided.plugin)
    bound = inspect.signature(build).bind(None, **encoder.callback_options)
    bound.apply_defaults()
    return bound.arguments


def _untie_unless_tied(theirs: Any) -> None:
    """Give a class that never ties, as Voxtral's (5.23), a head of its own: one tensor under two names isn't saved."""
    if theirs.lm_head.weight is not theirs.model.language_model.get_input_embeddings().weight:
        theirs.lm_head.weight = nn.Parameter(theirs.lm_head.weight.detach().clone())
        theirs.config.tie_word_embeddings = theirs.config.text_config.tie_word_embeddings = False


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _words(name: str) -> str:
    """A name in their code as it reads in a sentence."""
    return name.replace("_", " ")
