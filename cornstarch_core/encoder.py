"""One modality: its encoder, its projector and the callbacks around them, run in five steps.

Knows nothing about any particular modality, and nothing about the language model but the width of its embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from ._hf import default_dtype, keep_weights, unwrap
from .counting import EMBEDS, TokenCounter, encoder_context, token_counter
from .errors import CompositionError, InputError
from .plugins import Provided, registry, resolve
from .projector import MultimodalProjector, MultimodalProjectorConfig
from .specs import EncoderContext, ModalCallbacks

__all__ = ["POSITIONS", "ModalEncoderModule"]

POSITIONS = "positions"  # reserved among an encoder's inputs: where its features go, see merge.py
_NOT_GIVEN: Any = object()
_CALLBACKS = ("preprocess", "postprocess_module", "postprocess_projector")


class ModalEncoderModule(nn.Module):
    """A modality encoder with its projector and callbacks.

    The steps, each optional but the third: ``preprocess_callback`` → ``module`` → ``postprocess_module_callback`` →
    ``projector`` → ``postprocess_projector_callback``. Without callbacks the whole ``last_hidden_state`` is projected.

    Args:
        module: a ``PreTrainedModel``, one wrapped by PEFT, any ``nn.Module`` (its output is a tensor, a list of
            tensors, a tuple or a ``ModelOutput``), or ``None`` for ready-made embeddings, passed as ``embeds``.
        projector: a :class:`~cornstarch_core.MultimodalProjector`, any ``nn.Module``, or ``None``: made when a
            :class:`~cornstarch_core.MultimodalModel` is composed.
        model: another spelling of ``module``.
        callbacks: a :class:`~cornstarch_core.ModalCallbacks`, or the name of one that a plugin registers (``"llava"``);
            that one is built when the model is composed.
        callback_options: options for a callback given by name.
        preprocess_callback: ``(inputs) -> inputs``; overrides that part of ``callbacks``.
        postprocess_module_callback: ``(inputs, output) -> output``; overrides likewise.
        postprocess_projector_callback: ``(inputs, output) -> output``; overrides likewise.
        postprocess_encoder_callback: another spelling of ``postprocess_module_callback``.
        hidden_size: width of the encoder's features; default: what its plugin says, or ``module.config.hidden_size``.
        input_names: the inputs that ``module`` takes; default: what its plugin says, or ``module.main_input_name``.
        name: name of the registered encoder that describes ``module``, if it can't be told by the class.

    A callback is a function, or an ``nn.Module`` whose parameters train, save and load with the model. It gets a copy
    of the inputs. ``module`` is called with ``input_names`` and with whatever ``preprocess_callback`` adds; other
    inputs are seen by callbacks only.

    Raises:
        TypeError: a part is given twice, or is of the wrong kind.
        CompositionError: the width or the inputs of ``module`` can't be known.

    Example:
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel
        >>> from cornstarch_core import ModalEncoderModule
        >>> clip = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2))
        >>> encoder = ModalEncoderModule(clip)
        >>> encoder.hidden_size, encoder.input_names[0]
        (32, 'pixel_values')
    """

    module: Any
    projector: Any
    key = "encoder"  # until a model is composed

    def __init__(
        self,
        module: nn.Module | None = _NOT_GIVEN,
        projector: nn.Module | None = None,
        *,
        model: nn.Module | None = _NOT_GIVEN,
        callbacks: ModalCallbacks | str | None = None,
        callback_options: dict[str, Any] | None = None,
        preprocess_callback: Callable[..., Any] | None = None,
        postprocess_module_callback: Callable[..., Any] | None = None,
        postprocess_projector_callback: Callable[..., Any] | None = None,
        postprocess_encoder_callback: Callable[..., Any] | None = None,
        hidden_size: int | None = None,
        input_names: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.module = _one_of(module=module, model=model)
        self.projector = _as_projector(projector)
        self.provided = _find_spec(self.module, name)
        if hidden_size is None or input_names is None:
            _check_has_no_decoder(self.module, self.provided)
        self.hidden_size = _width(self.module, self.provided, hidden_size)
        self._dummy_inputs = _dummy_inputs(self.module, self.provided, self.hidden_size)
        self.input_names = _names(self.module, self.provided, input_names)
        if not isinstance(callbacks, (ModalCallbacks, str, type(None))):
            raise TypeError(
                f"callbacks= must be a ModalCallbacks or the name of a registered one, not {_kind(callbacks)}; a "
                "single function goes into preprocess_callback=, postprocess_module_callback= or "
                "postprocess_projector_callback=."
            )
        self.callback_name = callbacks if isinstance(callbacks, str) else None
        self.callback_options = dict(callback_options or {})
        if self.callback_options and self.callback_name is None:
            raise TypeError("callback_options= goes with callbacks='name'; a ModalCallbacks has its options already.")
        self.callback_provided: Provided | None = None
        self.runs = 0  # forward passes so far, for those who wonder whether there were any
        self.callback_dtype: str | None = None  # of parameters that a registered callback will have; default: torch's
        overrides = {
            "preprocess": preprocess_callback,
            "postprocess_module": _either(postprocess_module_callback, postprocess_encoder_callback),
            "postprocess_projector": postprocess_projector_callback,
        }
        self.overrides = {part: callback for part, callback in overrides.items() if callback is not None}
        self._attach(callbacks if isinstance(callbacks, ModalCallbacks) else ModalCallbacks())

    # --- composing ----------------------------------------------------------------------------------------------------

    def complete(
        self, key: str, text_hidden_size: int, projector_type: str = "linear", activation: str = "gelu"
    ) -> None:
        """Build what had to wait for the language model: callbacks given by name, and the projector.

        Args:
            key: modality key in the model.
            text_hidden_size: width of the language model's embeddings.
            projector_type: type of a projector made here.
            activation: its activation.

        Raises:
            CompositionError: widths do not fit.
        """
        self.key = key
        context = self.context(text_hidden_size)
        if self.callback_name is not None and self.callback_provided is None:
            self.callback_provided = registry().lookup("callbacks", self.callback_name)
            build = resolve(self.callback_provided.spec.build, self.callback_provided.plugin)
            with default_dtype(self.callback_dtype):
                callbacks = build(context, **self.callback_options)
            self._attach(callbacks)
        if self.projector is None:
            config = MultimodalProjectorConfig(
                projection_type=projector_type,
                activation=activation,
                in_features=self.feature_size,
                out_features=text_hidden_size,
            )
            self.projector = MultimodalProjector(config)
        self._check_widths(text_hidden_size)

    def context(self, text_hidden_size: int) -> EncoderContext:
        """What plugins are told about this encoder."""
        config = getattr(unwrap(self.module), "config", None)
        return encoder_context(self.key, config, self.provided, self.hidden_size, text_hidden_size)

    @property
    def feature_size(self) -> int:
        """Width of the features that enter the projector."""
        return self.modal_callbacks.hidden_size or self.hidden_size

    @property
    def dummy_inputs(self) -> Callable[[], dict[str, Any]] | None:
        """Makes the smallest valid inputs, one media item; ``None`` if nobody says what they are."""
        complete = self.modal_callbacks.dummy_inputs
        if self._dummy_inputs is None and complete is None:
            return None
        return lambda: self._enlarged(
            (complete or dict)(self._dummy_inputs() if self._dummy_inputs is not None else {})
        )

    def _enlarged(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Dummy inputs, as large as the projector needs them, if it says so and they can be counted."""
        provided = getattr(self.projector, "provided", None)
        if provided is None or provided.spec.dummy_inputs is None:
            return inputs
        count = replace(self.counter, callbacks=replace(self.modal_callbacks, num_features=None), projector=None)
        if count.encoder is None and count.callbacks.num_tokens is None:
            return inputs
        return resolve(provided.spec.dummy_inputs, provided.plugin)(self.projector.config, inputs, count)

    @property
    def all_input_names(self) -> tuple[str, ...]:
        """Everything this modality reads: the encoder's inputs, then those of the callbacks."""
        return tuple(dict.fromkeys((*self.input_names, *self.modal_callbacks.input_names)))

    @property
    def used(self) -> list[Provided]:
        """What plugins provided for this encoder."""
        provided = [self.provided, self.callback_provided, getattr(self.projector, "provided", None)]
        return [one for one in provided if one is not None]

    @property
    def counter(self) -> TokenCounter:
        """Counts this encoder's features from its inputs alone."""
        config = getattr(unwrap(self.module), "config", None)
        projector_config = getattr(self.projector, "config", None)
        return token_counter(
            self.key,
            config,
            self.provided,
            self.modal_callbacks,
            getattr(self.projector, "provided", None),
            projector_config,
            ready_made=self.module is None,
        )

    def _attach(self, callbacks: ModalCallbacks) -> None:
        """Make ``callbacks``, with the overrides, the ones that run; modules among them become children."""
        self.modal_callbacks = replace(callbacks, **self.overrides)
        for part in _CALLBACKS:
            callback = getattr(self.modal_callbacks, part)
            _check_callback(part, callback)
            if isinstance(callback, nn.Module):
                keep_weights(callback)
            setattr(self, f"{part}_callback", callback)

    def _check_widths(self, text_hidden_size: int) -> None:
        config = self.projector.config
        if config.in_features not in (None, self.feature_size):
            raise CompositionError(
                f"{self.key}: the encoder gives features of width {self.feature_size}, the projector takes "
                f"{config.in_features}. Build the projector with in_features={self.feature_size}."
            )
        if config.out_features not in (None, text_hidden_size):
            raise CompositionError(
                f"{self.key}: the projector gives features of width {config.out_features}, the language model's "
                f"embeddings have {text_hidden_size}. Build the projector with out_features={text_hidden_size}."
            )

    # --- running ------------------------------------------------------------------------------------------------------

    def forward(self, **inputs: Any) -> ModelOutput | tuple[Any, ...]:
        """Run the five steps.

        Args:
            **inputs: the encoder's inputs, and those that only callbacks read.

        Returns:
            A ``ModelOutput`` or a tuple, as the encoder returns; its first entry holds the projected features:
            ``(N, D)``, ``(items, tokens, D)`` or a list of ``(tokens_i, D)``.

        Raises:
            InputError: the encoder's main input is missing.
        """
        given = {name: value for name, value in inputs.items() if name != POSITIONS}
        self._check_inputs(given)
        if not torch.compiler.is_compiling():  # it would compile anew for each number
            self.runs += 1
        prepared = self._call("preprocess", dict(given))
        not_taken = {*given, *self.modal_callbacks.input_names} - {*self.input_names}
        output = self._run_module({name: value for name, value in prepared.items() if name not in not_taken})
        output = self._call("postprocess_module", dict(prepared), output)
        output = _with_features(output, self.projector(_cast(output[0], self.projector)))
        return self._call("postprocess_projector", dict(prepared), output)

    def _call(self, part: str, *args: Any) -> Any:
        """Run one callback; without one, its last argument goes through."""
        callback = getattr(self, f"{part}_callback")
        result = args[-1] if callback is None else callback(*args)
        expected = Mapping if part == "preprocess" else (ModelOutput, tuple)
        if not isinstance(result, expected):
            raise TypeError(
                f"{self.key}: {part}_callback returned {_kind(result)}; it must return the (changed) {_what(part)}."
            )
        return result

    def _run_module(self, inputs: dict[str, Any]) -> ModelOutput | tuple[Any, ...]:
        if self.module is None:
            return BaseModelOutput(last_hidden_state=inputs[EMBEDS])
        run = self.modal_callbacks.run_module or _run
        inputs = {name: _cast(value, self.module) for name, value in inputs.items()}
        # A frozen encoder costs what inference costs. Not inference_mode: the projector must be able to save its
        # inputs for backward (torch 2.13).
        with torch.no_grad() if self._is_frozen(inputs) else nullcontext():
            output = run(self.module, inputs)
        if isinstance(output, (torch.Tensor, list)):
            return BaseModelOutput(last_hidden_state=output)  # type: ignore[arg-type]  # a list is fine here
        if not isinstance(output, (ModelOutput, tuple)):
            raise TypeError(
                f"{self.key}: {_called(self.module)} returned {_kind(output)}; an encoder returns features, a list "
                "or a tuple that begins with them, or a ModelOutput."
            )
        return output

    def _is_frozen(self, inputs: dict[str, Any]) -> bool:
        tensors = (value for value in inputs.values() if isinstance(value, torch.Tensor))
        return not any(tensor.requires_grad for tensor in (*self.module.parameters(), *tensors))

    def _check_inputs(self, given: dict[str, Any]) -> None:
        if not given.keys() & set(self.input_names):
            raise InputError(
                f"{self.key}: the encoder takes {', '.join(self.input_names)}; got {', '.join(given) or 'nothing'}."
            )
        has_callbacks = any(getattr(self, f"{part}_callback") is not None for part in _CALLBACKS)
        unknown = sorted(given.keys() - set(self.all_input_names))
        if unknown and not has_callbacks:
            raise TypeError(
                f"{self.key}: nothing takes {', '.join(unknown)}; the encoder takes {', '.join(self.input_names)}. "
                "Declare further ones with ModalEncoderModule(input_names=...)."
            )


