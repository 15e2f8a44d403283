"""The one file that knows the quirks of transformers and peft. Versions in comments are those a quirk was seen on."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging
from transformers.utils.generic import TransformersKwargs

from .errors import CheckpointError, CompositionError

__all__ = [
    "CompositeModel",
    "accepted_names",
    "body_of",
    "build_transformers_model",
    "check_generates_from_embeds",
    "check_language_model",
    "class_path",
    "config_from_dict",
    "constructor_arguments",
    "default_dtype",
    "embed",
    "embedding_shape",
    "is_peft",
    "keep_weights",
    "mask_of",
    "out_of_table",
    "unwrap",
    "use_published_names",
    "warn_of_right_padding",
    "write_weights",
]

# Taken by the wrappers around forward (5.23) or by the loss, so they are in no signature.
_ALWAYS_ACCEPTED = {"cache_position", "ignore_index", "return_dict", "shift_labels", "token_type_ids", "use_cache"}
# What a model declares for those who shard, place or cast it.
_DECLARED = (
    "_no_split_modules",
    "_keep_in_fp32_modules",
    "_keep_in_fp32_modules_strict",
    "_skip_keys_device_placement",
)
_CONSTRUCTOR_ARGUMENTS = ("add_pooling_layer", "use_mask_token")
_TRANSFORMERS_CLASS = re.compile(r"transformers\.models(\.[a-z0-9_]+)+:[A-Za-z][A-Za-z0-9_]*")


# --- peft ---------------------------------------------------------------------------------------------------------


def is_peft(module: nn.Module | None) -> bool:
    """Whether ``module`` is a ``PeftModel``. Doesn't import peft: without it no module can be one."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(module, peft.PeftModel)


def unwrap(module: Any) -> Any:
    """The model inside a ``PeftModel``. Its signature is the real one; the wrapper's is ``(*args, **kwargs)``."""
    return module.get_base_model() if is_peft(module) else module


# --- the parts of a composition -----------------------------------------------------------------------------------


def keep_weights(module: nn.Module) -> None:
    """Mark everything in ``module`` as initialised, so that ``post_init()`` of a parent doesn't draw it anew (5.23)."""
    for item in (*module.modules(), *module.parameters(), *module.buffers()):
        setattr(item, "_is_hf_initialized", True)  # noqa: B010 - not an attribute that types know


def embedding_shape(language_model: Any) -> tuple[int, int]:
    """``(vocabulary, width)`` of the input embeddings.

    The width is the table's: OPT, for one, has embeddings narrower than its ``hidden_size``.
    """
    try:
        table = language_model.get_input_embeddings()
    except (AttributeError, NotImplementedError) as error:
        raise CompositionError(
            f"language_model: {type(language_model).__name__} gives no input embeddings ({error}); a causal language "
            "model of transformers is needed."
        ) from error
    return int(getattr(table, "num_embeddings", table.weight.shape[0])), int(table.weight.shape[-1])


def out_of_table(language_model: nn.Module, input_ids: torch.Tensor, token_ids: list[int]) -> torch.Tensor:
    """``input_ids`` with those of ``token_ids`` that lie outside the embedding table replaced by one inside.

    An id below zero, such as the -200 of the first LLaVA, lies outside too.
    """
    vocabulary, _ = embedding_shape(language_model)
    outside = [token_id for token_id in token_ids if not 0 <= token_id < vocabulary]
    if not outside:
        return input_ids
    inside = _stand_in(language_model)
    for token_id in outside:
        input_ids = input_ids.masked_fill(input_ids == token_id, inside)
    return input_ids


def _stand_in(language_model: Any) -> int:
    """A token that means nothing to those who look at ids, such as penalties: BOS if there is one, never EOS."""
    configs = (unwrap(language_model).config, getattr(language_model, "generation_config", None))
    ending = {one for config in configs for name in ("pad", "eos") for one in _ids_of(config, name)}
    beginning = [one for config in configs for one in _ids_of(config, "bos")]
    return next(token_id for token_id in (*beginning, *range(len(ending) + 1)) if token_id not in ending)


