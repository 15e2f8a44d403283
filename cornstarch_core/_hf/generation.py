"""Steps that ``generate`` of transformers performs for token ids, but not for embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from .language_model import token_ids_of

__all__ = ["check_generates_from_embeds", "mask_of", "warn_of_right_padding"]


def check_generates_from_embeds(config: GenerationConfig, kwargs: Mapping[str, object]) -> None:
    """Raise ``ValueError`` for generation methods that ignore the embeddings, and therefore the media (5.23)."""
    configs = (config, kwargs.get("generation_config"))
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
        if any(value for value in (kwargs.get(name), *(getattr(one, name, None) for one in configs))):
            raise ValueError(
                f"{name}= is not possible with media: transformers runs assisted generation from token ids alone. "
                "Leave it out, or generate from text only."
            )


def mask_of(input_ids: torch.Tensor, config: GenerationConfig, kwargs: Mapping[str, object]) -> torch.Tensor:
    """Return the attention mask that ``generate`` infers from token ids.

    The mask excludes padding tokens, unless the id of the padding token is also the id of an end token.
    """
    configs = (kwargs.get("generation_config"), config)
    given = SimpleNamespace(pad_token_id=kwargs.get("pad_token_id"), eos_token_id=kwargs.get("eos_token_id"))
    found = {name: [token_ids_of(one, name) for one in (given, *configs)] for name in ("pad", "eos")}
    pads, ends = (next(filter(None, found[name]), []) for name in ("pad", "eos"))
    if not pads or pads[0] in ends:
        return torch.ones_like(input_ids)
    return (input_ids != pads[0]).long()


def warn_of_right_padding(attention_mask: torch.Tensor) -> None:
    """Warn of padding on the right, which makes the generated text wrong.

    ``generate`` (5.23) gives this warning for token ids, but not for embeddings.
    """
    if attention_mask.dim() == 2 and len(attention_mask) > 1 and bool((attention_mask[:, -1] == 0).any()):
        row = int((attention_mask[:, -1] == 0).nonzero()[0])
        logging.get_logger(__name__).warning(
            f"sample {row} is padded on the right, but generating continues the end of each row: pass "
            "padding_side='left' to the processor, or set tokenizer.padding_side = 'left'."
        )