# --- reading the arguments --------------------------------------------------------------------------------------------


def _one_of(*, module: Any, model: Any) -> nn.Module | None:
    if module is not _NOT_GIVEN and model is not _NOT_GIVEN:
        raise TypeError("module= and model= are two spellings of one argument; give one of them.")
    chosen = model if module is _NOT_GIVEN else module
    if chosen is _NOT_GIVEN:
        raise TypeError("module= is missing: give the encoder, or None for ready-made embeddings.")
    if chosen is not None and not isinstance(chosen, nn.Module):
        raise TypeError(f"module= must be a torch.nn.Module or None, not {type(chosen).__name__}.")
    return chosen


def _either(module_callback: Any, encoder_callback: Any) -> Any:
    if module_callback is not None and encoder_callback is not None:
        raise TypeError("postprocess_module_callback= and postprocess_encoder_callback= are one argument; give one.")
    return module_callback if module_callback is not None else encoder_callback


def _as_projector(projector: nn.Module | None) -> MultimodalProjector | None:
    if projector is None or isinstance(projector, MultimodalProjector):
        return projector
    if not isinstance(projector, nn.Module):
        raise TypeError(f"projector= must be a torch.nn.Module or None, not {type(projector).__name__}.")
    config = MultimodalProjectorConfig(
        projection_type="custom",
        in_features=getattr(projector, "in_features", None),
        out_features=getattr(projector, "out_features", None),
    )
    return MultimodalProjector(config, projector)


