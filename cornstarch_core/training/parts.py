"""The parts of a model, each of which can be trained or frozen separately."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .._hf.peft import unwrap
from ..model import MultimodalModel
from ..modeling.encoder import ModalEncoderModule

__all__ = ["Part", "multimodal_model", "parts_of"]


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Args:
        name: name of the part: ``"language_model"``, ``"<key>.module"``, ``"<key>.projector"`` or
            ``"<key>.callbacks"``.
        parameters: parameters of the part, by their names in it; a parameter that two parts share belongs to the first.
        module: module with the parameters; ``None`` for ready-made embeddings.
        encoder: the encoder that the part belongs to; ``None`` for the language model.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    module: nn.Module | None = None
    encoder: ModalEncoderModule | None = None

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are not frozen."""
        return {name: parameter for name, parameter in self.parameters.items() if parameter.requires_grad}


def multimodal_model(model: nn.Module) -> MultimodalModel:
    """Return ``model``, or the model that PEFT wraps, if it is a :class:`~cornstarch_core.MultimodalModel`.

    Raises:
        TypeError: the model is of another class.
    """
    mllm = unwrap(model)
    if not isinstance(mllm, MultimodalModel):
        raise TypeError(f"expected a MultimodalModel, not {type(mllm).__name__}.")
    return mllm


def parts_of(model: nn.Module) -> dict[str, Part]:
    """Return the parts of a model by name, the language model last; projectors and callbacks only with parameters.

    Args:
        model: a :class:`~cornstarch_core.MultimodalModel`, wrapped by PEFT or not.

    Raises:
        TypeError: ``model`` is not a ``MultimodalModel``.
    """
    mllm = multimodal_model(model)
    places: list[tuple[str, nn.Module | None, ModalEncoderModule | None]] = []
    for key, encoder in mllm.encoders.items():
        children = {"module": encoder.module, "projector": encoder.projector, "callbacks": encoder}
        places += [(f"{key}.{what}", child, encoder) for what, child in children.items()]
    found: dict[str, Part] = {}
    seen: set[int] = set()
    for name, module, owner in [*places, ("language_model", mllm.language_model, None)]:
        named = module.named_parameters() if module is not None else ()
        own = {inner: parameter for inner, parameter in named if id(parameter) not in seen}
        seen.update(map(id, own.values()))
        if own or not name.endswith((".projector", ".callbacks")):
            found[name] = Part(name, own, module, owner)
    return found
