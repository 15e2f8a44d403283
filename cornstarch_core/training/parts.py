"""The parts of a model that train, or don't, each by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .._hf import unwrap
from ..encoder import ModalEncoderModule
from ..model import MultimodalModel

__all__ = ["Part", "parts_of"]


@dataclass(frozen=True)
class Part:
    """One part.

    Args:
        name: ``"language_model"``, ``"<key>.module"``, ``"<key>.projector"`` or ``"<key>.callbacks"``.
        parameters: its own, by their names in it; one that two parts share is the first one's.
        module: what they are in; ``None`` for ready-made embeddings.
        encoder: which it belongs to; ``None`` for the language model.
    """

    name: str
    parameters: list[tuple[str, nn.Parameter]]
    module: nn.Module | None = None
    encoder: ModalEncoderModule | None = None


def parts_of(model: nn.Module) -> Iterator[Part]:
    """Every part, in the order of the encoders, the language model last; those without parameters but for encoders.

    Args:
        model: a :class:`~cornstarch_core.MultimodalModel`, wrapped by PEFT or not.

    Raises:
        TypeError: it is of another kind.
    """
    mllm = unwrap(model)
    if not isinstance(mllm, MultimodalModel):
        raise TypeError(f"expected a MultimodalModel, not {type(mllm).__name__}.")
    seen: set[int] = set()

    def new(module: nn.Module | None) -> list[tuple[str, nn.Parameter]]:
        named = [] if module is None else [(n, p) for n, p in module.named_parameters() if id(p) not in seen]
        seen.update(id(parameter) for _, parameter in named)
        return named

    for key, encoder in mllm.encoders.items():
        for what, module in (("module", encoder.module), ("projector", encoder.projector), ("callbacks", encoder)):
            named = new(module)
            if named or what == "module":
                yield Part(f"{key}.{what}", named, module, encoder)
    yield Part("language_model", new(mllm.language_model), mllm.language_model)
