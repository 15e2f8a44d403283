"""The projector types of the core: registered like a plugin's, and added in one place."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import tiny
import torch
import words
from torch import nn

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor, MultimodalProjector
from cornstarch_core.errors import CompositionError
from cornstarch_core.modeling import builtin_projectors
from cornstarch_core.modeling.projector import MultimodalProjectorConfig
from cornstarch_core.plugins import registry, reset_registry
from cornstarch_core.specs import ProjectorInterface, ProjectorSpec


class Halve(ProjectorInterface):
    """Keeps every second token, then one linear layer."""

    def build(self, config):
        """A module that halves the number of tokens."""
        return EverySecond(config.in_features, config.out_features)

    def num_tokens(self, config, counts):
        """Half of the tokens, rounded up."""
        return [-(-count // 2) for count in counts]


class EverySecond(nn.Linear):
    """``(..., tokens, in)`` to ``(..., ceil(tokens / 2), out)``."""

    def forward(self, features):
        """Skip, then project."""
        return super().forward(features[..., ::2, :])


@pytest.fixture
def halve(monkeypatch):
    """One more entry in the list of built-in projectors, and nothing else."""
    module = ModuleType("halve")
    module.Halve = Halve
    monkeypatch.setitem(sys.modules, "halve", module)
    monkeypatch.setattr(
        builtin_projectors,
        "BUILT_IN",
        [*builtin_projectors.BUILT_IN, ProjectorSpec(name="halve", target="halve:Halve")],
    )
    reset_registry()
    yield
    reset_registry()


def test_a_built_in_projector_added_in_one_place_works_everywhere(halve, tmp_path):
    """It composes, its features are counted and placed, it is saved, and comes back equal."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(), callbacks="llava")},  # 16 features
        language_model=tiny.llama(vocab_size=400),
        init_projector_type="halve",
    ).eval()
    assert isinstance(model.vision_encoder.projector.projection, EverySecond)
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=model)
    token = processor.tokens["vision"]
    batch = processor(text=f"{token} What is it?", vision=[words.image()])
    assert batch["input_ids"].tolist()[0].count(processor.token_ids["vision"]) == 8
    with torch.no_grad():
        logits = model(**batch).logits
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, again = MultimodalModel.from_pretrained(tmp_path).eval(), MultimodalProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        same = loaded(**again(text=f"{token} What is it?", vision=[words.image()])).logits
    assert torch.equal(same, logits)


def test_the_core_registers_its_projectors_by_the_hook():
    """They are looked up by the qualified name of the core, or by a bare name."""
    names = registry().names("projectors")
    assert {"cornstarch-core/linear", "cornstarch-core/mlp"} <= set(names)
    assert registry().lookup("projectors", "mlp").plugin == "cornstarch-core"


def test_they_need_no_plugin(monkeypatch):
    """With every plugin blocked a model is composed all the same, and its record names no plugin."""
    monkeypatch.setenv("CORNSTARCH_PLUGINS", "")
    reset_registry()
    try:
        encoder = ModalEncoderModule(tiny.clip())
        model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
        assert model.config.plugins == []
        assert registry().names("encoders") == []
    finally:
        monkeypatch.undo()
        reset_registry()


def test_the_mlp_has_the_layers_of_llava():
    """Two linear layers with the activation between them, by the names that LLaVA's projector has."""
    config = MultimodalProjectorConfig(projection_type="mlp", activation="relu", in_features=4, out_features=6)
    projection = MultimodalProjector(config).projection
    assert [name for name, _ in projection.named_children()] == ["linear_1", "act", "linear_2"]
    features = torch.randn(2, 3, 4)
    expected = projection.linear_2(projection.linear_1(features).relu())
    assert torch.equal(projection(features), expected)


def test_an_unknown_activation_is_named():
    """The error lists those that there are."""
    config = MultimodalProjectorConfig(projection_type="mlp", activation="swoosh", in_features=4, out_features=6)
    with pytest.raises(CompositionError, match="unknown activation 'swoosh'; choose one of .*gelu"):
        MultimodalProjector(config)