def _ids_of(config: Any, name: str) -> list[int]:
    found = getattr(config, f"{name}_token_id", None)
    return [] if found is None else list(found) if isinstance(found, (list, tuple)) else [found]


def check_language_model(language_model: Any) -> None:
    """Raise ``CompositionError`` unless this is a causal language model of transformers, wrapped by PEFT or not."""
    model = unwrap(language_model)
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        found = f"{name} is no PreTrainedModel"
    elif getattr(model.config, "is_encoder_decoder", False):
        found = f"{name} is an encoder-decoder"
    elif not model.can_generate():
        found = f"{name} can't generate; it may lack a head"
    else:
        return
    raise CompositionError(
        f"language_model: {found}. Give a causal one, such as AutoModelForCausalLM.from_pretrained loads."
    )


def check_generates_from_embeds(config: Any, kwargs: dict[str, Any]) -> None:
    """Raise ``ValueError`` for ways of generating that leave the embeddings, and so the media, out (5.23)."""
    configs = (config, kwargs.get("generation_config"))
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
        if any(value for value in (kwargs.get(name), *(getattr(one, name, None) for one in configs))):
            raise ValueError(
                f"{name}= is not possible with media: transformers runs assisted generation from token ids alone. "
                "Leave it out, or generate from text only."
            )


