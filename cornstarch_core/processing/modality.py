"""One modality in a processor: from raw items to encoder inputs and the number of features of each item.

Must not know text, tokenizers, or weights.
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
"""``(items, return_tensors="pt", **options) -> encoder_inputs``, such as an image processor or feature extractor."""

_COUNTING = ("num_tokens_before_projector", "num_tokens_after_projector", "prepare_on_host", "input_names")


def processor_specs() -> list[ProcessorSpec]:
    """The specs that plugins register to prepare media."""
    return [registry().lookup("processors", name).spec for name in registry().names("processors")]


class Modality:
    """Prepares and counts the media of one encoder.

    Args:
        info: what is known of the encoder. Only the callbacks that count are kept: the others may hold weights, which
            belong to the model.
        record: how the model's config describes the encoder; it is saved with the processor.
        processor: an image processor or feature extractor; default: the one that a plugin builds.

    Attributes:
        media_names: keywords for its media beside its key.
        content_types: types of its items in chat messages beside its key.

    Raises:
        CompositionError: no processor is given, and no plugin builds one.
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
        """The names of its plugin, or those on which all plugins for this modality agree."""
        if self.registration is not None:
            return self.registration.spec.media_names, self.registration.spec.content_types
        specs = [spec for spec in processor_specs() if spec.modality == self.key and not self.info.ready_made]
        offered = {(spec.media_names, spec.content_types) for spec in specs}
        return offered.pop() if len(offered) == 1 else ((), ())

    # --- saving -------------------------------------------------------------------------------------------------------

    @property
    def registrations(self) -> list[Registration[Any]]:
        """What plugins register for this modality."""
        return [*self.info.registrations, *filter(None, [self.registration])]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the records of the encoder, and of the image processor or feature extractor."""
        saved = SavedProcessor.of(self.processor)
        return {"encoder": asdict(self.record), "processor": {"class": saved.class_path, "config": saved.config}}

    # --- running ------------------------------------------------------------------------------------------------------

    def prepare(
        self, samples: Sequence[Sequence[Any]], options: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[list[int]]]:
        """Turn items into encoder inputs.

        Args:
            samples: items by sample.
            options: for the image processor or feature extractor.

        Returns:
            ``(inputs, counts)``: inputs of all items in order, and each sample's feature counts.

        Raises:
            MediaError: names modality, sample and item.
            CompositionError: the items can't be counted.
        """
        places = [(sample, index) for sample, items in enumerate(samples) for index in range(len(items))]
        if not places:
            return {}, [[] for _ in samples]
        items = [self._prepare_item(samples[sample][index], sample, index) for sample, index in places]
        inputs = self._prepare_on_host(self._run(items, places, options))
        counts = iter(self._count(inputs, len(items)))
        if self.info.callback_registration is None and not self.record.custom_callbacks:
            # Callbacks may read anything. Without them the encoder refuses what it does not take.
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
            for item, (sample, index) in zip(items, places, strict=True):  # find the item that it can't take
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
        """A plugin's error under the modality's key, which the plugin does not know, with the place of the item."""
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
    """The processor of ready-made embeddings: takes items ``(tokens, hidden_size)``, float.

    Args:
        name: of the input that they become.
        hidden_size: their width.
    """

    name: str
    hidden_size: int

    def __call__(self, items: Sequence[object], return_tensors: str = "pt") -> dict[str, list[torch.Tensor]]:
        """``{name: list of (tokens_i, hidden_size)}``."""
        tensors = [torch.as_tensor(item) for item in items]
        for tensor in tensors:
            if tensor.dim() != 2 or tensor.shape[1] != self.hidden_size or not tensor.is_floating_point():
                raise ValueError(
                    f"ready-made embeddings have shape (tokens, {self.hidden_size}) and a float dtype, not "
                    f"{tuple(tensor.shape)} and {tensor.dtype}."
                )
        return {self.name: tensors}
