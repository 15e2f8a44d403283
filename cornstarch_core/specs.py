"""What plugins hand to the core: frozen dataclasses of names and targets.

A *target* is a string ``"package.module:attribute"``. It is imported when a model or processor is built, never
before, so that a plugin's own module stays light (no torch). The functions behind the targets have these signatures:

==========================  ==========================================================================================
``EncoderSpec.num_tokens``  ``(config, encoder_inputs) -> list[int]``, one count per media item, host arithmetic only
``EncoderSpec.dummy_inputs``  ``(config) -> encoder_inputs``, the smallest valid ones: one media item
``EncoderSpec.hidden_size``  ``(config) -> int``
``EncoderSpec.prefix_tokens``  ``(config) -> int``
``EncoderSpec.build``       ``(config: dict) -> nn.Module``
``ProjectorSpec.build``     ``(config: MultimodalProjectorConfig) -> nn.Module``
``ProjectorSpec.num_tokens``  ``(config: MultimodalProjectorConfig, counts: list[int]) -> list[int]``
``ProjectorSpec.dummy_inputs``  ``(config: MultimodalProjectorConfig, encoder_inputs, count) -> encoder_inputs``
``ProcessorSpec.build``     ``(context: EncoderContext, **callback_options) -> processor``
``ProcessorSpec.wrap``      ``(context: EncoderContext, processor, **callback_options) -> processor``
``ProcessorSpec.prepare``   ``(item) -> item``, raises :class:`~cornstarch_core.errors.MediaError`
``CallbackSpec.build``      ``(context: EncoderContext, **callback_options) -> ModalCallbacks``
``CheckpointSpec.load``     ``(folder, **from_pretrained_kwargs) -> MultimodalModel``
``CheckpointSpec.load_processor``  ``(folder, **from_pretrained_kwargs) -> dict``, arguments of ``MultimodalProcessor``
``CheckpointSpec.export``   ``(model, processor or None) -> (PreTrainedModel, ProcessorMixin or None)``
==========================  ==========================================================================================

``encoder_inputs`` are a dictionary by :attr:`EncoderSpec.input_names`: tensors, lists of tensors, or plain numbers that
stay on the host. A processor is called with all items of a batch, as ``prepare`` left them:
``processor(items, return_tensors="pt") -> encoder_inputs``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CallbackSpec",
    "CheckpointSpec",
    "EncoderContext",
    "EncoderSpec",
    "ModalCallbacks",
    "ProcessorSpec",
    "ProjectorSpec",
]


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One family of modality encoders.

    Args:
        name: short name, unique within the plugin, for example ``"clip"``.
        modality: what it encodes, for example ``"vision"``.
        classes: the classes it describes, as ``"package.module:Class"``; a subclass of one matches too.
        input_names: the arguments its ``forward`` takes; the first one is what messages ask for.
        num_tokens: target of the count function.
        dummy_inputs: target of the function that makes the smallest valid inputs.
        hidden_size: target of the function that tells the feature width; default: ``config.hidden_size``.
        prefix_tokens: target of the function that tells how many tokens stand before the first one that belongs to a
            place in the input (CLS, registers); default: none.
        layers: dotted path, inside the encoder, of the module list of its blocks, for callbacks that stop early.
        processor: name of the :class:`ProcessorSpec` that prepares its media; default: none.
        build: target that makes the encoder again when a saved model is loaded. Classes of transformers don't need it.
    """

    name: str
    modality: str
    classes: tuple[str, ...]
    input_names: tuple[str, ...]
    num_tokens: str
    dummy_inputs: str
    hidden_size: str | None = None
    prefix_tokens: str | None = None
    layers: str | None = None
    processor: str | None = None
    build: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProjectorSpec:
    """One ``projection_type``.

    Args:
        name: the type, for example ``"pixel_shuffle"``.
        build: target that makes the module which maps ``(items, tokens, in_features)`` to
            ``(items, tokens', out_features)``.
        num_tokens: target of its length function; default: the length does not change.
        dummy_inputs: target of the function that enlarges the smallest inputs that the encoder takes, completed by the
            callbacks, to the smallest of which the projector takes the features. ``count(encoder_inputs)`` tells how
            many tokens of each media item reach the projector, a ``list[int]``, or raises where the encoder refuses
            the inputs. Where nothing fits it returns the inputs as they are; default: unchanged.
    """

    name: str
    build: str
    num_tokens: str | None = None
    dummy_inputs: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProcessorSpec:
    """How raw media become the tensors that an encoder takes.

    Args:
        name: short name, for example ``"image"``.
        modality: for example ``"vision"``.
        build: target that makes the Hugging Face image processor or feature extractor for an encoder.
        media_names: keywords under which a processor accepts such media beside the modality's key, e.g.
            ``("images",)``.
        content_types: the ``type`` of such an item in a chat message, e.g. ``("image",)``.
        wrap: target that fits a processor that the user gives to the encoder; default: it is used as it is.
        prepare: target that checks one item, converts it if need be, and refuses it with a clear error.
    """

    name: str
    modality: str
    build: str
    media_names: tuple[str, ...] = ()
    content_types: tuple[str, ...] = ()
    wrap: str | None = None
    prepare: str | None = None


