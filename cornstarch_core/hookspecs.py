"""The hooks a plugin can implement. Start here if you are writing one.

A plugin is a module, named by one entry point in the group ``cornstarch.plugins``, that implements any of these
functions with the :data:`hookimpl` marker. Keep that module light: no torch, no transformers.

Hooks run when plugins are activated, which is when something is first looked up, or when a model is composed; never
inside ``forward``. What one returns has to be the same in every process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from .specs import CallbackSpec, CheckpointSpec, EncoderSpec, ProcessorSpec, ProjectorSpec

if TYPE_CHECKING:
    from .model import MultimodalModel

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
"""Marks the functions below. The core's own; a plugin has no use for it."""

hookimpl = pluggy.HookimplMarker("cornstarch")
"""Marks a function of a plugin's module as the implementation of the hook of its name. Without it, the plugin is
refused; with ``@hookimpl(optionalhook=True)`` the hook may be one that the running core does not have."""


@hookspec
def cornstarch_register_encoders() -> list[EncoderSpec]:
    """Describe modality encoders: their classes, what they take, how wide their features are and how many they give.

    An encoder is found by its class, or else by the nearest of its base classes;
    ``ModalEncoderModule(module, name="...")`` names one by hand. Runs once per process, when the plugin is activated.

    Returns:
        One :class:`~cornstarch_core.specs.EncoderSpec` for each family of encoders.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_encoders():
        ...     return [
        ...         EncoderSpec(
        ...             name="patches",
        ...             modality="series",
        ...             classes=("cornstarch_series.encoder:PatchEncoder",),
        ...             input_names=("series",),
        ...             num_tokens="cornstarch_series.encoder:num_tokens",
        ...             dummy_inputs="cornstarch_series.encoder:dummy_inputs",
        ...             processor="series",
        ...         )
        ...     ]
    """


@hookspec
def cornstarch_register_projectors() -> list[ProjectorSpec]:
    """Add values for ``projection_type`` of a projector's config, and for ``init_projector_type`` of a model.

    A projector that changes the number of features says by how much, with ``num_tokens``. One that does not take the
    features of the encoder's dummy inputs, because they are too few, makes larger ones with ``dummy_inputs``;
    ``count(encoder_inputs)`` tells it how many tokens of each item would reach it. Runs once per process, when the
    plugin is activated.

    Returns:
        One :class:`~cornstarch_core.specs.ProjectorSpec` for each type.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_projectors():
        ...     return [
        ...         ProjectorSpec(
        ...             name="halve",
        ...             build="cornstarch_series.halve:Halve",
        ...             num_tokens="cornstarch_series.halve:num_tokens",
        ...         )
        ...     ]
    """


@hookspec
def cornstarch_register_processors() -> list[ProcessorSpec]:
    """Say how raw media become the tensors that encoders take, and by which names a user may hand them in.

    An encoder names its processor in ``EncoderSpec.processor``, and a callback may name another. A feature extractor or
    image processor that a user gives, ``MultimodalProcessor(processors={"audio": ...})``, is used as it is, unless
    ``wrap`` fits it to the encoder. Runs once per process, when the plugin is activated.

    Returns:
        One :class:`~cornstarch_core.specs.ProcessorSpec` for each way to prepare media.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_processors():
        ...     return [
        ...         ProcessorSpec(
        ...             name="series",
        ...             modality="series",
        ...             build="cornstarch_series.processor:build",
        ...             prepare="cornstarch_series.processor:prepare",
        ...             content_types=("series",),
        ...         )
        ...     ]
    """


@hookspec
def cornstarch_register_callbacks() -> list[CallbackSpec]:
    """Add values for ``ModalEncoderModule(callbacks="...")``.

    What ``build`` names makes a :class:`~cornstarch_core.ModalCallbacks` for one encoder when a model is composed, from
    the ``callback_options`` that the user gives. Runs once per process, when the plugin is activated.

    Returns:
        One :class:`~cornstarch_core.specs.CallbackSpec` for each set of callbacks.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_callbacks():
        ...     return [CallbackSpec(name="trend", modality="series", build="cornstarch_series.callbacks:trend")]
    """


@hookspec
def cornstarch_register_checkpoints() -> list[CheckpointSpec]:
    """Add families of foreign checkpoints, known by the ``model_type`` in their ``config.json``.

    ``MultimodalModel.from_pretrained`` and ``MultimodalProcessor.from_pretrained`` then read them, and
    :func:`~cornstarch_core.checkpoint.export_pretrained` writes them. Which family a model is exported as is told by
    its encoders: one of them must have the callback that ``CheckpointSpec.callback`` names. Families may share a
    callback; then each says with ``CheckpointSpec.encoder`` which encoder that same one must be, too.

    Many families of transformers are built alike: a tower, a projector, a decoder and a head. For those
    :class:`~cornstarch_core.families.CheckpointFamily` reads and writes them without copying weights; a subclass says
    how its classes name things, and its methods are the targets. Runs once per process, when the plugin is activated.

    Returns:
        One :class:`~cornstarch_core.specs.CheckpointSpec` for each family.

    Example:
        >>> @hookimpl
        ... def cornstarch_register_checkpoints():
        ...     shared = {"load": "cornstarch_speech.families:load", "export": "cornstarch_speech.families:export"}
        ...     return [
        ...         CheckpointSpec(name="parrot", callback="speech", encoder="parrot", **shared),
        ...         CheckpointSpec(name="magpie", callback="speech", encoder="magpie", **shared),
        ...     ]
    """


@hookspec
def cornstarch_model_composed(model: MultimodalModel) -> None:
    """Touch a finished model, for example to patch a kernel or to attach a tracer.

    Runs once for each model, at the end of composing it; so, too, when a saved one is loaded, whose weights are on the
    meta device and not read yet. The plugins are called in the order of their ids. An error in here is raised as a
    :class:`~cornstarch_core.errors.PluginError` that names the plugin.

    Args:
        model: the model that was composed, with all of its encoders, projectors and callbacks.

    Returns:
        Nothing; what an implementation returns is not looked at.

    Example:
        >>> @hookimpl
        ... def cornstarch_model_composed(model):
        ...     for encoder in model.encoders.values():
        ...         if encoder.module is not None:  # as for ready-made embeddings
        ...             encoder.module.register_forward_hook(lambda module, *_: print(type(module).__name__))
    """
