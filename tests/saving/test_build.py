"""Building the parts of a saved model: registered ones come back by name, custom ones have to be passed again."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import tiny
import torch
from saved_models import Newline, logits, with_own_parts
from torch import nn

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import CheckpointError


def skip_layers(module, inputs):
    """Run the encoder on doubled pixels."""
    return module(pixel_values=inputs["pixel_values"] * 2)


def test_a_custom_encoder_and_projector_keep_their_exact_weights(tmp_path):
    """Weights stay equal through composing, saving and loading, and so does a buffer that is not saved."""
    model = with_own_parts()
    model.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(
        tmp_path,
        encoders={"toy": tiny.ToyEncoder()},
        projectors={"toy": nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64))},
    )
    assert tiny.same(loaded, tiny.copies(model))
    assert loaded.toy_encoder.module.offset.tolist() == [7.0, 8.0]
    batch = {**tiny.prompt(1, tokens=9), "signal": torch.randn(1, 9, 5)}
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_a_complete_encoder_can_be_passed(tmp_path):
    """``encoders=`` also takes a ``ModalEncoderModule``, with its projector and callbacks."""
    model = with_own_parts()
    model.save_pretrained(tmp_path)
    blank = with_own_parts().toy_encoder
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path, encoders={"toy": blank}), tiny.copies(model))


def test_parts_of_a_complete_encoder_are_refused_beside_it(mllm, tmp_path):
    """``projectors=`` for the key of a complete ``ModalEncoderModule`` is refused, since it would have no effect."""
    mllm.save_pretrained(tmp_path)
    whole = ModalEncoderModule(tiny.clip())
    with pytest.raises(TypeError, match="vision: a ModalEncoderModule is given"):
        MultimodalModel.from_pretrained(tmp_path, encoders={"vision": whole}, projectors={"vision": nn.Identity()})


def test_a_part_that_can_not_be_built_says_how_to_pass_it(tmp_path):
    """The errors for a custom encoder and a custom projector show the argument that is missing."""
    with_own_parts().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"toy: its encoder .* encoders=\{'toy': the_module\}"):
        MultimodalModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"toy: its projector .* projectors=\{'toy': the_module\}"):
        MultimodalModel.from_pretrained(tmp_path, encoders={"toy": tiny.ToyEncoder()})
    with pytest.raises(ValueError, match="projectors= for vision"):
        MultimodalModel.from_pretrained(tmp_path, projectors={"vision": nn.Identity()})


def test_custom_callbacks_save_their_weights_and_must_be_passed(tmp_path):
    """Without the callback, the error shows how to pass it; with it, loading fills its parameter."""
    encoder = ModalEncoderModule(tiny.clip(), postprocess_projector_callback=Newline())
    nn.init.normal_(encoder.postprocess_projector_callback.newline)
    model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"vision: its postprocess_projector callback .* callbacks=\{'vision'"):
        MultimodalModel.from_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(
        tmp_path, callbacks={"vision": ModalCallbacks(postprocess_projector=Newline())}
    )
    assert torch.equal(logits(loaded), logits(model))


def test_every_custom_function_must_be_passed(tmp_path):
    """Functions that run or count are not saved and must be passed; their widths and input names are saved."""
    callbacks = ModalCallbacks(
        run_module=skip_layers, num_tokens_before_projector=lambda inputs, counts: [5], input_names=("extra",)
    )
    encoder = ModalEncoderModule(tiny.clip(), callbacks=callbacks)
    model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    model.save_pretrained(tmp_path)
    for given in (None, ModalCallbacks(), ModalCallbacks(run_module=skip_layers)):
        with pytest.raises(
            CheckpointError,
            match=r"vision: its .*num_tokens_before_projector callback .*num_tokens_before_projector=\.\.\.",
        ):
            MultimodalModel.from_pretrained(tmp_path, callbacks={"vision": given} if given else None)
    again = ModalCallbacks(run_module=skip_layers, num_tokens_before_projector=callbacks.num_tokens_before_projector)
    loaded = MultimodalModel.from_pretrained(tmp_path, callbacks={"vision": again})
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.vision_encoder.callbacks.input_names == ("extra",)


def test_callbacks_given_on_loading_override_parts_of_registered_ones(tmp_path):
    """A callback that is passed on loading replaces that part of the registered callbacks."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(), callbacks="llava")}, language_model=tiny.llama()
    )
    model.save_pretrained(tmp_path)
    seen = []
    mine = ModalCallbacks(postprocess_projector=lambda inputs, output: seen.append(1) or output)
    loaded = MultimodalModel.from_pretrained(tmp_path, callbacks={"vision": mine})
    loaded.vision_encoder(pixel_values=tiny.pixels(1))
    assert seen == [1]


def test_registered_callbacks_are_built_again_by_name(tmp_path):
    """Name and options are in the config, so no argument is needed."""
    encoder = ModalEncoderModule(tiny.clip(), callbacks="llava", callback_options={"vision_feature_layer": [-2, -1]})
    model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    model.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    batch = {**tiny.prompt(1, tokens=16), "pixel_values": tiny.pixels(1)}
    assert torch.equal(loaded.eval()(**batch).logits, model.eval()(**batch).logits)
    assert asdict(loaded.config.encoders["vision"].callbacks) == {
        "name": "cornstarch-vision/llava", "options": {"vision_feature_layer": [-2, -1]},
    }  # fmt: skip
    assert [plugin["distribution"] for plugin in loaded.config.plugins] == ["cornstarch-vision"]
