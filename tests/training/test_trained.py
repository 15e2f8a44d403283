"""Checkpoints of what was trained: they are small, load onto a fresh base with equal logits, and onto no other."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import tiny
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import CheckpointError, MissingPluginError
from cornstarch_core.training import load_trained, save_trained


def lora(**changes) -> LoraConfig:
    """LoRA whose B is not zero, so that it changes the logits without training."""
    return LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, **changes)


def base(*, vision=0, words=1, callbacks="llava-next", peft=None, tie=False, dtype=torch.float32) -> MultimodalModel:
    """CLIP with LLaVA-NeXT's parameter and Llama. Each pair of seeds is another base; projectors are always new."""
    llama = tiny.llama(words, tie_word_embeddings=tie)
    language_model = llama if peft is None else get_peft_model(llama, peft)
    torch.seed()
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(vision), callbacks=callbacks)}, language_model=language_model
    )
    model.set_trainable(encoders={"vision": (False, True)})
    if peft is None:
        model.set_trainable(language_model=False)
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    return model.to(dtype).eval()


def batch() -> dict:
    """A batch of one sample with one tiled image."""
    media = {"pixel_values": tiny.pixels(5)[None], "image_sizes": torch.tensor([[64, 64]])}
    return {**tiny.prompt(1, tokens=16 + 64 + 8), **media}


def trained(**settings) -> tuple[MultimodalModel, torch.Tensor]:
    """A model after one step of training, and its logits."""
    model = base(**settings)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**batch()).loss.backward()
    optimizer.step()
    return model, model(**batch()).logits.detach()


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    """The folder and the logits of a run that trained a projector and LoRA."""
    folder = tmp_path_factory.mktemp("trained")
    model, logits = trained(peft=lora())
    save_trained(model, folder)
    return folder, logits


def test_only_what_was_trained_is_in_the_files(lora_run):
    """The files hold the projector, the callback's parameter and LoRA, and no other tensor."""
    folder, _ = lora_run
    names = load_file(folder / "trained.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"vision_encoder", "language_model"}
    assert {name for name in names if name.startswith("vision_encoder")} == {
        "vision_encoder.projector.projection.weight",
        "vision_encoder.projector.projection.bias",
        "vision_encoder.postprocess_projector_callback.image_newline",
    }
    assert sum("lora_" in name for name in names) == len(names) - 3 == 2 * 2 * 2  # layers, modules, A and B
    size = sum(tensor.nbytes for tensor in load_file(folder / "trained.safetensors").values())
    assert size < (folder / "trained.safetensors").stat().st_size < size + 2000


def test_it_loads_onto_a_fresh_base_with_equal_logits(lora_run):
    """The base gets the adapters and the trained projector."""
    folder, logits = lora_run
    model = base()
    assert not torch.equal(model(**batch()).logits, logits)
    assert load_trained(model, folder) is model
    assert torch.equal(model(**batch()).logits, logits)
    assert not model.language_model.training
    trainable = {name for name, p in model.language_model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_it_loads_onto_a_base_that_was_wrapped_alike(lora_run):
    """A training script that runs again wraps the model before it loads."""
    folder, logits = lora_run
    assert torch.equal(load_trained(base(peft=lora()), folder)(**batch()).logits, logits)


def test_the_precision_of_the_base_does_not_matter(lora_run):
    """A base in bfloat16 is the same base; the adapters keep their precision."""
    folder, _ = lora_run
    model = load_trained(base(dtype=torch.bfloat16), folder)
    kinds = {p.dtype for name, p in model.language_model.named_parameters() if "lora_" in name}
    assert kinds == {torch.float32}
    assert torch.isfinite(model(**batch()).loss)


@pytest.mark.parametrize(
    ("settings", "where"),
    [({"vision": 5}, "vision_encoder.module"), ({"words": 5}, "language_model"), ({"tie": True}, "language_model")],
)
def test_a_wrong_base_is_refused_and_nothing_changes(lora_run, settings, where):
    """The message names the part, and the model stays as it was."""
    folder, _ = lora_run
    model = base(**settings)
    before = tiny.copies(model)
    with pytest.raises(CheckpointError, match=f"was trained on another {where}: a .*Nothing was changed"):
        load_trained(model, folder)
    assert tiny.same(model, before)


def test_a_single_changed_weight_makes_it_another_base(lora_run):
    """The digest covers every weight; ``check_base=False`` skips the comparison."""
    folder, _ = lora_run
    model = base()
    with torch.no_grad():
        model.language_model.model.layers[1].mlp.up_proj.weight[3, 4] += 0.1
    with pytest.raises(CheckpointError, match="another language_model: a LlamaForCausalLM"):
        load_trained(model, folder)
    load_trained(model, folder, check_base=False)


def test_a_model_of_other_parts_is_refused(lora_run):
    """A model without the modality, without the callback, or of another width raises an error."""
    folder, _ = lora_run
    with pytest.raises(
        CheckpointError, match="was trained on a model of vision_encoder.*this one is of language_model"
    ):
        load_trained(MultimodalModel(language_model=tiny.llama()), folder)
    with pytest.raises(CheckpointError, match="this one is of vision_encoder"):
        load_trained(base(callbacks=None), folder)
    wide = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(), callbacks="llava-next")},
        language_model=tiny.llama(hidden_size=128),
    )
    with pytest.raises(CheckpointError, match="does not fit this model: vision_encoder.p.*Nothing was changed"):
        load_trained(wide, folder)


