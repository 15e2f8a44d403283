"""Reads a projector's options from its config, and refuses those that are not valid.

This module must not know any projector: each passes its own name, options and defaults.
"""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.activations import ACT2CLS

from cornstarch_core.errors import CompositionError

__all__ = ["activation", "flag", "positive", "widths"]


def widths(projector: str, config: PreTrainedConfig) -> tuple[int, int]:
    """Read ``(in_features, out_features)``.

    Raises:
        CompositionError: one of them is missing, or is not a positive integer.

    Example:
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> widths("frame_stack", MultimodalProjectorConfig(in_features=8, out_features=32))
        (8, 32)
    """
    found = (config.in_features, config.out_features)
    if not all(_is_positive(width) for width in found):
        raise CompositionError(
            f"{projector}: in_features={found[0]!r}, out_features={found[1]!r}; expected two positive integers; give "
            "both to MultimodalProjectorConfig, or the encoder's and the language model's configs."
        )
    return found  # type: ignore[return-value]  # checked above


def positive(projector: str, config: PreTrainedConfig, option: str, default: int) -> int:
    """Read the config's ``option``, a positive integer.

    Raises:
        CompositionError: it is something else.

    Example:
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> positive("frame_stack", MultimodalProjectorConfig(stack_factor=4), "stack_factor", 8)
        4
    """
    value = getattr(config, option, default)
    if not _is_positive(value):
        raise CompositionError(
            f"{projector}: {option}={value!r}; expected a positive integer; change it, or leave it out for {default}."
        )
    return value


def flag(projector: str, config: PreTrainedConfig, option: str, default: bool) -> bool:
    """Read the config's ``option``, True or False.

    Raises:
        CompositionError: it is something else.

    Example:
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> flag("frame_stack", MultimodalProjectorConfig(), "bias", False)
        False
    """
    value = getattr(config, option, default)
    if not isinstance(value, bool):
        raise CompositionError(
            f"{projector}: {option}={value!r}; expected True or False; change it, or leave it out for {default}."
        )
    return value


def activation(projector: str, config: PreTrainedConfig, *more: str) -> str:
    """Read the config's ``activation``: a name from ``transformers.activations.ACT2CLS``, or one of ``more``.

    Raises:
        CompositionError: it is something else.

    Example:
        >>> from cornstarch_core import MultimodalProjectorConfig
        >>> activation("frame_stack", MultimodalProjectorConfig(activation="swiglu"), "swiglu")
        'swiglu'
    """
    name, known = config.activation, sorted({*ACT2CLS, *more})
    if name not in known:
        raise CompositionError(f"{projector}: unknown activation {name!r}; choose one of {', '.join(known)}.")
    return name


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0  # a bool is no count
