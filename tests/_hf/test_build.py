"""Models of transformers are built again from a saved class path; nothing else is imported because a path names it."""

from __future__ import annotations

import sys

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, ViTConfig, ViTModel
from transformers import __version__ as transformers_version

from cornstarch_core._hf.build import (
    build_transformers_model,
    class_path,
    config_from_dict,
    constructor_arguments,
    default_dtype,
    transformers_class,
)
from cornstarch_core.errors import CheckpointError

CLIP = "transformers.models.clip.modeling_clip:CLIPVisionModel"
VIT = "transformers.models.vit.modeling_vit:ViTModel"


def test_the_class_path_looks_through_a_peft_wrapper():
    """A wrapped model has the path of the model inside, since that is the class to build."""
    assert class_path(tiny.clip()) == CLIP
    assert class_path(get_peft_model(tiny.clip(), LoraConfig(target_modules=["q_proj"]))) == CLIP
    assert class_path(tiny.ToyEncoder()) == "tiny:ToyEncoder"


@pytest.mark.parametrize(
    "path",
    [
        "planted:Model",
        "planted.models.clip:Model",
        "transformers.models.clip.modeling_clip:nn",
        "transformers.models.clip.modeling_clip:CLIPVisionConfig",
        "transformers.models.clip.modeling_clip:CLIPVisionModel.forward",
        "transformers.models.auto.modeling_auto:AutoModel",
        f"{CLIP}\n",
        "CLIPVisionModel",
        None,
        3,
    ],
    ids=repr,
)
def test_a_path_to_anything_but_a_model_of_transformers_names_no_class(path, tmp_path, monkeypatch):
    """A saved path is untrusted: no module outside ``transformers.models`` is imported for it."""
    (tmp_path / "planted.py").write_text("class Model: ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert transformers_class(path) is None
    assert config_from_dict({"hidden_size": 32}, path) is None
    assert build_transformers_model(path, tiny.clip().config, {}) is None
    assert "planted" not in sys.modules


@pytest.mark.parametrize("path", [f"{CLIP}V9", "transformers.models.no_such_family.modeling:Model"])
def test_a_class_that_this_transformers_lacks_is_named_with_its_version(path):
    """The saved model needs another version of transformers, which the error says."""
    with pytest.raises(CheckpointError, match=f"{path} is not in transformers {transformers_version}"):
        transformers_class(path)


def test_a_config_comes_back_as_an_object_of_its_class():
    """``config_from_dict`` makes the config class that belongs to the saved model class."""
    config = tiny.clip().config
    restored = config_from_dict(config.to_dict(), CLIP)
    assert type(restored) is CLIPVisionConfig
    assert restored.to_dict() == config.to_dict()


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_arguments_beside_the_config_give_the_same_weights(pooler, mask):
    """The pooler and the mask token are recorded, since a config does not tell whether a model has them."""
    model = ViTModel(ViTConfig(**tiny.VISION), add_pooling_layer=pooler, use_mask_token=mask)
    arguments = constructor_arguments(model)
    assert arguments == {"add_pooling_layer": pooler, "use_mask_token": mask}
    rebuilt = build_transformers_model(VIT, model.config, arguments)
    assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


def test_only_known_arguments_are_passed_on():
    """A saved config can't pass other arguments to the constructor of a model."""
    assert constructor_arguments(tiny.clip()) == {}
    model = build_transformers_model(
        VIT, ViTConfig(**tiny.VISION), {"add_pooling_layer": False, "trust_remote_code": 1}
    )
    assert model.pooler is None
    assert build_transformers_model(CLIP, None, {}) is None


def test_a_model_is_built_in_the_default_dtype():
    """Inside ``default_dtype`` all weights have that dtype, whatever the config says."""
    with default_dtype("bfloat16"):
        half = build_transformers_model(CLIP, CLIPVisionConfig(**tiny.VISION, dtype="float64"), None)
    single = build_transformers_model(CLIP, CLIPVisionConfig(**tiny.VISION), None)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in single.parameters()} == {torch.float32}


def test_the_default_dtype_comes_back_after_an_error():
    """``None`` changes nothing, and an error inside leaves the process as it was."""
    with default_dtype("float64"):
        assert torch.zeros(1).dtype == torch.float64
    with pytest.raises(KeyError), default_dtype("float64"):
        raise KeyError
    assert torch.get_default_dtype() == torch.float32
    with default_dtype(None):
        assert torch.zeros(1).dtype == torch.float32
