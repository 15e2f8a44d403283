"""One modality: its encoder, its projector and the callbacks around them, run in five steps.

This module contains no code for a particular modality. The only property of the language model that it uses is the
width of its embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .._hf.build import default_dtype
from .._hf.peft import unwrap
from .._hf.weights import keep_weights
from ..errors import CompositionError, InputError
from ..plugins import Registration, registry
from ..specs import CallbackSpec, EncoderSpec, ModalCallbacks
from .encoder_info import EMBEDS, EncoderInfo
from .projector import MultimodalProjector, MultimodalProjectorConfig

__all__ = ["CALLBACK_STEPS", "POSITIONS", "ModalEncoderModule"]

POSITIONS = "positions"  # reserved among an encoder's inputs: where its features go, see placeholders.py
CALLBACK_STEPS = ("preprocess", "postprocess_module", "postprocess_projector")
_NOT_GIVEN: Any = object()


class ModalEncoderModule(nn.Module):
    """A modality encoder with its projector and callbacks.

    It runs five steps: ``preprocess_callback`` → ``module`` → ``postprocess_module_callback`` → ``projector`` →
    ``postprocess_projector_callback``. The callbacks are optional, and so is ``module``. Without callbacks the
    projector receives the whole ``last_hidden_state``.

    Args:
        module: a ``PreTrainedModel``, a ``PeftModel``, any other ``nn.Module`` that returns a tensor, a list of
            tensors, a tuple or a ``ModelOutput``; or ``None`` for ready-made embeddings, which are passed as
            ``embeds``.
        projector: a :class:`~cornstarch_core.MultimodalProjector` or any other ``nn.Module``; ``None`` lets
            :class:`~cornstarch_core.MultimodalModel` make a projector.
        model: another spelling of ``module``.
        callbacks: a :class:`~cornstarch_core.ModalCallbacks`, or the name of callbacks that a plugin registers, such as
            ``"llava"``. Callbacks given by name are built when the model is composed.
        callback_options: dictionary of options for callbacks given by name.
        preprocess_callback: function ``(inputs) -> inputs`` to use in place of ``callbacks.preprocess``.
        postprocess_module_callback: function ``(inputs, output) -> output`` to use in place of
            ``callbacks.postprocess_module``.
        postprocess_projector_callback: function ``(inputs, output) -> output`` to use in place of
            ``callbacks.postprocess_projector``.
        postprocess_encoder_callback: another spelling of ``postprocess_module_callback``.
        hidden_size: width of the encoder's features; default: the width that the encoder's plugin declares, or
            ``module.config.hidden_size`` if no plugin registers the encoder.
        input_names: names of the inputs that ``module`` accepts; default: the names that the encoder's plugin declares,
            or ``module.main_input_name`` if no plugin registers the encoder.
        name: name of the registered encoder that describes ``module``; default: looked up by the class of ``module``.

    A callback is a function, or an ``nn.Module`` whose parameters are trained, saved and loaded with the model. Each
    callback receives a copy of the inputs. ``module`` receives the inputs in ``input_names`` and those that
    ``preprocess_callback`` adds. Only the callbacks receive the other inputs.

    Raises:
        TypeError: a part is given twice, or is of the wrong kind.
        CompositionError: the width or the inputs of ``module`` can't be determined.

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
        after_module = [one for one in (postprocess_module_callback, postprocess_encoder_callback) if one is not None]
        if len(after_module) > 1:
            raise TypeError(
                "postprocess_module_callback= and postprocess_encoder_callback= are one argument; give one."
            )
        if not isinstance(callbacks, (ModalCallbacks, str, type(None))):
            raise TypeError(
                f"callbacks= must be a ModalCallbacks or the name of a registered one, not {_kind(callbacks)}; a "
                "single function goes into preprocess_callback=, postprocess_module_callback= or "
                "postprocess_projector_callback=."
            )
        if callback_options and not isinstance(callbacks, str):
            raise TypeError("callback_options= goes with callbacks='name'; a ModalCallbacks has its options already.")
        self.module = _one_of(module, model)
        self.projector = _as_projector(projector)
        self.registration = _find_registration(self.module, name)
        self.text_hidden_size = 0  # until a model is composed
        if hidden_size is None or input_names is None:
            _check_has_no_decoder(self.module, self.registration)
        self.hidden_size = hidden_size if hidden_size is not None else _width(self.module, self.registration)
        names = [input_names] if isinstance(input_names, str) else input_names
        self.input_names = _names(self.module, self.registration) if names is None else tuple(names)
        self.callback_name = callbacks if isinstance(callbacks, str) else None
        self.callback_options = dict(callback_options or {})
        self.callback_registration: Registration[CallbackSpec] | None = None
        self.callback_dtype: str | None = None  # dtype of registered callbacks' parameters; None: torch's default
        self.runs = 0  # forward passes so far, for audits
        overrides = {
            "preprocess": preprocess_callback,
            "postprocess_module": after_module[0] if after_module else None,
            "postprocess_projector": postprocess_projector_callback,
        }
        self.overrides = {step: callback for step, callback in overrides.items() if callback is not None}
        self._attach(callbacks if isinstance(callbacks, ModalCallbacks) else ModalCallbacks())

    # --- composing ----------------------------------------------------------------------------------------------------

    def complete(
        self, key: str, text_hidden_size: int, projector_type: str = "linear", activation: str = "gelu"
    ) -> None:
        """Build the parts that depend on the language model: the callbacks given by name, and the projector.

        Args:
            key: modality key in the model.
            text_hidden_size: width of the language model's embeddings.
            projector_type: type of the projector, if this method makes one.
            activation: activation of the projector, if this method makes one.

        Raises:
            CompositionError: the projector's widths differ from those of the encoder and the language model.
        """
        self.key, self.text_hidden_size = key, text_hidden_size
        if self.callback_name is not None and self.callback_registration is None:
            self.callback_registration = registry().lookup("callbacks", self.callback_name)
            with default_dtype(self.callback_dtype):
                self._attach(self.info.build_callbacks())
        features = self.info.feature_size
        if self.projector is None:
            config = MultimodalProjectorConfig(
                None, None, projector_type, activation, in_features=features, out_features=text_hidden_size
            )
            self.projector = MultimodalProjector(config)
        config = self.projector.config
        if config.in_features not in (None, features):
            raise CompositionError(
                f"{key}: the encoder gives features of width {features}, the projector takes {config.in_features}. "
                f"Build the projector with in_features={features}."
            )
        if config.out_features not in (None, text_hidden_size):
            raise CompositionError(
                f"{key}: the projector gives features of width {config.out_features}, the language model's embeddings "
                f"have {text_hidden_size}. Build the projector with out_features={text_hidden_size}."
            )

    @property
    def info(self) -> EncoderInfo:
        """The description of this encoder without its weights: its widths, its counts and its registered plugins."""
        return EncoderInfo(
            key=self.key,
            config=getattr(unwrap(self.module), "config", None),
            hidden_size=self.hidden_size,
            input_names=self.input_names,
            text_hidden_size=self.text_hidden_size,
            ready_made=self.module is None,
            registration=self.registration,
            callback_registration=self.callback_registration,
            callback_options=self.callback_options,
            callbacks=self.callbacks,
            projector_config=getattr(self.projector, "config", None),
            projector_registration=getattr(self.projector, "registration", None),
        )

    def _attach(self, callbacks: ModalCallbacks) -> None:
        """Set the callbacks to run: ``callbacks``, with the overrides. Register those that are modules as children."""
        overrides: dict[str, Any] = self.overrides
        self.callbacks = replace(callbacks, **overrides)
        for step in CALLBACK_STEPS:
            callback = getattr(self.callbacks, step)
            _check_callback(step, callback)
            if isinstance(callback, nn.Module):
                keep_weights(callback)
            setattr(self, f"{step}_callback", callback)

    # --- running ------------------------------------------------------------------------------------------------------

    def forward(self, **inputs: Any) -> ModelOutput | tuple[Any, ...]:
        """Run the five steps.

        Args:
            **inputs: the encoder's inputs, and the inputs that only callbacks read.

        Returns:
            A tuple if the encoder returns a tuple, else a ``ModelOutput``. Its first entry holds the projected
            features: ``(N, D)``, ``(items, tokens, D)`` or a list of ``(tokens_i, D)``, where ``N`` is the number of
            features and ``D`` the width of the language model's embeddings.

        Raises:
            InputError: none of the encoder's inputs is given.
            TypeError: an input belongs neither to the encoder nor to a callback, or a callback returns a wrong type.
        """
        inputs.pop(POSITIONS, None)
        if not inputs.keys() & {*self.input_names}:
            raise InputError(
                f"{self.key}: the encoder takes {', '.join(self.input_names)}; got {', '.join(inputs) or 'nothing'}."
            )
        unknown = sorted(inputs.keys() - {*self.input_names, *self.callbacks.input_names})
        if unknown and all(getattr(self, f"{step}_callback") is None for step in CALLBACK_STEPS):
            raise TypeError(
                f"{self.key}: nothing takes {', '.join(unknown)}; the encoder takes {', '.join(self.input_names)}. "
                "Declare further ones with ModalEncoderModule(input_names=...)."
            )
        if not torch.compiler.is_compiling():  # a changing counter would recompile the model on every call
            self.runs += 1
        prepared = self._run_callback("preprocess", dict(inputs))
        not_taken = {*inputs, *self.callbacks.input_names} - {*self.input_names}
        output = self._run_module({name: value for name, value in prepared.items() if name not in not_taken})
        output = self._run_callback("postprocess_module", dict(prepared), output)
        features = self.projector(_cast(output[0], self.projector))
        is_tuple = not isinstance(output, ModelOutput)
        output = (features, *output[1:]) if is_tuple else BaseModelOutput(last_hidden_state=features)
        return self._run_callback("postprocess_projector", dict(prepared), output)

    def _run_callback(self, step: str, *args: Any) -> Any:
        """Run the callback of a step. If the step has no callback, return the last argument."""
        callback = getattr(self, f"{step}_callback")
        result = args[-1] if callback is None else callback(*args)
        if not isinstance(result, Mapping if step == "preprocess" else (ModelOutput, tuple)):
            what = "inputs, a dictionary" if step == "preprocess" else "output, a ModelOutput or a tuple"
            raise TypeError(
                f"{self.key}: {step}_callback returned {_kind(result)}; it must return the (changed) {what}."
            )
        return result

    def _run_module(self, inputs: dict[str, Any]) -> ModelOutput | tuple[Any, ...]:
        if self.module is None:
            return BaseModelOutput(last_hidden_state=inputs[self.input_names[0]])
        inputs = {name: _cast(value, self.module) for name, value in inputs.items()}
        tensors = (value for value in inputs.values() if isinstance(value, torch.Tensor))
        is_frozen = not any(tensor.requires_grad for tensor in (*self.module.parameters(), *tensors))
        run = self.callbacks.run_module
        # A frozen encoder costs what inference costs. Not inference_mode: the projector must be able to save its
        # inputs for backward (torch 2.13).
        with torch.no_grad() if is_frozen else nullcontext():
            output = self.module(**inputs) if run is None else run(self.module, inputs)
        if isinstance(output, (torch.Tensor, list)):
            return BaseModelOutput(last_hidden_state=output)  # type: ignore[arg-type]  # a list is fine here
        if not isinstance(output, (ModelOutput, tuple)):
            raise TypeError(
                f"{self.key}: {_called(self.module)} returned {_kind(output)}; an encoder returns features, a list "
                "or a tuple that begins with them, or a ModelOutput."
            )
        return output


