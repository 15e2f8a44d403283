"""The ``"llava"`` callback: features of an earlier layer, without CLS and registers, as LLaVA takes them.

Must not know any encoder family: the context says where the blocks are and how many tokens come before the patches.

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
from cornstarch_core.specs import EncoderContext, ModalCallbacks

__all__ = ["FeatureSelection", "llava"]

_STRATEGIES = ("default", "full")
_WRAPPERS = ("base_model", "model", "module", "_orig_mod")  # what PEFT, DDP and torch.compile call the module inside
_RECORDERS = ("output_hidden_states", "output_attentions")

# While the blocks of an encoder are exchanged no other thread may run it, or exchange them in turn.
_EXCHANGE = threading.RLock()


def llava(
    context: EncoderContext,
    vision_feature_layer: int | Sequence[int] = -2,
    vision_feature_select_strategy: str = "default",
    drop_tokens: int | None = None,
) -> ModalCallbacks:
    """Select features as LLaVA does.

    The encoder stops after the highest layer that is used; its weights stay, and are saved. The features equal those of
    the whole run bit for bit.

    Args:
        context: the encoder.
        vision_feature_layer: index into ``hidden_states``, or several, whose features are joined along the width.
        vision_feature_select_strategy: ``"default"`` leaves out CLS, distillation and registers; ``"full"`` keeps all.
        drop_tokens: how many leading tokens ``"default"`` leaves out, in place of the encoder's own number. Hugging
            Face's LLaVA always drops one, also the first patch of a SigLIP tower: ``drop_tokens=1`` does the same.

    Returns:
        Callbacks whose features have shape ``(images, tokens, layers * hidden_size)`` and the encoder's dtype.

    Raises:
        CompositionError: an unknown strategy, or a layer that is not there.

    Example:
        >>> from cornstarch_core.specs import EncoderContext
        >>> from transformers import CLIPVisionConfig
        >>> context = EncoderContext(
        ...     key="vision", config=CLIPVisionConfig(), hidden_size=768, text_hidden_size=64, prefix_tokens=1,
        ...     layers="encoder.layers",
        ... )
        >>> callbacks = llava(context, vision_feature_layer=[-2, -5])
        >>> callbacks.hidden_size, callbacks.num_tokens({}, [50])
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
        num_tokens=selection.num_tokens,
        hidden_size=len(layers) * context.hidden_size,
    )


@dataclass(frozen=True, kw_only=True)
class FeatureSelection:
    """What ``"llava"`` was asked for, and how it is done.

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

    def run(self, module: nn.Module, inputs: dict[str, Any]) -> BaseModelOutput | tuple[torch.Tensor]:
        """Run the encoder no further than needed.

        Returns:
            The chosen layers as ``last_hidden_state``, with the hidden states and attentions if they were asked for; a
            tuple if the encoder gives one.
        """
        if self.path is None:
            output = module(**{**inputs, "output_hidden_states": True, "return_dict": True})
            return _with_features(output, self._join(output.hidden_states))
        with _EXCHANGE:
            owner, name = _find_blocks(self.key, module, self.path)
            layers = [_index(self.key, layer, len(getattr(owner, name)) + 1) for layer in self.layers]
            depth = None if _is_recorded(owner, inputs) else max(layers)
            with _tapped(owner, name, depth) as states:
                output = module(**inputs)
        return _with_features(output, self._join(states, layers))

    def drop_prefix(self, inputs: dict[str, Any], output: Any) -> Any:
        """Leave out the leading tokens of ``output``'s features."""
        features = output[0][:, self.drop :]
        return (features, *output[1:]) if isinstance(output, tuple) else replace(output, last_hidden_state=features)

    def num_tokens(self, encoder_inputs: dict[str, Any], counts: list[int]) -> list[int]:
        """Tokens per image that are left."""
        return [count - self.drop for count in counts]

    def _join(self, states: Sequence[torch.Tensor], layers: Sequence[int] | None = None) -> torch.Tensor:
        layers = self.layers if layers is None else layers
        if max(layers) >= len(states):
            raise CompositionError(
                f"{self.key}: layer {max(layers)} was asked for, but only {len(states)} hidden states came out: "
                "something between the callback and the encoder's blocks ran others than those that it holds now."
            )
        chosen = [states[layer] for layer in layers]
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)


# --- running a part of the blocks -------------------------------------------------------------------------------------


class _Tap(nn.Module):
    """Stands in for one block: runs it and keeps what it gives, and the first one also what it takes.

    Not a hook: on transformers 5.17, under reentrant activation checkpointing, hooks of a block see no graph.
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
    """Lets hidden states through, whatever else a block is given."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
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
    """Who holds the module list of blocks, and its name there."""
    *parents, name = path.split(".")
    for inner in _unwrapped(module):
        owner = _descend(inner, parents)
        if owner is not None and isinstance(owner._modules.get(name), nn.ModuleList):
            return owner, name
    raise CompositionError(f"{key}: {type(module).__name__} has no list of blocks at {path!r}; its plugin says so.")


def _unwrapped(module: nn.Module) -> Iterator[nn.Module]:
    """The module, then what it wraps, ever further in."""
    inner: nn.Module | None = module
    while inner is not None:
        yield inner
        inner = next((inner._modules[name] for name in _WRAPPERS if name in inner._modules), None)


def _descend(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """Not ``get_submodule``: PEFT's wrappers forward attributes, and blocks would be exchanged on the wrapper."""
    inner: nn.Module | None = module
    for name in names:
        inner = inner._modules.get(name) if inner is not None else None
    return inner


def _is_recorded(owner: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether the caller wants hidden states or attentions: of all blocks, so all have to run.

    transformers 5 installs its recording hooks once, on the blocks that it finds then: a part would not do.
    """
    config = getattr(owner, "config", None)
    return any(inputs.get(name, getattr(config, name, False)) for name in _RECORDERS)


def _with_features(output: Any, features: torch.Tensor) -> BaseModelOutput | tuple[torch.Tensor]:
    """Without the pooled output: of an encoder that stopped early it means nothing."""
    if isinstance(output, tuple):
        return (features,)
    return BaseModelOutput(
        last_hidden_state=features,
        hidden_states=getattr(output, "hidden_states", None),
        attentions=getattr(output, "attentions", None),
    )


# --- reading the options ----------------------------------------------------------------------------------------------


def _as_layers(context: EncoderContext, layer: int | Sequence[int]) -> tuple[int, ...]:
    layers = tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
    if not layers or any(type(one) is not int for one in layers):
        raise CompositionError(f"{context.key}: vision_feature_layer={layer!r}; expected an integer or a list of them.")
    blocks: int | None = getattr(context.config, "num_hidden_layers", None)
    if blocks is not None:  # else it shows when the encoder runs
        for one in layers:
            _index(context.key, one, blocks + 1)
    return layers


def _index(key: str, layer: int, states: int) -> int:
    """The same layer, counted from the front."""
    if not -states <= layer < states:
        raise CompositionError(
            f"{key}: vision_feature_layer={layer}; the encoder has {states - 1} layers, so choose from {-states} to "
            f"{states - 1} (0: what enters the first)."
        )
    return layer % states


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
