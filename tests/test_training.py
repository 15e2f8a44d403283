"""Learning rates by part, and the audit: it finds planted mistakes, and is silent where there is none."""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core.training import audit, parameter_groups


def compose(callbacks=None, language_model=None) -> MultimodalModel:
    """CLIP and Llama, the projector and the language model trainable."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(), callbacks=callbacks)},
        language_model=language_model or tiny.llama(),
    )
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    model.set_trainable(encoders={"vision": (False, True)})
    return model


def step(model: torch.nn.Module, images: int = 1, tokens: int = tiny.PATCHES) -> None:
    """One backward pass; CLS is a token more."""
    media = {"pixel_values": tiny.pixels(images)} if images else {}
    model(**tiny.prompt(images, tokens=tokens), **media).loss.backward()


# --- learning rates ---------------------------------------------------------------------------------------------------


def test_each_part_gets_its_rate_and_each_parameter_stands_once():
    """The most particular name wins; vectors have no weight decay; frozen weights are left out."""
    model = compose()
    model.set_trainable(encoders={"vision": (True, True)})
    groups = parameter_groups(model, {"vision": 1e-4, "vision.projector": 1e-3, "language_model": 2e-5}, 0.1)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {"vision.module": 1e-4, "vision.projector": 1e-3, "language_model": 2e-5}
    given = [parameter for group in groups for parameter in group["params"]]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(given) == len({id(one) for one in given}) == len(trainable)
    assert all((group["weight_decay"] > 0) == (one.dim() >= 2) for group in groups for one in group["params"])


def test_tied_weights_stand_in_one_group():
    """The head is the embedding."""
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
def test_what_would_be_forgotten_is_refused(lr, message):
    """A misspelt part, one without a rate, and a rate for what is frozen."""
    with pytest.raises(ValueError, match=message):
        parameter_groups(compose(), lr)


def test_a_wrapped_model_has_groups_too():
    """Through PEFT only the adapters, and they are the parts' that they are in."""
    model = get_peft_model(compose(), LoraConfig(target_modules=r"language_model.*q_proj"))
    (group,) = parameter_groups(model, {"language_model": 1e-4})
    assert len(group["params"]) == 4


# --- audit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_right_set_up_is_met_with_silence(wrapped):
    """A frozen tower with a projector that learns; LoRA on the language model."""
    llama = tiny.llama()
    if wrapped:
        llama = get_peft_model(llama, LoraConfig(target_modules=["q_proj"]))
    model = compose("llava", llama)
    step(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = audit(model)
    assert report.mistakes == ()
    assert [part.name for part in report.parts] == ["vision.module", "vision.projector", "language_model"]
    module, projector, language_model = report.parts
    assert (module.trainable, module.runs) == (0, 1)
    assert projector.trainable == projector.with_gradient == projector.parameters == 32 * 64 + 64
    assert 0 < language_model.with_gradient == language_model.trainable
    assert language_model.zero_gradient == (
        0 if not wrapped else language_model.trainable // 2
    )  # LoRA's A, while B is zero


def test_lora_in_a_frozen_tower_is_found():
    """``target_modules=["q_proj"]`` matches the tower's layers, too."""
    model = get_peft_model(compose("llava"), LoraConfig(target_modules=["q_proj"]))
    step(model)
    with pytest.warns(
        UserWarning, match=r"vision.module is frozen, but 6 adapter weights landed in it.*target_modules"
    ):
        report = audit(model)
    assert any("anchor the pattern" in mistake for mistake in report.mistakes)


def test_lora_on_an_encoder_that_was_wrapped_by_intention_is_none():
    """Whoever wraps the encoder means it."""
    clip = get_peft_model(tiny.clip(), LoraConfig(target_modules=["q_proj"]))
    model = MultimodalModel(encoders={"vision": ModalEncoderModule(clip)}, language_model=tiny.llama())
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    step(model, tokens=tiny.PATCHES + 1)
    assert audit(model).mistakes == ()


def test_an_encoder_that_never_ran_is_found():
    """No sample had an image."""
    model = compose()
    step(model, images=0)
    with pytest.warns(UserWarning, match="vision.module never ran"):
        audit(model)


def test_a_trainable_part_without_a_gradient_is_found():
    """Features that were detached on the way."""
    model = compose()
    model.vision_encoder.postprocess_projector_callback = lambda inputs, output: type(output)(
        last_hidden_state=output[0].detach()
    )
    step(model, tokens=tiny.PATCHES + 1)
    with pytest.warns(UserWarning, match="vision.projector is trainable, but nothing in it got a gradient"):
        audit(model)


def test_weights_that_are_never_used_are_found():
    """CLIP's last block and norm under ``"llava"``, which would hold up DistributedDataParallel."""
    model = compose("llava")
    model.set_trainable(encoders={"vision": (True, True)})
    step(model)
    (mistake,) = audit(model, warn=False).mistakes
    assert "vision.module: " in mistake
    assert "trainable weights got no gradient (encoder.layers.2" in mistake or "post_layernorm" in mistake


def test_the_table_has_a_row_a_part_and_a_line_a_mistake():
    """As text, and with rich."""
    rich = pytest.importorskip("rich.console")
    model = compose()
    step(model, images=0)
    report = audit(model, warn=False)
    lines = str(report).splitlines()
    assert len(lines) == 1 + len(report.parts) + len(report.mistakes)
    assert lines[0].split() == ["part", "parameters", "trainable", "with", "gradient", "zero", "gradient", "runs"]
    console = rich.Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    assert "vision.projector" in console.export_text()


def test_only_composed_models_are_audited():
    """A bare language model has no parts."""
    with pytest.raises(TypeError, match="expected a MultimodalModel, not LlamaForCausalLM"):
        audit(tiny.llama())


# --- accumulation -----------------------------------------------------------------------------------------------------


def test_four_micro_batches_of_unequal_length_give_the_gradients_of_one_batch():
    """With ``num_items_in_batch`` each token counts the same, whichever micro-batch it is in."""
    import two_modalities

    model = two_modalities.compose().eval()  # no dropout
    shares = ("v", "a t", "t", "v a v")
    batches = [two_modalities.make_batch(model, share) for share in shares]
    counts = [two_modalities.learned(batch) for batch in batches]
    assert len(set(counts)) > 2
    for batch in batches:
        model(**batch, num_items_in_batch=sum(counts)).loss.backward()
    accumulated = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    samples = [two_modalities.sample(kind, seed) for share in shares for seed, kind in enumerate(share.split())]
    model(**two_modalities.collate(model, samples)).loss.backward()
    assert accumulated.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(accumulated[name], parameter.grad, atol=1e-6, rtol=1e-5, msg=name)
