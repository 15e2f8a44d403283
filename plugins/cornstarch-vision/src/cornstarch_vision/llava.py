"""The ``"llava"`` callbacks: features of an earlier layer, without CLS and registers, as LLaVA takes them.

This module must not know any encoder family: the context says where the blocks are, and how many tokens come before
the patches.

Layers are numbered as in transformers' ``hidden_states``: 0 is what enters the first block, k what the k-th block
gives, before any final norm.

Source: https://arxiv.org/abs/2304.08485, and ``LlavaModel.get_image_features`` of transformers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from cornstarch_core.errors import CompositionError
from cornstarch_core.specs import CallbacksInterface, EncoderContext, ModalCallbacks

__all__ = ["FeatureSelection", "Llava"]

_STRATEGIES = ("default", "full")
_WRAPPERS = ("base_model", "model", "module", "_orig_mod")  # what PEFT, DDP and torch.compile call the module inside
_RECORDERS = ("output_hidden_states", "output_attentions")

# While the blocks of an encoder are exchanged, no other thread may run it or exchange them in turn.
_EXCHANGE = threading.RLock()

Output = BaseModelOutput | tuple[torch.Tensor, ...]


class Llava(CallbacksInterface):
    """Makes the ``"llava"`` callbacks."""

    def build(
        self,
        context: EncoderContext,
        vision_feature_layer: int | Sequence[int] = -2,
        vision_feature_select_strategy: str = "default",
        drop_tokens: int | None = None,
    ) -> ModalCallbacks:
        """Select features as LLaVA does.

        The encoder stops after the highest layer that is used; the weights of the other blocks stay, and are saved. The
        features equal those of a whole run bit for bit.

        Args:
            context: the encoder.
            vision_feature_layer: index into ``hidden_states``, or several, whose features are joined along the width.
            vision_feature_select_strategy: ``"default"`` leaves out CLS, distillation and registers; ``"full"`` keeps
                all tokens.
            drop_tokens: how many leading tokens ``"default"`` leaves out, in place of the encoder's own number. Hugging
                Face's LLaVA always drops one token, also the first patch of a SigLIP tower: ``drop_tokens=1`` does the
                same.

        Returns:
            Callbacks whose features have shape ``(images, tokens, layers * hidden_size)`` and the encoder's dtype.

        Raises:
            CompositionError: the strategy is unknown, or the encoder has no such layer.

        Example:
            >>> from cornstarch_core.specs import EncoderContext
            >>> from transformers import CLIPVisionConfig
            >>> context = EncoderContext(
            ...     key="vision", config=CLIPVisionConfig(), hidden_size=768, text_hidden_size=64, prefix_tokens=1,
            ...     layers="encoder.layers",
            ... )
            >>> callbacks = Llava().build(context, vision_feature_layer=[-2, -5])
            >>> callbacks.hidden_size, callbacks.num_tokens_before_projector({}, [50])
            (1536, [49])
        """
        layers = _as_layers(context, vision_feature_layer)
        selection = FeatureSelection(
            key=context.key,
            layers=layers,
            drop=_tokens_to_drop(context, vision_feature_select_strategy, drop_tokens),
            path=context.layers,
        )
        return ModalCallbacks(
            run_module=selection.run,
            postprocess_module=selection.drop_prefix,
            num_tokens_before_projector=selection.num_tokens,
            hidden_size=len(layers) * context.hidden_size,
        )


@dataclass(frozen=True, kw_only=True)
class FeatureSelection:
    """Which features to select, and how.

    Args:
        key: modality, for messages.
        layers: indices into ``hidden_states``.
        drop: leading tokens to leave out.
        path: dotted path of the encoder's blocks; without it the encoder runs whole.
    """

    key: str
    layers: tuple[int, ...]
    drop: int
    path: str | None

    def run(self, module: nn.Module, inputs: dict[str, Any]) -> Output:
        """Run the encoder no further than needed.

        Args:
            module: the encoder, or a wrapper around it.
            inputs: what it is called with.

        Returns:
            The chosen layers as ``last_hidden_state``, with the hidden states and attentions if the caller wants them;
            a tuple if the encoder gives one.
        """
        if self.path is None:
            output = module(**{**inputs, "output_hidden_states": True, "return_dict": True})
            return self._joined(output, output.hidden_states, self.layers)
        with _EXCHANGE:
            owner, name = _find_blocks(self.key, module, self.path)
            states = len(getattr(owner, name)) + 1
            if wrong := {*self.layers}.difference(range(-states, states)):
                raise _no_such_layer(self.key, wrong.pop(), states)
            layers = [layer % states for layer in self.layers]
            # transformers 5 installs its recorders once, on the blocks that are there then: they have to be all of them
            config = getattr(owner, "config", None)
            records_all = any(inputs.get(one, getattr(config, one, False)) for one in _RECORDERS)
            with _tapped(owner, name, None if records_all else max(layers)) as tapped:
                output = module(**inputs)
        return self._joined(output, tapped, layers)

    def _joined(self, output: Output, states: Sequence[torch.Tensor], layers: Sequence[int]) -> Output:
        """The encoder's output, with the chosen layers as its features."""
        if max(layers) >= len(states):
            raise CompositionError(
                f"{self.key}: layer {max(layers)} is needed, but the encoder's blocks gave only {len(states)} hidden "
                "states: something between the callback and the blocks runs others than those that the encoder holds."
            )
        chosen = [states[layer] for layer in layers]
        features = chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
        if isinstance(output, tuple):
            return (features,)
        return BaseModelOutput(  # without the pooled output, which means nothing if the encoder stopped early
            last_hidden_state=features,
            hidden_states=getattr(output, "hidden_states", None),
            attentions=getattr(output, "attentions", None),
        )

    def drop_prefix(self, inputs: dict[str, Any], output: Output) -> Output:
        """Leave out the leading tokens of ``output``'s features."""
        features = output[0][:, self.drop :]
        return (features, *output[1:]) if isinstance(output, tuple) else replace(output, last_hidden_state=features)

    def num_tokens(self, encoder_inputs: dict[str, Any], counts: list[int]) -> list[int]:
        """Count the tokens of each image that are left, of as many as ``counts``."""
        return [count - self.drop for count in counts]


