"""The config of a composed model: records are checked, nothing is lost, and no path of a machine is kept."""

from __future__ import annotations

import copy
import json

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from cornstarch_core import ModalEncoderModule, MultimodalConfig, MultimodalModel
from cornstarch_core.config import CallbacksRecord, EncoderRecord, ModuleRecord, ProjectorRecord, read_record


def saved() -> dict:
    """An encoder's record as JSON has it."""
    return {
        "hidden_size": 32,
        "input_names": ["pixel_values"],
        "projector": {"config": {"in_features": 32}, "custom": False, "dtype": "float32"},
        "callbacks": {"name": "cornstarch-vision/llava", "options": {"vision_feature_layer": -2}},
        "dtype": "bfloat16",
    }


def composed(**encoders) -> MultimodalModel:
    """Llama and these encoders."""
    return MultimodalModel(encoders=encoders, language_model=tiny.llama())


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_made_of_its_dictionary():
    """Dictionaries inside become records, what is missing has its default, and unknown entries are left out."""
    assert read_record(EncoderRecord, {**saved(), "added_in_a_later_version": 1}, "encoders.vision") == EncoderRecord(
        hidden_size=32,
        input_names=["pixel_values"],
        projector=ProjectorRecord(config={"in_features": 32}, custom=False, dtype="float32"),
        callbacks=CallbacksRecord(name="cornstarch-vision/llava", options={"vision_feature_layer": -2}),
        dtype="bfloat16",
        token_id=None,
        needs_model=False,
    )
    record = ModuleRecord(class_path="a:B")
    assert read_record(ModuleRecord, record, "language_model") is record


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("", [1], " is a list, not a dictionary"),
        ("", None, " is a NoneType, not a dictionary"),
        ("hidden_size", "32", ".hidden_size is a str"),
        ("hidden_size", 32.0, ".hidden_size is a float"),
        ("hidden_size", True, ".hidden_size is a bool"),
        ("hidden_size", None, ".hidden_size is a NoneType"),
        ("input_names", "pixel_values", ".input_names is a str"),
        ("projector", None, ".projector is a NoneType"),
        ("projector", "linear", ".projector is a str, not a dictionary"),
        ("projector.config", [], ".projector.config is a list"),
        ("projector.custom", 1, ".projector.custom is a int"),
        ("projector.dtype", "floaty", ".projector.dtype is 'floaty'"),
        ("callbacks", ["llava"], ".callbacks is a list, not a dictionary"),
        ("callbacks.options", None, ".callbacks.options is a NoneType"),
        ("dtype", 16, ".dtype is a int"),
        ("dtype", "nn", ".dtype is 'nn'"),
        ("dtype", "Tensor", ".dtype is 'Tensor'"),
        ("dtype", "int8", ".dtype is 'int8'"),
        ("input_names", [1], ".input_names holds other things than strings"),
        ("callback_dtype", "x" * 99, f".callback_dtype is '{'x' * 20}'"),
        ("class_path", {}, ".class_path is a dict"),
        ("adapters", [], ".adapters is a list"),
        ("token_id", "<image>", ".token_id is a str"),
        ("token_id", False, ".token_id is a bool"),
        ("needs_model", None, ".needs_model is a NoneType"),
        ("custom_callbacks", {}, ".custom_callbacks is a dict"),
    ],
)
def test_each_kind_of_damage_is_named_by_its_path(path, value, problem):
    """A saved config is not trusted: the error says which entry is wrong, before anything is built from it."""
    damaged = {"": saved()}
    *parents, last = ["", *path.split(".")] if path else [""]
    entry = damaged
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    with pytest.raises(ValueError, match=f"^encoders.vision{problem}$"):
        read_record(EncoderRecord, damaged[""], "encoders.vision")


@pytest.mark.parametrize("path", ["hidden_size", "input_names", "projector", "projector.custom", "callbacks.name"])
def test_an_entry_without_a_default_must_be_there(path):
    """The error names the path of the missing entry."""
    record = saved()
    *parents, last = path.split(".")
    del (record[parents[0]] if parents else record)[last]
    with pytest.raises(ValueError, match=f"^encoders.vision.{path} is missing$"):
        read_record(EncoderRecord, record, "encoders.vision")


def test_a_config_reads_its_records():
    """Dictionaries become records under the names that errors have."""
    config = MultimodalConfig(encoders={"eeg": saved()}, language_model={"class_path": "a:B"})
    assert config.encoders["eeg"].projector.config == {"in_features": 32}
    assert config.language_model == ModuleRecord(class_path="a:B")
    with pytest.raises(ValueError, match="^encoders.eeg.projector is missing$"):
        MultimodalConfig(encoders={"eeg": {"hidden_size": 1, "input_names": []}})
    with pytest.raises(ValueError, match="^language_model.class_path is a int$"):
        MultimodalConfig(language_model={"class_path": 3})


# --- round trip -------------------------------------------------------------------------------------------------------


