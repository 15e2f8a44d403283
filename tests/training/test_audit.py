"""The audit: it finds planted mistakes, and reports none where there is none."""

from __future__ import annotations

import warnings

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from training.clip_and_llama import compose, step

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core.training import audit


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_correct_model_has_no_mistakes(wrapped):
    """A frozen encoder with a trainable projector, and a language model with or without LoRA, give no warning."""
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


def test_lora_in_a_frozen_encoder_is_found():
    """``target_modules=["q_proj"]`` matches layers of the encoder, too."""
    model = get_peft_model(compose("llava"), LoraConfig(target_modules=["q_proj"]))
    step(model)
    with pytest.warns(
        UserWarning, match=r"vision.module is frozen, but 6 adapter weights landed in it.*target_modules"
    ):
        report = audit(model)
    assert any("anchor the pattern" in mistake for mistake in report.mistakes)


def test_lora_on_an_encoder_that_the_user_wrapped_is_no_mistake():
    """An encoder that was wrapped by itself is meant to have adapters."""
    clip = get_peft_model(tiny.clip(), LoraConfig(target_modules=["q_proj"]))
    model = MultimodalModel(encoders={"vision": ModalEncoderModule(clip)}, language_model=tiny.llama())
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    step(model, tokens=tiny.PATCHES + 1)
    assert audit(model).mistakes == ()


def test_an_encoder_that_never_ran_is_found():
    """It is reported if no sample has an image."""
    model = compose()
    step(model, images=0)
    with pytest.warns(UserWarning, match="vision.module never ran"):
        audit(model)


def test_a_trainable_part_without_a_gradient_is_found():
    """A callback that detaches the features leaves the projector without a gradient."""
    model = compose()
    model.vision_encoder.postprocess_projector_callback = lambda inputs, output: type(output)(
        last_hidden_state=output[0].detach()
    )
    step(model, tokens=tiny.PATCHES + 1)
    with pytest.warns(UserWarning, match="vision.projector is trainable, but nothing in it got a gradient"):
        audit(model)


def test_weights_that_are_never_used_are_found():
    """``"llava"`` does not use CLIP's last block and norm, for which DistributedDataParallel would wait."""
    model = compose("llava")
    model.set_trainable(encoders={"vision": (True, True)})
    step(model)
    (mistake,) = audit(model, warn=False).mistakes
    assert "vision.module: " in mistake
    assert "trainable weights got no gradient (encoder.layers.2" in mistake or "post_layernorm" in mistake


def test_the_table_has_a_row_for_each_part_and_a_line_for_each_mistake():
    """It prints as text and with rich."""
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
    """A language model by itself has no parts."""
    with pytest.raises(TypeError, match="expected a MultimodalModel, not LlamaForCausalLM"):
        audit(tiny.llama())