@dataclass(frozen=True, kw_only=True)
class CallbackSpec:
    """One set of callbacks that ``ModalEncoderModule(callbacks="name")`` can name.

    Args:
        name: for example ``"llava"``.
        modality: for example ``"vision"``.
        build: target that makes the :class:`ModalCallbacks` when a model is composed.
        processor: name of the :class:`ProcessorSpec` to use in place of the encoder's own; default: the encoder's own.
    """

    name: str
    modality: str
    build: str
    processor: str | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec:
    """One foreign checkpoint family, for ``MultimodalModel.from_pretrained`` and ``export_pretrained``.

    Args:
        name: the ``model_type`` in that family's ``config.json``, for example ``"llava"``.
        load: target that loads such a folder (or hub name) as a composed model. It must not hold weights twice.
        load_processor: target that reads the same folder for ``MultimodalProcessor.from_pretrained``: the arguments
            ``processors``, ``tokenizer``, ``model`` (a ``MultimodalConfig``), ``tokens`` and ``chat_template``.
        export: target that makes the family's own model out of a composed one, and its processor. The model is written
            and thrown away: its state dict must be complete and share the weights; it need not run.
        callback: name of the :class:`CallbackSpec` by which a model is known to be exported as this family.
        encoder: name of the :class:`EncoderSpec` by which, together with the callback, a model is known to be exported
            as this family: one of its encoders must have both. Default: the callback is enough. It tells families apart
            that share a callback.
    """

    name: str
    load: str
    load_processor: str | None = None
    export: str | None = None
    callback: str | None = None
    encoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderContext:
    """What a plugin is told about the encoder it builds something for.

    Args:
        key: the modality key in ``MultimodalModel.encoders``, for example ``"vision"``.
        config: the encoder's config (``module.config``), or ``None`` if it has none.
        hidden_size: width of the encoder's features.
        text_hidden_size: width of the language model's embeddings.
        prefix_tokens: tokens before the first that belongs to a place in the input (CLS, registers).
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
        preprocess: ``(inputs) -> inputs``, before the encoder.
        postprocess_module: ``(inputs, output) -> output``, between the encoder and the projector.
        postprocess_projector: ``(inputs, output) -> output``, after the projector.
        run_module: ``(module, inputs) -> output``, how to run the encoder; default: ``module(**inputs)``.
        calls_vary: whether ``run_module`` calls the encoder differently often for different batches. Such an encoder
            can't be sharded block by block, since other ranks would wait for a call that never comes; default: no.
        num_tokens: ``(encoder_inputs, counts) -> list[int]``: the counts after ``postprocess_module`` for the counts
            that the encoder gives; default: unchanged.
        num_features: ``(encoder_inputs, counts) -> list[int]``: the same for ``postprocess_projector`` and the counts
            that the projector gives; default: unchanged.
        process: ``(encoder_inputs) -> encoder_inputs``, run by the processor right after the image processor or
            feature extractor: on the host, once a batch, for all of its items, and before they are counted. The place
            for what would cost ``preprocess`` a device sync; default: unchanged.
        dummy_inputs: ``(encoder_inputs) -> encoder_inputs``: completes the smallest inputs that the encoder takes with
            what the callbacks read; of an encoder that no plugin describes it gets none. Ranks run on them that lack
            the modality while others have it; default: unchanged.
        hidden_size: feature width after ``postprocess_module``; default: the encoder's.
        input_names: inputs that only the callbacks read, for example ``("image_sizes",)``; the encoder never gets them.

    Example:
        >>> from cornstarch_core import ModalCallbacks
        >>> def drop_first(inputs, output):
        ...     output.last_hidden_state = output.last_hidden_state[:, 1:]
        ...     return output
        >>> callbacks = ModalCallbacks(
        ...     postprocess_module=drop_first, num_tokens=lambda inputs, counts: [n - 1 for n in counts]
        ... )
    """

    preprocess: Callable[..., Any] | None = None
    postprocess_module: Callable[..., Any] | None = None
    postprocess_projector: Callable[..., Any] | None = None
    run_module: Callable[..., Any] | None = None
    calls_vary: bool = False
    num_tokens: Callable[..., list[int]] | None = None
    num_features: Callable[..., list[int]] | None = None
    process: Callable[..., dict[str, Any]] | None = None
    dummy_inputs: Callable[..., dict[str, Any]] | None = None
    hidden_size: int | None = None
    input_names: tuple[str, ...] = ()
