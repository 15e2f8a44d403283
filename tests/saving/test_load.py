"""Loading: a loaded model equals the saved one, and a folder that holds no such model is refused."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from saved_models import edit, logits
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import CheckpointError, MissingPluginError


@pytest.mark.parametrize("projector", ["linear", "mlp", "pixel_shuffle"])
@pytest.mark.parametrize("tie", [True, False])
def test_a_loaded_model_is_equal(projector, tie, tmp_path):
    """Weights, config, token ids and logits are equal for every projector type, with and without tied embeddings."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.siglip())},
        language_model=tiny.llama(tie_word_embeddings=tie),
        init_projector_type=projector,
    )
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    model.save_pretrained(tmp_path / "model")
    loaded = MultimodalModel.from_pretrained(tmp_path / "model")
    assert tiny.same(loaded, tiny.copies(model))
    assert loaded.config.modality_token_ids == {"vision": tiny.IMAGE_TOKEN}
    assert loaded.config.plugins == model.config.plugins
    prompt = tiny.prompt(1, tokens=4 if projector == "pixel_shuffle" else 16)
    results = [one.eval()(**prompt, pixel_values=tiny.pixels(1)).logits for one in (model, loaded)]
    assert torch.equal(*results)


def test_generation_settings_are_loaded(mllm, tmp_path):
    """The language model's generation config is saved and loaded."""
    mllm.generation_config.max_new_tokens = 7
    mllm.save_pretrained(tmp_path)
    assert MultimodalModel.from_pretrained(tmp_path).language_model.generation_config.max_new_tokens == 7


def test_parts_keep_their_dtypes_unless_dtype_is_given(mllm, tmp_path):
    """A bfloat16 language model and a float32 encoder keep their dtypes; ``dtype=`` overrides them."""
    mllm.language_model.to(torch.bfloat16)
    mllm.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.vision_encoder.parameters()} == {torch.float32}
    half = MultimodalModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_the_older_name_of_dtype_works_and_a_given_config_is_not_changed(mllm, tmp_path):
    """``torch_dtype=`` means ``dtype=``, and loading does not change the object that is passed as ``config=``."""
    mllm.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path, torch_dtype="bfloat16", config=config)
    assert loaded.dtype == torch.bfloat16
    assert config.language_model.dtype == "float32"


def test_attention_implementation_reaches_every_part(mllm, tmp_path):
    """``attn_implementation=`` applies to the language model and to the encoder."""
    mllm.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.language_model.config._attn_implementation == "eager"
    assert loaded.vision_encoder.module.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "bloom", "opt", "gemma2", "qwen3", "mamba", "falcon_h1"])
def test_language_models_of_every_kind_are_equal_after_loading(family, tmp_path):
    """Fused experts, tied heads, narrow embeddings, recurrent states and buffers that are not saved (Falcon H1)."""
    size = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 2}  # fmt: skip
    extra = {
        "mixtral": {"num_local_experts": 4},
        "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128},
        "bloom": {"n_head": 4, "n_layer": 2},
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128},
    }
    narrow = {"gpt2", "bloom"}
    settings = {
        k: v for k, v in size.items() if family not in narrow or k in ("vocab_size", "pad_token_id", "eos_token_id")
    }
    if family == "bloom":
        settings["hidden_size"] = 64
    language_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings, **extra.get(family, {})))
    model = MultimodalModel(encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=language_model)
    model.set_modality_token_ids({"vision": 100})
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path)), logits(model))


def test_a_folder_without_a_model_is_refused(tmp_path):
    """An empty folder and a broken ``config.json`` are refused."""
    with pytest.raises(CheckpointError, match="holds no multimodal model: no readable config.json"):
        MultimodalModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="holds no multimodal model"):
        MultimodalModel.from_pretrained(tmp_path)


def test_a_folder_with_another_type_of_model_is_refused(tmp_path):
    """The error says which type of model it holds, and what to use instead."""
    tiny.llama().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a model of type 'llama'.*MultimodalModel.compose"):
        MultimodalModel.from_pretrained(tmp_path)


