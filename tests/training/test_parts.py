"""The parts of a model: their names, and which parameters belong to them."""

from __future__ import annotations

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from torch import nn
from training.clip_and_llama import compose

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core.training.parts import parts_of


def test_parts_come_in_the_order_of_the_encoders_with_the_language_model_last():
    """Callbacks with parameters are a part of their own."""
    assert list(parts_of(compose())) == ["vision.module", "vision.projector", "language_model"]
    parts = parts_of(compose("llava-next"))
    assert list(parts) == ["vision.module", "vision.projector", "vision.callbacks", "language_model"]
    assert list(parts["vision.callbacks"].parameters) == ["postprocess_projector_callback.image_newline"]


def test_every_parameter_belongs_to_one_part():
    """A parameter that two parts share belongs to the first, and tied weights count once."""
    model = compose("llava-next", tiny.llama(tie_word_embeddings=True))
    model.language_model.model.shared = model.vision_encoder.projector.projection
    parts = parts_of(model)
    found = [parameter for part in parts.values() for parameter in part.parameters.values()]
    assert len(found) == len({id(parameter) for parameter in found}) == len(list(model.parameters()))
    assert not [name for name in parts["language_model"].parameters if "shared" in name]
    assert parts["vision.module"].trainable == {}
    assert parts["vision.projector"].trainable == parts["vision.projector"].parameters


def test_parts_without_parameters_are_left_out_except_encoders():
    """Ready-made embeddings are a part, so that an audit counts their runs; a projector without weights is none."""
    encoder = ModalEncoderModule(None, nn.Identity(), hidden_size=tiny.WIDTH)
    parts = parts_of(MultimodalModel(encoders={"eeg": encoder}, language_model=tiny.llama()))
    assert list(parts) == ["eeg.module", "language_model"]
    assert (parts["eeg.module"].module, parts["eeg.module"].encoder) == (None, encoder)


def test_a_model_wrapped_by_peft_has_the_same_parts():
    """Each adapter belongs to the part that it is in."""
    parts = parts_of(get_peft_model(compose(), LoraConfig(target_modules=r"language_model.*q_proj")))
    assert list(parts) == ["vision.module", "vision.projector", "language_model"]
    assert [name for name, part in parts.items() if part.trainable] == ["language_model"]


def test_other_models_have_no_parts():
    """The error names the class."""
    with pytest.raises(TypeError, match="expected a MultimodalModel, not LlamaForCausalLM"):
        parts_of(tiny.llama())
