"""The modules to shard one by one; processes that shard them are in distributed/test_missing_modality.py."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model
from training.clip_and_llama import compose

from cornstarch_core import ModalCallbacks
from cornstarch_core.training import sharding_units

CLIP, LLAMA = ["CLIPVisionEmbeddings"] + 3 * ["CLIPEncoderLayer"], 2 * ["LlamaDecoderLayer"]


def names(*args, **kwargs) -> list[str]:
    """Class names of the units, sorted."""
    return sorted(type(unit).__name__ for unit in sharding_units(*args, **kwargs))


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_units_are_the_blocks_that_the_parts_declare(wrapped):
    """Inner modules come before the modules that contain them, also if PEFT wraps the whole model."""
    model = compose()
    if wrapped:
        model = get_peft_model(model, LoraConfig(target_modules=r"language_model.*q_proj"))
    assert names(model) == sorted(CLIP + LLAMA)
    order = {module: index for index, module in enumerate(model.modules())}
    units = sharding_units(model)
    assert units == sorted(units, key=order.get, reverse=True)


def test_replicated_parts_are_left_out():
    """The parts may be given as an iterator."""
    assert names(compose(), replicate=iter(["vision.module"])) == LLAMA


def test_encoders_whose_calls_depend_on_the_data_are_left_out():
    """Other ranks would wait for a call of a block that never comes."""
    assert names(compose(ModalCallbacks(data_dependent_calls=True))) == LLAMA


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("smell", "replicate= names smell; choose from vision.module, vision.projector, language_model"),
        ("language_model", "replicate= names language_model, which trains"),
    ],
)
def test_parts_that_can_not_be_replicated_are_refused(part, message):
    """The part must exist and be frozen."""
    with pytest.raises(ValueError, match=message):
        sharding_units(compose(), replicate=[part])
