"""One modality as a processor knows it: from raw items to encoder inputs and the number of features of each item.

Everything is built from a *recipe*, the plain data by which a model's config describes an encoder, so that a saved
processor works without the model. Must not know text, tokenizers, or the weights of anything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from .._hf import config_from_dict, embedding_shape, unwrap
from ..config import MultimodalConfig
from ..counting import EMBEDS, TokenCounter, encoder_context, token_counter
from ..errors import CompositionError, MediaError
from ..plugins import Provided, registry, resolve
from ..projector import MultimodalProjectorConfig
from ..specs import EncoderContext, ModalCallbacks, ProcessorSpec
from .subprocessors import SavedProcessor

if TYPE_CHECKING:
    from ..model import MultimodalModel

__all__ = ["Modality", "check_recipe", "from_config", "from_model"]

_RECIPE = ("class", "config", "encoder", "hidden_size", "input_names", "callbacks", "custom_callbacks", "projector")


class Modality:
    """Prepares and counts the media of one encoder.

    Args:
        key: modality key.
        recipe: the encoder's record in a :class:`~cornstarch_core.MultimodalConfig`, and ``text_hidden_size``.
        config: the encoder's config.
        callbacks: what is known of callbacks that no plugin provides; their functions are used, never saved.
        processor: an image processor or feature extractor; default: the one that a plugin builds.

    Raises:
        CompositionError: no processor is given, and no plugin builds one.
    """

    def __init__(
        self,
        key: str,
        recipe: dict[str, Any],
        config: Any = None,
        callbacks: ModalCallbacks | None = None,
        processor: Any = None,
    ) -> None:
        self.key = key
        self.recipe = recipe
        self.config = config
        self.encoder = _lookup("encoders", recipe.get("encoder"))
        self.callback = _lookup("callbacks", (recipe.get("callbacks") or {}).get("name"))
        self.projector = _lookup("projectors", _projection_type(recipe))
        self.projector_config = MultimodalProjectorConfig.from_dict(dict(recipe["projector"]["config"]))
        self.provided = self._find_processor_spec()
        self.callbacks = callbacks or self._build_callbacks()
        self.processor = self._build_processor(processor)

    # --- building -----------------------------------------------------------------------------------------------------

    def _find_processor_spec(self) -> Provided | None:
        for owner in (self.callback, self.encoder):
            name = getattr(owner.spec, "processor", None) if owner is not None else None
            if owner is not None and name is not None:
                return registry().lookup("processors", name, prefer=owner.plugin)
        return None

    @property
    def context(self) -> EncoderContext:
        """What plugins are told about the encoder."""
        recipe = self.recipe
        return encoder_context(self.key, self.config, self.encoder, recipe["hidden_size"], recipe["text_hidden_size"])

    @property
    def _options(self) -> dict[str, Any]:
        return dict((self.recipe.get("callbacks") or {}).get("options") or {})

    def _build_callbacks(self) -> ModalCallbacks:
        """Only what a processor needs of them: a callback module has weights, which are the model's."""
        if self.callback is None:
            return ModalCallbacks()
        build = resolve(self.callback.spec.build, self.callback.plugin)
        return _counting_part(build(self.context, **self._options))

    def _build_processor(self, given: Any) -> Any:
        if given is not None and not isinstance(given, SavedProcessor):
            return self._wrapped(given)
        if given is not None and given.is_transformers:
            return self._wrapped(given.load())
        built = self._build_by_plugin()
        if given is not None:
            return given.load(self.key, built)
        if built is None:
            raise CompositionError(
                f"{self.key}: no plugin says how to prepare media for {self.recipe.get('class') or 'this encoder'}; "
                f"give MultimodalProcessor(processors={{{self.key!r}: ...}}) an image processor, a feature extractor, "
                f"or a function (items, return_tensors='pt') -> dict. {registry().explain_unavailable()}".rstrip()
            )
        return built

    def _wrapped(self, given: Any) -> Any:
        if self.provided is None or self.provided.spec.wrap is None:
            return given
        return resolve(self.provided.spec.wrap, self.provided.plugin)(self.context, given, **self._options)

    def _build_by_plugin(self) -> Any:
        if self.provided is not None:
            return resolve(self.provided.spec.build, self.provided.plugin)(self.context, **self._options)
        return ReadyMade(self.key, self.recipe["hidden_size"]) if self.is_ready_made else None

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def is_ready_made(self) -> bool:
        """Whether there is no encoder, and media come as embeddings."""
        return self.recipe.get("class") is None

    @property
    def spec(self) -> ProcessorSpec | None:
        """Names of its media: of its own plugin, or those that all plugins for this modality agree on."""
        if self.provided is not None:
            return self.provided.spec
        offered = [registry().lookup("processors", name).spec for name in registry().names("processors")]
        found = [spec for spec in offered if spec.modality == self.key and not self.is_ready_made]
        return found[0] if len({(spec.media_names, spec.content_types) for spec in found}) == 1 else None

    @property
    def media_names(self) -> tuple[str, ...]:
        """Keywords for its media beside its key."""
        return self.spec.media_names if self.spec is not None else ()

    @property
    def content_types(self) -> tuple[str, ...]:
        """Types of its items in chat messages beside its key."""
        return self.spec.content_types if self.spec is not None else ()

    @property
    def used(self) -> list[Provided]:
        """What plugins provided."""
        return [one for one in (self.encoder, self.callback, self.projector, self.provided) if one is not None]

    @property
    def counter(self) -> TokenCounter:
        """Counts features; made anew each time, so that a processor can be sent to another process."""
        return token_counter(
            self.key,
            self.config,
            self.encoder,
            self.callbacks,
            self.projector,
            self.projector_config,
            ready_made=self.is_ready_made,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`from_config` and :class:`SavedProcessor` read it."""
        return {"recipe": self.recipe, "processor": SavedProcessor.of(self.processor).to_dict()}

    # --- running ------------------------------------------------------------------------------------------------------

    def process(
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
        items = [self._prepare(samples[sample][index], sample, index) for sample, index in places]
        inputs = self._processed(self._run(items, places, options))
        counts = iter(self._count(inputs, len(items)))
        return self._taken(inputs), [[next(counts) for _ in one] for one in samples]

    def _prepare(self, item: Any, sample: int, index: int) -> Any:
        spec = self.provided.spec if self.provided is not None else None
        if spec is None or spec.prepare is None:
            return item
        try:
            return resolve(spec.prepare, self.provided.plugin if self.provided is not None else None)(item)
        except MediaError as error:
            raise MediaError(f"{self.key}: sample {sample}, item {index}: {self._reason(error)}") from error

    def _run(self, items: list[Any], places: list[tuple[int, int]], options: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return dict(self.processor(items, return_tensors="pt", **options))
        except Exception as error:  # whatever an image processor raises deep inside
            raise MediaError(f"{self.key}: {self._blame(items, places, options, error)}") from error

    def _blame(
        self, items: list[Any], places: list[tuple[int, int]], options: Mapping[str, Any], error: Exception
    ) -> str:
        """Which item a processor can't take, and why. Runs only when an error is certain."""
        name = type(self.processor).__name__
        for item, (sample, index) in zip(items, places, strict=True):
            try:
                self.processor([item], return_tensors="pt", **options)
            except MediaError as reason:  # says all there is to say
                return f"sample {sample}, item {index}: {self._reason(reason)}"
            except Exception:
                return f"sample {sample}, item {index}: {name} can't process it: {error}"
        return f"{name} can't process these {len(items)} items together, though it can process each of them: {error}"

    def _reason(self, error: MediaError) -> str:
        """A plugin's message without the modality in front, which need not be the key."""
        modality = self.provided.spec.modality if self.provided is not None else self.key
        return str(error).removeprefix(f"{modality}: ").removeprefix(f"{self.key}: ")

    def _processed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the callbacks make of it, on the host."""
        if self.callbacks.process is None:
            return inputs
        processed = self.callbacks.process(inputs)
        if not isinstance(processed, Mapping):
            raise TypeError(f"{self.key}: process= returned {processed!r}; it must return the (changed) inputs.")
        return dict(processed)

    def _count(self, inputs: dict[str, Any], items: int) -> list[int]:
        try:
            counts = [int(count) for count in self.counter(dict(inputs))]
        except MediaError as error:
            raise MediaError(f"{self.key}: {self._reason(error)}") from error
        if len(counts) != items:
            raise CompositionError(
                f"{self.key}: num_tokens counted {len(counts)} items where {items} are given; it must return one count "
                "for each media item, not for each crop or frame."
            )
        return counts

    def _taken(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the encoder takes. Callbacks may read anything; without them the encoder would refuse the rest."""
        if self.callback is not None or self.recipe.get("custom_callbacks"):
            return inputs
        names = {*self.recipe["input_names"], *self.callbacks.input_names}
        return {name: value for name, value in inputs.items() if name in names}


class ReadyMade:
    """The processor of ready-made embeddings: takes items ``(tokens, hidden_size)``, float."""

    def __init__(self, key: str, hidden_size: int) -> None:
        self.key = key
        self.hidden_size = hidden_size

    def __call__(self, items: Sequence[Any], return_tensors: str = "pt") -> dict[str, list[torch.Tensor]]:
        """``{"embeds": list of (tokens_i, hidden_size)}``."""
        return {EMBEDS: [self._checked(torch.as_tensor(item)) for item in items]}

    def _checked(self, item: torch.Tensor) -> torch.Tensor:
        if item.dim() != 2 or item.shape[1] != self.hidden_size or not item.is_floating_point():
            raise ValueError(
                f"ready-made embeddings have shape (tokens, {self.hidden_size}) and a float dtype, not "
                f"{tuple(item.shape)} and {item.dtype}."
            )
        return item


# --- recipes ----------------------------------------------------------------------------------------------------------


def from_model(model: MultimodalModel) -> dict[str, Callable[[Any], Modality]]:
    """For each encoder of a model a function ``(processor or None) -> Modality``."""
    _, width = embedding_shape(model.language_model)
    records = model.config.to_dict()["encoders"]
    return {key: _of_encoder(key, encoder, records[key], width) for key, encoder in model.encoders.items()}


def _of_encoder(key: str, encoder: Any, record: dict[str, Any], width: int) -> Callable[[Any], Modality]:
    config = copy.deepcopy(getattr(unwrap(encoder.module), "config", None))
    callbacks = _counting_part(encoder.modal_callbacks) if encoder.callback_provided is None else None
    counts = callbacks is not None and any((callbacks.num_tokens, callbacks.num_features, callbacks.process))
    recipe = _recipe(record, width)
    needs_config = encoder.provided is not None and not isinstance(_restored(recipe), type(config))
    recipe["needs_model"] = counts or needs_config
    return lambda processor: Modality(key, recipe, config, callbacks, processor)


def from_config(config: MultimodalConfig) -> dict[str, Callable[[Any], Modality]]:
    """The same from a model's config, or from the recipes that a saved processor holds.

    Raises:
        CompositionError: the config does not tell how to count, because that was a function of the user's own.
    """
    records = config.to_dict()["encoders"]
    return {key: _of_record(key, config, record) for key, record in records.items()}


def _of_record(key: str, config: MultimodalConfig, record: dict[str, Any]) -> Callable[[Any], Modality]:
    if record.get("needs_model", record.get("custom_callbacks") and not record.get("callbacks")):
        raise CompositionError(
            f"{key}: its callbacks are of the user's own making, so its config does not tell how its features are "
            "counted; give model= the model itself."
        )
    recipe = _recipe(record, record.get("text_hidden_size") or _text_width(config, record))
    return lambda processor: Modality(key, recipe, _restored(recipe), None, processor)


def _recipe(record: Mapping[str, Any], width: int) -> dict[str, Any]:
    return {**{name: record[name] for name in _RECIPE}, "text_hidden_size": width, "needs_model": False}


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Raise ``KeyError`` or ``TypeError`` unless a saved recipe has all its parts."""
    _projection_type(_recipe(recipe, recipe["text_hidden_size"]))


def _restored(recipe: Mapping[str, Any]) -> Any:
    """The encoder's config from plain data: an object where its class is transformers' or a plugin's."""
    config = recipe["config"]
    if not isinstance(config, dict):
        return None
    found = config_from_dict(config, recipe["class"])
    if found is not None:
        return found
    provided = _lookup("encoders", recipe["encoder"])
    if provided is not None and recipe["class"] in provided.spec.classes:
        cls = getattr(resolve(recipe["class"], provided.plugin), "config_class", None)
        if isinstance(cls, type) and issubclass(cls, PreTrainedConfig):
            return cls.from_dict(config)
    return config


def _text_width(config: MultimodalConfig, record: Mapping[str, Any]) -> int:
    width = record["projector"]["config"].get("out_features")
    return width if width is not None else getattr(config.text_config, "hidden_size", 0)


def _counting_part(callbacks: ModalCallbacks) -> ModalCallbacks:
    return ModalCallbacks(
        num_tokens=callbacks.num_tokens,
        num_features=callbacks.num_features,
        process=callbacks.process,
        input_names=callbacks.input_names,
    )


def _projection_type(recipe: Mapping[str, Any]) -> str | None:
    projector = recipe["projector"]
    kind = None if projector["custom"] else projector["config"]["projection_type"]
    return None if kind in ("linear", "mlp") else kind


def _lookup(kind: str, name: str | None) -> Provided | None:
    return registry().lookup(kind, name) if name is not None else None
