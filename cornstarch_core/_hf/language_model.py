"""Access the causal language models of transformers in a uniform way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, Protocol

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from ..errors import CompositionError
from .peft import is_peft, unwrap

__all__ = [
    "LanguageModel",
    "accepted_names",
    "check_language_model",
    "embedding_width",
    "ids_in_table",
    "token_ids_of",
    "without_head",
]

# These names are in no signature (5.23): the wrappers around forward, or the loss function, accept them.
_ALWAYS_ACCEPTED = {"cache_position", "ignore_index", "return_dict", "shift_labels", "token_type_ids", "use_cache"}


class LanguageModel(Protocol):
    """A causal language model of transformers, wrapped by PEFT or not."""

    config: PreTrainedConfig
    generation_config: GenerationConfig

    def get_input_embeddings(self) -> Any:
        """Return the embedding table."""


def check_language_model(language_model: object) -> None:
    """Raise ``CompositionError`` unless the object is a causal language model of transformers, with or without PEFT."""
    model = unwrap(language_model)
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        found = f"{name} is not a PreTrainedModel"
    elif getattr(model.config, "is_encoder_decoder", False):
        found = f"{name} is an encoder-decoder"
    elif not model.can_generate():
        found = f"{name} can't generate; it may lack a head"
    else:
        return
    raise CompositionError(
        f"language_model: {found}. Give a causal one, such as AutoModelForCausalLM.from_pretrained loads."
    )


def embedding_width(language_model: LanguageModel) -> int:
    """Return the width of the input embeddings, which some models, such as OPT, have narrower than ``hidden_size``."""
    try:
        return int(language_model.get_input_embeddings().weight.shape[-1])
    except (AttributeError, NotImplementedError) as error:
        raise CompositionError(
            f"language_model: {type(language_model).__name__} gives no input embeddings ({error}); a causal language "
            "model of transformers is needed."
        ) from error


def ids_in_table(
    language_model: LanguageModel, input_ids: torch.Tensor, token_ids: Collection[int], filler: int | None = None
) -> torch.Tensor:
    """Return ``input_ids`` in which a token of the vocabulary replaces all ``token_ids`` outside the embedding table.

    Negative ids are outside the table, too, such as the id -200 of the first LLaVA.

    Args:
        language_model: the model with the embedding table.
        input_ids: ``(B, S)`` int64, B samples of S tokens.
        token_ids: placeholder ids.
        filler: the id to insert; default: a token with little effect on penalties.
    """
    table = language_model.get_input_embeddings()
    vocabulary = int(getattr(table, "num_embeddings", table.weight.shape[0]))
    for token_id in token_ids:
        if not 0 <= token_id < vocabulary:
            filler = _neutral_token(language_model) if filler is None else filler
            input_ids = input_ids.masked_fill(input_ids == token_id, filler)
    return input_ids


def _neutral_token(language_model: LanguageModel) -> int:
    """Return a token with little effect on penalties: BOS if there is one, and never padding or EOS."""
    configs = (unwrap(language_model).config, getattr(language_model, "generation_config", None))
    ending = {one for config in configs for name in ("pad", "eos") for one in token_ids_of(config, name)}
    beginning = [one for config in configs for one in token_ids_of(config, "bos")]
    return next(token_id for token_id in (*beginning, *range(len(ending) + 1)) if token_id not in ending)


def token_ids_of(config: object, name: str) -> list[int]:
    """Return the list of ids of a special token, for example ``"eos"``. The list may have no, one or several ids."""
    found = getattr(config, f"{name}_token_id", None)
    return [] if found is None else list(found) if isinstance(found, (list, tuple)) else [found]


@cache
def accepted_names(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the keyword arguments that a language model accepts, from the ``forward`` of its class."""
    parameters = inspect.signature(forward).parameters.values()
    names = {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)} - {"self"}
    further = TransformersKwargs.__annotations__ if any(one.kind is one.VAR_KEYWORD for one in parameters) else ()
    return frozenset({*names, *_ALWAYS_ACCEPTED, *further})


def without_head(language_model: nn.Module) -> nn.Module:
    """Return the language model without its head, including its adapters.

    Raises:
        CompositionError: the language model can't run without its head, or has prompt-learning adapters, which run
            around the whole model.
    """
    model = unwrap(language_model)
    problem = f"{type(model).__name__} can't run without its head" if model.base_model is model else ""
    if is_peft(language_model) and language_model.active_peft_config.is_prompt_learning:  # type: ignore[union-attr]
        problem = "prompt-learning adapters run around the whole model, which can't run without its head"
    if problem:
        raise CompositionError(
            f"language_model: {problem}; use a trainer that takes the model's own loss, such as transformers' Trainer."
        )
    return model.base_model