# --- reading the arguments --------------------------------------------------------------------------------------------


def _one_of(module: nn.Module | None, model: nn.Module | None) -> nn.Module | None:
    if module is not _NOT_GIVEN and model is not _NOT_GIVEN:
        raise TypeError("module= and model= are two spellings of one argument; give one of them.")
    chosen = model if module is _NOT_GIVEN else module
    if chosen is _NOT_GIVEN:
        raise TypeError("module= is missing: give the encoder, or None for ready-made embeddings.")
    return _checked_module("module", chosen)


def _checked_module(name: str, module: nn.Module | None) -> nn.Module | None:
    if module is not None and not isinstance(module, nn.Module):
        raise TypeError(f"{name}= must be a torch.nn.Module or None, not {type(module).__name__}.")
    return module


def _as_projector(projector: nn.Module | None) -> MultimodalProjector | None:
    if isinstance(projector, MultimodalProjector) or _checked_module("projector", projector) is None:
        return projector  # type: ignore[return-value]  # None or a MultimodalProjector
    config = MultimodalProjectorConfig(
        projection_type="custom",
        in_features=getattr(projector, "in_features", None),
        out_features=getattr(projector, "out_features", None),
    )
    return MultimodalProjector(config, projector)


def _find_registration(module: nn.Module | None, name: str | None) -> Registration[EncoderSpec] | None:
    if name is not None:
        return registry().lookup("encoders", name)
    return registry().find_encoder(unwrap(module)) if module is not None else None