def test_one_stage_builds_on_the_other(tmp_path):
    """The projector of the first stage belongs to the base of the second, and has to be loaded first."""
    first, _ = trained()
    save_trained(first, tmp_path / "first")
    second = load_trained(base(peft=lora()), tmp_path / "first")
    second.set_trainable(encoders={"vision": (False, False)})
    save_trained(second, tmp_path / "second")
    names = load_file(tmp_path / "second" / "trained.safetensors")
    assert all("lora_" in name for name in names)
    with pytest.raises(CheckpointError, match="another vision_encoder.p.*load that first"):
        load_trained(base(), tmp_path / "second")
    model = load_trained(load_trained(base(), tmp_path / "first"), tmp_path / "second")
    assert torch.equal(model(**batch()).logits, second(**batch()).logits)


def test_a_fully_trained_language_model_and_tied_weights(tmp_path):
    """Tied weights are saved once, and stay tied after loading."""
    model = base(tie=True)
    model.set_trainable(language_model=True)
    with torch.no_grad():
        model.language_model.lm_head.weight.mul_(2)
    save_trained(model, tmp_path)
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "trained.safetensors")
    loaded = load_trained(base(tie=True, words=3), tmp_path)
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    assert loaded.language_model.lm_head.weight is loaded.language_model.model.embed_tokens.weight


@pytest.mark.parametrize("target", ["modules_to_save", "embed_tokens", "two adapters", "tokens", "vera"])
def test_other_adapters_come_back_equal(target, tmp_path):
    """A trained copy of the head, adapters of the embedding, a second adapter, tokens and VeRA load with equal logits."""
    config = {
        "modules_to_save": lora(modules_to_save=["lm_head"]),
        "embed_tokens": LoraConfig(target_modules=["embed_tokens"], init_lora_weights=False),
        "two adapters": lora(),
        "tokens": lora(trainable_token_indices=[3, 4]),
        "vera": VeraConfig(target_modules=["q_proj"], r=4),
    }[target]
    model = base(peft=config)
    if target == "two adapters":
        model.language_model.add_adapter("second", lora(r=2))
        model.language_model.set_adapter("second")
    if target == "modules_to_save":
        with torch.no_grad():
            model.language_model.lm_head.weight.mul_(2)
    save_trained(model, tmp_path)
    assert torch.equal(load_trained(base(), tmp_path)(**batch()).logits, model(**batch()).logits)


def test_buffers_beside_trained_weights_are_saved(tmp_path):
    """The running mean of a batch norm in a trained projector is saved."""

    def made() -> MultimodalModel:
        projector = nn.Sequential(nn.Linear(32, 64), nn.Flatten(0, 1), nn.BatchNorm1d(64), nn.Unflatten(0, (-1, 17)))
        encoder = ModalEncoderModule(tiny.clip(), projector)
        model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
        model.set_trainable(encoders={"vision": (False, True)}, language_model=False)
        return model

    model = made()
    model.vision_encoder.train()(pixel_values=tiny.pixels(2))
    save_trained(model, tmp_path)
    loaded = load_trained(made(), tmp_path)
    mean = model.vision_encoder.projector.projection[2].running_mean
    assert mean.any()
    assert torch.equal(loaded.vision_encoder.projector.projection[2].running_mean, mean)


def test_a_placeholder_id_that_the_base_lacks_is_loaded(lora_run):
    """The model then runs without a processor; an id that the base has stays."""
    folder, logits = lora_run
    model = base()
    model.config.encoders["vision"].token_id = None
    assert torch.equal(load_trained(model, folder)(**batch()).logits, logits)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "trained.json").unlink(), "holds nothing that save_trained wrote"),
        (lambda folder: (folder / "trained.json").write_text('{"format'), "is damaged"),
        (lambda folder: (folder / "trained.json").write_text('{"format": 2}'), "of another format than 1"),
        (lambda folder: (folder / "trained.safetensors").write_bytes(b"123"), "is damaged"),
    ],
)
def test_damage_is_found(lora_run, spoil, message, tmp_path):
    """Files that are missing, cut off, or of a later version raise an error."""
    shutil.copytree(lora_run[0], tmp_path / "copy")
    spoil(tmp_path / "copy")
    with pytest.raises(CheckpointError, match=message):
        load_trained(base(), tmp_path / "copy")


