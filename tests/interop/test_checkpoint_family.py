"""Checkpoint families: what all of them share. What one family does is tested in its plugin."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProjectorConfig
from cornstarch_core.errors import CheckpointError
from cornstarch_core.interop import (
    CheckpointFamily,
    adopt_layers,
    callback_options,
    encoder_description,
    export_pretrained,
    is_activation,
)


def composed(module: nn.Module | None = None, options: dict | None = None, **changes) -> MultimodalModel:
    """A model of an encoder, an MLP and Llama, with LLaVA's callback."""
    encoder = ModalEncoderModule(module or tiny.clip(), callbacks="llava", callback_options=options)
    language_model = tiny.llama(vocab_size=400, **changes)
    model = MultimodalModel(
        encoders={"vision": encoder}, language_model=language_model, init_projector_type="mlp"
    ).eval()
    model.set_modality_token_ids({"vision": 399})
    return model


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_adopted_layers_are_not_copied(activation, bias):
    """A projector takes the layers themselves; without biases, it becomes a custom one around them."""
    layers = {"linear_1": nn.Linear(32, 64, bias=bias), "act": nn.GELU(), "linear_2": nn.Linear(64, 64, bias=bias)}
    theirs = nn.ModuleDict(layers)
    config = MultimodalProjectorConfig(projection_type="mlp", activation=activation, in_features=32, out_features=64)
    projector = adopt_layers(config, theirs)
    assert projector.is_custom is not bias
    assert projector.config.projection_type == ("mlp" if bias else "custom")
    assert config.projection_type == "mlp"
    assert projector.projection.linear_1 is layers["linear_1"] if bias else projector.projection is theirs
    assert {id(weight) for weight in projector.parameters()} == {id(weight) for weight in theirs.parameters()}


def test_a_single_layer_is_adopted():
    """A linear projector takes a layer as a whole."""
    theirs = nn.Linear(32, 64)
    projector = adopt_layers(MultimodalProjectorConfig(in_features=32, out_features=64), theirs)
    assert projector.projection is theirs
    assert not projector.is_custom


def test_an_activation_is_known_by_its_values():
    """Functions and modules are compared with the activation of that name; what can't be called is none."""
    assert is_activation("relu", nn.ReLU())
    assert is_activation("relu", torch.relu)
    assert not is_activation("relu", nn.GELU())
    assert not is_activation("relu", "relu")


def test_the_options_of_a_callback_are_complete():
    """Options that were not given have their defaults."""
    given = callback_options(composed(options={"vision_feature_layer": -1}).vision_encoder)
    assert given["vision_feature_layer"] == -1
    assert given["vision_feature_select_strategy"] == "default"
    assert given["context"] is None


def test_only_encoders_that_a_plugin_describes_have_a_description():
    """The description is the registration of the encoder; without one, the error says which encoder lacks it."""
    assert encoder_description(composed().vision_encoder).qualified_name == "cornstarch-vision/clip"
    custom = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names=["signal"])
    with pytest.raises(CheckpointError, match="no plugin describes ToyEncoder as an encoder of transformers"):
        encoder_description(custom)


def test_a_family_must_say_what_its_projector_is():
    """The two methods that every subclass overrides are missing in the base class."""
    for call in (lambda: CheckpointFamily().projector(tiny.llama()), lambda: CheckpointFamily().projection(None)):
        with pytest.raises(NotImplementedError, match="CheckpointFamily.projec"):
            call()


@pytest.mark.parametrize("tie", [True, False])
def test_an_export_shares_its_weights_with_the_model(tie, tmp_path, monkeypatch):
    """No weight is copied: the family's model has the memory of the composed one."""
    model, seen = composed(tie_word_embeddings=tie), []
    save = LlavaForConditionalGeneration.save_pretrained

    def watched(self, *args, **kwargs):
        seen.extend(tensor.data_ptr() for tensor in self.state_dict().values())
        save(self, *args, **kwargs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", watched)
    export_pretrained(model, tmp_path / "out")
    assert set(seen) == {tensor.data_ptr() for tensor in model.state_dict().values()}


def test_a_tied_head_is_written_for_a_class_that_never_ties(tmp_path, monkeypatch):
    """It gets a tensor of its own, its config says so, and the model stays tied."""
    monkeypatch.setattr(LlavaForConditionalGeneration, "_tied_weights_keys", {})
    model = composed(tie_word_embeddings=True)
    export_pretrained(model, tmp_path / "out")
    theirs, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(theirs.lm_head.weight, model.language_model.lm_head.weight)
    assert not theirs.config.tie_word_embeddings
    assert not theirs.config.text_config.tie_word_embeddings
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight
