"""Language models as other multimodal classes hold them: a decoder, and a head that is applied to what it gives.

Must not know any modality or family. Those classes leave out whatever else a language model does, such as scaling its
logits or capping them: then they would not give the same logits.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from .errors import CheckpointError

__all__ = ["check_run", "copied_config", "decoder_and_head", "language_model", "with_rows"]


def language_model(where: str, theirs: Any) -> Any:
    """The causal language model around the very decoder and head of another class.

    Args:
        where: the checkpoint, for messages.
        theirs: their model, with ``model.language_model`` and ``lm_head``.

    Raises:
        CheckpointError: transformers has no causal language model that consists of these two.
    """
    decoder, head = theirs.model.language_model, theirs.lm_head
    config = decoder.config
    config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except (AttributeError, ValueError) as error:
        raise CheckpointError(f"{where}: there is no causal language model for its decoder: {error}") from error
    made, its_head = decoder_and_head(where, model)
    if type(made) is not type(decoder) or _shapes(its_head) != _shapes(head):
        raise CheckpointError(
            f"{where}: {type(model).__name__} does not consist of its decoder, a {type(decoder).__name__}, and its "
            "head."
        )
    setattr(model, model.base_model_prefix, decoder)
    model.set_output_embeddings(head)
    model.config, model.generation_config = config, theirs.generation_config
    return model


def decoder_and_head(where: str, model: Any) -> tuple[Any, Any]:
    """The two parts of a causal language model.

    Raises:
        CheckpointError: it has others, or not both.
    """
    decoder = getattr(model, "base_model", model)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    parts = [] if decoder is model or head is None else [*decoder.state_dict(), *head.state_dict()]
    if len(parts) != len(model.state_dict()):
        raise CheckpointError(
            f"{where}: the language model, a {type(model).__name__}, does not consist of a decoder and a head."
        )
    return decoder, head


def check_run(where: str, model: Any) -> None:
    """Run two tokens, to see that the logits are what the head makes of what the decoder gives.

    Raises:
        CheckpointError: they are not.
    """
    seen: dict[str, torch.Tensor] = {}
    decoder, head = decoder_and_head(where, model)
    hooks = [
        decoder.register_forward_hook(lambda _module, _inputs, output: seen.update(hidden=output[0])),
        head.register_forward_hook(lambda _module, inputs, output: seen.update(taken=inputs[0], given=output)),
    ]
    try:
        with torch.no_grad():
            logits = model(inputs_embeds=model.get_input_embeddings().weight[None, :2], use_cache=False).logits
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {type(model).__name__} can't be run from embeddings: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not _is_plain(logits, **seen):
        raise CheckpointError(
            f"{where}: {type(model).__name__} does more to its logits than to apply its head (it scales or caps them, "
            "for example), which the checkpoint's class doesn't do: the logits would differ."
        )


def _is_plain(
    logits: torch.Tensor,
    hidden: torch.Tensor | None = None,
    taken: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
) -> bool:
    if hidden is None or taken is None or given is None:  # one of the two was not called as a module
        return False
    return torch.equal(hidden, taken) and torch.equal(given.to(logits.dtype), logits)


def copied_config(module: Any) -> Any:
    """A copy of a part's config, without the path of this machine that it was loaded from."""
    copied = copy.deepcopy(module.config)
    copied._name_or_path = ""
    return copied


def with_rows(weights: dict[str, torch.Tensor], rows: int, decoder: Any, head: Any) -> dict[str, torch.Tensor]:
    """``weights`` with at least ``rows`` rows in the embeddings and in the head.

    Each new row is the mean of the old ones: in the head it gives the mean logit, which never wins, and in the
    embeddings it is no other token's, not even that of a padding token of zeros.

    Args:
        weights: by the names that they have in the other class.
        rows: at least so many.
        decoder: whose embeddings they are.
        head: whose weights may be those of the embeddings.
    """
    table = decoder.get_input_embeddings().weight
    name = next(name for name, parameter in decoder.named_parameters() if parameter is table)
    grown = {f"model.language_model.{name}": _grown(table.detach(), rows)}
    grown["lm_head.weight"] = next(iter(grown.values())) if head.weight is table else _grown(head.weight.detach(), rows)
    return {**weights, **grown}


def _grown(weight: torch.Tensor, rows: int) -> torch.Tensor:
    missing = rows - len(weight)
    if missing <= 0:
        return weight
    mean = weight.mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(missing, -1)])


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
