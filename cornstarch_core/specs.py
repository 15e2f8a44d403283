"""The specs that plugins register with the core, and the interfaces of the classes that the specs name.

A spec is a frozen dataclass of plain values. Its *target* is an import path, ``"package.module:Class"``. The core
imports the target's class only when it builds a model or a processor. Therefore the module of a plugin's entry point
needs no torch. The core instantiates the class without arguments. The class has the methods of the spec's interface:

======================  ============================
Spec                    Interface of its target
======================  ============================
:class:`EncoderSpec`    :class:`EncoderInterface`
:class:`ProjectorSpec`  :class:`ProjectorInterface`
:class:`ProcessorSpec`  :class:`ProcessorInterface`
:class:`CallbackSpec`   :class:`CallbacksInterface`
:class:`CheckpointSpec` :class:`CheckpointInterface`
======================  ============================

Inherit from the interface: then the optional methods have their defaults, and a type checker reports missing methods.

``encoder_inputs`` is a dictionary whose keys are :attr:`EncoderSpec.input_names` and the input names of the callbacks.
Its values are tensors, lists of tensors, or plain numbers that stay on the host.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from .errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.processing_utils import ProcessorMixin

__all__ = [
    "CallbackSpec",
    "CallbacksInterface",
    "CheckpointInterface",
    "CheckpointSpec",
    "CountTokens",
    "EncoderContext",
    "EncoderInterface",
    "EncoderSpec",
    "MediaProcessor",
    "ModalCallbacks",
    "ProcessorInterface",
    "ProcessorSpec",
    "ProjectorInterface",
    "ProjectorSpec",
    "Spec",
]

ConfigT = TypeVar("ConfigT", contravariant=True)
ItemT = TypeVar("ItemT", contravariant=True)
InterfaceT = TypeVar("InterfaceT", covariant=True)

CountTokens = Callable[[dict[str, Any]], list[int]]
"""A function ``(encoder_inputs) -> list[int]`` that counts the tokens of each media item."""
MediaProcessor = Callable[..., Mapping[str, Any]]
"""``(items, return_tensors="pt") -> encoder_inputs``: an image processor, a feature extractor or a function."""


# --- interfaces -------------------------------------------------------------------------------------------------------


class EncoderInterface(Protocol[ConfigT]):
    """Interface of the target of an :class:`EncoderSpec`. ``ConfigT`` is the type of ``module.config``."""

    @abstractmethod
    def num_tokens(self, config: ConfigT, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the tokens that the encoder gives for each media item.

        Args:
            config: the encoder's config.
            encoder_inputs: the inputs of all items of a batch.

        Returns:
            One count for each media item. Compute the counts from shapes and lengths on the host, because reading the
            values of a tensor makes the host wait for the device.

        Raises:
            MediaError: the encoder doesn't accept these inputs.
        """
        ...

    @abstractmethod
    def dummy_inputs(self, config: ConfigT) -> dict[str, Any]:
        """Make the smallest valid inputs, which hold one media item.

        Args:
            config: the encoder's config.
        """
        ...

    def hidden_size(self, config: ConfigT) -> int | None:
        """Return the width of the features; default: ``config.hidden_size``.

        Args:
            config: the encoder's config.
        """
        return getattr(config, "hidden_size", None)

    def prefix_tokens(self, config: ConfigT) -> int:
        """Count the tokens before the first patch or frame, such as CLS and register tokens; default: 0.

        Args:
            config: the encoder's config.
        """
        return 0

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the encoder with fresh weights when a saved model is loaded.

        Encoders that are classes of transformers don't need this method, because the core builds them.

        Args:
            config: the ``module.config`` of the saved model, as plain data.

        Raises:
            NotImplementedError: the target does not override this method.
        """
        # Two statements: mypy takes a method of a protocol that only raises for one that has to be overridden.
        problem = f"{type(self).__name__} has no method build"
        raise NotImplementedError(problem)


class ProjectorInterface(Protocol):
    """Interface of the target of a :class:`ProjectorSpec`. Each ``config`` is a ``MultimodalProjectorConfig``."""

    @abstractmethod
    def build(self, config: PreTrainedConfig) -> nn.Module:
        """Make the module that maps ``(items, tokens, in_features)`` to ``(items, tokens', out_features)``.

        Here ``tokens'`` is the number of tokens after the projector, which :meth:`num_tokens` declares.

        Args:
            config: config with the integers ``in_features`` and ``out_features``, and the options of this type.

        Raises:
            CompositionError: an option is wrong.
        """
        ...

    def num_tokens(self, config: PreTrainedConfig, counts: list[int]) -> list[int]:
        """Count the tokens of each media item after the projector; default: the same counts as before it.

        Args:
            config: the projector's config.
            counts: number of tokens of each item before the projector.
        """
        return counts

    def dummy_inputs(
        self, config: PreTrainedConfig, encoder_inputs: dict[str, Any], count: CountTokens
    ) -> dict[str, Any]:
        """Enlarge the encoder's smallest inputs until the projector accepts their features; default: unchanged.

        Args:
            config: the projector's config.
            encoder_inputs: the smallest inputs of the encoder, completed by the callbacks.
            count: function that returns how many tokens of each item reach the projector for given inputs. It raises an
                error if the encoder refuses the inputs.

        Returns:
            The smallest inputs whose features the projector accepts, or ``encoder_inputs`` if there are none.
        """
        return encoder_inputs


class ProcessorInterface(Protocol[ItemT]):
    """Interface of the target of a :class:`ProcessorSpec`. ``ItemT`` is the type of one media item that a user passes.

    The target converts raw media to the tensors that an encoder accepts.
    """

    @abstractmethod
    def build(self, context: EncoderContext, *args: Any, **callback_options: Any) -> MediaProcessor:
        """Make the image processor or feature extractor of an encoder.

        Args:
            context: description of the encoder.
            **callback_options: options of the encoder's callbacks.

        Returns:
            A function ``(items, return_tensors="pt") -> encoder_inputs``. The processor calls it with all items of a
            batch, after :meth:`prepare`.
        """
        ...

    def wrap(
        self, context: EncoderContext, processor: MediaProcessor, *args: Any, **callback_options: Any
    ) -> MediaProcessor:
        """Adapt the user's processor to the encoder; default: return the processor unchanged.

        Args:
            context: description of the encoder.
            processor: image processor or feature extractor that the user passes.
            **callback_options: options of the encoder's callbacks.
        """
        return processor

    def prepare(self, item: ItemT) -> object:
        """Check one media item, and convert it if necessary; default: return it unchanged.

        Args:
            item: one media item that the user passes.

        Raises:
            MediaError: the item is not of a kind that the target accepts.
        """
        return item


class CallbacksInterface(Protocol):
    """Interface of the target of a :class:`CallbackSpec`, which makes a set of callbacks for one encoder."""

    @abstractmethod
    def build(self, context: EncoderContext, *args: Any, **callback_options: Any) -> ModalCallbacks:
        """Make the callbacks when a model is composed.

        Args:
            context: description of the encoder.
            **callback_options: the options that the user passes as ``callback_options``.

        Raises:
            CompositionError: an option is wrong, or doesn't fit the encoder.
        """
        ...


class CheckpointInterface(Protocol):
    """Interface of the target of a :class:`CheckpointSpec`, which reads and writes checkpoints of another library."""

    @abstractmethod
    def load(self, folder: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load a checkpoint as a composed model. This method must not keep two copies of the weights in memory.

        Args:
            folder: a folder or a hub name.
            **kwargs: arguments of ``PreTrainedModel.from_pretrained``.

        Returns:
            A ``MultimodalModel``. With ``output_loading_info=True``, a pair of the model and the loading info.
        """
        ...

    def load_processor(self, folder: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any]:
        """Read the processor of a checkpoint; default: raise ``CheckpointError``.

        Args:
            folder: a folder or a hub name.
            **kwargs: arguments of ``ProcessorMixin.from_pretrained``.

        Returns:
            The arguments ``processors``, ``tokenizer``, ``model`` (a ``MultimodalConfig``), ``tokens`` and
            ``chat_template`` of ``MultimodalProcessor``.

        Raises:
            CheckpointError: the target does not override this method, or the processor can't be read.
        """
        raise CheckpointError(f"{folder}: {type(self).__name__} reads models only, no processors.")

    def export(self, model: Any, processor: Any) -> tuple[PreTrainedModel, ProcessorMixin | None]:
        """Convert a composed model to a model of the family's own class; default: raise ``CheckpointError``.

        Args:
            model: a ``MultimodalModel``.
            processor: the ``MultimodalProcessor`` of the model, or ``None``.

        Returns:
            The family's model and the family's processor. The caller only saves the model. Therefore its state dict
            must be complete and share the weights of ``model``, but its ``forward`` need not work.

        Raises:
            CheckpointError: the target does not override this method, or the family can't represent the model.
        """
        raise CheckpointError(f"{type(self).__name__} reads checkpoints only, and writes none.")


# --- specs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spec(Generic[InterfaceT]):
    """Base class of all specs.

    Args:
        name: short name, unique within the plugin and kind, for example ``"clip"``.
        target: import path ``"package.module:Class"`` of a class with the methods of the spec's interface.
    """

    interface: ClassVar[type]
    """The protocol of the target."""

    name: str
    target: str


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(Spec[EncoderInterface[Any]]):
    """One family of modality encoders.

    Args:
        name: short name, unique within the plugin, for example ``"clip"``.
        target: import path of a class that implements :class:`EncoderInterface`.
        modality: the modality that the encoders encode, for example ``"vision"``.
        classes: import paths ``"package.module:Class"`` of the encoder classes; their subclasses match, too.
        input_names: names of the arguments that the encoder's ``forward`` accepts. Error messages ask for the first
            one.
        layers: dotted path, inside the encoder, of the module list of its blocks, for callbacks that stop the encoder
            after one of its blocks.
        processor: name of the :class:`ProcessorSpec` that prepares the encoder's media; default: none.
    """

    interface: ClassVar[type] = EncoderInterface

    modality: str
    classes: tuple[str, ...]
    input_names: tuple[str, ...]
    layers: str | None = None
    processor: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProjectorSpec(Spec[ProjectorInterface]):
    """One value of ``projection_type``.

    Args:
        name: the value, for example ``"pixel_shuffle"``.
        target: import path of a class that implements :class:`ProjectorInterface`.
        per_token: whether the projector maps each token independently of the other tokens. If ``True``, one call
            projects the concatenated tokens of items of different lengths; default: one call for each of these items.
    """

    interface: ClassVar[type] = ProjectorInterface

    per_token: bool = False


@dataclass(frozen=True, kw_only=True)
class ProcessorSpec(Spec[ProcessorInterface[Any]]):
    """One way to convert raw media to the tensors that an encoder accepts.

    Args:
        name: short name, for example ``"image"``.
        target: import path of a class that implements :class:`ProcessorInterface`.
        modality: modality of the media, for example ``"vision"``.
        media_names: further keywords under which a processor accepts these media, beside the modality key, for example
            ``("images",)``.
        content_types: values of ``type`` that mark such a media item in a chat message, for example ``("image",)``.
    """

    interface: ClassVar[type] = ProcessorInterface

    modality: str
    media_names: tuple[str, ...] = ()
    content_types: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CallbackSpec(Spec[CallbacksInterface]):
    """One set of callbacks that ``ModalEncoderModule(callbacks="name")`` can name.

    Args:
        name: short name, for example ``"llava"``.
        target: import path of a class that implements :class:`CallbacksInterface`.
        modality: modality of the encoders that the callbacks fit, for example ``"vision"``.
        processor: name of the :class:`ProcessorSpec` to use in place of the one that the encoder's spec names; default:
            the one that the encoder's spec names.
    """

    interface: ClassVar[type] = CallbacksInterface

    modality: str
    processor: str | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec(Spec[CheckpointInterface]):
    """One checkpoint family of another library, for ``MultimodalModel.from_pretrained`` and ``export_pretrained``.

    Args:
        name: the ``model_type`` in the ``config.json`` of the family, for example ``"llava"``.
        target: import path of a class that implements :class:`CheckpointInterface`, such as a subclass of
            :class:`~cornstarch_core.interop.CheckpointFamily`.
        callback: name of a :class:`CallbackSpec`. A model with an encoder that uses these callbacks is exported as this
            family; default: models are not exported as this family.
        encoder: name of the :class:`EncoderSpec` that must describe the same encoder of the model. Use it if several
            families have the same ``callback``; default: any encoder.
    """

    interface: ClassVar[type] = CheckpointInterface

    callback: str | None = None
    encoder: str | None = None


# --- arguments and return values of targets ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EncoderContext:
    """Description of the encoder for which a plugin builds callbacks or a processor.

    Args:
        key: the modality key in ``MultimodalModel.encoders``, for example ``"vision"``.
        config: the encoder's config (``module.config``), or ``None`` if it has none.
        hidden_size: width of the encoder's features.
        text_hidden_size: width of the language model's embeddings.
        prefix_tokens: number of tokens before the first patch or frame, such as CLS and register tokens.
        layers: dotted path of the encoder's blocks from its :class:`EncoderSpec`, or ``None``.
    """

    key: str
    config: Any
    hidden_size: int
    text_hidden_size: int
    prefix_tokens: int = 0
    layers: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModalCallbacks:
    """The functions or ``nn.Module`` objects that run around a modality encoder.

    Args:
        preprocess: function ``(inputs) -> inputs`` that runs on the device right before the encoder.
        postprocess_module: function ``(inputs, output) -> output`` that runs between the encoder and the projector.
        postprocess_projector: function ``(inputs, output) -> output`` that runs after the projector.
        run_module: function ``(module, inputs) -> output`` that runs the encoder; default: ``module(**inputs)``.
        data_dependent_calls: whether ``run_module`` calls the encoder a number of times that depends on the batch. If
            so, the encoder can't be sharded block by block, since other ranks would wait for calls that this rank does
            not make; default: ``False``.
        num_tokens_before_projector: function ``(encoder_inputs, counts) -> list[int]`` that returns the token counts
            after ``postprocess_module`` for the counts after the encoder; default: the same counts.
        num_tokens_after_projector: function ``(encoder_inputs, counts) -> list[int]`` that returns the token counts
            after ``postprocess_projector`` for the counts after the projector; default: the same counts.
        prepare_on_host: function ``(encoder_inputs) -> encoder_inputs`` that the processor runs right after the image
            processor or feature extractor. It runs on the host, once for each batch, for all items, before the tokens
            are counted. Use it for work that would cause a device sync in ``preprocess``; default: unchanged.
        dummy_inputs: function ``(encoder_inputs) -> encoder_inputs`` that adds the inputs of the callbacks to the
            encoder's smallest valid inputs. Its argument is empty if no plugin registers the encoder. A rank whose
            batch lacks the modality runs the encoder on the result, because other ranks run it; default: unchanged.
        hidden_size: width of the features after ``postprocess_module``; default: the encoder's width.
        input_names: names of the inputs that only the callbacks read, for example ``("image_sizes",)``. The encoder
            does not receive these inputs.

    Example:
        >>> from cornstarch_core import ModalCallbacks
        >>> def drop_first(inputs, output):
        ...     output.last_hidden_state = output.last_hidden_state[:, 1:]
        ...     return output
        >>> callbacks = ModalCallbacks(
        ...     postprocess_module=drop_first,
        ...     num_tokens_before_projector=lambda inputs, counts: [n - 1 for n in counts],
        ... )
    """

    preprocess: Callable[..., Any] | None = None
    postprocess_module: Callable[..., Any] | None = None
    postprocess_projector: Callable[..., Any] | None = None
    run_module: Callable[..., Any] | None = None
    data_dependent_calls: bool = False
    num_tokens_before_projector: Callable[..., list[int]] | None = None
    num_tokens_after_projector: Callable[..., list[int]] | None = None
    prepare_on_host: Callable[..., dict[str, Any]] | None = None
    dummy_inputs: Callable[..., dict[str, Any]] | None = None
    hidden_size: int | None = None
    input_names: tuple[str, ...] = ()
