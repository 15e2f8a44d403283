"""Convert language models from and to a decoder and a head, as the multimodal classes of transformers hold them.

These classes apply only the head to the output of the decoder. A language model that also scales or caps its logits
would have other logits there. This module contains no code for a particular modality or checkpoint family.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import CheckpointError
from ..saving.tensors import different_names

__all__ = ["check_run", "copied_config", "decoder_and_head", "language_model", "with_rows"]


def language_model(where: str, theirs: PreTrainedModel) -> PreTrainedModel:
    """Make a causal language model that holds the decoder and the head of another class, without copying them.

    Args:
        where: name of the checkpoint in error messages.
        theirs: a model with ``model.language_model`` and ``lm_head``.

    Raises:
        CheckpointError: transformers has no causal language model that consists of this decoder and this head.
    """
    decoder, head = theirs.model.language_model, theirs.lm_head
    config = decoder.config
    config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except (AttributeError, ValueError) as error:
        raise CheckpointError(f"{where}: there is no causal language model for its decoder: {error}") from error
    made, made_head = decoder_and_head(where, model)
    if type(made) is not type(decoder) or different_names(made_head.state_dict(), head.state_dict()):
        ours, its = type(model).__name__, type(decoder).__name__
        raise CheckpointError(f"{where}: {ours} does not consist of its decoder, a {its}, and its head.")
    setattr(model, model.base_model_prefix, decoder)
    model.set_output_embeddings(head)
    model.config, model.generation_config = config, theirs.generation_config
    return model


def decoder_and_head(where: str, model: PreTrainedModel) -> tuple[Any, Any]:
    """Return the decoder and the head of a causal language model.

    Raises:
        CheckpointError: the model lacks one of them, or has weights outside both.
    """
    decoder = getattr(model, "base_model", model)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    parts = [] if decoder is model or head is None else [*decoder.state_dict(), *head.state_dict()]
    if len(parts) != len(model.state_dict()):
        name = type(model).__name__
        raise CheckpointError(f"{where}: the language model, a {name}, does not consist of a decoder and a head.")
    return decoder, head


def check_run(where: str, model: PreTrainedModel) -> tuple[Any, Any]:
    """Check that the logits are the head applied to the decoder's output, and return the decoder and the head.

    The check runs the model on two tokens.

    Raises:
        CheckpointError: the model does more than to apply the head, or can't be run from embeddings.
    """
    seen: dict[str, torch.Tensor] = {}  # stays empty if the model does not call the decoder and the head as modules
    decoder, head = decoder_and_head(where, model)
    hooks = [
        decoder.register_forward_hook(lambda _module, _inputs, output: seen.update(hidden=output[0])),
        head.register_forward_hook(lambda _module, inputs, output: seen.update(taken=inputs[0], given=output)),
    ]
    try:
        with torch.no_grad():
            logits = model(inputs_embeds=_table(decoder)[None, :2], use_cache=False).logits
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {type(model).__name__} can't be run from embeddings: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    passes_on = len(seen) == 3 and torch.equal(seen["hidden"], seen["taken"])
    if not (passes_on and torch.equal(seen["given"].to(logits.dtype), logits)):
        raise CheckpointError(
            f"{where}: {type(model).__name__} does more to its logits than to apply its head (such as capping them)."
        )
    return decoder, head


def copied_config(module: PreTrainedModel) -> Any:
    """Copy a part's config, without the path that the part was loaded from."""
    copied = copy.deepcopy(module.config)
    copied._name_or_path = ""
    return copied


def with_rows(
    weights: dict[str, torch.Tensor], rows: int, decoder: PreTrainedModel, head: nn.Linear
) -> dict[str, torch.Tensor]:
    """Return ``weights`` with at least ``rows`` rows in the embeddings and in the head.

    Each new row is the mean of the old rows. In the head, the new row gives the mean of the old logits, which is never
    the highest logit. In the embeddings, the new row differs from every token's row, even if the row of a padding token
    is zero.

    Args:
        weights: dictionary of tensors by their names in the other class.
        rows: minimal number of rows.
        decoder: the decoder, which has the embeddings.
        head: the head, whose weights are its own or those of the embeddings.
    """
    table = _table(decoder)
    name = next(name for name, parameter in decoder.named_parameters() if parameter is table)
    embeddings = _grown(table.detach(), rows)
    head_weight = embeddings if head.weight is table else _grown(head.weight.detach(), rows)
    return {**weights, f"model.language_model.{name}": embeddings, "lm_head.weight": head_weight}


def _table(decoder: PreTrainedModel) -> Any:
    return decoder.get_input_embeddings().weight


def _grown(weight: torch.Tensor, rows: int) -> torch.Tensor:
    mean = weight.mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)]) if rows > len(weight) else weight
