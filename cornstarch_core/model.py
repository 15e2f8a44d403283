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
        config: config that describes the parts that are not given; needed only to build a model from its description.
        encoders: dictionary of one :class:`~cornstarch_core.ModalEncoderModule` for each modality key. The encoder of
            the key ``"vision"`` becomes the attribute ``vision_encoder``.
        language_model: a causal language model of transformers, wrapped by PEFT or not.
        init_projector_type: type of the projectors that are not given: ``"linear"``, ``"mlp"`` or a type that a plugin
            registers.
        init_activation: activation of the projectors that are not given, from ``transformers.activations.ACT2CLS``.
        projectors: dictionary of modules by modality key, for projectors that a saved config can't describe.
        callbacks: dictionary of :class:`~cornstarch_core.ModalCallbacks` by modality key, for callbacks that a saved
            config can't describe.

    The model uses the parts as they are: it re-initialises, renames and edits none of them.

    Raises:
        CompositionError: parts do not fit together, or a modality key is not a Python identifier.

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
        """Encode the media, place their features among the token embeddings, and run the language model.

        In the shapes, ``B`` is the number of samples, ``S`` the number of tokens of a sample, ``D`` the width of the
        embeddings and ``P`` the number of placeholder tokens of one modality.

        Args:
            input_ids: token ids ``(B, S)``, int64, with one placeholder token for each feature.
            attention_mask: mask ``(B, S)``, passed to the language model unchanged.
            position_ids: position ids ``(B, S)``, int64, passed to the language model unchanged.
            past_key_values: cache of the language model, passed to it unchanged.
            inputs_embeds: embeddings ``(B, S, D)`` to use in place of ``input_ids``; then the inputs of every modality
                must contain ``positions``.
            labels: labels ``(B, S)``, int64. The loss ignores -100, and the labels of placeholders are set to -100.
            encoder_inputs: one dictionary of inputs for each modality key, as
                :class:`~cornstarch_core.MultimodalProcessor` makes them. The entry ``positions`` of a modality,
                ``(P,)`` int64, says where its features go, as indices (from 0) into the ``B * S`` tokens of the batch.
                Without this entry the model searches ``input_ids`` for the placeholder's id, which costs a device sync.
            **kwargs: inputs of an encoder by their bare names (``pixel_values=...``), or arguments of the language
                model.

        Returns:
            The output of the language model, unchanged.

        Raises:
            TypeError: an argument belongs to no encoder and not to the language model, or it belongs to two encoders.
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
        """Run the model like :meth:`forward`, without ``labels``, up to the input of the language model's head.

        TRL's ``SFTTrainer`` computes the loss without the logits of all tokens. It calls this method through
        ``base_model``. :meth:`forward` defines the symbols in the shapes.

        Args:
            input_ids: token ids ``(B, S)``, int64, as in :meth:`forward`.
            inputs_embeds: embeddings ``(B, S, D)`` to use in place of ``input_ids``.
            encoder_inputs: one dictionary of inputs for each modality key.
            **kwargs: the same further arguments as those of :meth:`forward`.

        Returns:
            The output of the language model's body; its ``last_hidden_state`` has the shape ``(B, S, D)``.

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

        A batch has to be padded on the left, since generation continues the end of every row. The processor pads on the
        left if you call it with ``padding_side="left"``, or apply a chat template with ``add_generation_prompt=True``.

        The media are encoded once. Pass them as in :meth:`forward`, which also defines the symbols in the shapes. The
        language model's ``generate`` receives everything else in ``kwargs``.

        Args:
            inputs: another spelling of ``input_ids``.
            input_ids: token ids ``(B, S)``, int64, of the prompts, with one placeholder token for each feature.
            inputs_embeds: embeddings ``(B, S, D)`` to use in place of ``input_ids``; then the inputs of every modality
                must contain ``positions``.
            encoder_inputs: one dictionary of inputs for each modality key.
            **kwargs: arguments of the language model's ``generate``, such as ``attention_mask`` and
                ``max_new_tokens``; or inputs of an encoder by their bare names.

        Returns:
            The return value of the language model's ``generate``, with the prompt in front of the new tokens.

        Raises:
            ValueError: the language model can't generate from embeddings, or doesn't accept an argument; or the call
                asks for assisted generation with media, which transformers (5.23) would ignore.
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
        if safe_ids is not input_ids:  # return the prompt as the caller gave it
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
        """Prepare the arguments of the language model; ``forward`` and ``generate`` share this method.

        Returns ``(embeddings, whether they contain features of media, labels, arguments for the language model)``.
        """
        encoders, token_ids = self.encoders, self.config.modality_token_ids
        media, kwargs = split_inputs(encoders, encoder_inputs, kwargs, taker)
        positions = {key: inputs.pop(POSITIONS) for key, inputs in media.items() if POSITIONS in inputs}
        if input_ids is not None:
            for key in token_ids.keys() - positions.keys():
                positions[key] = placeholders.find_positions(input_ids, token_ids[key])
        there = validate_inputs(encoders, media, positions, input_ids, inputs_embeds, labels, token_ids)
        if inputs_embeds is None:
            assert input_ids is not None  # validate_inputs has checked this
            # the filler is arbitrary: features overwrite its embeddings
            safe_ids = ids_in_table(self.language_model, input_ids, token_ids.values(), filler=0)
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
        """Freeze and unfreeze parts of the model. Parts that are not named keep their setting.

        Args:
            encoders: dictionary ``{key: (module, projector)}`` of two booleans for each modality key: whether the
                encoder's module trains, and whether its projector trains. The parameters of the encoder's callbacks
                get the projector's setting.
            language_model: whether the language model trains; ``None`` keeps its setting.

        Raises:
            ValueError: the model has no encoder of that key.
            TypeError: ``encoders`` has another form.

        A saved model does not record which parts train: call this method again after loading.

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
        """Set the ids of placeholder tokens. The config records the ids, which may lie outside the vocabulary.

        Args:
            token_ids: dictionary of token ids by modality key; modalities that are not named keep their ids.

        Raises:
            ValueError: the model has no encoder of that key, or two modalities would share an id.
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
        """Load encoders and a language model from their checkpoints, and compose them.

        Args:
            language_model: name or folder of a causal language model's checkpoint.
            encoders: dictionary ``{key: checkpoint}`` of the name or folder of one checkpoint for each modality key.
                For a two-tower checkpoint such as CLIP's, loads the tower that a plugin registers.
            callbacks: dictionary ``{key: name}`` of the names of callbacks that plugins register.
            callback_options: dictionary ``{key: options}`` of the options for these callbacks.
            init_projector_type: type of the new projectors.
            init_activation: activation of the new projectors.
            **from_pretrained_kwargs: arguments passed to every ``from_pretrained`` call, for example
                ``dtype="bfloat16"``.

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
        """Load a model that :meth:`save_pretrained` saved, or a checkpoint of a family that a plugin can read.

        Args:
            pretrained_model_name_or_path: a folder or a hub name.
            *args: positional arguments passed to ``PreTrainedModel.from_pretrained``.
            encoders: dictionary ``{key: module}`` for encoders that can't be built from the config. A module may be a
                plain one or a :class:`~cornstarch_core.ModalEncoderModule`. The saved weights are loaded into it.
            language_model: module to load the saved weights of the language model into, if it can't be built from the
                config.
            projectors: dictionary ``{key: module}`` for projectors that can't be built from the config. The saved
                weights are loaded into the modules.
            callbacks: dictionary ``{key: ModalCallbacks(...)}`` for callbacks that no plugin provides.
            **kwargs: keyword arguments passed to ``PreTrainedModel.from_pretrained``.

        Raises:
            CheckpointError: the checkpoint is not one that can be loaded, a part is missing, or the files are damaged.
            MissingPluginError: a plugin that the saved model uses is missing. The message says what to install.
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
        """Save the model as safetensors files and one config.

        If the folder holds a model, this method replaces that model as a whole: a crash leaves the old model or the new
        one.

        Args:
            save_directory: folder to write; created if missing. Other files in it stay.
            is_main_process: whether this process writes.
            **kwargs: keyword arguments passed to ``PreTrainedModel.save_pretrained``.

        Raises:
            CheckpointError: a part can't be saved in a way that loads as an equal part. The message says what to do.
        """
        save(self, save_directory, is_main_process, kwargs)


_RESERVED_CONFIGS = {
    *("distributed_config", "fusion_config", "generation_config", "kernel_config", "per_layer_config"),
    *("peft_config", "quantization_config", "text_config"),
}
"""Names that a config can't use for an encoder: transformers (5.23) or the language model reads them."""


AutoConfig.register(MultimodalConfig.model_type, MultimodalConfig, exist_ok=True)
AutoModelForCausalLM.register(MultimodalConfig, MultimodalModel, exist_ok=True)
