"""The composed model: encoders and a language model, prepared for forward and generate along one path."""

from __future__ import annotations

import copy
import keyword
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from . import checkpoint, description, merge
from ._hf import (
    CompositeModel,
    accepted_names,
    body_of,
    check_generates_from_embeds,
    check_language_model,
    embed,
    embedding_shape,
    mask_of,
    out_of_table,
    unwrap,
    warn_of_right_padding,
)
from .config import MultimodalConfig
from .distributed import check_calls, check_plugins, idle_output, must_run
from .encoder import POSITIONS, ModalEncoderModule
from .errors import CompositionError, InputError, PlaceholderMismatchError
from .plugins import registry
from .routing import batch_of, check_labels, check_places, checked_positions, has_media, route
from .specs import ModalCallbacks

__all__ = ["MultimodalModel"]


class MultimodalModel(CompositeModel):
    """A multimodal language model, composed of modality encoders and a language model.

    Args:
        config: describes the parts that are not given; needed only to build a model from its description.
        encoders: one :class:`~cornstarch_core.ModalEncoderModule` a modality; ``"vision"`` becomes ``vision_encoder``.
        language_model: a causal language model of transformers, wrapped by PEFT or not.
        init_projector_type: type of the projectors that are not given: ``"linear"``, ``"mlp"`` or a plugin's.
        init_activation: their activation, from ``transformers.activations.ACT2CLS``.
        projectors: modules for projectors that a saved config can't describe.
        callbacks: the same for callbacks, as :class:`~cornstarch_core.ModalCallbacks`.

    Parts are used as they are: nothing is re-initialised, renamed or edited.

    Raises:
        CompositionError: parts do not fit together, or a modality key is no identifier.

    Example:
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
        >>> from cornstarch_core import ModalEncoderModule, MultimodalModel
        >>> clip = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2))
        >>> llama = LlamaForCausalLM(
        ...     LlamaConfig(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1)
        ... )
        >>> mllm = MultimodalModel(encoders={"vision": ModalEncoderModule(clip)}, language_model=llama)
        >>> mllm.vision_encoder.projector.projection
        Linear(in_features=32, out_features=64, bias=True)
    """

    config_class = MultimodalConfig
    config: MultimodalConfig

    def __init__(
        self,
        config: MultimodalConfig | None = None,
        *,
        encoders: Mapping[str, ModalEncoderModule] | None = None,
        language_model: nn.Module | None = None,
        init_projector_type: str = "linear",
        init_activation: str = "gelu",
        projectors: Mapping[str, nn.Module] | None = None,
        callbacks: Mapping[str, ModalCallbacks] | None = None,
    ) -> None:
        check_plugins()
        if config is None:
            config = MultimodalConfig(init_projector_type=init_projector_type, init_activation=init_activation)
        config = copy.deepcopy(config)
        for name, given in (("encoders", encoders), ("projectors", projectors), ("callbacks", callbacks)):
            if given is not None and not isinstance(given, Mapping):
                raise TypeError(f"{name}= must be a dictionary by modality key, not {type(given).__name__}.")
        if language_model is None:
            language_model = description.build_language_model(config)
        check_language_model(language_model)
        parts = description.build_encoders(config, encoders or {}, projectors or {}, callbacks or {})
        super().__init__(config)
        self.check_finite = False
        self.language_model = language_model
        _, width = embedding_shape(language_model)
        for key, encoder in parts.items():
            self._add_encoder(key, encoder, width)
        description.describe(self)
        self.post_init()
        registry().model_composed(self)

    def _add_encoder(self, key: str, encoder: ModalEncoderModule, width: int) -> None:
        if not isinstance(encoder, ModalEncoderModule):
            raise TypeError(f"encoders[{key!r}] must be a ModalEncoderModule, not {type(encoder).__name__}; wrap it.")
        if not (isinstance(key, str) and key.isidentifier()) or keyword.iskeyword(key):
            raise CompositionError(f"modality key {key!r} must be a Python identifier, such as 'vision'.")
        if hasattr(self, f"{key}_encoder"):
            raise CompositionError(f"modality key {key!r} can't be used: a model already has '{key}_encoder'.")
        if f"{key}_config" in _RESERVED_CONFIGS:
            raise CompositionError(f"modality key {key!r} can't be used: '{key}_config' means something else.")
        if any(encoder is other for other in self.children()):
            raise CompositionError(f"{key}: this ModalEncoderModule is another modality's already; make a second one.")
        encoder.complete(key, width, self.config.init_projector_type, self.config.init_activation)
        self.config.encoders.setdefault(key, {})
        self.add_module(f"{key}_encoder", encoder)

    @property
    def encoders(self) -> dict[str, ModalEncoderModule]:
        """The encoders by modality key."""
        return {key: self.get_submodule(f"{key}_encoder") for key in self.config.encoders}  # type: ignore[misc]

    # --- running ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        encoder_inputs: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode the media, place their features among the token embeddings, run the language model.

        Args:
            input_ids: ``(B, S)`` int64, with one placeholder token a feature.
            attention_mask: ``(B, S)``, passed through untouched.
            position_ids: ``(B, S)`` int64, passed through.
            past_key_values: the language model's cache, passed through.
            inputs_embeds: ``(B, S, D)``, in place of ``input_ids``; then every modality needs ``positions``.
            labels: ``(B, S)`` int64; the loss ignores -100, which placeholders become by themselves.
            encoder_inputs: one dictionary of inputs a modality, as :class:`~cornstarch_core.MultimodalProcessor` makes
                them. ``positions`` among them, ``(P,)`` int64, says where the features go; without it the placeholders
                are looked up by their id, which costs a device sync.
            **kwargs: an encoder's inputs by their bare names (``pixel_values=...``), or the language model's arguments.

        Returns:
            The language model's own output.

        Raises:
            TypeError: nothing takes an argument, or two encoders do.
            PlaceholderMismatchError: placeholders and features differ in number.
        """
        kwargs |= {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
        }
        return self.language_model(**self._arguments(input_ids, inputs_embeds, labels, encoder_inputs, kwargs))

    def forward_without_head(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        encoder_inputs: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As :meth:`forward`, without ``labels``, up to what the language model's head would get.

        For those who compute a loss without the logits of all tokens, as TRL's ``SFTTrainer`` does through
        ``base_model``.

        Args:
            input_ids: ``(B, S)`` int64, as in :meth:`forward`.
            inputs_embeds: ``(B, S, D)``, in place of ``input_ids``.
            encoder_inputs: one dictionary of inputs a modality.
            **kwargs: likewise.

        Returns:
            The output of the language model's body, with ``last_hidden_state``, ``(B, S, D)``.

        Raises:
            CompositionError: the language model can't be run without its head.
        """
        return body_of(self.language_model)(**self._arguments(input_ids, inputs_embeds, None, encoder_inputs, kwargs))

    def _arguments(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        labels: torch.Tensor | None,
        encoder_inputs: Mapping[str, Mapping[str, Any]] | None,
        kwargs: dict[str, Any],
    ) -> dict[str, Any]:
        """What the language model is called with."""
        embeds, _, labels, kwargs = self._prepare(input_ids, inputs_embeds, labels, encoder_inputs, kwargs)
        given = {name: value for name, value in {"labels": labels, **kwargs}.items() if value is not None}
        self._check_names(given)
        return {"inputs_embeds": embeds, **given}

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: torch.Tensor | None = None,
        *,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_inputs: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate text, as the language model's own ``generate`` does: same arguments, same results.

        A batch has to be padded on the left, since every row is continued at its end:
        ``processor(..., padding_side="left")``, or a chat template with ``add_generation_prompt=True``.

        Media are encoded once. They are given as to :meth:`forward`; everything else in ``kwargs`` goes to the language
        model's ``generate``.

        Args:
            inputs: another spelling of ``input_ids``.
            input_ids: ``(B, S)`` int64, the prompts, with one placeholder token a feature.
            inputs_embeds: ``(B, S, D)``, in place of ``input_ids``; then every modality needs ``positions``.
            encoder_inputs: one dictionary of inputs a modality.
            **kwargs: ``attention_mask``, ``max_new_tokens`` and the like; or an encoder's inputs by their bare names.

        Returns:
            What the language model's ``generate`` returns; the prompt is part of it, as ever.

        Raises:
            ValueError: the language model can't generate from embeddings, or doesn't know an argument; or media are
                given to assisted generation, which transformers (5.23) runs without them.
        """
        input_ids = inputs if input_ids is None else input_ids
        embeds, with_media, _, kwargs = self._prepare(input_ids, inputs_embeds, None, encoder_inputs, kwargs)
        if input_ids is None:
            return self.language_model.generate(inputs_embeds=embeds, **kwargs)
        if not with_media and inputs_embeds is None:
            return self.language_model.generate(input_ids=input_ids, **kwargs)
        check_generates_from_embeds(self.generation_config, kwargs)
        if kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = mask_of(input_ids, self.generation_config, kwargs)
        warn_of_right_padding(kwargs["attention_mask"])
        safe_ids = self._in_table(input_ids)
        result = self.language_model.generate(input_ids=safe_ids, inputs_embeds=embeds, **kwargs)
        if safe_ids is not input_ids:  # the prompt comes back as it was given
            sequences = result if isinstance(result, torch.Tensor) else result.sequences
            copies = sequences.shape[0] // input_ids.shape[0]
            sequences[:, : input_ids.shape[1]] = input_ids.repeat_interleave(copies, dim=0)
        return result

    def _prepare(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        labels: torch.Tensor | None,
        encoder_inputs: Mapping[str, Mapping[str, Any]] | None,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, bool, torch.Tensor | None, dict[str, Any]]:
        """The one path that forward and generate share.

        Returns ``(embeddings, whether there are media among them, labels, arguments for the language model)``.
        """
        media, kwargs = route(self.encoders, encoder_inputs, kwargs)
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        if tokens is None:
            raise InputError("input_ids or inputs_embeds is missing; MultimodalProcessor makes input_ids from text.")
        batch = batch_of(tokens, 2 if inputs_embeds is None else 3)
        check_labels(labels, batch)
        placed = [self._encode(key, media.get(key, {}), input_ids, batch) for key in self.encoders]
        found = [one for one in placed if isinstance(one, tuple)]
        idle = [one for one in placed if isinstance(one, torch.Tensor)]
        if inputs_embeds is None:
            inputs_embeds = embed(self.language_model, self._in_table(tokens))
        if found:
            positions_P = torch.cat([positions for positions, _ in found]).to(inputs_embeds.device)  # noqa: N806
            features_ND = torch.cat([features for _, features in found])  # noqa: N806
            inputs_embeds = merge.place(inputs_embeds, positions_P, features_ND)
            labels = merge.mask_labels(labels, positions_P) if labels is not None else None
        for zero in idle:
            inputs_embeds = inputs_embeds + zero.to(inputs_embeds)
        return inputs_embeds, bool(found), labels, kwargs

    def _in_table(self, input_ids: torch.Tensor) -> torch.Tensor:
        return out_of_table(self.language_model, input_ids, list(self.config.modality_token_ids.values()))

    def _encode(
        self, key: str, inputs: Mapping[str, Any], input_ids: torch.Tensor | None, batch: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor | None:
        """``(positions (P,), features (P, D))`` of one modality; ``None`` if the batch has none of it.

        Or then a zero, if other ranks wait for the encoder: all run their encoders in one order.
        """
        encoder = self.encoders[key]
        check_calls(encoder)
        positions = self._positions(key, inputs, input_ids, batch)
        if not has_media(encoder, inputs):
            if positions is not None and len(positions):
                raise PlaceholderMismatchError(
                    f"{key}: the prompt has {len(positions)} placeholder tokens, but no media are given. "
                    f"Pass {encoder.input_names[0]}, or take the placeholders out of the text."
                )
            return idle_output(encoder) if must_run(encoder) else None
        if positions is None:
            raise InputError(
                f"{key}: where its features go is not known. Use MultimodalProcessor(model=...), which says so, or "
                f'tell the placeholder\'s token id, mllm.set_modality_token_ids({{"{key}": token_id}}), and pass ids.'
            )
        features = encoder(**inputs)[0]
        merge.check_count(key, positions, features, batch)
        features = merge.flatten(features)
        self._check_features(key, features)
        return positions, features

    def _positions(
        self, key: str, inputs: Mapping[str, Any], input_ids: torch.Tensor | None, batch: tuple[int, int]
    ) -> torch.Tensor | None:
        token_id = self.config.modality_token_ids.get(key)
        if POSITIONS in inputs:
            positions = checked_positions(key, inputs[POSITIONS])
            if token_id is not None and input_ids is not None and input_ids.shape == batch:
                check_places(key, positions, input_ids, token_id)
            return positions
        if token_id is None or input_ids is None:
            return None
        return merge.find_positions(input_ids, token_id)

    def _check_features(self, key: str, features: torch.Tensor) -> None:
        _, width = embedding_shape(self.language_model)
        if features.shape[-1] != width:
            raise CompositionError(
                f"{key}: the projector gives features of width {features.shape[-1]}, the language model's embeddings "
                f"have {width}. Build the projector for {width}."
            )
        if self.check_finite and not torch.isfinite(features).all():
            raise InputError(f"{key}: the features hold NaN or infinite values; look at this modality's inputs.")

    def _check_names(self, arguments: Mapping[str, Any]) -> None:
        unknown = sorted(arguments.keys() - accepted_names(self.language_model))
        if unknown:
            takers = {key: ", ".join(encoder.all_input_names) for key, encoder in self.encoders.items()}
            raise TypeError(
                f"nothing takes {', '.join(unknown)}: neither {type(unwrap(self.language_model)).__name__} nor an "
                f"encoder ({'; '.join(f'{key}: {names}' for key, names in takers.items()) or 'there is none'})."
            )

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether a trainer may pass ``num_items_in_batch``."""
        return "num_items_in_batch" in accepted_names(self.language_model)

    # --- settings -----------------------------------------------------------------------------------------------------

    def set_trainable(
        self, encoders: Mapping[str, tuple[bool, bool]] | None = None, language_model: bool | None = None
    ) -> None:
        """Freeze and unfreeze parts. What is not named stays as it is.

        Args:
            encoders: ``{key: (module, projector)}``. Parameters of callbacks go with the projector.
            language_model: whether the language model trains.

        Raises:
            ValueError: a key is unknown.
            TypeError: ``encoders`` is of another form.

        What trains is not saved with a model: call this again after loading one.

        Example:
            The first stage of LLaVA trains the projector only::

                mllm.set_trainable(encoders={"vision": (False, True)}, language_model=False)
        """
        encoders = {} if encoders is None else encoders
        pairs = encoders.values() if isinstance(encoders, Mapping) else [encoders]
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
            raise TypeError(
                f"encoders= must be {{key: (module, projector)}}, such as {{'vision': (False, True)}}; got "
                f"{encoders!r}."
            )
        self._check_keys(encoders)
        for key, (module, projector) in encoders.items():
            encoder = self.encoders[key]
            encoder.requires_grad_(projector)
            if encoder.module is not None:
                encoder.module.requires_grad_(module)
        if language_model is not None:
            self.language_model.requires_grad_(language_model)

    def set_modality_token_ids(self, token_ids: Mapping[str, int]) -> None:
        """Tell the placeholder token's id of each modality; kept in the config. It may lie outside the vocabulary.

        Args:
            token_ids: id by modality key; what is not named stays as it is.

        Raises:
            ValueError: a key is unknown, or two modalities would share an id.
        """
        self._check_keys(token_ids)
        together = {**self.config.modality_token_ids, **token_ids}
        shared = sorted(key for key, token_id in together.items() if list(together.values()).count(token_id) > 1)
        if shared:
            raise ValueError(f"{', '.join(shared)} would share a placeholder's token id; give each one of its own.")
        for key, token_id in token_ids.items():
            self.config.encoders[key]["token_id"] = int(token_id)

    def _check_keys(self, keys: Mapping[str, Any]) -> None:
        unknown = sorted(keys.keys() - self.encoders.keys())
        if unknown:
            raise ValueError(
                f"no encoder for {', '.join(unknown)}; this model has {', '.join(self.encoders) or 'none'}."
            )

    # --- loading and saving -------------------------------------------------------------------------------------------

    @classmethod
    def compose(
        cls,
        language_model: str,
        encoders: Mapping[str, str],
        callbacks: Mapping[str, str] | None = None,
        callback_options: Mapping[str, dict[str, Any]] | None = None,
        init_projector_type: str = "linear",
        init_activation: str = "gelu",
        **from_pretrained_kwargs: Any,
    ) -> MultimodalModel:
        """Load parts by checkpoint name or folder, and compose them.

        Args:
            language_model: of a causal language model.
            encoders: ``{key: name}``. Of a two-tower checkpoint such as CLIP's, the tower that a plugin knows is taken.
            callbacks: ``{key: name}`` of callbacks that plugins register.
            callback_options: ``{key: options}`` for them.
            init_projector_type: type of the new projectors.
            init_activation: their activation.
            **from_pretrained_kwargs: for every ``from_pretrained``, for example ``dtype="bfloat16"``.

        Example:
            ::

                mllm = MultimodalModel.compose(
                    language_model="mistralai/Mistral-7B-Instruct-v0.3",
                    encoders={"vision": "openai/clip-vit-large-patch14-336"},
                    callbacks={"vision": "llava"},
                    init_projector_type="mlp",
                    dtype="bfloat16",
                )
        """
        callbacks, options = callbacks or {}, callback_options or {}
        unknown = sorted((callbacks.keys() | options.keys()) - encoders.keys())
        if unknown:
            raise ValueError(f"callbacks for {', '.join(unknown)}, but encoders= has only {', '.join(encoders)}.")
        modules = {key: checkpoint.load_encoder(key, name, **from_pretrained_kwargs) for key, name in encoders.items()}
        return cls(
            encoders={
                key: ModalEncoderModule(module, callbacks=callbacks.get(key), callback_options=options.get(key))
                for key, module in modules.items()
            },
            language_model=AutoModelForCausalLM.from_pretrained(language_model, **from_pretrained_kwargs),
            init_projector_type=init_projector_type,
            init_activation=init_activation,
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        encoders: Mapping[str, nn.Module] | None = None,
        language_model: nn.Module | None = None,
        projectors: Mapping[str, nn.Module] | None = None,
        callbacks: Mapping[str, ModalCallbacks] | None = None,
        **kwargs: Any,
    ) -> MultimodalModel:
        """Load what :meth:`save_pretrained` wrote, or a checkpoint family that a plugin can read.

        Args:
            pretrained_model_name_or_path: a folder or a hub name.
            *args: as in ``PreTrainedModel.from_pretrained``.
            encoders: ``{key: module}`` for encoders that can't be built from the config; a plain module or a
                :class:`~cornstarch_core.ModalEncoderModule`. The saved weights are loaded into them.
            language_model: the same for the language model.
            projectors: the same for projectors of your own.
            callbacks: ``{key: ModalCallbacks(...)}`` for callbacks that no plugin provides.
            **kwargs: as in ``PreTrainedModel.from_pretrained``.

        Raises:
            CheckpointError: this is no such model, a part is missing or the files are damaged.
            MissingPluginError: a plugin that made it is missing; says what to install.
        """
        given = {
            "encoders": encoders,
            "language_model": language_model,
            "projectors": projectors,
            "callbacks": callbacks,
        }
        return checkpoint.load(cls, super().from_pretrained, pretrained_model_name_or_path, args, given, kwargs)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save the model as safetensors and one config. Over an existing model: a crash leaves the old or the new.

        Args:
            save_directory: folder; made if missing. Other files in it stay.
            is_main_process: whether this process writes.
            **kwargs: as in ``PreTrainedModel.save_pretrained``.

        Raises:
            CheckpointError: a part can't be saved so that it comes back equal; says the way out.
        """
        checkpoint.save(self, super().save_pretrained, save_directory, is_main_process, kwargs)


_RESERVED_CONFIGS = {
    *("distributed_config", "fusion_config", "generation_config", "kernel_config", "per_layer_config"),
    *("peft_config", "quantization_config", "text_config"),
}
"""What transformers (5.23) reads from a config, or the language model's own."""


AutoConfig.register(MultimodalConfig.model_type, MultimodalConfig, exist_ok=True)
AutoModelForCausalLM.register(MultimodalConfig, MultimodalModel, exist_ok=True)
