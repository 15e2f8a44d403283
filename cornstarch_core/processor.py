"""The processor makes a batch for a model out of text and raw media, with placeholders expanded to the right length.

It knows no particular modality and holds no weights: it keeps what it needs from the model as plain data.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from transformers import AutoProcessor, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from ._hf.peft import unwrap
from .config import EncoderRecord, MultimodalConfig, read_record
from .errors import CompositionError, InputError
from .model import MultimodalModel
from .modeling.encoder_info import EncoderInfo
from .plugins import registry
from .processing import folder, layouts, templates
from .processing.arguments import Arguments
from .processing.batch import MultimodalBatch
from .processing.encoding import Options, RowMaker, pad
from .processing.modality import Modality
from .saving.atomic import replaced_folder
from .saving.describe import restore_encoder_config
from .saving.load import FolderName

__all__ = ["MultimodalProcessor"]

_OPTIONS = {field.name for field in fields(Options)}
_NOT_SUPPORTED = {"return_assistant_tokens_mask", "sanitize_control_tokens"}  # of transformers' method


class MultimodalProcessor(ProcessorMixin):
    """Turns text and media into the inputs of a :class:`~cornstarch_core.MultimodalModel`.

    Args:
        processors: ``{key: image processor or feature extractor}``; default: for each modality, what its plugin builds.
        tokenizer: of transformers. Placeholders that it lacks are added to it as special tokens.
        model: the model, or its config. The ids of the placeholders are set in its config; no weights are kept.
        tokens: ``{key: placeholder}``; default: the token that the model's config names, or ``"<key>"``.
        chat_template: Jinja template for :meth:`apply_chat_template`; default: the tokenizer's.

    A placeholder's id may lie outside the model's embedding table. The table is not resized.

    Raises:
        TypeError: ``tokenizer`` or ``model`` is missing, or of the wrong kind.
        CompositionError: two modalities share a placeholder, or a modality has no processor.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
        >>> from transformers import PreTrainedTokenizerFast
        >>> from PIL import Image
        >>> from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
        >>> clip = CLIPVisionModel(CLIPVisionConfig(image_size=28, patch_size=14, **sizes))
        >>> llama = LlamaForCausalLM(
        ...     LlamaConfig(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1)
        ... )
        >>> mllm = MultimodalModel(encoders={"vision": ModalEncoderModule(clip)}, language_model=llama)
        >>> words = Tokenizer(models.WordLevel({"a": 0, "cat": 1, "?": 2}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
        >>> processor = MultimodalProcessor(tokenizer=tokenizer, model=mllm)
        >>> batch = processor(text="<vision> a cat", vision=Image.new("RGB", (40, 30)))
        >>> batch["input_ids"].tolist(), batch["encoder_inputs"]["vision"]["positions"].tolist()
        ([[3, 3, 3, 3, 3, 0, 1]], [0, 1, 2, 3, 4])
        >>> mllm(**batch).logits.shape
        torch.Size([1, 7, 32000])
    """

    def __init__(
        self,
        processors: Mapping[str, Any] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model: MultimodalModel | MultimodalConfig | None = None,
        tokens: Mapping[str, str] | None = None,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        if tokenizer is None:
            raise TypeError("tokenizer= is missing.")
        super().__init__(tokenizer, chat_template=chat_template)
        config, infos = _read_model(model)
        processors, tokens = dict(processors or {}), dict(tokens or {})
        for name, given in (("processors", processors), ("tokens", tokens)):
            if unknown := sorted(given.keys() - infos.keys()):
                there = ", ".join(infos) or "no modality"
                raise ValueError(f"{name}= for {', '.join(unknown)}, but this model has {there}.")
        records = {key: read_record(EncoderRecord, saved, key) for key, saved in config.to_dict()["encoders"].items()}
        self.modalities = {key: Modality(info, records[key], processors.get(key)) for key, info in infos.items()}
        self.arguments = Arguments(self.modalities)
        self.tokens = {key: tokens.get(key) or self._default_token(key, config) for key in infos}
        self._add_tokens()
        self.token_ids = {key: self.tokenizer.convert_tokens_to_ids(token) for key, token in self.tokens.items()}
        for key, token_id in self.token_ids.items():
            config.encoders[key].token_id = token_id

    # --- placeholders -------------------------------------------------------------------------------------------------

    def _default_token(self, key: str, config: MultimodalConfig) -> str:
        token_id = config.modality_token_ids.get(key, -1)
        known = self.tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(self.tokenizer) else None
        return known or f"<{key}>"

    def _add_tokens(self) -> None:
        """Make the placeholders special tokens of the tokenizer."""
        taken = {getattr(self.tokenizer, f"{name}_token"): f"the {name} token" for name in ("pad", "bos", "eos", "unk")}
        for key, token in self.tokens.items():
            if token in taken:
                raise CompositionError(
                    f"{key}: the placeholder {token!r} is {taken[token]} already; give each modality one of its own: "
                    f'MultimodalProcessor(tokens={{"{key}": "<{key}>"}}).'
                )
            taken[token] = f"the placeholder of {key}"
        missing = [token for token in self.tokens.values() if token not in self.tokenizer.get_added_vocab()]
        if missing:  # replace_... (5.23): else the tokenizer would forget its other extra special tokens
            self.tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)

    @property
    def processors(self) -> dict[str, Any]:
        """The image processor or feature extractor of each modality."""
        return {key: modality.processor for key, modality in self.modalities.items()}

    @property
    def model_input_names(self) -> list[str]:
        """The names in a batch."""
        return ["input_ids", "attention_mask", "encoder_inputs"]

    # --- processing ---------------------------------------------------------------------------------------------------

    def __call__(  # type: ignore[override]
        self,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = True,
        padding_side: str | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        add_special_tokens: bool | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> MultimodalBatch:
        """Turn text and media into a batch.

        Args:
            text: one text, or a list with one text for each sample. It has one placeholder for each item.
            padding: ``True`` or ``"longest"``, ``"max_length"``, or ``False``.
            padding_side: ``"left"`` or ``"right"``; default: the tokenizer's.
            truncation: whether to cut samples to ``max_length``, on the tokenizer's ``truncation_side``.
            max_length: in tokens, after expansion; default: the tokenizer's ``model_max_length``.
            pad_to_multiple_of: round the length of the batch up to a multiple of this.
            add_special_tokens: whether the tokenizer's special tokens are added; default: unless the text begins with
                BOS, such as a chat template's text.
            sampling_rate: in hertz, of audio that does not contain its own. If the encoder has another rate, its plugin
                resamples or refuses the audio.
            return_tensors: ``"pt"``.
            **kwargs: media, under a modality's key (``vision=``) or a usual name for it (``images=``): a list of items
                for each sample (``[[a], [b, c]]``, or ``None`` for no items), or a flat list, which the placeholders
                divide. Also options for the image processor of a modality: ``vision_kwargs={"do_resize": False}``.

        Returns:
            ``input_ids`` and ``attention_mask``, ``(B, S)`` int64, and ``encoder_inputs``: for *every* modality the
            inputs of its encoder, and ``positions``, ``(P,)`` int64, of its placeholders in the flat ``(B * S)`` batch.

        Raises:
            PlaceholderMismatchError: placeholders and items differ in number.
            TruncatedSpanError: truncation would cut into an item's placeholders.
            MediaError: an item is broken.
            InputError: the input is wrong in another way; the message says how.
            TypeError: no modality takes an argument, or two take it.
        """
        options = Options(
            padding=padding,
            padding_side=padding_side,
            truncation=truncation,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            add_special_tokens=add_special_tokens,
            sampling_rate=sampling_rate,
            return_tensors=return_tensors,
        )
        return self._process(layouts.read_texts(text, self.tokens), options, kwargs)

    def _process(
        self, texts: list[str], options: Options, given: Mapping[str, Any], found: Mapping[str, Any] | None = None
    ) -> MultimodalBatch:
        """Make a batch of texts and the media in ``given``; of conversations, also those found in the messages."""
        if options.return_tensors != "pt":
            raise InputError(f"return_tensors={options.return_tensors!r}; a batch holds PyTorch tensors: 'pt'.")
        beside, of_processors = self.arguments.sort(given, options.sampling_rate)
        encoding = self.rows.make(
            texts,
            layouts.combine(found or {}, beside),
            of_processors,
            special_tokens=options.add_special_tokens,
            suffix=found is None,  # a chat template writes the end itself
            max_length=options.limit(self.tokenizer),
        )
        tensors, starts = pad(encoding.rows, self.tokenizer, options)
        return MultimodalBatch({**tensors, "encoder_inputs": encoding.placed(starts)})

    @property
    def rows(self) -> RowMaker:
        """Turns texts, with their media, into rows of token ids that are not padded yet."""
        return RowMaker(self.tokenizer, self.modalities, self.token_ids, self.tokens)

    # --- chat ---------------------------------------------------------------------------------------------------------

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: object,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tools: list[Any] | None = None,
        documents: list[Any] | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write conversations with a chat template, and process them with their media.

        Content is a string or a list of parts: ``{"type": "text", "text": ...}``, and media with a type that the plugin
        registers (``{"type": "image", "image": ...}``; also ``"path"``, ``"url"``) or with the modality's key
        (``{"type": "vision", "vision": ...}``). The template gets typed parts if it can write them. Otherwise it gets
        strings with placeholders, and nothing is inserted between the parts (see
        :mod:`cornstarch_core.processing.templates`).

        Args:
            conversation: a list of messages, or a list of such lists.
            chat_template: a template, or the name of one; default: the processor's, or else the tokenizer's.
            add_generation_prompt: whether to begin the assistant's turn. A batch is then padded on the left, unless
                ``padding_side`` is given.
            continue_final_message: whether to leave the last message open.
            tools: as in the tokenizer's ``apply_chat_template``.
            documents: as in the tokenizer's ``apply_chat_template``.
            tokenize: whether to make a batch.
            return_dict: whether to return the whole batch; default: only ``input_ids``.
            processor_kwargs: arguments for :meth:`__call__`.
            **kwargs: further arguments for :meth:`__call__`, such as media beside the conversation. All others are
                variables for the template.

        Returns:
            The text, or a list of texts; with ``tokenize`` the ``input_ids``, or the batch as :meth:`__call__` returns
            it. The tokenizer's special tokens before the text are added unless it begins with BOS; those after the text
            are not added.

        Raises:
            InputError: there is no template, it can't write the conversation, or the conversation is malformed.
        """
        for name in _NOT_SUPPORTED & kwargs.keys():
            if kwargs.pop(name):
                raise TypeError(f"{name}= is not supported; MultimodalCollator makes labels of the assistant's turns.")
        own = {name: kwargs.pop(name) for name in list(kwargs) if name in _OPTIONS or self.arguments.is_own(name)}
        template = self.template(chat_template, kwargs, tools, documents)
        conversations, many = layouts.read_conversations(conversation)
        ends = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        texts = [
            template.render(template.fit(one, f"sample {index}, "), f"sample {index}: ", **ends)
            for index, one in enumerate(conversations)
        ]
        if not tokenize:
            return texts if many else texts[0]
        side = {"padding_side": "left"} if add_generation_prompt else {}  # generating continues the end of each row
        given = {**side, **(processor_kwargs or {}), **own}
        options = Options(**{name: given.pop(name) for name in _OPTIONS & given.keys()})
        found = [layouts.gather(template, one, f"sample {index}, ") for index, one in enumerate(conversations)]
        batch = self._process(texts, options, given, layouts.by_modality(found))
        return batch if return_dict else batch["input_ids"]

    def template(
        self,
        chat_template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        tools: list[Any] | None = None,
        documents: list[Any] | None = None,
    ) -> templates.ChatTemplate:
        """The chat template to use: the argument, the processor's, or the tokenizer's.

        Raises:
            InputError: there is none, or several without one called ``"default"``.
        """
        more = {"tools": tools, "documents": documents}
        return templates.ChatTemplate(
            source=templates.choose(chat_template, self.chat_template or self.tokenizer.chat_template),
            tokens=self.tokens,
            types={key: (key, *modality.content_types) for key, modality in self.modalities.items()},
            variables={**self.tokenizer.special_tokens_map, **(variables or {}), **more},
        )

    # --- folders ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The content of ``processor_config.json``, as plain data."""
        used = [one for modality in self.modalities.values() for one in modality.registrations]
        return {
            "processor_class": type(self).__name__,
            "modalities": {key: {"token": self.tokens[key], **one.to_dict()} for key, one in self.modalities.items()},
            "plugins": registry().record(used),
        }

    def save_pretrained(self, save_directory: FolderName, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the tokenizer, the chat template, and how media are prepared and counted. The model is not saved.

        Args:
            save_directory: the folder, for example the model's. It is made if it is missing; other files in it stay.
            push_to_hub: whether to upload the folder, too.
            **kwargs: as in ``ProcessorMixin.save_pretrained``.

        Returns:
            The name of the processor's own file, in a list.
        """
        target = os.fspath(save_directory)
        if push_to_hub:
            kwargs.setdefault("repo_id", os.path.basename(target.rstrip("/")))
        with replaced_folder(target, stale=folder.is_processor_file) as staging:
            written = super().save_pretrained(str(staging), push_to_hub=push_to_hub, **kwargs)
        return [os.path.join(target, os.path.basename(path)) for path in written]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: FolderName,
        model: MultimodalModel | None = None,
        processors: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> MultimodalProcessor:
        """Load what :meth:`save_pretrained` wrote. No weights are read.

        Args:
            pretrained_model_name_or_path: a folder or a hub name.
            model: the model. It is necessary if custom functions count its features.
            processors: image processors and feature extractors to use in place of the saved ones. Those of custom
                classes must be passed again.
            **kwargs: arguments for ``AutoTokenizer.from_pretrained``, and where to load from, such as ``revision``.

        Raises:
            CheckpointError: this is no such processor, or a part can't be made again; the message says what to pass.
            MissingPluginError: a plugin is missing; the message says what to install.
        """
        kwargs.pop("_from_auto", None)
        parts = folder.read(pretrained_model_name_or_path, cls.get_processor_dict, model, kwargs)
        parts["processors"].update(processors or {})
        return cls(**parts)


def _read_model(model: object) -> tuple[MultimodalConfig, dict[str, EncoderInfo]]:
    """The config of ``model``, and what is known of each encoder, from the model or from its config alone."""
    model = unwrap(model)
    if isinstance(model, MultimodalModel):
        infos = {key: encoder.info for key, encoder in model.encoders.items()}
        return model.config, {key: replace(info, config=copy.deepcopy(info.config)) for key, info in infos.items()}
    if not isinstance(model, MultimodalConfig):
        raise TypeError(
            f"model= must be a MultimodalModel or its config, not {type(model).__name__}; to load a saved processor "
            "without the model, use MultimodalProcessor.from_pretrained(folder)."
        )
    infos = {}
    for key, record in model.encoders.items():
        # A saved processor, whose config has no language model, can count without custom callbacks.
        is_custom = bool(record.custom_callbacks) and record.callbacks is None and model.text_config is not None
        if record.needs_model or is_custom:
            raise CompositionError(
                f"{key}: its config does not tell how its features are counted, because its callbacks are custom; give "
                "model= the model itself."
            )
        encoder_config = getattr(model, f"{key}_config", None) or restore_encoder_config(record)
        infos[key] = EncoderInfo.from_record(key, record, encoder_config)
    return model, infos


AutoProcessor.register(MultimodalConfig, MultimodalProcessor, exist_ok=True)
