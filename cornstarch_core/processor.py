"""The processor, which turns text and raw media into a batch for a model and expands the placeholders in the text.

It contains no code for a particular modality and no weights: it copies the settings that it needs from the model's
config.
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
_NOT_SUPPORTED = {"return_assistant_tokens_mask", "sanitize_control_tokens"}  # arguments of transformers' method


class MultimodalProcessor(ProcessorMixin):
    """Turns text and media into the inputs of a :class:`~cornstarch_core.MultimodalModel`.

    Args:
        processors: dictionary ``{modality key: image processor or feature extractor}``. For a modality that is not in
            it, the plugin of the encoder builds the image processor or feature extractor.
        tokenizer: tokenizer of transformers. Placeholders that are not in its vocabulary are added as special tokens.
        model: the model, or its config. The processor writes the placeholders' token ids into the config, and keeps no
            reference to the weights.
        tokens: dictionary ``{modality key: placeholder token}``; default: the token whose id is in the model's config,
            or ``"<key>"``.
        chat_template: Jinja template for :meth:`apply_chat_template`; default: the tokenizer's template.

    The token id of a placeholder may be outside the model's embedding table. The table is not resized.

    Raises:
        TypeError: ``tokenizer`` is missing, or ``model`` is missing or of the wrong type.
        CompositionError: two modalities have the same placeholder, or no image processor or feature extractor is given
            or built for a modality.

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
        """Add the placeholders to the tokenizer as special tokens."""
        taken = {getattr(self.tokenizer, f"{name}_token"): f"the {name} token" for name in ("pad", "bos", "eos", "unk")}
        for key, token in self.tokens.items():
            if token in taken:
                raise CompositionError(
                    f"{key}: the placeholder {token!r} is {taken[token]} already; give each modality one of its own: "
                    f'MultimodalProcessor(tokens={{"{key}": "<{key}>"}}).'
                )
            taken[token] = f"the placeholder of {key}"
        missing = [token for token in self.tokens.values() if token not in self.tokenizer.get_added_vocab()]
        if missing:  # replace_... (transformers 5.23): otherwise the tokenizer drops its others
            self.tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)

    @property
    def processors(self) -> dict[str, Any]:
        """The image processor or feature extractor of each modality."""
        return {key: modality.processor for key, modality in self.modalities.items()}

    @property
    def model_input_names(self) -> list[str]:
        """The names of the entries of a batch."""
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
            text: one text, or a list with one text for each sample. A text contains one placeholder for each media
                item.
            padding: padding strategy: ``True`` or ``"longest"``, ``"max_length"``, or ``False``.
            padding_side: side to pad on, ``"left"`` or ``"right"``; default: the tokenizer's ``padding_side``.
            truncation: whether to cut samples to ``max_length``, on the tokenizer's ``truncation_side``.
            max_length: maximum number of tokens of a sample, counted with expanded placeholders; default: the
                tokenizer's ``model_max_length``.
            pad_to_multiple_of: number; the length of the batch is rounded up to a multiple of it.
            add_special_tokens: whether to add the tokenizer's special tokens. By default they are added unless the text
                begins with the BOS token, as the output of a chat template may.
            sampling_rate: sampling rate, in hertz, of audio items that do not contain a rate themselves. If the encoder
                needs another rate, its plugin resamples the audio or raises an error.
            return_tensors: type of the returned tensors; only ``"pt"`` is supported.
            **kwargs: media, under a modality's key (``vision=``) or a usual name for it (``images=``): either a list
                of items for each sample (``[[a], [b, c]]``, or ``None`` for no items), or one list of all items in
                order, which is divided among the samples by their number of placeholders. Options for the image
                processor of a modality are passed as ``vision_kwargs={"do_resize": False}``.

        Returns:
            A batch of B samples with S tokens each: ``input_ids`` and ``attention_mask``, ``(B, S)`` int64, and
            ``encoder_inputs``. The latter has an entry for *every* modality: the inputs of its encoder, and
            ``positions``, int64, the indices of its placeholders in ``input_ids.flatten()``.

        Raises:
            PlaceholderMismatchError: the number of placeholders differs from the number of items.
            TruncatedSpanError: truncation would remove some or all of an item's placeholders.
            MediaError: a media item can't be processed.
            InputError: the input is wrong in another way, which the message describes.
            TypeError: a keyword argument belongs to no modality, or to more than one.
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
        """Make a batch of ``texts``, the media in ``given`` and, for conversations, the media ``found`` in messages."""
        if options.return_tensors != "pt":
            raise InputError(f"return_tensors={options.return_tensors!r}; a batch holds PyTorch tensors: 'pt'.")
        beside, of_processors = self.arguments.sort(given, options.sampling_rate)
        encoding = self.rows.make(
            texts,
            layouts.combine(found or {}, beside),
            of_processors,
            special_tokens=options.add_special_tokens,
            suffix=found is None,  # a chat template writes these tokens itself
            max_length=options.limit(self.tokenizer),
        )
        tensors, starts = pad(encoding.rows, self.tokenizer, options)
        return MultimodalBatch({**tensors, "encoder_inputs": encoding.placed(starts)})

    @property
    def rows(self) -> RowMaker:
        """The object that turns texts and their media into rows of token ids without padding."""
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
        """Render conversations with a chat template, and optionally turn them and their media into a batch.

        The content of a message is a string or a list of parts: text parts ``{"type": "text", "text": ...}``, and media
        parts whose type is registered by the plugin (``{"type": "image", "image": ...}``; the item may also be under
        ``"path"`` or ``"url"``) or is the modality's key (``{"type": "vision", "vision": ...}``). If the template can
        render typed parts, it gets them. Otherwise it gets strings in which placeholders stand for the media; the parts
        are joined without a separator (see :mod:`cornstarch_core.processing.templates`).

        Args:
            conversation: a list of messages, or a list of such lists.
            chat_template: Jinja template, or the name of one of the processor's templates; default: the processor's
                template, or else the tokenizer's.
            add_generation_prompt: whether to append the header that begins the assistant's turn. A batch is then padded
                on the left, unless ``padding_side`` is given.
            continue_final_message: whether to omit the tokens that end the last message, so that it can be continued.
            tools: list of tools, as for the tokenizer's ``apply_chat_template``.
            documents: list of documents, as for the tokenizer's ``apply_chat_template``.
            tokenize: whether to return a batch or its ``input_ids`` instead of text.
            return_dict: whether to return the whole batch; by default only ``input_ids`` are returned.
            processor_kwargs: arguments for :meth:`__call__`.
            **kwargs: further arguments for :meth:`__call__`, such as media that are not in the messages. Any keyword
                that is not an argument of :meth:`__call__` is a variable of the template.

        Returns:
            The rendered text, or a list of texts for a list of conversations. With ``tokenize``, the ``input_ids`` or
            the batch that :meth:`__call__` returns. The special tokens that the tokenizer puts before a text are added
            unless the text begins with the BOS token; those that it puts after a text are not added.

        Raises:
            InputError: there is no template, the template can't render the conversation, or the conversation is
                malformed.
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
        """Return the chat template to use: the argument, the processor's template, or the tokenizer's.

        Raises:
            InputError: there is no template, or there are several and none has the name ``"default"``.
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
        """Return the content of ``processor_config.json`` as plain data."""
        used = [one for modality in self.modalities.values() for one in modality.registrations]
        return {
            "processor_class": type(self).__name__,
            "modalities": {key: {"token": self.tokens[key], **one.to_dict()} for key, one in self.modalities.items()},
            "plugins": registry().record(used),
        }

    def save_pretrained(self, save_directory: FolderName, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the tokenizer, the chat template, and the settings that prepare and count media, without the model.

        Args:
            save_directory: folder to save to, for example the model's. It is created if it does not exist. Files in it
                that do not belong to a processor are kept.
            push_to_hub: whether to upload the folder to the hub as well.
            **kwargs: further arguments of ``ProcessorMixin.save_pretrained``.

        Returns:
            A list with the path of ``processor_config.json``.
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
        """Load a processor that :meth:`save_pretrained` saved. No weights are read.

        Args:
            pretrained_model_name_or_path: folder or hub name of the saved processor.
            model: the model. It is required if custom functions count its features.
            processors: dictionary ``{modality key: image processor or feature extractor}`` to use instead of the saved
                ones. An image processor or feature extractor of a custom class must be passed.
            **kwargs: arguments for ``AutoTokenizer.from_pretrained``, and options of the hub such as ``revision``.

        Raises:
            CheckpointError: the folder holds no saved processor, or a part of the processor can't be built from it; the
                message says what to pass.
            MissingPluginError: a plugin that the processor needs is missing; the message says what to install.
        """
        kwargs.pop("_from_auto", None)
        parts = folder.read(pretrained_model_name_or_path, cls.get_processor_dict, model, kwargs)
        parts["processors"].update(processors or {})
        return cls(**parts)


def _read_model(model: object) -> tuple[MultimodalConfig, dict[str, EncoderInfo]]:
    """Return the config of ``model``, which is a model or a config, and the description of each encoder."""
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
        # The config of a saved processor has no language model; such a processor counts without custom callbacks.
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