def _check_has_no_decoder(module: nn.Module | None, registration: Registration[EncoderSpec] | None) -> None:
    """Raise ``CompositionError`` for an encoder-decoder of transformers that contains a registered encoder."""
    model = unwrap(module)
    whole = registration is None and isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder
    if whole and (hint := _hint_at_part(module)):  # without a hint it may be an encoder with the config of the whole
        raise CompositionError(f"{_called(module)} has a decoder, too; an encoder is needed.{hint}")


def _width(module: nn.Module | None, registration: Registration[EncoderSpec] | None) -> int:
    config = getattr(unwrap(module), "config", None)
    of_config = getattr(config, "hidden_size", None)
    width = of_config if registration is None else registration.load().hidden_size(config)
    if not isinstance(width, int):
        raise CompositionError(
            f"the width of {_called(module)}'s features can't be known; give ModalEncoderModule(..., hidden_size=...)."
            f"{_hint_at_part(module)} {registry().explain_unavailable()}".rstrip()
        )
    return width


def _names(module: nn.Module | None, registration: Registration[EncoderSpec] | None) -> tuple[str, ...]:
    if module is None:
        return (EMBEDS,)
    if registration is not None:
        return registration.spec.input_names
    if isinstance(unwrap(module), PreTrainedModel):
        return (unwrap(module).main_input_name,)
    raise CompositionError(
        f"the inputs of {_called(module)} can't be known; give ModalEncoderModule(..., input_names=[...]). "
        f"{registry().explain_unavailable()}".rstrip()
    )


def _hint_at_part(module: nn.Module | None) -> str:
    """Return a sentence that names the part of a two-tower model that is a registered encoder, or ``""``."""
    for name, part in module.named_modules() if module is not None else ():
        if part is not module and registry().find_encoder(part) is not None:
            return f" Or did you mean its {name}, a {type(part).__name__}? Pass that."
    return ""


def _called(module: nn.Module | None) -> str:
    return "ready-made embeddings" if module is None else type(unwrap(module)).__name__


def _check_callback(step: str, callback: object) -> None:
    if callback is None:
        return
    if not callable(callback):
        raise TypeError(f"{step}_callback must be a function or a torch.nn.Module, not {type(callback).__name__}.")
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, nn.Module) and any(True for _ in owner.parameters()):
        raise TypeError(
            f"{step}_callback is a method of a {type(owner).__name__}, whose parameters would neither train nor save. "
            "Pass the module itself, with the work in its forward()."
        )


def _cast(value: object, module: nn.Module) -> Any:
    """Cast floating-point tensors to the dtype of ``module``'s weights, such as float32 pixels to bfloat16."""
    weights = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), None)
    if isinstance(value, list):
        return [_cast(item, module) for item in value]
    if weights is None or not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.to(weights)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
