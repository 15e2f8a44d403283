"""The hooks that a plugin can implement. Start here to write a plugin.

A plugin is a module that one entry point in the group ``cornstarch.plugins`` names. The module implements any of these
functions, marked with :data:`hookimpl`. It must not import torch or transformers at the top, because these imports are
slow.

The registration hooks run when plugins are activated, which happens when a registered name is first looked up, or when
a model is first composed. The hook :func:`cornstarch_model_composed` runs whenever a model is composed. No hook runs
inside ``forward``. Every hook has to return the same value in every process.
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
"""Marks the functions below as hooks. Only the core uses this marker."""

hookimpl = pluggy.HookimplMarker("cornstarch")
"""Marks a function of a plugin's module as the implementation of the hook with the same name. The core refuses a plugin
whose function has the name of a hook, but not this marker. Use ``@hookimpl(optionalhook=True)`` for a hook that only
other versions of the core have."""


@hookspec
def cornstarch_register_encoders() -> list[EncoderSpec]:
    """Describe modality encoders: their classes, their inputs, and the width and number of their features.

    The core looks up an encoder by its class, then by its base classes, the nearest one first. To choose a registered
    encoder explicitly, use ``ModalEncoderModule(module, name="...")``. Runs once per process, when the plugin is
    activated.

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

    The core registers its own types ``"linear"`` and ``"mlp"`` with this hook. Runs once per process, when the plugin
    is activated.

    Returns:
        One :class:`~cornstarch_core.specs.ProjectorSpec` for each type. Its target is a subclass of
        :class:`~cornstarch_core.specs.ProjectorInterface`. Its ``build`` makes the module. It overrides ``num_tokens``
        if the projector changes the number of features.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_projectors():
        ...     return [ProjectorSpec(name="halve", target="cornstarch_series.halve:HalveProjector")]
    """


@hookspec
def cornstarch_register_processors() -> list[ProcessorSpec]:
    """Describe how to convert raw media to the inputs of encoders, and under which keywords users pass these media.

    ``EncoderSpec.processor`` names the processor of an encoder, and ``CallbackSpec.processor`` may replace it. A user
    may pass a feature extractor or image processor, ``MultimodalProcessor(processors={"audio": ...})``. It is used
    unchanged, unless the target's ``wrap`` adapts it to the encoder. Runs once per process, when the plugin is
    activated.

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

    When a model is composed, the target makes a :class:`~cornstarch_core.ModalCallbacks` for one encoder from the
    ``callback_options`` that the user passes. Runs once per process, when the plugin is activated.

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
    """Add checkpoint families of other libraries, identified by the ``model_type`` in their ``config.json``.

    ``MultimodalModel.from_pretrained`` and ``MultimodalProcessor.from_pretrained`` then read these families, and
    :func:`~cornstarch_core.interop.export_pretrained` writes them. A model is exported as a family if one of its
    encoders uses the callbacks that the family names in ``CheckpointSpec.callback``. If several families name the same
    callbacks, each also names an encoder in ``CheckpointSpec.encoder``; then the registered encoder decides.

    Many families of transformers have the same structure: a tower, a projector, a decoder and a head.
    :class:`~cornstarch_core.interop.CheckpointFamily` reads and writes these families without copying weights. For such
    a family, write a subclass that names the parts of the family, and use it as the target. Runs once per process, when
    the plugin is activated.

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
    """Change a composed model, for example to patch a kernel or to attach a tracer.

    Runs once for each model, when all of its parts are composed. The hook also runs when a saved model is loaded; at
    that time the weights are on the meta device, and their values are not read yet. The core calls the plugins in the
    order of their ids. If a hook raises an error, the core raises a :class:`~cornstarch_core.errors.PluginError` that
    names the plugin.

    Args:
        model: the composed :class:`~cornstarch_core.MultimodalModel`, with all of its encoders, projectors and
            callbacks.

    Returns:
        Nothing; the core ignores the return value of an implementation.

    Example:
        >>> @hookimpl
        ... def cornstarch_model_composed(model):
        ...     for encoder in model.encoders.values():
        ...         if encoder.module is not None:  # None for ready-made embeddings
        ...             encoder.module.register_forward_hook(lambda module, *_: print(type(module).__name__))
    """
