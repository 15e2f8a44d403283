"""The processor: text and raw media to a batch that a model takes, placeholders expanded to the right length.

Knows no particular modality and holds no weights: what it has to know of the model is kept as plain data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from transformers import AutoProcessor
from transformers.processing_utils import ProcessorMixin

from ._hf import unwrap
from .config import MultimodalConfig
from .errors import CompositionError, InputError
from .folders import replaced_folder
from .plugins import registry
from .processing.arguments import Arguments, merge
from .processing.batch import MultimodalBatch
from .processing.chat import gather, read_conversations
from .processing.encoding import Options, RowMaker, place, read_texts
from .processing.files import is_processor_file, read
from .processing.modality import Modality, from_config, from_model
from .processing.templates import ChatTemplate, choose

if TYPE_CHECKING:
    from .model import MultimodalModel

__all__ = ["MultimodalProcessor"]

_OPTIONS = {field.name for field in fields(Options)}
_NOT_SUPPORTED = {"return_assistant_tokens_mask", "sanitize_control_tokens"}  # of transformers' method


class MultimodalProcessor(ProcessorMixin):
    """Turns text and media into the inputs of a :class:`~cornstarch_core.MultimodalModel`.

    Args:
        processors: ``{key: image processor or feature extractor}``; default, for each modality: what its plugin builds.
        tokenizer: of transformers. Placeholders that it lacks are added to it as special tokens.
        model: the model, or its config. Only what its config says is kept; it is told the placeholders' ids.
        tokens: ``{key: placeholder}``; default: the token that the model's config names, or ``"<key>"``.
        chat_template: Jinja template for :meth:`apply_chat_template`; default: the tokenizer's.

    A placeholder's id may lie outside the model's embedding table: nothing is resized.

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
        tokenizer: Any = None,
        model: MultimodalModel | MultimodalConfig | None = None,
        tokens: Mapping[str, str] | None = None,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        if tokenizer is None:
            raise TypeError("tokenizer= is missing.")
        super().__init__(tokenizer, chat_template=chat_template)
        model, config = _read_model(model)
        makers = from_model(model) if model is not None else from_config(config)
        processors, tokens = dict(processors or {}), dict(tokens or {})
        for name, given in (("processors", processors), ("tokens", tokens)):
            _check_keys(name, given, makers)
        self.modalities: dict[str, Modality] = {key: make(processors.get(key)) for key, make in makers.items()}
        self.tokens = {key: tokens.get(key) or self._default_token(key, config) for key in makers}
        self._add_tokens()
        self.token_ids: dict[str, int] = {
            key: self.tokenizer.convert_tokens_to_ids(token) for key, token in self.tokens.items()
        }
        for key, token_id in self.token_ids.items():
            config.encoders[key]["token_id"] = token_id

    # --- placeholders -------------------------------------------------------------------------------------------------

    def _default_token(self, key: str, config: MultimodalConfig) -> str:
        token_id = config.modality_token_ids.get(key)
        known = self.tokenizer.convert_ids_to_tokens(token_id) if _is_id(token_id, self.tokenizer) else None
        return known or f"<{key}>"

    def _add_tokens(self) -> None:
        self._check_tokens()
        missing = [token for token in self.tokens.values() if token not in self.tokenizer.get_added_vocab()]
        if missing:  # replace_... (5.23): else the tokenizer would forget its other extra special tokens
            self.tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)

    def _check_tokens(self) -> None:
        taken = {getattr(self.tokenizer, f"{name}_token"): f"the {name} token" for name in ("pad", "bos", "eos", "unk")}
        for key, token in self.tokens.items():
            if token in taken:
                raise CompositionError(
                    f"{key}: the placeholder {token!r} is {taken[token]} already; give each modality one of its own: "
                    f'MultimodalProcessor(tokens={{"{key}": "<{key}>"}}).'
                )
            taken[token] = f"the placeholder of {key}"

    @property
    def processors(self) -> dict[str, Any]:
        """The image processor or feature extractor of each modality."""
        return {key: modality.processor for key, modality in self.modalities.items()}

    @property
    def model_input_names(self) -> list[str]:
        """What a batch holds."""
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
            text: one text, or one a sample, with one placeholder an item.
            padding: ``True`` or ``"longest"``, ``"max_length"``, or ``False``.
            padding_side: ``"left"`` or ``"right"``; default: the tokenizer's.
            truncation: whether to cut samples to ``max_length``, on the tokenizer's ``truncation_side``.
            max_length: in tokens, after expansion; default: the tokenizer's ``model_max_length``.
            pad_to_multiple_of: round the length of the batch up.
            add_special_tokens: whether the tokenizer's special tokens are added; default: unless the text begins with
                BOS, as one does that a chat template wrote.
            sampling_rate: in hertz, of audio that does not tell its own; another than the encoder's is resampled or
                refused, as its plugin says.
            return_tensors: ``"pt"``.
            **kwargs: media, under a modality's key (``vision=``) or a usual name for it (``images=``): a list of items
                a sample (``[[a], [b, c]]``; ``None`` for none) or a flat list, which the placeholders divide. And
                options for one modality's image processor: ``vision_kwargs={"do_resize": False}``.

        Returns:
            ``input_ids`` and ``attention_mask``, ``(B, S)`` int64; ``encoder_inputs``: for *every* modality what its
            encoder takes, and ``positions``, ``(P,)`` int64: where in the flat ``(B * S)`` batch its placeholders are.

        Raises:
            PlaceholderMismatchError: placeholders and items differ in number.
            TruncatedSpanError: truncation would cut into an item's placeholders.
            MediaError: an item is broken.
            InputError: anything else is wrong with the input; says what.
            TypeError: nothing takes an argument, or two modalities do.
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
        return self._process(read_texts(text, self.tokens), kwargs, options)

    def _process(
        self, texts: list[str], media: Mapping[str, Any], options: Options, suffix: bool = True
    ) -> MultimodalBatch:
        if options.return_tensors != "pt":
            raise InputError(f"return_tensors={options.return_tensors!r}; a batch holds PyTorch tensors: 'pt'.")
        by_key, of_processors = self.arguments.sort(media, options.sampling_rate)
        encoding = self.rows.make(
            texts,
            by_key,
            of_processors,
            special_tokens=options.add_special_tokens,
            suffix=suffix,
            max_length=options.limit(self.tokenizer),
        )
        tensors, starts = options.padding_of(self.tokenizer).pad(encoding.rows)
        return MultimodalBatch({**tensors, "encoder_inputs": place(encoding.inputs, encoding.rows, starts)})

    @property
    def arguments(self) -> Arguments:
        """Sorts keywords by modality."""
        return Arguments(self.modalities)

    @property
    def rows(self) -> RowMaker:
        """Turns texts, with their media, into rows of token ids; for those who pad by themselves."""
        return RowMaker(self.tokenizer, self.modalities, self.token_ids, self.tokens)

    # --- chat ---------------------------------------------------------------------------------------------------------

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
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
        """Write conversations with a chat template, and process them with the media in them.

        Content is a string, or a list of parts: ``{"type": "text", "text": ...}``, and media under a type that the
        plugin knows (``{"type": "image", "image": ...}``; also ``"path"``, ``"url"``) or under the modality's key
        (``{"type": "vision", "vision": ...}``). The template gets typed parts if it writes them, else strings into
        which the placeholders are written, with nothing between the parts (see
        :mod:`cornstarch_core.processing.templates`).

        Args:
            conversation: a list of messages, or a list of such lists.
            chat_template: wins over the processor's, which wins over the tokenizer's; a template, or the name of one.
            add_generation_prompt: whether to begin the assistant's turn; then a batch is padded on the left, unless
                ``padding_side`` says otherwise.
            continue_final_message: whether to leave the last message open.
            tools: as in the tokenizer's ``apply_chat_template``.
            documents: likewise.
            tokenize: whether to process, too.
            return_dict: with ``tokenize``: the whole batch, not ``input_ids`` alone.
            processor_kwargs: arguments for :meth:`__call__`.
            **kwargs: further ones, and media given beside the conversation; the rest are variables for the template.

        Returns:
            The text, or a list of texts; with ``tokenize`` ``input_ids``, or the batch as :meth:`__call__` returns it.
            The tokenizer's special tokens before the text are added unless it begins with BOS; those after it are not.

        Raises:
            InputError: there is no template, it can't write the conversation, or the conversation makes no sense.
        """
        for name in _NOT_SUPPORTED & kwargs.keys():
            if kwargs.pop(name):
                raise TypeError(
                    f"{name}= is not supported; labels of the assistant's turns come from MultimodalCollator."
                )
        own = {name: kwargs.pop(name) for name in list(kwargs) if self._is_own(name)}
        template = self.template(chat_template, kwargs, tools, documents)
        conversations, many = read_conversations(conversation)
        texts = [
            template.render(
                template.fit(messages, f"sample {index}, "),
                f"sample {index}: ",
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for index, messages in enumerate(conversations)
        ]
        if not tokenize:
            return texts if many else texts[0]
        if add_generation_prompt:  # generating continues the end of each row
            own = {"padding_side": "left", **(processor_kwargs or {}), **own}
        batch = self._process_chat(texts, gather(template, conversations), {**(processor_kwargs or {}), **own})
        return batch if return_dict else batch["input_ids"]

    def _is_own(self, name: str) -> bool:
        return name in _OPTIONS or self.arguments.is_own(name)

    def _process_chat(self, texts: list[str], found: Mapping[str, Any], given: dict[str, Any]) -> MultimodalBatch:
        options = Options(**{name: given.pop(name) for name in list(given) if name in _OPTIONS})
        beside = {name: given.pop(name) for name in list(given) if self.arguments.is_media(name)}
        media = merge(found, self.arguments.media(beside))
        return self._process(texts, {**given, **media}, options, suffix=False)

    def template(
        self,
        chat_template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        tools: list[Any] | None = None,
        documents: list[Any] | None = None,
    ) -> ChatTemplate:
        """The chat template to use: the argument, the processor's, or the tokenizer's.

        Raises:
            InputError: there is none, or several without one called ``"default"``.
        """
        return ChatTemplate(
            source=choose(chat_template, self.chat_template or self.tokenizer.chat_template),
            tokens=self.tokens,
            types={key: (key, *modality.content_types) for key, modality in self.modalities.items()},
            variables={**self.tokenizer.special_tokens_map, **(variables or {})},
            tools=tools,
            documents=documents,
        )

    # --- folders ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``processor_config.json`` holds it."""
        used = [one for modality in self.modalities.values() for one in modality.used]
        return {
            "processor_class": type(self).__name__,
            "modalities": {
                key: {"token": self.tokens[key], **modality.to_dict()} for key, modality in self.modalities.items()
            },
            "plugins": registry().record(used),
        }

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save everything but the model: tokenizer, chat template, and how to prepare and count media.

        Args:
            save_directory: folder, for example the model's; made if missing. Other files in it stay.
            push_to_hub: whether to upload it, too.
            **kwargs: as in ``ProcessorMixin.save_pretrained``.

        Returns:
            The processor's own file.
        """
        folder = os.fspath(save_directory)
        if push_to_hub:
            kwargs.setdefault("repo_id", folder.rstrip("/").rpartition("/")[2])
        with replaced_folder(folder, stale=is_processor_file) as staging:
            written = super().save_pretrained(str(staging), push_to_hub=push_to_hub, **kwargs)
        return [os.path.join(folder, os.path.basename(path)) for path in written]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: Any,
        model: MultimodalModel | None = None,
        processors: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> MultimodalProcessor:
        """Load what :meth:`save_pretrained` wrote. No weights are read.

        Args:
            pretrained_model_name_or_path: a folder or a hub name.
            model: the model, if its features are counted by functions of your own; it is told the placeholders' ids.
            processors: in place of saved ones; needed for those of classes of your own.
            **kwargs: for ``AutoTokenizer.from_pretrained``, and those that say where to load from (``revision``).

        Raises:
            CheckpointError: this is no such processor, or something in it can't be made again; says what to pass.
            MissingPluginError: a plugin is missing; says what to install.
        """
        kwargs.pop("_from_auto", None)
        parts = read(pretrained_model_name_or_path, cls.get_processor_dict, model, kwargs)
        parts["processors"].update(processors or {})
        return cls(**parts)


# --- reading the arguments --------------------------------------------------------------------------------------------


def _read_model(model: Any) -> tuple[MultimodalModel | None, MultimodalConfig]:
    from .model import MultimodalModel

    if isinstance(model, MultimodalConfig):
        return None, model
    model = unwrap(model)
    if not isinstance(model, MultimodalModel):
        raise TypeError(
            f"model= must be a MultimodalModel or its config, not {type(model).__name__}; to load a saved processor "
            "without the model, use MultimodalProcessor.from_pretrained(folder)."
        )
    return model, model.config


def _check_keys(name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise ValueError(f"{name}= for {', '.join(unknown)}, but this model has {', '.join(known) or 'no modality'}.")


def _is_id(token_id: int | None, tokenizer: Any) -> bool:
    return token_id is not None and 0 <= token_id < len(tokenizer)


AutoProcessor.register(MultimodalConfig, MultimodalProcessor, exist_ok=True)
