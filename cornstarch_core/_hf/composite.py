"""A ``PreTrainedModel`` that is composed of parts with weights of their own."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

__all__ = ["Backbone", "CompositeModel"]

# Attributes that a model declares for libraries that shard, place or cast it.
_DECLARED = (
    "_no_split_modules",
    "_keep_in_fp32_modules",
    "_keep_in_fp32_modules_strict",
    "_skip_keys_device_placement",
)


class CompositeModel(PreTrainedModel, GenerationMixin):
    """A ``PreTrainedModel`` that keeps the weights of its parts."""

    supports_gradient_checkpointing = True
    # The parts have checked these settings when they were built.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    language_model: Any

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return ``False``, because loading (5.23) doesn't initialise modules without weights in custom code.

        Some models, such as Falcon H1, fill non-persistent buffers in that initialisation.
        """
        return False

    def init_weights(self) -> None:
        """Gather the declarations of the parts, and tie weights. The weights of the parts are initialised already."""
        self._gather_declarations()
        self.find_ties()
        self.tie_weights(recompute_mapping=False)

    def _init_weights(self, module: nn.Module) -> None:
        """Leave plain modules alone; a nested ``PreTrainedModel`` initialises itself."""

    def _gather_declarations(self) -> None:
        """Gather the declarations of all nested models, since ``post_init()`` (5.23) reads only direct children."""
        for part in self.modules():
            if part is self or not isinstance(part, PreTrainedModel):
                continue
            for name in _DECLARED:
                getattr(self, name).update(getattr(part, name, None) or ())
        present = {type(part).__name__ for part in self.modules()}  # accelerate refuses a block that it can't find
        self._no_split_modules = {name for name in self._no_split_modules or () if name in present}

    def find_ties(self) -> None:
        """Find the tied weights again, including those in layers that PEFT has wrapped."""
        names = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        names |= {name for name, _ in self.named_buffers(remove_duplicate=False)}
        ties = self.get_expanded_tied_weights_keys(all_submodels=True).items()
        found = {_inside_adapter(target, names): _inside_adapter(source, names) for target, source in ties}
        self.all_tied_weights_keys = {target: source for target, source in found.items() if target and source}
        self._tied_weights_keys = dict(self.all_tied_weights_keys)  # what saving (5.23) may leave out

    def _move_missing_keys_from_meta_to_device(self, *args: Any, **kwargs: Any) -> None:
        """Keep non-persistent buffers that have values; loading (5.23) would replace all of them by empty memory."""
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
        """Run the model like ``forward``, up to the last hidden states."""
        raise NotImplementedError

    # The embeddings of a composed model are those of the language model. The inherited methods also change the
    # encoders: if the patch embeddings of a frozen vision tower require gradients, backward runs through the whole
    # tower (5.23).
    def enable_input_require_grads(self) -> None:
        """Make the token embeddings require gradients, and leave the encoders alone."""
        self.language_model.enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        """Undo :meth:`enable_input_require_grads`."""
        self.language_model.disable_input_require_grads()

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Resize the language model's vocabulary, with the arguments and the return value of its own method."""
        return self.language_model.resize_token_embeddings(*args, **kwargs)

    @property
    def generation_config(self) -> Any:
        """The language model's generation config."""
        return self.language_model.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        # PreTrainedModel.__init__ assigns a default one before there is a language model.
        if "language_model" in self._modules:
            self.language_model.generation_config = value


class Backbone:
    """The ``base_model`` of a composed model: all of it but the language model's head.

    Trainers that compute the loss without the logits of all tokens, such as TRL's, call this object with the model's
    inputs and use ``last_hidden_state``. This class is not an ``nn.Module``, so that no weight has two names.
    """

    _tp_plan = _pp_plan = None  # ``PreTrainedModel`` (5.23) reads these attributes

    def __init__(self, model: CompositeModel) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the arguments of its ``forward``, up to the last hidden states."""
        return self._model.forward_without_head(*args, **kwargs)


def _inside_adapter(name: str, names: set[str]) -> str | None:
    """Return ``name``, or the name that PEFT (0.21) gave to that weight; ``None`` if neither is in ``names``."""
    layer, _, leaf = name.rpartition(".")
    candidates = (name, f"{layer}.base_layer.{leaf}", f"{layer}.original_module.{leaf}")
    return next((candidate for candidate in candidates if candidate in names), None)
