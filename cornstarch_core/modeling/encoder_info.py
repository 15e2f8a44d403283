"""The description of one encoder without its weights, which the model and the processor share.

The counting contract: each step that changes the number of features declares the new number. The steps are the encoder,
the callbacks before the projector, the projector, and the callbacks after the projector. The processor repeats each
placeholder by the number that the last step declares, and the model compares that number with the number of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..config import EncoderRecord
from ..errors import CompositionError
from ..plugins import Registration, registry
from ..specs import CallbackSpec, EncoderContext, EncoderSpec, ModalCallbacks, ProjectorSpec
from .projector import MultimodalProjectorConfig, find_projector

__all__ = ["EMBEDS", "EncoderInfo"]

EMBEDS = "embeds"  # the default name of the one input of ready-made embeddings


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """Description of one encoder with its callbacks and its projector, and the registrations of their plugins.

    Args:
        key: modality key in the model.
        config: config of the encoder, or ``None`` if it has none.
        hidden_size: width of the encoder's features.
        input_names: names of the inputs that the encoder accepts.
        text_hidden_size: width of the language model's embeddings.
        ready_made: whether there is no encoder, and the inputs are ready-made embeddings.
        registration: registration of the encoder; ``None`` if no plugin describes it.
        callback_registration: registration of the callbacks; ``None`` if the user passed them as objects.
        callback_options: options that registered callbacks are built with.
        callbacks: the callbacks. In a processor, they contain only the functions that count tokens or prepare inputs.
        projector_config: config of the projector; ``None`` before the projector is made.
        projector_registration: registration of the projector; ``None`` if the user passed its module.
    """

    key: str
    config: Any
    hidden_size: int
    input_names: tuple[str, ...]
    text_hidden_size: int
    ready_made: bool = False
    registration: Registration[EncoderSpec] | None = None
    callback_registration: Registration[CallbackSpec] | None = None
    callback_options: dict[str, Any] = field(default_factory=dict)
    callbacks: ModalCallbacks = field(default_factory=ModalCallbacks)
    projector_config: MultimodalProjectorConfig | None = None
    projector_registration: Registration[ProjectorSpec] | None = None

    @classmethod
    def from_record(cls, key: str, record: EncoderRecord, config: object) -> EncoderInfo:
        """Make the description from an encoder's record in a saved config, and build its registered callbacks.

        Raises:
            PluginError: no plugin registers a name in the record.
        """
        lookup = registry().lookup
        config_of_projector = MultimodalProjectorConfig.from_dict(dict(record.projector.config))
        callback = lookup("callbacks", record.callbacks.name) if record.callbacks is not None else None
        info = cls(
            key=key,
            config=config,
            hidden_size=record.hidden_size,
            input_names=tuple(record.input_names),
            text_hidden_size=record.text_hidden_size or config_of_projector.out_features or 0,
            ready_made=record.class_path is None,
            registration=lookup("encoders", record.encoder) if record.encoder is not None else None,
            callback_registration=callback,
            callback_options=dict(record.callbacks.options) if record.callbacks is not None else {},
            projector_config=config_of_projector,
            projector_registration=None if record.projector.custom else find_projector(config_of_projector),
        )
        return replace(info, callbacks=info.build_callbacks())

    @property
    def context(self) -> EncoderContext:
        """The context to pass to plugins that build something for this encoder."""
        known = self.registration
        return EncoderContext(
            key=self.key,
            config=self.config,
            hidden_size=self.hidden_size,
            text_hidden_size=self.text_hidden_size,
            prefix_tokens=known.load().prefix_tokens(self.config) if known is not None else 0,
            layers=known.spec.layers if known is not None else None,
        )

    @property
    def feature_size(self) -> int:
        """Width of the features that enter the projector."""
        return self.callbacks.hidden_size or self.hidden_size

    @property
    def all_input_names(self) -> tuple[str, ...]:
        """The names of all inputs of this modality: those of the encoder, then those of the callbacks."""
        return tuple(dict.fromkeys((*self.input_names, *self.callbacks.input_names)))

    @property
    def registrations(self) -> list[Registration[Any]]:
        """The registrations of the encoder, its callbacks and its projector, as far as plugins register them."""
        found = (self.registration, self.callback_registration, self.projector_registration)
        return [one for one in found if one is not None]

    def build_callbacks(self) -> ModalCallbacks:
        """Build the registered callbacks. Without a registration, return an empty ``ModalCallbacks``.

        Raises:
            CompositionError: an option is wrong.
        """
        if self.callback_registration is None:
            return ModalCallbacks()
        return self.callback_registration.load().build(self.context, **self.callback_options)

    # --- counting -----------------------------------------------------------------------------------------------------

    @property
    def can_count(self) -> bool:
        """Whether the number of features of the encoder can be computed from its inputs."""
        known = self.ready_made or self.registration is not None
        return known or self.callbacks.num_tokens_before_projector is not None

    def num_tokens(self, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the features of each media item that reach the language model, with arithmetic on the host only.

        Raises:
            CompositionError: no plugin registers the encoder, and no callback counts its features.
        """
        counts = self.num_tokens_before_projector(encoder_inputs)
        if self.projector_registration is not None and self.projector_config is not None:
            counts = self.projector_registration.load().num_tokens(self.projector_config, counts)
        if self.callbacks.num_tokens_after_projector is not None:
            counts = self.callbacks.num_tokens_after_projector(encoder_inputs, counts)
        return counts

    def num_tokens_before_projector(self, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the features of each media item that reach the projector. Raises the errors of :meth:`num_tokens`."""
        if not self.can_count:
            raise CompositionError(
                f"{self.key}: how many features this encoder gives is not known. Give its ModalEncoderModule "
                "callbacks=ModalCallbacks(num_tokens_before_projector=f), where f(encoder_inputs, counts) returns one "
                "count for each media item (counts is empty here), or register the encoder in a plugin."
            )
        counts: list[int] = []
        if self.ready_made:
            counts = _count_embeds(encoder_inputs[self.input_names[0]])
        elif self.registration is not None:
            counts = self.registration.load().num_tokens(self.config, encoder_inputs)
        if self.callbacks.num_tokens_before_projector is not None:
            counts = self.callbacks.num_tokens_before_projector(encoder_inputs, counts)
        return counts

    # --- dummy inputs -------------------------------------------------------------------------------------------------

    def dummy_inputs(self) -> dict[str, Any] | None:
        """Make the smallest valid inputs, which hold one media item. Return ``None`` if they are not known."""
        inputs: dict[str, Any] = {}
        if self.ready_made:
            inputs = {self.input_names[0]: torch.zeros(1, 1, self.hidden_size)}
        elif self.registration is not None:
            inputs = self.registration.load().dummy_inputs(self.config)
        elif self.callbacks.dummy_inputs is None:
            return None
        if self.callbacks.dummy_inputs is not None:
            inputs = self.callbacks.dummy_inputs(inputs)
        if self.projector_registration is None or self.projector_config is None or not self.can_count:
            return inputs
        enlarge = self.projector_registration.load().dummy_inputs
        return enlarge(self.projector_config, inputs, self.num_tokens_before_projector)


def _count_embeds(embeds: torch.Tensor | Sequence[torch.Tensor]) -> list[int]:
    if isinstance(embeds, torch.Tensor):
        return [embeds.shape[1] if embeds.dim() == 3 else 1] * embeds.shape[0]
    return [len(item) for item in embeds]
