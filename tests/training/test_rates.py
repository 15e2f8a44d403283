"""Parameter groups: a learning rate for each part."""

from __future__ import annotations

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from training.clip_and_llama import compose

from cornstarch_core.training import parameter_groups


def test_each_part_gets_its_rate_and_each_parameter_is_in_one_group():
    """The most specific name wins; vectors have no weight decay; frozen weights are left out."""
    model = compose()
    model.set_trainable(encoders={"vision": (True, True)})
    groups = parameter_groups(model, {"vision": 1e-4, "vision.projector": 1e-3, "language_model": 2e-5}, 0.1)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {"vision.module": 1e-4, "vision.projector": 1e-3, "language_model": 2e-5}
    given = [parameter for group in groups for parameter in group["params"]]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(given) == len({id(one) for one in given}) == len(trainable)
    assert all((group["weight_decay"] > 0) == (one.dim() >= 2) for group in groups for one in group["params"])


def test_tied_weights_are_in_one_group():
    """The output layer and the embedding share a weight, which is in the groups once."""
    model = compose(language_model=tiny.llama(tie_word_embeddings=True))
    groups = parameter_groups(model, {"vision": 1e-3, "language_model": 1e-4})
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(given) == len(set(given))


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ({"audio": 1e-3, "language_model": 1e-4}, "lr= names audio; choose from language_model, vision, vision.module"),
        ({"vision.projector": 1e-3}, "language_model is trainable, but lr= has no learning rate for it"),
        (
            {"vision": 1e-3, "vision.module": 1e-4, "language_model": 1e-4},
            "rate for vision.module, but all of it is frozen",
        ),
    ],
)
def test_rates_that_do_not_fit_the_parts_are_refused(lr, message):
    """An unknown part, a trainable part without a rate, and a rate for a frozen part raise an error."""
    with pytest.raises(ValueError, match=message):
        parameter_groups(compose(), lr)


def test_a_wrapped_model_has_groups_too():
    """If PEFT wraps the model, the groups hold the adapters, each under the part that it is in."""
    model = get_peft_model(compose(), LoraConfig(target_modules=r"language_model.*q_proj"))
    (group,) = parameter_groups(model, {"language_model": 1e-4})
    assert len(group["params"]) == 4
