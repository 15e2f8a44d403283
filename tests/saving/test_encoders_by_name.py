"""Composing by name: encoders are loaded from checkpoints that hold them, alone or inside a larger model."""

from __future__ import annotations

import pytest
import tiny
import torch
from fake_plugins import exporting, isolated, write_plugin

from cornstarch_core import MultimodalModel
from cornstarch_core.errors import CheckpointError, CompositionError


def test_compose_loads_parts_by_folder(tmp_path):
    """An encoder alone and the vision part of a two-tower checkpoint load with equal weights."""
    from transformers import CLIPConfig, CLIPModel

    clip, llama = tiny.clip(), tiny.llama()
    whole = CLIPModel(CLIPConfig(vision_config=clip.config.to_dict(), text_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}))  # fmt: skip
    llama.save_pretrained(tmp_path / "llama")
    clip.save_pretrained(tmp_path / "tower")
    whole.save_pretrained(tmp_path / "clip")
    for folder, expected in (("tower", clip), ("clip", whole.vision_model)):
        model = MultimodalModel.compose(
            language_model=str(tmp_path / "llama"),
            encoders={"vision": str(tmp_path / folder)},
            callbacks={"vision": "llava"},
            callback_options={"vision": {"vision_feature_layer": -1}},
            init_projector_type="mlp",
        )
        assert type(model.vision_encoder.module) is type(clip)
        pixels = tiny.pixels(1)
        assert torch.equal(
            model.vision_encoder.module(pixels).last_hidden_state, expected.eval()(pixels).last_hidden_state
        )
        assert tiny.same(model.language_model, tiny.copies(llama))
        assert model.vision_encoder.callback_options == {"vision_feature_layer": -1}
    with pytest.raises(ValueError, match="callbacks for audio"):
        MultimodalModel.compose(
            language_model=str(tmp_path / "llama"),
            encoders={"vision": str(tmp_path / "clip")},
            callbacks={"audio": "x"},
        )


@pytest.mark.parametrize("whole", ["WhisperModel", "WhisperForConditionalGeneration"])
def test_compose_loads_an_encoder_out_of_a_larger_model(whole, tmp_path):
    """The names of its weights have a prefix in the checkpoint; all of them are loaded."""
    import sounds
    import transformers

    sizes = {"decoder_attention_heads": 4, "decoder_ffn_dim": 48, "decoder_layers": 1, "vocab_size": 60}
    model = getattr(transformers, whole)(sounds.whisper(**sizes).config)
    model.save_pretrained(tmp_path / "whisper")
    tiny.llama().save_pretrained(tmp_path / "llama")
    composed = MultimodalModel.compose(
        language_model=str(tmp_path / "llama"),
        encoders={"audio": str(tmp_path / "whisper")},
        callbacks={"audio": "audio"},
    )
    assert type(composed.audio_encoder.module) is type(sounds.whisper())
    assert tiny.same(composed.audio_encoder.module, tiny.copies(model.get_encoder()))
    composed.save_pretrained(tmp_path / "composed")
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path / "composed"), tiny.copies(composed))


def test_compose_refuses_a_checkpoint_without_weights_of_the_encoder(tmp_path):
    """A folder with other weights only would give an encoder of random weights."""
    import sounds
    from safetensors.torch import save_file

    sounds.whisper().save_pretrained(tmp_path / "whisper")
    tiny.llama().save_pretrained(tmp_path / "llama")
    save_file({"decoder.scale": torch.ones(3)}, tmp_path / "whisper" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="audio: .*holds no weights of a WhisperEncoder"):
        MultimodalModel.compose(str(tmp_path / "llama"), {"audio": str(tmp_path / "whisper")})


def test_compose_refuses_a_checkpoint_of_several_encoders(tmp_path):
    """If plugins describe two classes with the same config, the error names both."""
    tiny.clip().save_pretrained(tmp_path / "clip")
    tiny.llama().save_pretrained(tmp_path / "llama")
    clip = "transformers.models.clip.modeling_clip:CLIPVisionModel"
    with isolated(tmp_path) as site:
        write_plugin(site, "fake-a", exporting("fake_a", clip=clip, head=f"{clip}WithProjection"))
        with pytest.raises(CompositionError, match="could be any of CLIPVisionModel, CLIPVisionModelWithProjection"):
            MultimodalModel.compose(str(tmp_path / "llama"), {"vision": str(tmp_path / "clip")})