# --- running a part of the blocks -------------------------------------------------------------------------------------


class _Tap(nn.Module):
    """Stands in for one block: runs it and keeps what it gives. The first tap also keeps what its block takes.

    It is no hook: with transformers 5.17, under reentrant activation checkpointing, hooks of a block see no graph.
    """

    def __init__(self, block: nn.Module, states: list[torch.Tensor]) -> None:
        super().__init__()
        self.block = block
        self.states = states

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.states:
            self.states.append(args[0] if args else kwargs["hidden_states"])
        output = self.block(*args, **kwargs)
        self.states.append(output[0] if isinstance(output, tuple) else output)
        return output


class _NoBlock(nn.Module):
    """Returns the hidden states unchanged, whatever else a block is given."""

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden_states


@contextmanager
def _tapped(owner: nn.Module, name: str, depth: int | None) -> Iterator[list[torch.Tensor]]:
    """For a while ``owner`` holds only its first ``depth`` blocks (``None``: all), tapped; yields the hidden states."""
    blocks = getattr(owner, name)
    states: list[torch.Tensor] = []
    # at depth 0 something has to catch what would enter the first block
    taps = [_Tap(block, states) for block in list(blocks)[:depth]] or [_Tap(_NoBlock(), states)]
    setattr(owner, name, nn.ModuleList(taps))
    try:
        yield states
    finally:
        setattr(owner, name, blocks)


def _find_blocks(key: str, module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the list of blocks, and the list's name there; in ``module``, or in what it wraps."""
    *parents, name = path.split(".")
    inner: nn.Module | None = module
    while inner is not None:
        owner: nn.Module | None = inner
        for parent in parents:  # not get_submodule(): PEFT's wrappers forward attributes, and would get the taps
            owner = owner._modules.get(parent) if owner is not None else None
        if owner is not None and isinstance(owner._modules.get(name), nn.ModuleList):
            return owner, name
        inner = next((inner._modules[wrapped] for wrapped in _WRAPPERS if wrapped in inner._modules), None)
    raise CompositionError(
        f"{key}: {type(module).__name__} has no list of blocks at {path!r}, where its plugin says that they are."
    )


# --- reading the options ----------------------------------------------------------------------------------------------


def _as_layers(context: EncoderContext, layer: int | Sequence[int]) -> tuple[int, ...]:
    layers = tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
    if not layers or any(type(one) is not int for one in layers):
        raise CompositionError(f"{context.key}: vision_feature_layer={layer!r}; expected an integer or a list of them.")
    blocks: int | None = getattr(context.config, "num_hidden_layers", None)
    # where the config doesn't say how many there are, layers are checked when the encoder runs
    if blocks is not None and (wrong := {*layers}.difference(range(-blocks - 1, blocks + 1))):
        raise _no_such_layer(context.key, wrong.pop(), blocks + 1)
    return layers


def _no_such_layer(key: str, layer: int, states: int) -> CompositionError:
    return CompositionError(
        f"{key}: vision_feature_layer={layer}; the encoder has {states - 1} layers, so choose from {-states} to "
        f"{states - 1} (0: what enters the first)."
    )


def _tokens_to_drop(context: EncoderContext, strategy: str, drop_tokens: int | None) -> int:
    if strategy not in _STRATEGIES:
        raise CompositionError(
            f"{context.key}: vision_feature_select_strategy={strategy!r}; choose one of {', '.join(_STRATEGIES)}."
        )
    if drop_tokens is None:
        return context.prefix_tokens if strategy == "default" else 0
    if type(drop_tokens) is not int or drop_tokens < 0 or strategy == "full":
        raise CompositionError(
            f"{context.key}: drop_tokens={drop_tokens!r} with vision_feature_select_strategy={strategy!r}; expected a "
            "number of tokens that the strategy 'default' leaves out."
        )
    return drop_tokens
