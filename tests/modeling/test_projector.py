"""The projector: types, widths, and weights that stay what they were."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from transformers.activations import ACT2CLS

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProjector, MultimodalProjectorConfig
from cornstarch_core.errors import CompositionError, UnknownNameError


def test_linear_is_one_linear_layer():
    """The default type has a single nn.Linear."""
    projector = MultimodalProjector(MultimodalProjectorConfig(in_features=3, out_features=5))
    assert [type(m) for m in projector.projection.modules()] == [nn.Linear]
    assert projector.projection.weight.shape == (5, 3)


@pytest.mark.parametrize("activation", sorted(ACT2CLS))
def test_mlp_is_two_linear_layers_with_any_activation_of_transformers(activation):
    """``mlp`` works with every name in ACT2CLS, and computes linear_2(act(linear_1(x)))."""
    config = MultimodalProjectorConfig(projection_type="mlp", activation=activation, in_features=4, out_features=6)
    mlp = MultimodalProjector(config).projection
    x = torch.randn(2, 7, 4)
    assert [type(m) for m in mlp.children() if isinstance(m, nn.Linear)] == [nn.Linear, nn.Linear]
    assert torch.equal(mlp(x), mlp.linear_2(mlp.act(mlp.linear_1(x))))


def test_unknown_activation_lists_the_known_ones():
    """The error names the activation and the choices."""
    config = MultimodalProjectorConfig(projection_type="mlp", activation="nope", in_features=4, out_features=6)
    with pytest.raises(CompositionError, match=r"unknown activation 'nope'.*gelu"):
        MultimodalProjector(config)


def test_unknown_type_is_looked_up_among_plugins():
    """A type that neither the core nor a plugin knows is refused by name."""
    with pytest.raises(UnknownNameError, match=r"spline.*cornstarch-core/linear.*cornstarch-core/mlp"):
        MultimodalProjector(MultimodalProjectorConfig(projection_type="spline", in_features=4, out_features=6))


def test_missing_width_says_both():
    """A projector can't be built unless both widths are known; the error shows both."""
    with pytest.raises(CompositionError, match="in_features=None, out_features=6"):
        MultimodalProjector(MultimodalProjectorConfig(out_features=6))


def test_widths_come_from_configs():
    """The encoder's and the language model's configs give the widths."""
    config = MultimodalProjectorConfig(encoder_config=tiny.clip().config, text_config=tiny.llama().config)
    assert (config.in_features, config.out_features) == (32, 64)


@pytest.mark.parametrize("wrap", [True, False])
def test_a_given_module_keeps_its_exact_weights(wrap):
    """Wrapping and composing draw no weight anew, as ``post_init`` of transformers (5.23) would."""
    mine = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 64), nn.BatchNorm1d(17))
    for tensor in mine.parameters():
        nn.init.uniform_(tensor)
    before = tiny.copies(mine)
    config = MultimodalProjectorConfig(in_features=32, out_features=64)
    projector = MultimodalProjector(config, mine) if wrap else mine
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(), projector)}, language_model=tiny.llama()
    )
    assert model.vision_encoder.projector.projection is mine
    assert tiny.same(mine, before)


def test_forms_of_features_stay():
    """``(N, D)``, ``(items, tokens, D)`` and lists come out in the form they went in, with the same values."""
    projector = MultimodalProjector(MultimodalProjectorConfig(in_features=3, out_features=5))
    x = torch.randn(2, 4, 3)
    flat, batch, items = projector(x.flatten(0, 1)), projector(x), projector(list(x))
    assert flat.shape == (8, 5)
    assert torch.allclose(batch.flatten(0, 1), flat)
    assert [item.shape for item in items] == [(4, 5), (4, 5)]
    assert torch.allclose(torch.stack(items), batch)


def test_width_that_does_not_fit_says_both():
    """Composing refuses a projector that takes or gives another width, and names both."""
    for widths, found in (((16, 64), "width 32, the projector takes 16"), ((32, 48), "width 48, .* have 64")):
        with pytest.raises(CompositionError, match=f"vision: .*{found}"):
            MultimodalModel(
                encoders={"vision": ModalEncoderModule(tiny.clip(), nn.Linear(*widths))}, language_model=tiny.llama()
            )


def test_width_of_an_opaque_projector_is_checked_when_it_runs(mllm):
    """If no config tells the width, the first forward pass refuses it and names both widths."""
    mllm.vision_encoder.projector = MultimodalProjector(
        MultimodalProjectorConfig(projection_type="custom"), nn.Sequential(nn.Linear(32, 48))
    )
    with pytest.raises(CompositionError, match="width 48, the language model's embeddings have 64"):
        mllm(**tiny.prompt(1), pixel_values=tiny.pixels(1))