def test_a_missing_plugin_says_what_to_install(mllm, tmp_path):
    """The record of plugins in the config is checked before a part is built."""
    mllm.save_pretrained(tmp_path)
    edit(tmp_path, plugins=[{"distribution": "cornstarch-smell", "version": "0.3.1", "used": ["encoders/nose"]}])
    with pytest.raises(MissingPluginError, match=r'pip install "cornstarch-smell>=0\.3\.1,<0\.4"'):
        MultimodalModel.from_pretrained(tmp_path)


def test_a_damaged_weight_file_is_refused(mllm, tmp_path):
    """The error says that a truncated file is damaged."""
    mllm.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="weight file is damaged or cut off"):
        MultimodalModel.from_pretrained(tmp_path)


def test_missing_weights_are_never_drawn_anew(mllm, tmp_path):
    """A weight file that lacks tensors is an error, not a warning."""
    mllm.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("vision_encoder.projector.projection.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensors missing from the files \(vision_encoder.projector"):
        MultimodalModel.from_pretrained(tmp_path)


def test_missing_weight_files_are_refused(mllm, tmp_path):
    """A folder without weight files is an error that names the file."""
    mllm.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        MultimodalModel.from_pretrained(tmp_path)


def test_weights_of_another_shape_than_the_config_says_are_refused(mllm, tmp_path):
    """Weights that the config does not describe are refused when saving; in a folder, they are refused when loading."""
    mllm.save_pretrained(tmp_path / "good")
    mllm.language_model.set_input_embeddings(nn.Embedding(120, 64))
    with pytest.raises(CheckpointError, match="language_model: its config does not describe its weights"):
        mllm.save_pretrained(tmp_path / "bad")
    config = json.loads((tmp_path / "good" / "config.json").read_text())
    edit(tmp_path / "good", text_config={**config["text_config"], "vocab_size": 120})
    with pytest.raises(CheckpointError, match="tensors of another shape"):
        MultimodalModel.from_pretrained(tmp_path / "good")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("encoders", [], "encoders is a list"),
        ("encoders.vision", "x", "encoders.vision is a str, not a dictionary"),
        ("encoders.vision.hidden_size", "32", "encoders.vision.hidden_size is a str"),
        ("encoders.vision.input_names", None, "encoders.vision.input_names is a NoneType"),
        ("encoders.vision.projector", None, "encoders.vision.projector is a NoneType"),
        ("encoders.vision.projector.custom", "no", "encoders.vision.projector.custom is a str"),
        ("encoders.vision.dtype", "floaty", "encoders.vision.dtype is 'floaty'"),
        ("encoders.vision.token_id", "x", "encoders.vision.token_id is a str"),
        ("encoders.vision.callbacks", {"name": 3, "options": {}}, "encoders.vision.callbacks.name is a int"),
        ("encoders.vision.encoder", 3, "encoders.vision.encoder is a int"),
        ("language_model", "x", "language_model is a str"),
        ("language_model.class_path", 1, "language_model.class_path is a int"),
        ("text_config", [1], "text_config is a list"),
        ("text_config.hidden_size", "wide", "config.json is damaged"),
    ],
)
def test_a_damaged_config_is_refused(mllm, tmp_path, path, value, message):
    """The error says which entry of the config is wrong."""
    mllm.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    *parents, last = path.split(".")
    record = config
    for parent in parents:
        record = record[parent]
    record[last] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        MultimodalModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("path", ["os:system", "transformers.models.clip.modeling_clip:nn", "cornstarch_core.cli:main"])
def test_nothing_is_imported_because_a_config_names_it(mllm, tmp_path, path):
    """A class outside ``transformers.models`` is not built from a saved config."""
    mllm.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoders"]["vision"].update({"class_path": path, "encoder": None})
    edit(tmp_path, encoders=config["encoders"])
    with pytest.raises(CheckpointError, match="can't be built from the saved config"):
        MultimodalModel.from_pretrained(tmp_path)
