"""The hooks a plugin can implement. Start here if you are writing one.

A plugin is a module, named by one entry point in the group ``cornstarch.plugins``, that implements any of these
functions with the :data:`hookimpl` marker. Keep that module light: no torch, no transformers.

Hooks run when plugins are activated, which is when something is first looked up, or when a model is composed. They
never run inside ``forward``. A hook has to return the same in every process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from .specs import CallbackSpec, CheckpointSpec, EncoderSpec, ProcessorSpec, ProjectorSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "cornstarch_model_composed",
    "cornstarch_register_callbacks",
    "cornstarch_register_checkpoints",
    "cornstarch_register_encoders",
    "cornstarch_register_processors",
    "cornstarch_register_projectors",
    "hookimpl",
    "hookspec",
]

hookspec = pluggy.HookspecMarker("cornstarch")
"""Marks the functions below. Only the core needs it."""

hookimpl = pluggy.HookimplMarker("cornstarch")
"""Marks a function of a plugin's module as the implementation of the hook of its name. Without it, the plugin is
refused; with ``@hookimpl(optionalhook=True)`` the hook may be one that the running core does not have."""


@hookspec
def cornstarch_register_encoders() -> list[EncoderSpec]:
    """Describe modality encoders: their classes, what they take, how wide their features are and how many they give.

    An encoder is found by its class, or else by the nearest of its base classes;
    ``ModalEncoderModule(module, name="...")`` names one by hand. Runs once per process, when the plugin is activated.

    Returns:
        One :class:`~cornstarch_core.specs.EncoderSpec` for each family of encoders. Its target is a subclass of
        :class:`~cornstarch_core.specs.EncoderInterface`.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_encoders():
        ...     return [
        ...         EncoderSpec(
        ...             name="patches",
        ...             modality="series",
        ...             classes=("cornstarch_series.encoder:PatchEncoder",),
        ...             input_names=("series",),
        ...             target="cornstarch_series.encoder:Patches",
        ...             processor="series",
        ...         )
        ...     ]
    """


@hookspec
def cornstarch_register_projectors() -> list[ProjectorSpec]:
    """Add values for ``projection_type`` of a projector's config, and for ``init_projector_type`` of a model.

    The core registers its own ``"linear"`` and ``"mlp"`` by this hook. Runs once per process, when the plugin is
    activated.

    Returns:
        One :class:`~cornstarch_core.specs.ProjectorSpec` for each type. Its target is a subclass of
        :class:`~cornstarch_core.specs.ProjectorInterface`: ``build`` makes the module, and ``num_tokens`` counts if the
        number of features changes.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_projectors():
        ...     return [ProjectorSpec(name="halve", target="cornstarch_series.halve:HalveProjector")]
    """


@hookspec
def cornstarch_register_processors() -> list[ProcessorSpec]:
    """Say how raw media become the tensors that encoders take, and by which names a user may hand them in.

    An encoder names its processor in ``EncoderSpec.processor``, and a callback may name another. A feature extractor or
    image processor that a user gives, ``MultimodalProcessor(processors={"audio": ...})``, is used as it is, unless
    ``wrap`` fits it to the encoder. Runs once per process, when the plugin is activated.

    Returns:
        One :class:`~cornstarch_core.specs.ProcessorSpec` for each way to prepare media. Its target is a subclass of
        :class:`~cornstarch_core.specs.ProcessorInterface`.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_processors():
        ...     return [
        ...         ProcessorSpec(
        ...             name="series",
        ...             modality="series",
        ...             target="cornstarch_series.processor:Series",
        ...             content_types=("series",),
        ...         )
        ...     ]
    """


@hookspec
def cornstarch_register_callbacks() -> list[CallbackSpec]:
    """Add values for ``ModalEncoderModule(callbacks="...")``.

    The target makes a :class:`~cornstarch_core.ModalCallbacks` for one encoder when a model is composed, from the
    ``callback_options`` that the user gives. Runs once per process, when the plugin is activated.

    Returns:
        One :class:`~cornstarch_core.specs.CallbackSpec` for each set of callbacks. Its target is a subclass of
        :class:`~cornstarch_core.specs.CallbacksInterface`.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_callbacks():
        ...     return [CallbackSpec(name="trend", modality="series", target="cornstarch_series.callbacks:Trend")]
    """


@hookspec
def cornstarch_register_checkpoints() -> list[CheckpointSpec]:
    """Add checkpoint families of other libraries, known by the ``model_type`` in their ``config.json``.

    ``MultimodalModel.from_pretrained`` and ``MultimodalProcessor.from_pretrained`` then read them, and
    :func:`~cornstarch_core.interop.export_pretrained` writes them. One of a model's encoders decides as which family
    the model is exported: it has the callback that ``CheckpointSpec.callback`` names. Families may share a callback;
    then each names with ``CheckpointSpec.encoder`` the encoder that this one must be.

    Many families of transformers are built alike: a tower, a projector, a decoder and a head.
    :class:`~cornstarch_core.interop.CheckpointFamily` reads and writes those without copying weights. A subclass names
    the parts of its family, and is the target. Runs once per process, when the plugin is activated.

    Returns:
        One :class:`~cornstarch_core.specs.CheckpointSpec` for each family. Its target is a subclass of
        :class:`~cornstarch_core.specs.CheckpointInterface`.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_checkpoints():
        ...     here = "cornstarch_speech.families"
        ...     return [
        ...         CheckpointSpec(name="parrot", callback="speech", encoder="parrot", target=f"{here}:Parrot"),
        ...         CheckpointSpec(name="magpie", callback="speech", encoder="magpie", target=f"{here}:Magpie"),
        ...     ]
    """


@hookspec
def cornstarch_model_composed(model: PreTrainedModel) -> None:
    """Touch a finished model, for example to patch a kernel or to attach a tracer.

    Runs once for each model, at the end of composing it. When a saved model is loaded, it runs too: then the weights
    are on the meta device and not read yet. The plugins are called in the order of their ids. An error in a hook is
    raised as a :class:`~cornstarch_core.errors.PluginError` that names the plugin.

    Args:
        model: the composed :class:`~cornstarch_core.MultimodalModel`, with all of its encoders, projectors and
            callbacks.

    Returns:
        Nothing; what an implementation returns is ignored.

    Example:
        >>> @hookimpl
        ... def cornstarch_model_composed(model):
        ...     for encoder in model.encoders.values():
        ...         if encoder.module is not None:  # None for ready-made embeddings
        ...             encoder.module.register_forward_hook(lambda module, *_: print(type(module).__name__))
    """
