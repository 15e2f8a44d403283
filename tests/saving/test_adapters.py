"""PEFT adapters on a part and on the whole model run, train and save; what would not load equal is refused."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import CheckpointError
from cornstarch_core.saving import adapters


def lora(targets=("q_proj", "v_proj"), **changes) -> LoraConfig:
    """A LoRA config with random weights, so that the adapters change the output at once."""
    targets = targets if isinstance(targets, str) else list(targets)
    return LoraConfig(target_modules=targets, init_lora_weights=False, **changes)


def composed(vision=None, language_model=None) -> MultimodalModel:
    """A model of CLIP and Llama; each of them may be wrapped by PEFT."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(vision or tiny.clip())}, language_model=language_model or tiny.llama()
    )
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    return model.eval()


def batch() -> dict:
    """One sample with one image, and labels."""
    return {**tiny.prompt(1), "pixel_values": tiny.pixels(1)}


def test_a_wrapped_encoder_is_run_and_gets_gradients():
    """The adapters change the logits and all of them get gradients; the base stays frozen."""
    wrapped = get_peft_model(tiny.clip(), lora())
    model = composed(vision=wrapped)
    output = model(**batch())
    with wrapped.disable_adapter():
        assert not torch.equal(model(**batch()).logits, output.logits)
    output.loss.backward()
    for name, parameter in wrapped.named_parameters():
        assert ("lora_" in name) == (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)), name


def test_a_wrapped_language_model_trains_and_generates():
    """A language model that is wrapped before composing trains beside the projector, and generates."""
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, inference_mode=False)
    model = composed(language_model=get_peft_model(tiny.llama(), config))
    model(**batch()).loss.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum()}
    assert trained == {"language_model", "vision_encoder"}
    prompt = {k: v for k, v in batch().items() if k != "labels"}
    assert model.generate(**prompt, max_new_tokens=3, min_new_tokens=3).shape[1] == prompt["input_ids"].shape[1] + 3


def test_the_whole_model_can_be_wrapped_trained_and_generated_from():
    """``get_peft_model(mllm, ...)`` trains only the adapters, lowers the loss, and generates what its base generates."""
    model = get_peft_model(composed(), LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", r=4))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    prompt = {k: v for k, v in batch().items() if k != "labels"}
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(
        model.eval().generate(**prompt, **settings), model.get_base_model().generate(**prompt, **settings)
    )


def test_adapters_of_the_whole_model_save_alone_and_load_onto_a_fresh_base(tmp_path):
    """``PeftModel.save_pretrained`` and ``from_pretrained`` work for a composed model."""
    base = composed()
    weights = tiny.copies(base)
    model = get_peft_model(base, lora(task_type="CAUSAL_LM")).eval()
    expected = model(**batch()).logits
    model.save_pretrained(tmp_path)
    fresh = composed()
    fresh.load_state_dict(weights)
    assert torch.equal(PeftModel.from_pretrained(fresh, tmp_path).eval()(**batch()).logits, expected)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        lora(task_type="CAUSAL_LM"),
        lora("all-linear", task_type="CAUSAL_LM"),
        lora(["embed_tokens", "q_proj"], task_type="CAUSAL_LM"),
        lora(task_type="CAUSAL_LM", modules_to_save=["lm_head"]),
        IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False),
    ],
    ids=["attention", "all-linear", "embeddings", "modules_to_save", "ia3"],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_wrapped_language_model_comes_back_equal(config, tie, tmp_path):
    """Logits and trainable weights are equal after loading, also with adapters on tied embeddings."""
    model = composed(language_model=get_peft_model(tiny.llama(tie_word_embeddings=tie), config))
    model.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert isinstance(loaded.language_model, PeftModel)
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize(
    ("change", "is_alike"),
    [
        ({}, True),
        ({"peft_version": "9.9", "base_model_name_or_path": "elsewhere"}, True),
        ({"of_a_later_version": None, "another": {}}, True),
        ({"of_a_later_version": "set"}, False),
        ({"r": 3}, False),
        ({"use_dora": True}, False),
    ],
    ids=str,
)
def test_adapters_are_alike_whatever_version_of_peft_wrote_them(change, is_alike):
    """A setting that one version lacks counts only if it is set; a setting that changes the computation always counts."""
    given = adapters.describe(get_peft_model(tiny.llama(), lora()))
    old = {name: value for name, value in given["configs"]["default"].items() if value not in (None, {}, [])}
    other = {**given, "configs": {"default": {**old, **change}}}
    assert adapters.alike(given, other) is adapters.alike(other, given) is is_alike


def test_the_name_of_the_base_comes_back_without_a_warning(tmp_path, recwarn):
    """PEFT would warn that the base in the folder has another name than the recorded one."""
    llama = tiny.llama()
    llama.name_or_path = llama.config._name_or_path = "somebody/llama"
    composed(language_model=get_peft_model(llama, lora())).save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert loaded.language_model.peft_config["default"].base_model_name_or_path == "somebody/llama"
    assert not [warning for warning in recwarn if "base_model_name_or_path" in str(warning.message)]


def test_a_wrapped_encoder_with_two_adapters_comes_back_equal(tmp_path):
    """Every adapter is saved, and the active one is active after loading."""
    wrapped = get_peft_model(tiny.clip(), lora())
    wrapped.add_adapter("second", lora(["k_proj"]))
    wrapped.set_adapter("second")
    model = composed(vision=wrapped)
    model.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert loaded.vision_encoder.module.active_adapters == ["second"]
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)


def test_adapters_that_would_not_load_again_are_refused(tmp_path):
    """Adapters of a wrapped whole model, injected adapters and prompts are refused; the error says what to do."""
    whole = get_peft_model(composed(), lora(task_type="CAUSAL_LM"))
    injected = composed()
    injected.language_model.add_adapter(lora())
    prompts = composed(
        language_model=get_peft_model(tiny.llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    )
    for model in (whole.get_base_model(), injected, prompts):
        with pytest.raises(CheckpointError, match="adapters .*Merge them"):
            model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_merged_adapters_save_as_plain_weights(tmp_path):
    """``merge_and_unload`` gives a model that saves without PEFT and has the same logits."""
    model = get_peft_model(composed(), lora(task_type="CAUSAL_LM")).eval()
    expected = model(**batch()).logits
    model.merge_and_unload().save_pretrained(tmp_path)
    assert torch.allclose(MultimodalModel.from_pretrained(tmp_path)(**batch()).logits, expected, atol=1e-5)
