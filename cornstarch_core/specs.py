"""What plugins hand to the core: frozen dataclasses, and the interfaces of the classes that they name.

A spec is light: strings, and one *target*, ``"package.module:Class"``. The class is imported when a model or a
processor is built, never before, so that the module of a plugin's entry point needs no torch. It is made without
arguments, and has the methods of the spec's interface:

======================  ============================
Spec                    Interface of its target
======================  ============================
:class:`EncoderSpec`    :class:`EncoderInterface`
:class:`ProjectorSpec`  :class:`ProjectorInterface`
:class:`ProcessorSpec`  :class:`ProcessorInterface`
:class:`CallbackSpec`   :class:`CallbacksInterface`
:class:`CheckpointSpec` :class:`CheckpointInterface`
======================  ============================

Inherit from the interface: then the optional methods have their defaults, and a type checker sees what is missing.

``encoder_inputs`` are a dictionary by :attr:`EncoderSpec.input_names`: tensors, lists of tensors, or plain numbers that
stay on the host.
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
"""``(encoder_inputs) -> list[int]``: tokens of each media item."""
MediaProcessor = Callable[..., Mapping[str, Any]]
"""``(items, return_tensors="pt") -> encoder_inputs``: an image processor, a feature extractor or a function."""


# --- interfaces -------------------------------------------------------------------------------------------------------


class EncoderInterface(Protocol[ConfigT]):
    """What the core asks about one family of encoders. ``ConfigT`` is the type of ``module.config``."""

    @abstractmethod
    def num_tokens(self, config: ConfigT, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the tokens that the encoder gives for each media item.

        Args:
            config: the encoder's config.
            encoder_inputs: the inputs of all items of a batch.

        Returns:
            One count for each media item. Computed from shapes and lengths on the host: reading a tensor's values would
            make the host wait for the device.

        Raises:
            MediaError: the encoder doesn't take these inputs.
        """
        ...

    @abstractmethod
    def dummy_inputs(self, config: ConfigT) -> dict[str, Any]:
        """Make the smallest valid inputs: one media item.

        Args:
            config: the encoder's config.
        """
        ...

    def hidden_size(self, config: ConfigT) -> int | None:
        """Width of the features; default: ``config.hidden_size``.

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
        """Make the encoder with fresh weights, when a saved model is loaded. Classes of transformers don't need it.

        Args:
            config: what ``module.config`` was when the model was saved, as plain data.

        Raises:
            NotImplementedError: the default.
        """
        raise NotImplementedError


class ProjectorInterface(Protocol):
    """What the core asks about one ``projection_type``. The config is a ``MultimodalProjectorConfig``."""

    @abstractmethod
    def build(self, config: PreTrainedConfig) -> nn.Module:
        """Make the module that maps ``(items, tokens, in_features)`` to ``(items, tokens', out_features)``.

        Args:
            config: has ``in_features`` and ``out_features``, both integers, and the options of this type.

        Raises:
            CompositionError: an option is wrong.
        """
        ...

    def num_tokens(self, config: PreTrainedConfig, counts: list[int]) -> list[int]:
        """Count the tokens of each media item after the projector; default: as many as before.

        Args:
            config: the projector's config.
            counts: tokens of each item before the projector.
        """
        return counts

    def dummy_inputs(
        self, config: PreTrainedConfig, encoder_inputs: dict[str, Any], count: CountTokens
    ) -> dict[str, Any]:
        """Enlarge the encoder's smallest inputs until the projector takes their features; default: unchanged.

        Args:
            config: the projector's config.
            encoder_inputs: the smallest inputs, completed by the callbacks.
            count: tells how many tokens of each item would reach the projector; raises where the encoder refuses the
                inputs.

        Returns:
            The smallest inputs that fit, or ``encoder_inputs`` if none do.
        """
        return encoder_inputs


class ProcessorInterface(Protocol[ItemT]):
    """How raw media become the tensors that an encoder takes. ``ItemT`` is the type of one item as users give it."""

    @abstractmethod
    def build(self, context: EncoderContext, *args: Any, **callback_options: Any) -> MediaProcessor:
        """Make the image processor or feature extractor of an encoder.

        Args:
            context: the encoder.
            **callback_options: options of the callbacks in use.

        Returns:
            ``(items, return_tensors="pt") -> encoder_inputs``, called with all items of a batch, as :meth:`prepare`
            left them.
        """
        ...

    def wrap(
        self, context: EncoderContext, processor: MediaProcessor, *args: Any, **callback_options: Any
    ) -> MediaProcessor:
        """Fit a processor that the user gives to the encoder; default: it is used as it is.

        Args:
            context: the encoder.
            processor: an image processor or feature extractor.
            **callback_options: options of the callbacks in use.
        """
        return processor

    def prepare(self, item: ItemT) -> object:
        """Check one item, and convert it if need be; default: unchanged.

        Args:
            item: as the user gives it.

        Raises:
            MediaError: it is no such item.
        """
        return item


class CallbacksInterface(Protocol):
    """Makes a set of callbacks for one encoder."""

    @abstractmethod
    def build(self, context: EncoderContext, *args: Any, **callback_options: Any) -> ModalCallbacks:
        """Make the callbacks when a model is composed.

        Args:
            context: the encoder.
            **callback_options: what the user gives as ``callback_options``.

        Raises:
            CompositionError: an option is wrong, or doesn't fit the encoder.
        """
        ...


class CheckpointInterface(Protocol):
    """Reads and writes one checkpoint family of another library."""

    @abstractmethod
    def load(self, folder: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load a checkpoint as a composed model. It must not hold the weights twice.

        Args:
            folder: a folder or a hub name.
            **kwargs: as in ``PreTrainedModel.from_pretrained``.

        Returns:
            A ``MultimodalModel``; with ``output_loading_info=True`` also the loading info.
        """
        ...

    def load_processor(self, folder: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint's processor; default: refused.

        Args:
            folder: a folder or a hub name.
            **kwargs: as in ``ProcessorMixin.from_pretrained``.

        Returns:
            The arguments ``processors``, ``tokenizer``, ``model`` (a ``MultimodalConfig``), ``tokens`` and
            ``chat_template`` of ``MultimodalProcessor``.

        Raises:
            CheckpointError: the default.
        """
        raise CheckpointError(f"{folder}: {type(self).__name__} reads models only, no processors.")

    def export(self, model: Any, processor: Any) -> tuple[PreTrainedModel, ProcessorMixin | None]:
        """Make the family's own model out of a composed one; default: refused.

        Args:
            model: a ``MultimodalModel``.
            processor: its ``MultimodalProcessor``, or ``None``.

        Returns:
            The family's model and processor. The model is written and thrown away: its state dict must be complete and
            share the weights; it need not run.

        Raises:
            CheckpointError: the default; or the family can't hold the model.
        """
        raise CheckpointError(f"{type(self).__name__} reads checkpoints only, and writes none.")


# --- specs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spec(Generic[InterfaceT]):
    """What all specs have.

    Args:
        name: short name, unique within the plugin and kind, for example ``"clip"``.
        target: ``"package.module:Class"``, a class with the methods of the spec's interface.
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
        target: an :class:`EncoderInterface`.
        modality: what it encodes, for example ``"vision"``.
        classes: the classes it describes, as ``"package.module:Class"``; a subclass of one matches too.
        input_names: the arguments its ``forward`` takes; the first one is what messages ask for.
        layers: dotted path, inside the encoder, of the module list of its blocks, for callbacks that stop early.
        processor: name of the :class:`ProcessorSpec` that prepares its media; default: none.
    """

    interface: ClassVar[type] = EncoderInterface

    modality: str
    classes: tuple[str, ...]
    input_names: tuple[str, ...]
    layers: str | None = None
    processor: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProjectorSpec(Spec[ProjectorInterface]):
    """One ``projection_type``.

    Args:
        name: the type, for example ``"pixel_shuffle"``.
        target: a :class:`ProjectorInterface`.
        per_token: whether each token is projected by itself, so that items of different lengths can be projected at
            once; default: each item is projected by itself.
    """

    interface: ClassVar[type] = ProjectorInterface

    per_token: bool = False


@dataclass(frozen=True, kw_only=True)
class ProcessorSpec(Spec[ProcessorInterface[Any]]):
    """How raw media become the tensors that an encoder takes.

    Args:
        name: short name, for example ``"image"``.
        target: a :class:`ProcessorInterface`.
        modality: for example ``"vision"``.
        media_names: keywords under which a processor accepts such media beside the modality's key, e.g.
            ``("images",)``.
        content_types: the ``type`` of such an item in a chat message, e.g. ``("image",)``.
    """

    interface: ClassVar[type] = ProcessorInterface

    modality: str
    media_names: tuple[str, ...] = ()
    content_types: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CallbackSpec(Spec[CallbacksInterface]):
    """One set of callbacks that ``ModalEncoderModule(callbacks="name")`` can name.

    Args:
        name: for example ``"llava"``.
        target: a :class:`CallbacksInterface`.
        modality: for example ``"vision"``.
        processor: name of the :class:`ProcessorSpec` to use in place of the encoder's own; default: the encoder's own.
    """

    interface: ClassVar[type] = CallbacksInterface

    modality: str
    processor: str | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec(Spec[CheckpointInterface]):
    """One checkpoint family of another library, for ``MultimodalModel.from_pretrained`` and ``export_pretrained``.

    Args:
        name: the ``model_type`` in that family's ``config.json``, for example ``"llava"``.
        target: a :class:`CheckpointInterface`, such as a subclass of
            :class:`~cornstarch_core.interop.CheckpointFamily`.
        callback: name of the :class:`CallbackSpec` that marks a model to be exported as this family; default: models
            are not exported as this family.
        encoder: name of the :class:`EncoderSpec` that the same encoder of the model must have too. It tells families
            apart that share a callback; default: the callback is enough.
    """

    interface: ClassVar[type] = CheckpointInterface

    callback: str | None = None
    encoder: str | None = None


# --- what is passed to targets, and what they return ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EncoderContext:
    """The encoder that a plugin builds something for.

    Args:
        key: the modality key in ``MultimodalModel.encoders``, for example ``"vision"``.
        config: the encoder's config (``module.config``), or ``None`` if it has none.
        hidden_size: width of the encoder's features.
        text_hidden_size: width of the language model's embeddings.
        prefix_tokens: tokens before the first patch or frame, such as CLS and registers.
        layers: dotted path of the encoder's blocks, as its :class:`EncoderSpec` says, or ``None``.
    """

    key: str
    config: Any
    hidden_size: int
    text_hidden_size: int
    prefix_tokens: int = 0
    layers: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModalCallbacks:
    """The functions or ``nn.Module`` s that run around a modality encoder.

    Args:
        preprocess: ``(inputs) -> inputs``, on the device, right before the encoder.
        postprocess_module: ``(inputs, output) -> output``, between the encoder and the projector.
        postprocess_projector: ``(inputs, output) -> output``, after the projector.
        run_module: ``(module, inputs) -> output``, how to run the encoder; default: ``module(**inputs)``.
        data_dependent_calls: whether ``run_module`` calls the encoder a number of times that depends on the batch. Such
            an encoder can't be sharded block by block: other ranks would wait for a call that never comes; default: no.
        num_tokens_before_projector: ``(encoder_inputs, counts) -> list[int]``: the counts after ``postprocess_module``
            for the counts that the encoder gives; default: unchanged.
        num_tokens_after_projector: ``(encoder_inputs, counts) -> list[int]``: the counts after
            ``postprocess_projector`` for the counts that the projector gives; default: unchanged.
        prepare_on_host: ``(encoder_inputs) -> encoder_inputs``, run by the processor right after the image processor or
            feature extractor: on the host, once a batch, for all of its items, and before they are counted. It is the
            place for work that would cost ``preprocess`` a device sync; default: unchanged.
        dummy_inputs: ``(encoder_inputs) -> encoder_inputs``: completes the smallest inputs that the encoder takes with
            what the callbacks read; of an encoder that no plugin describes it gets none. Ranks whose batch lacks the
            modality run on them while others have media; default: unchanged.
        hidden_size: feature width after ``postprocess_module``; default: the encoder's.
        input_names: inputs that only the callbacks read, for example ``("image_sizes",)``; the encoder never gets them.

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