def _find_spec(module: nn.Module | None, name: str | None) -> Provided | None:
    if name is not None:
        return registry().lookup("encoders", name)
    return registry().find_encoder(unwrap(module)) if module is not None else None


def _check_has_no_decoder(module: nn.Module | None, provided: Provided | None) -> None:
    """Raise for a model of transformers that is more than the encoder that a plugin knows inside it."""
    model = unwrap(module)
    if provided is not None or not isinstance(model, PreTrainedModel) or not model.config.is_encoder_decoder:
        return
    hint = _hint_at_part(module)
    if hint:  # else it may be an encoder with the config of the whole
        raise CompositionError(f"{_called(module)} has a decoder, too; an encoder is needed.{hint}")


def _dummy_embeds(width: int) -> dict[str, Any]:
    return {EMBEDS: torch.zeros(1, 1, width)}


def _dummy_inputs(
    module: nn.Module | None, provided: Provided | None, width: int
) -> Callable[[], dict[str, Any]] | None:
    if module is None:
        return partial(_dummy_embeds, width)
    if provided is None:
        return None
    return partial(resolve(provided.spec.dummy_inputs, provided.plugin), getattr(unwrap(module), "config", None))


def _width(module: nn.Module | None, provided: Provided | None, given: int | None) -> int:
    if given is not None:
        return given
    config = getattr(unwrap(module), "config", None)
    if provided is not None and provided.spec.hidden_size is not None:
        return resolve(provided.spec.hidden_size, provided.plugin)(config)
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise CompositionError(
            f"the width of {_called(module)}'s features can't be known; give ModalEncoderModule(..., hidden_size=...)."
            + _hint_at_part(module)
            + f" {registry().explain_unavailable()}".rstrip()
        )
    return width