def test_a_config_comes_back_from_json():
    """Records, configs of the parts and adapters are equal, and have their types again."""
    model = MultimodalModel(
        encoders={
            "vision": ModalEncoderModule(
                get_peft_model(tiny.clip(), LoraConfig(target_modules=["q_proj"])), callbacks="llava"
            ),
            "eeg": ModalEncoderModule(None, hidden_size=12),
        },
        language_model=tiny.llama(),
        init_projector_type="mlp",
    )
    model.set_modality_token_ids({"vision": 100})
    config = model.config
    restored = MultimodalConfig.from_dict(json.loads(config.to_json_string()))
    assert restored.to_json_string() == config.to_json_string()
    assert [type(record) for record in restored.encoders.values()] == [EncoderRecord, EncoderRecord]
    assert restored.encoders["vision"].adapters["configs"]["default"]["target_modules"] == ["q_proj"]
    assert restored.encoders["vision"].callbacks == config.encoders["vision"].callbacks
    assert (type(restored.text_config), type(restored.vision_config)) == (LlamaConfig, CLIPVisionConfig)
    assert restored.vision_config.to_dict() == config.vision_config.to_dict()
    assert restored.eeg_config is None
    assert (restored.plugins, restored.init_projector_type) == (config.plugins, "mlp")
    assert restored.modality_token_ids == {"vision": 100}
    assert copy.deepcopy(config).to_dict() == config.to_dict()


def test_an_encoders_config_is_written_once(mllm):
    """It is a part of the encoder's record, and not beside it; the language model's is ``text_config``."""
    written = mllm.config.to_dict()
    assert "vision_config" not in written
    assert written["encoders"]["vision"]["config"]["patch_size"] == 8
    assert written["text_config"]["vocab_size"] == tiny.VOCABULARY
    mllm.config.vision_config.attention_dropout = 0.25  # as a user may set it
    assert mllm.config.to_dict()["encoders"]["vision"]["config"]["attention_dropout"] == 0.25


def test_a_written_config_holds_all_values_and_no_path_of_this_machine(tmp_path):
    """Values that are defaults today are written too, since a later version may have others."""
    tiny.clip().save_pretrained(tmp_path / "somewhere-clip")
    tiny.llama().save_pretrained(tmp_path / "somewhere-llama")
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(CLIPVisionModel.from_pretrained(tmp_path / "somewhere-clip"))},
        language_model=LlamaForCausalLM.from_pretrained(tmp_path / "somewhere-llama"),
    )
    assert model.config.text_config._name_or_path == str(tmp_path / "somewhere-llama")
    written = model.config.to_json_string()
    assert "somewhere" not in written
    assert "_name_or_path" not in written
    assert json.loads(written)["encoders"]["vision"]["config"]["layer_norm_eps"] == CLIPVisionConfig().layer_norm_eps
    assert json.loads(written)["init_activation"] == "gelu"


# --- the configs inside -----------------------------------------------------------------------------------------------


def test_sub_configs_are_those_of_the_parts_that_have_one():
    """Ready-made embeddings and plain modules have no config of transformers."""
    model = composed(
        vision=ModalEncoderModule(tiny.clip()),
        eeg=ModalEncoderModule(None, hidden_size=12),
        toy=ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal"),
    )
    assert model.config.sub_configs == {"text_config": LlamaConfig, "vision_config": CLIPVisionConfig}
    assert model.config.get_text_config() is model.language_model.config
    assert model.config.vision_config is model.vision_encoder.module.config
    assert MultimodalConfig().sub_configs == {}


def test_attention_can_be_chosen_for_the_whole(mllm):
    """The setting reaches the parts; projectors have no attention, and do not prevent it."""
    mllm.set_attn_implementation("eager")
    assert mllm.vision_encoder.module.config._attn_implementation == "eager"
    assert mllm.language_model.config._attn_implementation == "eager"
    mllm.set_attn_implementation("sdpa")
    assert mllm.vision_encoder.module.config._attn_implementation == "sdpa"
    assert mllm(**tiny.prompt(1), pixel_values=tiny.pixels(1)).loss.isfinite()


def test_placeholder_ids_are_those_of_modalities_that_have_one():
    """Zero is an id, and a modality without one is not listed."""
    model = composed(a=ModalEncoderModule(None, hidden_size=12), b=ModalEncoderModule(None, hidden_size=12))
    assert model.config.modality_token_ids == {}
    model.set_modality_token_ids({"b": 0})
    assert model.config.modality_token_ids == {"b": 0}


def test_what_a_plain_module_calls_its_config_is_kept_as_plain_data():
    """A dictionary is written as it is, so that a plugin can build the module again."""
    toy = tiny.ToyEncoder()
    toy.config = {"gain": 2, "names": ["a"]}
    model = composed(toy=ModalEncoderModule(toy, hidden_size=32, input_names="signal"))
    written = json.loads(model.config.to_json_string())["encoders"]["toy"]
    assert (written["config"], written["class_path"], written["dtype"]) == (toy.config, "tiny:ToyEncoder", "float32")
    half = composed(toy=ModalEncoderModule(toy.to(torch.bfloat16), hidden_size=32, input_names="signal"))
    assert half.config.encoders["toy"].dtype == "bfloat16"
