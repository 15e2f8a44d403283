"""Describing a composed model: what its config records of every part."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import tiny
import torch

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel
from cornstarch_core.config import CallbacksRecord, ModuleRecord
from cornstarch_core.saving.describe import describe, restore_encoder_config


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_arguments_beside_a_config_are_recorded(pooler, mask, tmp_path):
    """ViT takes ``add_pooling_layer`` and ``use_mask_token`` beside its config; both are saved."""
    from transformers import ViTConfig, ViTModel

    vit = ViTModel(ViTConfig(**tiny.VISION), add_pooling_layer=pooler, use_mask_token=mask)
    model = MultimodalModel(encoders={"vision": ModalEncoderModule(vit)}, language_model=tiny.llama())
    model.save_pretrained(tmp_path)
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path), tiny.copies(model))


def test_every_part_has_its_record(mllm):
    """The language model, the encoder and its projector are described by class, config and dtype."""
    mllm.language_model.to(torch.bfloat16)
    describe(mllm)
    language_model, vision = mllm.config.language_model, mllm.config.encoders["vision"]
    assert language_model == ModuleRecord(
        class_path="transformers.models.llama.modeling_llama:LlamaForCausalLM", arguments={}, dtype="bfloat16"
    )
    assert (vision.encoder, vision.dtype, vision.hidden_size) == ("cornstarch-vision/clip", "float32", 32)
    assert (vision.text_hidden_size, vision.projector.custom, vision.projector.dtype) == (64, False, "float32")
    assert vision.projector.config["projection_type"] == "linear"
    assert vision.callbacks is None
    assert not vision.needs_model
    assert mllm.config.vision_config is mllm.vision_encoder.module.config
    assert mllm.config.text_config is mllm.language_model.config


def test_a_placeholder_keeps_its_id_when_a_model_is_described_again(mllm):
    """A new record of an encoder has the token id of the old one."""
    before = mllm.config.encoders["vision"]
    describe(mllm)
    assert mllm.config.encoders["vision"] is not before
    assert mllm.config.modality_token_ids == {"vision": tiny.IMAGE_TOKEN}


def test_an_encoder_of_ready_made_embeddings_has_no_class():
    """Its record tells only what it takes."""
    model = MultimodalModel(encoders={"toy": ModalEncoderModule(None, hidden_size=5)}, language_model=tiny.llama())
    record = model.config.encoders["toy"]
    assert (record.class_path, record.dtype, record.config, record.input_names) == (None, None, None, ["embeds"])


def test_callbacks_are_recorded_by_name_or_as_custom():
    """What a plugin registers is named, with its options; what was passed as an object is listed as custom."""
    by_name = ModalEncoderModule(
        tiny.clip(), callbacks="llava", callback_options={"vision_feature_layer": -1}, preprocess_callback=dict
    )
    by_object = ModalEncoderModule(
        tiny.siglip(), callbacks=ModalCallbacks(postprocess_projector=lambda inputs, output: output, hidden_size=32)
    )
    model = MultimodalModel(encoders={"vision": by_name, "depth": by_object}, language_model=tiny.llama())
    vision, depth = model.config.encoders["vision"], model.config.encoders["depth"]
    assert vision.callbacks == CallbacksRecord(name="cornstarch-vision/llava", options={"vision_feature_layer": -1})
    assert vision.custom_callbacks == ["preprocess"]
    assert (depth.callbacks, depth.custom_callbacks) == (None, ["postprocess_projector"])
    assert depth.custom_settings == {"hidden_size": 32, "input_names": []}
    model.vision_encoder.postprocess_module_callback = lambda inputs, output: output
    describe(model)
    assert model.config.encoders["vision"].custom_callbacks == ["preprocess", "postprocess_module"]


@pytest.mark.parametrize("function", ["num_tokens_before_projector", "num_tokens_after_projector", "prepare_on_host"])
def test_custom_functions_that_count_need_the_model(function):
    """A processor can't count without functions that are not saved."""
    encoder = ModalEncoderModule(tiny.clip(), callbacks=ModalCallbacks(**{function: lambda *args: args[-1]}))
    model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
    assert model.config.encoders["vision"].needs_model


def test_the_config_of_an_encoder_is_restored_from_its_record(mllm):
    """A class of transformers has a config object; for any other class, the config stays a dictionary."""
    record = mllm.config.encoders["vision"]
    assert restore_encoder_config(record).to_dict() == mllm.vision_encoder.module.config.to_dict()
    other = replace(record, class_path="somewhere.else:Encoder")
    assert restore_encoder_config(other) == record.config
    assert restore_encoder_config(replace(record, config=None)) is None


def test_the_saved_config_holds_the_records(mllm, tmp_path):
    """In ``config.json`` each record is the dictionary that ``dataclasses.asdict`` makes of it."""
    mllm.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    vision = asdict(mllm.config.encoders["vision"])
    for config in (vision["config"], vision["projector"]["config"]):
        config.pop("_name_or_path", None)
    assert saved["language_model"] == asdict(mllm.config.language_model)
    assert saved["encoders"] == {"vision": json.loads(json.dumps(vision))}