def _names(module: nn.Module | None, provided: Provided | None, given: Sequence[str] | None) -> tuple[str, ...]:
    if given is not None:
        return (given,) if isinstance(given, str) else tuple(given)
    if module is None:
        return (EMBEDS,)
    if provided is not None:
        return provided.spec.input_names
    if isinstance(unwrap(module), PreTrainedModel):
        return (unwrap(module).main_input_name,)
    raise CompositionError(
        f"the inputs of {_called(module)} can't be known; give ModalEncoderModule(..., input_names=[...])."
        + f" {registry().explain_unavailable()}".rstrip()
    )


def _hint_at_part(module: nn.Module | None) -> str:
    """Which part of a two-tower model is an encoder that a plugin knows."""
    for name, part in module.named_modules() if module is not None else ():
        if part is not module and registry().find_encoder(part) is not None:
            return f" Or did you mean its {name}, a {type(part).__name__}? Pass that."
    return ""


def _called(module: nn.Module | None) -> str:
    return "ready-made embeddings" if module is None else type(unwrap(module)).__name__


def _check_callback(part: str, callback: Any) -> None:
    if callback is None:
        return
    if not callable(callback):
        raise TypeError(f"{part}_callback must be a function or a torch.nn.Module, not {type(callback).__name__}.")
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, nn.Module) and any(True for _ in owner.parameters()):
        raise TypeError(
            f"{part}_callback is a method of a {type(owner).__name__}, whose parameters would neither train nor save. "
            "Pass the module itself, with the work in its forward()."
        )


def _run(module: nn.Module, inputs: dict[str, Any]) -> Any:
    return module(**inputs)


def _cast(value: Any, module: nn.Module) -> Any:
    """Floating tensors in the dtype of ``module``'s weights: a bfloat16 model takes a processor's float32 pixels."""
    weights = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), None)
    if isinstance(value, list):
        return [_cast(item, module) for item in value]
    if weights is None or not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.to(weights)


def _what(part: str) -> str:
    return "inputs, a dictionary" if part == "preprocess" else "output, a ModelOutput or a tuple"


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _with_features(output: ModelOutput | tuple[Any, ...], features: Any) -> ModelOutput | tuple[Any, ...]:
    """An output of the same kind that holds the projected features."""
    if isinstance(output, ModelOutput):
        return BaseModelOutput(last_hidden_state=features)
    return (features, *output[1:])
