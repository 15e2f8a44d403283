"""One modality of a processor, which turns media items into encoder inputs and counts the features of each item.

This file must not depend on text, tokenizers or weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..config import EncoderRecord
from ..errors import CompositionError, MediaError
from ..modeling.encoder_info import EncoderInfo
from ..plugins import Registration, registry
from ..specs import ModalCallbacks, ProcessorSpec
from .saved_processor import SavedProcessor

__all__ = ["Modality", "processor_specs"]

MediaProcessor = Callable[..., Mapping[str, Any]]
"""A function ``(items, return_tensors="pt", **options) -> encoder_inputs``, such as an image processor."""

_COUNTING = ("num_tokens_before_projector", "num_tokens_after_projector", "prepare_on_host", "input_names")


def processor_specs() -> list[ProcessorSpec]:
    """Return the processor specs that plugins register."""
    return [registry().lookup("processors", name).spec for name in registry().names("processors")]


class Modality:
    """Prepares and counts the media of one encoder.

    Args:
        info: description of the encoder. Only the callbacks that prepare and count inputs are kept, because the others
            may contain weights, which belong to the model.
        record: description of the encoder in the model's config; it is saved with the processor.
        processor: image processor or feature extractor; default: the one that the encoder's plugin builds.

    Attributes:
        media_names: keyword arguments for the modality's media, in addition to its key.
        content_types: types of the modality's parts in chat messages, in addition to its key.

    Raises:
        CompositionError: ``processor`` is not given, and no plugin builds an image processor or feature extractor.
    """

    def __init__(
        self, info: EncoderInfo, record: EncoderRecord, processor: MediaProcessor | SavedProcessor | None = None
    ) -> None:
        self.key = info.key
        kept = {name: getattr(info.callbacks, name) for name in _COUNTING}
        self.info = replace(info, callbacks=ModalCallbacks(**kept))
        self.record = replace(record, arguments=None, dtype=None, adapters=None, callback_dtype=None, token_id=None)
        self.registration = self._find_registration()
        self.processor = self._build_processor(processor)
        self.media_names, self.content_types = self._names()

    # --- building -----------------------------------------------------------------------------------------------------

    def _find_registration(self) -> Registration[ProcessorSpec] | None:
        for owner in (self.info.callback_registration, self.info.registration):
            if owner is not None and owner.spec.processor is not None:
                return registry().lookup("processors", owner.spec.processor, prefer=owner.plugin)
        return None

    def _build_processor(self, given: MediaProcessor | SavedProcessor | None) -> Any:
        if isinstance(given, SavedProcessor) and given.is_transformers:
            given = given.load()
        plugin = self.registration.load() if self.registration is not None else None
        options = self.info.callback_options
        if given is not None and not isinstance(given, SavedProcessor):
            return given if plugin is None else plugin.wrap(self.info.context, given, **options)
        built: MediaProcessor | None = None
        if plugin is not None:
            built = plugin.build(self.info.context, **options)
        elif self.info.ready_made:
            built = ReadyMade(self.info.input_names[0], self.info.hidden_size)
        if isinstance(given, SavedProcessor):
            return given.load(self.key, built)
        if built is None:
            raise CompositionError(
                f"{self.key}: no plugin says how to prepare media for {self.record.class_path or 'this encoder'}; "
                f"give MultimodalProcessor(processors={{{self.key!r}: ...}}) an image processor, a feature extractor, "
                f"or a function (items, return_tensors='pt') -> dict. {registry().explain_unavailable()}".rstrip()
            )
        return built

    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the encoder's plugin, or else the names that all plugins for this modality share."""
        if self.registration is not None:
            return self.registration.spec.media_names, self.registration.spec.content_types
        specs = [spec for spec in processor_specs() if spec.modality == self.key and not self.info.ready_made]
        offered = {(spec.media_names, spec.content_types) for spec in specs}
        return offered.pop() if len(offered) == 1 else ((), ())

    # --- saving -------------------------------------------------------------------------------------------------------

    @property
    def registrations(self) -> list[Registration[Any]]:
        """The registrations of plugins that this modality uses."""
        return [*self.info.registrations, *filter(None, [self.registration])]

    def to_dict(self) -> dict[str, Any]:
        """Return the records of the encoder and of the image processor or feature extractor, as plain data."""
        saved = SavedProcessor.of(self.processor)
        return {"encoder": asdict(self.record), "processor": {"class": saved.class_path, "config": saved.config}}

    # --- running ------------------------------------------------------------------------------------------------------

    def prepare(
        self, samples: Sequence[Sequence[Any]], options: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[list[int]]]:
        """Turn items into encoder inputs.

        Args:
            samples: list of items of each sample.
            options: options of the image processor or feature extractor.

        Returns:
            A pair ``(inputs, counts)``: the encoder inputs of all items in order, and for each sample the numbers of
            features of its items.

        Raises:
            MediaError: an item can't be processed; the message names the modality, the sample and the item.
            CompositionError: the number of counts differs from the number of items.
        """
        places = [(sample, index) for sample, items in enumerate(samples) for index in range(len(items))]
        if not places:
            return {}, [[] for _ in samples]
        items = [self._prepare_item(samples[sample][index], sample, index) for sample, index in places]
        inputs = self._prepare_on_host(self._run(items, places, options))
        counts = iter(self._count(inputs, len(items)))
        if self.info.callback_registration is None and not self.record.custom_callbacks:
            # Callbacks may read any input. Without callbacks, the encoder rejects inputs that it does not declare.
            inputs = {name: value for name, value in inputs.items() if name in self.info.all_input_names}
        return inputs, [[next(counts) for _ in one] for one in samples]

    def _prepare_item(self, item: object, sample: int, index: int) -> object:
        try:
            return self.registration.load().prepare(item) if self.registration is not None else item
        except MediaError as error:
            raise self._media_error(error, f"sample {sample}, item {index}: ") from error

    def _run(self, items: list[Any], places: list[tuple[int, int]], options: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return dict(self.processor(items, return_tensors="pt", **options))
        except Exception as error:  # an image processor may raise anything
            name = type(self.processor).__name__
            for item, (sample, index) in zip(items, places, strict=True):  # find the cause
                where = f"sample {sample}, item {index}: "
                try:
                    self.processor([item], return_tensors="pt", **options)
                except MediaError as reason:
                    raise self._media_error(reason, where) from error
                except Exception:
                    raise MediaError(f"{self.key}: {where}{name} can't process it: {error}") from error
            raise MediaError(
                f"{self.key}: {name} can't process these {len(items)} items together, though it can process each of "
                f"them: {error}"
            ) from error

    def _media_error(self, error: MediaError, where: str = "") -> MediaError:
        """Prefix a plugin's error with the modality's key, which the plugin can't read, and the place of the item."""
        name = self.registration.spec.modality if self.registration is not None else self.key
        reason = str(error).removeprefix(f"{name}: ").removeprefix(f"{self.key}: ")
        return MediaError(f"{self.key}: {where}{reason}")

    def _prepare_on_host(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepare = self.info.callbacks.prepare_on_host
        prepared = inputs if prepare is None else prepare(inputs)
        if not isinstance(prepared, Mapping):
            raise TypeError(f"{self.key}: prepare_on_host= returned {prepared!r}; it must return the (changed) inputs.")
        return dict(prepared)

    def _count(self, inputs: dict[str, Any], items: int) -> list[int]:
        try:
            counts = [int(count) for count in self.info.num_tokens(dict(inputs))]
        except MediaError as error:
            raise self._media_error(error) from error
        if len(counts) != items:
            raise CompositionError(
                f"{self.key}: num_tokens counted {len(counts)} items where {items} are given; it must return one count "
                "for each media item, not for each crop or frame."
            )
        return counts


@dataclass(frozen=True)
class ReadyMade:
    """The media processor of ready-made embeddings, which are float tensors ``(tokens, hidden_size)``.

    Args:
        name: name of the encoder input for the embeddings.
        hidden_size: width of the embeddings.
    """

    name: str
    hidden_size: int

    def __call__(self, items: Sequence[object], return_tensors: str = "pt") -> dict[str, list[torch.Tensor]]:
        """Check the embeddings, and return a dictionary with the list of them under :attr:`name`."""
        tensors = [torch.as_tensor(item) for item in items]
        for tensor in tensors:
            if tensor.dim() != 2 or tensor.shape[1] != self.hidden_size or not tensor.is_floating_point():
                raise ValueError(
                    f"ready-made embeddings have shape (tokens, {self.hidden_size}) and a float dtype, not "
                    f"{tuple(tensor.shape)} and {tensor.dtype}."
                )
        return {self.name: tensors}