def test_a_plugin_that_is_missing_is_named(lora_run, tmp_path):
    """The error about the plugin comes before any other check."""
    shutil.copytree(lora_run[0], tmp_path / "copy")
    file = tmp_path / "copy" / "trained.json"
    record = json.loads(file.read_text())
    record["plugins"] = [{"distribution": "cornstarch-smell", "version": "0.1.0", "used": ["encoders/nose"]}]
    file.write_text(json.dumps(record))
    with pytest.raises(MissingPluginError, match="cornstarch-smell"):
        load_trained(base(), tmp_path / "copy")


def test_what_can_not_be_saved_says_why(tmp_path):
    """A frozen model, a model that PEFT wraps as a whole and another model raise an error; no folder is made."""
    model = base()
    model.requires_grad_(False)
    with pytest.raises(CheckpointError, match="nothing in this model is trainable"):
        save_trained(model, tmp_path / "none")
    with pytest.raises(TypeError, match="its own save_pretrained"):
        save_trained(get_peft_model(base(), lora()), tmp_path / "none")
    with pytest.raises(TypeError, match="expected a MultimodalModel, not LlamaForCausalLM"):
        save_trained(tiny.llama(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_adapters_that_are_not_in_the_checkpoint_are_refused(tmp_path, lora_run):
    """Such as adapters on a language model that was saved as a whole, or adapters of another name."""
    model = base()
    model.set_trainable(language_model=True)
    save_trained(model, tmp_path)
    named = base()
    named.language_model = get_peft_model(named.language_model, lora(), adapter_name="other")
    for folder, wrapped in ((tmp_path, base(peft=lora())), (lora_run[0], named)):
        with pytest.raises(CheckpointError, match="language_model: it has adapters that .* does not know"):
            load_trained(wrapped, folder)


@pytest.mark.parametrize(
    "other", [{"r": 4}, {"lora_alpha": 64}, {"target_modules": ["q_proj"]}, {"target_modules": ["q_proj", "k_proj"]}]
)
def test_adapters_with_other_settings_are_refused_and_nothing_changes(lora_run, other):
    """Their weights may fit, but they would compute something else."""
    model = base(peft=LoraConfig(**{"target_modules": ["q_proj", "v_proj"], **other}))
    before = tiny.copies(model)
    with pytest.raises(CheckpointError, match="or with other settings"):
        load_trained(model, lora_run[0])
    assert tiny.same(model, before)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_that_change_the_base_are_refused_when_they_are_saved(start, tmp_path):
    """Adapters that are merged into the base are refused, too."""
    model = base(peft=LoraConfig(target_modules=["q_proj"], init_lora_weights=start))
    with pytest.raises(CheckpointError, match=f"init_lora_weights='{start}' change the base"):
        save_trained(model, tmp_path / "none")
    merged = base(peft=lora())
    merged.language_model.merge_adapter()
    with pytest.raises(CheckpointError, match="unmerge_adapter"):
        save_trained(merged, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("plugins"),
        lambda record: record["adapters"].update(smell=record["adapters"]["language_model"]),
        lambda record: record["token_ids"].update(smell=7),
        lambda record: record["adapters"]["language_model"]["configs"]["default"].update(megatron_core="os"),
        lambda record: record["adapters"]["language_model"]["configs"]["default"].update(r=4),
        lambda record: record["adapters"]["language_model"]["configs"]["default"].update(peft_type="NONE"),
        lambda record: record["adapters"].update(language_model={"configs": {}}),
    ],
)
def test_an_odd_record_is_refused_and_nothing_changes(lora_run, change, tmp_path):
    """No entry of the record makes the loader import a module, and every wrong entry raises an error."""
    shutil.copytree(lora_run[0], tmp_path / "copy")
    file = tmp_path / "copy" / "trained.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    model = base()
    before = tiny.copies(model)
    with pytest.raises(CheckpointError):
        load_trained(model, tmp_path / "copy")
    assert tiny.same(model, before)


def test_parameters_of_custom_callbacks_are_saved(tmp_path):
    """They load again, and saving again replaces the folder without a warning."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, inputs, output):
            return type(output)(last_hidden_state=output[0] * self.scale)

    model, other = base(callbacks=ModalCallbacks(postprocess_module=Scale())), None
    with torch.no_grad():
        model.vision_encoder.postprocess_module_callback.scale.fill_(3.0)
    save_trained(model, tmp_path)
    other = load_trained(base(callbacks=ModalCallbacks(postprocess_module=Scale())), tmp_path)
    assert other.vision_encoder.postprocess_module_callback.scale == 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_trained(other, tmp_path)  # over the old one
