"""The hooks a plugin can implement. Start here if you are writing one.

A plugin is a module, named by one entry point in the group ``cornstarch.plugins``, that implements any of these
functions with the :data:`hookimpl` marker. Keep that module light: no torch, no transformers.
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
hookimpl = pluggy.HookimplMarker("cornstarch")


@hookspec
def cornstarch_register_encoders() -> list[EncoderSpec]:
    """Describe modality encoders: their classes, inputs, width and token counts."""


@hookspec
def cornstarch_register_projectors() -> list[ProjectorSpec]:
    """Add values for ``projection_type``."""


@hookspec
def cornstarch_register_processors() -> list[ProcessorSpec]:
    """Say how raw media become the tensors that encoders take."""


@hookspec
def cornstarch_register_callbacks() -> list[CallbackSpec]:
    """Add values for ``ModalEncoderModule(callbacks=...)``."""


@hookspec
def cornstarch_register_checkpoints() -> list[CheckpointSpec]:
    """Add checkpoint families that ``from_pretrained`` can read and ``export_pretrained`` can write."""


@hookspec
def cornstarch_model_composed(model: MultimodalModel) -> None:
    """Touch a finished model, for example to patch a kernel or attach a tracer. Runs once, when it is composed."""
