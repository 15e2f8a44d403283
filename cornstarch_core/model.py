"""The composed model: encoders and a language model, prepared for forward and generate along one path."""

from __future__ import annotations

import copy
import keyword
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Cache

from ._hf.generation import check_generates_from_embeds, mask_of, warn_of_right_padding
from ._hf.language_model import accepted_names, check_language_model, embedding_width, ids_in_table, without_head
from ._hf.peft import unwrap
from .config import MultimodalConfig
from .errors import CompositionError, InputError
from .modeling import placeholders
from .modeling.composition import Composition
from .modeling.distributed import check_not_sharded, check_plugins, dummy_forward, needs_dummy_forward
from .modeling.encoder import POSITIONS, ModalEncoderModule
from .modeling.inputs import split_inputs, validate_inputs
from .plugins import registry
from .saving.build import build_encoders, build_language_model
from .saving.describe import describe
from .saving.encoders_by_name import load_encoder
from .saving.load import load
from .saving.save import save
from .specs import ModalCallbacks

__all__ = ["MultimodalModel"]


class MultimodalModel(Composition):
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
            language_model = build_language_model(config)
        check_language_model(language_model)
        parts = build_encoders(config, encoders or {}, projectors or {}, callbacks or {})
        super().__init__(config)
        self.check_finite = False
        self.language_model = language_model
        width = embedding_width(self.language_model)
        for key, encoder in parts.items():
            self._add_encoder(key, encoder, width)
        describe(self)
        self.post_init()
        registry().call_hook("cornstarch_model_composed", model=self)

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
        self.add_module(f"{key}_encoder", encoder)

    # --- running ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
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
            labels: ``(B, S)`` int64; the loss ignores -100. Placeholders become -100.
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
        kwargs |= {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        taker = type(unwrap(self.language_model))
        embeds, _, labels, kwargs = self._prepare(input_ids, inputs_embeds, labels, encoder_inputs, kwargs, taker)
        if labels is not None:
            kwargs["labels"] = labels
        return self.language_model(inputs_embeds=embeds, **kwargs)

    def forward_without_head(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        encoder_inputs: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run as :meth:`forward`, without ``labels``, up to the input of the language model's head.

        TRL's ``SFTTrainer``, which computes the loss without the logits of all tokens, calls it through ``base_model``.

        Args:
            input_ids: ``(B, S)`` int64, as in :meth:`forward`.
            inputs_embeds: ``(B, S, D)``, in place of ``input_ids``.
            encoder_inputs: one dictionary of inputs a modality.
            **kwargs: as in :meth:`forward`.

        Returns:
            The output of the language model's body, with ``last_hidden_state``, ``(B, S, D)``.

        Raises:
            CompositionError: the language model can't be run without its head.
        """
        taker = type(unwrap(self.language_model))
        embeds, _, _, kwargs = self._prepare(input_ids, inputs_embeds, None, encoder_inputs, kwargs, taker)
        return without_head(self.language_model)(inputs_embeds=embeds, **kwargs)

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
        """Generate text with the language model's own ``generate``.

        A batch has to be padded on the left, since generating continues the end of every row:
        ``processor(..., padding_side="left")``, or a chat template with ``add_generation_prompt=True``.

        Media are encoded once. They are given as in :meth:`forward`; everything else in ``kwargs`` goes to the language
        model's ``generate``.

        Args:
            inputs: another spelling of ``input_ids``.
            input_ids: ``(B, S)`` int64, the prompts, with one placeholder token a feature.
            inputs_embeds: ``(B, S, D)``, in place of ``input_ids``; then every modality needs ``positions``.
            encoder_inputs: one dictionary of inputs a modality.
            **kwargs: ``attention_mask``, ``max_new_tokens`` and the like; or an encoder's inputs by their bare names.

        Returns:
            What the language model's ``generate`` returns, with the prompt in front.

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
        safe_ids = ids_in_table(self.language_model, input_ids, self.config.modality_token_ids.values())
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
        taker: type[nn.Module] | None = None,
    ) -> tuple[torch.Tensor, bool, torch.Tensor | None, dict[str, Any]]:
        """The one path that forward and generate share.

        Returns ``(embeddings, whether there are media among them, labels, arguments for the language model)``.
        """
        encoders, token_ids = self.encoders, self.config.modality_token_ids
        media, kwargs = split_inputs(encoders, encoder_inputs, kwargs, taker)
        positions = {key: inputs.pop(POSITIONS) for key, inputs in media.items() if POSITIONS in inputs}
        if input_ids is not None:
            for key in token_ids.keys() - positions.keys():
                positions[key] = placeholders.find_positions(input_ids, token_ids[key])
        there = validate_inputs(encoders, media, positions, input_ids, inputs_embeds, labels, token_ids)
        if inputs_embeds is None:
            assert input_ids is not None  # as validated
            safe_ids = ids_in_table(self.language_model, input_ids, token_ids.values())
            inputs_embeds = self.language_model.get_input_embeddings()(safe_ids)
        found = {}
        for key, encoder in encoders.items():  # all ranks run their encoders in this order
            if encoder.callbacks.data_dependent_calls:
                check_not_sharded(encoder)
            if key in there:
                features = encoder(**media[key])[0]
                found[key] = placeholders.checked_features(key, there[key], features, inputs_embeds.shape)
                if self.check_finite and not torch.isfinite(found[key]).all():
                    raise InputError(
                        f"{key}: the features hold NaN or infinite values; look at this modality's inputs."
                    )
            elif needs_dummy_forward(encoder):
                inputs_embeds = inputs_embeds + dummy_forward(encoder).to(inputs_embeds)
        if found:
            positions_P = torch.cat([there[key] for key in found]).to(inputs_embeds.device)  # noqa: N806
            features_ND = torch.cat(list(found.values()))  # noqa: N806
            inputs_embeds = placeholders.place_features(inputs_embeds, positions_P, features_ND)
            labels = placeholders.mask_labels(labels, positions_P) if labels is not None else None
        return inputs_embeds, bool(found), labels, kwargs

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether a trainer may pass ``num_items_in_batch``."""
        return "num_items_in_batch" in accepted_names(type(unwrap(self.language_model)).forward)

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
                f"encoders= must be {{key: (module, projector)}}, like {{'vision': (False, True)}}; got {encoders!r}."
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
        """Set the ids of placeholder tokens. They are kept in the config, and may lie outside the vocabulary.

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
            self.config.encoders[key].token_id = int(token_id)

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
        modules = {key: load_encoder(key, name, **from_pretrained_kwargs) for key, name in encoders.items()}
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
        pretrained_model_name_or_path: str | os.PathLike[str],
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
        return load(cls, pretrained_model_name_or_path, args, given, kwargs)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save the model as safetensors and one config. Over an existing model: a crash leaves the old or the new.

        Args:
            save_directory: folder; made if missing. Other files in it stay.
            is_main_process: whether this process writes.
            **kwargs: as in ``PreTrainedModel.save_pretrained``.

        Raises:
            CheckpointError: a part can't be saved so that it comes back equal; says the way out.
        """
        save(self, save_directory, is_main_process, kwargs)


_RESERVED_CONFIGS = {
    *("distributed_config", "fusion_config", "generation_config", "kernel_config", "per_layer_config"),
    *("peft_config", "quantization_config", "text_config"),
}
"""What transformers (5.23) reads from a config, or the language model's own."""


AutoConfig.register(MultimodalConfig.model_type, MultimodalConfig, exist_ok=True)
AutoModelForCausalLM.register(MultimodalConfig, MultimodalModel, exist_ok=True)
