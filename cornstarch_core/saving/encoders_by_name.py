"""Load an encoder by the name of a checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from .._hf.hub import hub_options
from ..errors import CheckpointError, CompositionError
from ..plugins import registry

__all__ = ["load_encoder"]


def load_encoder(key: str, name: str, **kwargs: Any) -> PreTrainedModel:
    """Load an encoder from a checkpoint: the tower that a plugin registers, or else the model that ``AutoModel`` loads.

    Args:
        key: modality key of the encoder.
        name: name or folder of the checkpoint.
        **kwargs: arguments passed to ``from_pretrained``.

    Raises:
        CompositionError: the checkpoint contains several registered encoders.
        CheckpointError: the checkpoint holds no weights of the encoder.
    """
    config = AutoConfig.from_pretrained(name, **hub_options(kwargs))
    configs = [config, *(getattr(config, sub, None) for sub in config.sub_configs)]
    classes = _encoder_classes(key, {type(one) for one in configs if one is not None})
    if len(classes) > 1:
        names = ", ".join(sorted(cls.__name__ for cls in classes))
        raise CompositionError(f"{key}: {name} could be any of {names}; load it with one and use MultimodalModel(...).")
    loader = classes[0] if classes else AutoModel
    logging.get_logger(__name__).info("%s: loading %s as %s", key, name, loader.__name__)
    load: Any = partial(loader.from_pretrained, name, output_loading_info=True, **kwargs)
    encoder, info = load()
    if _is_missing(encoder, info) and (prefix := _find_prefix(info)):
        # transformers (5.23) finds no weights for a part of a larger model, since their names have a prefix there
        encoder, info = load(key_mapping={f"^{re.escape(prefix)}": ""})
    if _is_missing(encoder, info):
        raise CheckpointError(
            f"{key}: {name} holds no weights of a {loader.__name__}; use the class that was saved, and pass that."
        )
    return encoder


def _is_missing(encoder: nn.Module, info: Mapping[str, Any]) -> bool:
    """Whether no weight of the encoder was found. A loaded encoder may lack some weights, such as those of a pooler."""
    return all(name in info["missing_keys"] for name, _ in encoder.named_parameters())


def _find_prefix(info: Mapping[str, Any]) -> str | None:
    """Return the prefix of the encoder's weights in the checkpoint, for example ``"model.encoder."``."""
    found = Counter(
        name.removesuffix(rest)
        for name in info["unexpected_keys"]
        for rest in info["missing_keys"]
        if name.endswith(f".{rest}")
    )
    return max(found, key=found.__getitem__, default=None)


def _encoder_classes(key: str, configs: set[type]) -> list[type[PreTrainedModel]]:
    """Return the classes of registered encoders whose config class is in ``configs``, one class for each encoder.

    If some of these encoders are registered for the modality ``key``, return only their classes.
    """
    found: dict[Any, bool] = {}
    for qualified in registry().names("encoders"):
        registration = registry().lookup("encoders", qualified)
        cls = next((cls for cls in registration.classes() if getattr(cls, "config_class", None) in configs), None)
        if cls is not None:
            found[cls] = found.get(cls, False) or registration.spec.modality == key
    return [cls for cls, of_key in found.items() if of_key] or list(found)