def mask_of(input_ids: torch.Tensor, config: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """The attention mask that ``generate`` would infer from the ids: no padding, unless its id can't mean an end."""
    configs = (kwargs.get("generation_config"), config)
    pad, eos = kwargs.get("pad_token_id"), kwargs.get("eos_token_id")
    pads = [pad] if pad is not None else next((ids for one in configs if (ids := _ids_of(one, "pad"))), [])
    ends = next((ids for one in configs if (ids := _ids_of(one, "eos"))), []) if eos is None else eos
    if not pads or pads[0] in (ends if isinstance(ends, (list, tuple)) else [ends]):
        return torch.ones_like(input_ids)
    return (input_ids != pads[0]).long()


def warn_of_right_padding(attention_mask: torch.Tensor) -> None:
    """Say what ``generate`` would say of ids; of embeddings (5.23) it says nothing, and the text goes wrong."""
    if attention_mask.dim() == 2 and len(attention_mask) > 1 and bool((attention_mask[:, -1] == 0).any()):
        row = int((attention_mask[:, -1] == 0).nonzero()[0])
        logging.get_logger(__name__).warning(
            f"sample {row} is padded on the right, but generating continues the end of each row: pass "
            "padding_side='left' to the processor, or set tokenizer.padding_side = 'left'."
        )


def embed(language_model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Token embeddings ``(B, S, D)``."""
    return language_model.get_input_embeddings()(input_ids)


def body_of(language_model: Any) -> nn.Module:
    """The language model without its head, adapters in it included.

    Raises:
        CompositionError: it has none by itself, or prompt-learning adapters, which act around the whole.
    """
    model = unwrap(language_model)
    if is_peft(language_model) and language_model.active_peft_config.is_prompt_learning:
        raise CompositionError(
            "language_model: prompt-learning adapters run around the whole model, so that it can't be run without its "
            "head; use a trainer that takes the model's own loss, such as transformers' Trainer."
        )
    if model.base_model is model:
        raise CompositionError(
            f"language_model: {type(model).__name__} can't be run without its head; use a trainer that takes the "
            "model's own loss, such as transformers' Trainer."
        )
    return model.base_model


def accepted_names(language_model: nn.Module) -> set[str]:
    """Keyword arguments that the language model's ``forward`` takes."""
    parameters = inspect.signature(unwrap(language_model).forward).parameters
    names = set(parameters) | _ALWAYS_ACCEPTED
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        names |= set(TransformersKwargs.__annotations__)
    return names


# --- building parts again -----------------------------------------------------------------------------------------


def class_path(module: nn.Module) -> str:
    """``"package.module:Class"`` of a module, looking through a PEFT wrapper."""
    cls = type(unwrap(module))
    return f"{cls.__module__}:{cls.__qualname__}"


def transformers_class(path: Any) -> type[PreTrainedModel] | None:
    """The model class of transformers that a saved config names, or ``None`` if it names something else.

    The path is untrusted: nothing but a model class inside ``transformers.models`` is ever imported. Classes, not the
    auto classes, because some configs (Emu3's and Mllama's text models, 5.23) are not known to those.
    """
    if not isinstance(path, str) or not _TRANSFORMERS_CLASS.fullmatch(path):
        return None
    module_name, class_name = path.split(":")
    try:
        cls = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not in transformers {transformers_version} ({error}); the model was saved with another version."
        ) from error
    return cls if isinstance(cls, type) and issubclass(cls, PreTrainedModel) else None


def config_from_dict(config: dict[str, Any], path: Any) -> PreTrainedConfig | None:
    """The config object for a class of transformers, or ``None`` if ``path`` names something else."""
    cls = transformers_class(path)
    return cls.config_class.from_dict(config) if cls is not None and cls.config_class is not None else None


def constructor_arguments(module: nn.Module | None) -> dict[str, bool]:
    """How ``module`` was made, as far as its config doesn't tell.

    These two are all that models of transformers (5.23) take beside a config, and that change their weights.
    """
    parameters = inspect.signature(type(unwrap(module)).__init__).parameters
    found = {
        "add_pooling_layer": getattr(unwrap(module), "pooler", None) is not None,
        "use_mask_token": any(name.endswith("mask_token") for name, _ in unwrap(module).named_parameters()),
    }
    return {name: value for name, value in found.items() if name in parameters}


def build_transformers_model(
    path: Any, config: PreTrainedConfig | None, arguments: dict[str, Any] | None
) -> PreTrainedModel | None:
    """A model with fresh weights in the default dtype, or ``None`` if ``path`` is no class of transformers."""
    cls = transformers_class(path)
    if cls is None or config is None:
        return None
    known = {name: bool((arguments or {})[name]) for name in _CONSTRUCTOR_ARGUMENTS if name in (arguments or {})}
    return cls._from_config(config, dtype=torch.get_default_dtype(), **known)


def use_published_names(model: PreTrainedModel) -> None:
    """Let ``save_pretrained`` name tensors as published checkpoints do.

    Of a model that was not loaded, saving (5.23) leaves out prefixes such as the ``vision_model.`` of CLIP. Hugging
    Face itself reads both forms; others were written for the published one.
    """
    setattr(model, "_weight_conversions", get_model_conversion_mapping(model, add_legacy=False))  # noqa: B010 - untyped


def write_weights(write: Callable[..., None], folder: str, **kwargs: Any) -> None:
    """Run a ``save_pretrained``; what it can't save it names by a ``RuntimeError`` about shared tensors (5.23)."""
    try:
        write(folder, **kwargs)
    except RuntimeError as error:
        if "shared tensors" not in str(error):
            raise
        raise CheckpointError(f"tensors share memory in a way that a folder can't hold; untie them: {error}") from error


@contextmanager
def default_dtype(dtype: str | None) -> Iterator[None]:
    """New parameters have this dtype inside; ``None`` changes nothing."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype) if dtype else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _inside_adapter(name: str, names: set[str]) -> str | None:
    """``name``, or where PEFT (0.21) has moved it to, if it is among ``names``."""
    layer, _, leaf = name.rpartition(".")
    candidates = (name, f"{layer}.base_layer.{leaf}", f"{layer}.original_module.{leaf}")
    return next((candidate for candidate in candidates if candidate in names), None)


class Backbone:
    """What ``PreTrainedModel.base_model`` is of a composed model: all of it but the language model's head.

    Trainers that compute the loss themselves without making logits, such as TRL's, call it with the model's inputs and
    take ``last_hidden_state``. No module, so that no weight has two names.
    """

    _tp_plan = _pp_plan = None  # ``PreTrainedModel`` (5.23) asks for these

    def __init__(self, model: CompositeModel) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the language model gives before its head, for the arguments of the model's ``forward``."""
        return self._model.forward_without_head(*args, **kwargs)


class CompositeModel(PreTrainedModel, GenerationMixin):
    """A ``PreTrainedModel`` whose parts arrive initialised and stay as they are."""

    supports_gradient_checkpointing = True
    # The parts check these for themselves when they are built.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    language_model: Any

    @classmethod
    def is_custom_code(cls) -> bool:
        """``False``: of custom code, loading (5.23) skips initialising modules without weights of their own.

        Falcon H1, for one, fills non-persistent buffers there; as part of a composition they would stay empty.
        """
        return False

    def init_weights(self) -> None:
        """Gather what the parts declare, and tie weights. Nothing is drawn: every part arrives initialised."""
        self._gather_declarations()
        self.find_ties()
        self.tie_weights(recompute_mapping=False)

    def _init_weights(self, module: nn.Module) -> None:
        """Leave plain modules alone; a nested ``PreTrainedModel`` looks after itself."""

    def _gather_declarations(self) -> None:
        """``post_init()`` (5.23) looks at direct children only; parts sit one level deeper, or inside PEFT."""
        for part in self.modules():
            if part is self or not isinstance(part, PreTrainedModel):
                continue
            for name in _DECLARED:
                getattr(self, name).update(getattr(part, name, None) or ())
        present = {type(part).__name__ for part in self.modules()}  # accelerate refuses a block that it can't find
        self._no_split_modules = {name for name in self._no_split_modules or () if name in present}

    def find_ties(self) -> None:
        """Look for tied weights anew; parts may have been wrapped, unwrapped or replaced."""
        self.all_tied_weights_keys = self._existing_ties()
        self._tied_weights_keys = dict(self.all_tied_weights_keys)  # what saving (5.23) may leave out

    def _existing_ties(self) -> dict[str, str]:
        """Tied weights by full name, also where PEFT has wrapped the layer that holds them."""
        names = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        names |= {name for name, _ in self.named_buffers(remove_duplicate=False)}
        ties = self.get_expanded_tied_weights_keys(all_submodels=True).items()
        found = {_inside_adapter(target, names): _inside_adapter(source, names) for target, source in ties}
        return {target: source for target, source in found.items() if target and source}

    def _move_missing_keys_from_meta_to_device(self, *args: Any, **kwargs: Any) -> None:
        """Loading (5.23) replaces *every* non-persistent buffer by empty memory; put back those that had values."""
        kept = [(name, buffer) for name, buffer in self.named_non_persistent_buffers() if not buffer.is_meta]
        super()._move_missing_keys_from_meta_to_device(*args, **kwargs)
        for name, buffer in kept:
            parent, _, leaf = name.rpartition(".")
            self.get_submodule(parent)._buffers[leaf] = buffer
            setattr(buffer, "_is_hf_initialized", True)  # noqa: B010 - as in keep_weights

    @property
    def base_model(self) -> Any:
        """The model up to the last hidden states."""
        return Backbone(self)

    def forward_without_head(self, *args: Any, **kwargs: Any) -> Any:
        """As ``forward``, up to the last hidden states."""
        raise NotImplementedError

    # Embeddings are the language model's. The inherited versions would walk into the encoders too: hooking
    # requires_grad_ on a frozen vision tower's patches makes backward run through all of it (5.23).
    def enable_input_require_grads(self) -> None:
        """Make the token embeddings require gradients; the encoders are left alone."""
        self.language_model.enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        """Undo :meth:`enable_input_require_grads`."""
        self.language_model.disable_input_require_grads()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Resize the language model's vocabulary; takes and returns what its own method does."""
        return self.language_model.resize_token_embeddings(*args, **kwargs)

    @property
    def generation_config(self) -> Any:
        """The language model's generation config."""
        return self.language_model.generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        # PreTrainedModel.__init__ assigns a default one before there is a language model.
        if "language_model" in self._modules:
            self.language_model.generation_config = value
