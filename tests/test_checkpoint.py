"""Saving and loading: what comes back is equal, and what can't is refused with the way out."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import CheckpointError, MissingPluginError


def logits(model: MultimodalModel) -> torch.Tensor:
    """What the model says about one image."""
    return model.eval()(**tiny.prompt(1), pixel_values=tiny.pixels(1)).logits


@pytest.mark.parametrize("projector", ["linear", "mlp", "pixel_shuffle"])
@pytest.mark.parametrize("tie", [True, False])
def test_a_loaded_model_is_equal(projector, tie, tmp_path):
    """Weights, config, token ids and logits come back, for every projector type, tied embeddings or not."""
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


def test_the_folder_holds_safetensors_and_names_that_follow_the_tree(mllm, tmp_path):
    """No pickles; tensor names are those of the state dict; no path of this machine."""
    mllm.language_model.config._name_or_path = "/home/someone/llama"
    mllm.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    with safe_open(tmp_path / "model.safetensors", framework="pt") as tensors:
        assert set(tensors.keys()) == set(mllm.state_dict())
    assert "someone" not in (tmp_path / "config.json").read_text()


def test_shards_load_too(mllm, tmp_path):
    """A model over the shard size is written and read in pieces; old single files do not stay behind."""
    mllm.save_pretrained(tmp_path)
    mllm.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path), tiny.copies(mllm))


def test_generation_settings_come_back(mllm, tmp_path):
    """The language model's generation config is saved and attached again."""
    mllm.generation_config.max_new_tokens = 7
    mllm.save_pretrained(tmp_path)
    assert MultimodalModel.from_pretrained(tmp_path).language_model.generation_config.max_new_tokens == 7


def test_parts_keep_their_dtypes_unless_told(mllm, tmp_path):
    """A bfloat16 language model beside a float32 encoder comes back so; dtype= wins."""
    mllm.language_model.to(torch.bfloat16)
    mllm.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.vision_encoder.parameters()} == {torch.float32}
    half = MultimodalModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_attention_implementation_reaches_every_part(mllm, tmp_path):
    """attn_implementation= is for all of them."""
    mllm.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.language_model.config._attn_implementation == "eager"
    assert loaded.vision_encoder.module.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "bloom", "opt", "gemma2", "qwen3", "mamba", "falcon_h1"])
def test_language_models_of_every_kind_come_back_equal(family, tmp_path):
    """Fused experts, tied heads, narrow embeddings, recurrent states, and buffers that are not saved (Falcon H1)."""
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


# --- parts of one's own -----------------------------------------------------------------------------------------------


def with_own_parts() -> MultimodalModel:
    """A plain encoder and a plain projector, with weights that no initialiser would draw."""
    projector = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64))
    nn.init.uniform_(projector[1].weight)
    encoder = ModalEncoderModule(tiny.ToyEncoder(), projector, hidden_size=32, input_names=["signal"])
    model = MultimodalModel(encoders={"toy": encoder}, language_model=tiny.llama())
    model.set_modality_token_ids({"toy": tiny.IMAGE_TOKEN})
    return model.eval()


def test_own_encoder_and_projector_keep_their_exact_weights(tmp_path):
    """Through composing, saving and loading; also a buffer that is not saved."""
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


def test_a_whole_encoder_module_can_be_passed_too(tmp_path):
    """encoders= takes a ModalEncoderModule as well; then everything in it is used."""
    model = with_own_parts()
    model.save_pretrained(tmp_path)
    blank = with_own_parts().toy_encoder
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path, encoders={"toy": blank}), tiny.copies(model))


def test_what_can_not_be_built_says_how_to_pass_it(tmp_path):
    """Encoder, projector and callback of one's own: each error shows the argument."""
    with_own_parts().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"toy: its encoder .* encoders=\{'toy': the_module\}"):
        MultimodalModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"toy: its projector .* projectors=\{'toy': the_module\}"):
        MultimodalModel.from_pretrained(tmp_path, encoders={"toy": tiny.ToyEncoder()})
    with pytest.raises(ValueError, match="projectors= for vision"):
        MultimodalModel.from_pretrained(tmp_path, projectors={"vision": nn.Identity()})


class Newline(nn.Module):
    """A callback with a parameter: it is added to every feature."""

    def __init__(self):
        super().__init__()
        self.newline = nn.Parameter(torch.zeros(64))

    def forward(self, inputs, output):
        """Add the newline."""
        output.last_hidden_state = output.last_hidden_state + self.newline
        return output


def test_callbacks_of_ones_own_save_their_weights_and_must_be_passed(tmp_path):
    """The parameter is in the files; loading says how to hand the callback in, and then fills it."""
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


def test_registered_callbacks_come_back_by_name(tmp_path):
    """Name and options are in the config, so nothing has to be passed."""
    encoder = ModalEncoderModule(tiny.clip(), callbacks="llava", callback_options={"vision_feature_layer": [-2, -1]})
    model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    model.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    batch = {**tiny.prompt(1, tokens=16), "pixel_values": tiny.pixels(1)}
    assert torch.equal(loaded.eval()(**batch).logits, model.eval()(**batch).logits)
    assert loaded.config.encoders["vision"]["callbacks"] == {
        "name": "cornstarch-vision/llava", "options": {"vision_feature_layer": [-2, -1]},
    }  # fmt: skip
    assert [plugin["distribution"] for plugin in loaded.config.plugins] == ["cornstarch-vision"]


# --- folders that are not what they should be -------------------------------------------------------------------------


def edit(folder, **changes) -> None:
    """Change entries of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_folder_without_a_model(tmp_path):
    """Neither an empty folder nor broken JSON is a model."""
    with pytest.raises(CheckpointError, match="holds no multimodal model: no readable config.json"):
        MultimodalModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="holds no multimodal model"):
        MultimodalModel.from_pretrained(tmp_path)


def test_a_folder_with_another_kind_of_model(tmp_path):
    """The error says what it holds and what to use."""
    tiny.llama().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a model of type 'llama'.*MultimodalModel.compose"):
        MultimodalModel.from_pretrained(tmp_path)


def test_a_missing_plugin_says_what_to_install(mllm, tmp_path):
    """The record in the config is checked before anything is built."""
    mllm.save_pretrained(tmp_path)
    edit(tmp_path, plugins=[{"distribution": "cornstarch-smell", "version": "0.3.1", "used": ["encoders/nose"]}])
    with pytest.raises(MissingPluginError, match=r'pip install "cornstarch-smell>=0\.3\.1,<0\.4"'):
        MultimodalModel.from_pretrained(tmp_path)


def test_a_damaged_weight_file(mllm, tmp_path):
    """A truncated file is named."""
    mllm.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="weight file is damaged or cut off"):
        MultimodalModel.from_pretrained(tmp_path)


def test_missing_weights_are_never_drawn_anew(mllm, tmp_path):
    """A shard that lacks tensors is an error, not a warning."""
    mllm.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("vision_encoder.projector.projection.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensors missing from the files \(vision_encoder.projector"):
        MultimodalModel.from_pretrained(tmp_path)


def test_missing_weight_files(mllm, tmp_path):
    """No weights at all."""
    mllm.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        MultimodalModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("path", ["os:system", "transformers.models.clip.modeling_clip:nn", "cornstarch_core.cli:main"])
def test_nothing_is_imported_because_a_config_names_it(mllm, tmp_path, path):
    """A class outside transformers' models is not built from a saved config."""
    mllm.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoders"]["vision"].update({"class": path, "encoder": None})
    edit(tmp_path, encoders=config["encoders"])
    with pytest.raises(CheckpointError, match="can't be built from the saved config"):
        MultimodalModel.from_pretrained(tmp_path)


# --- saving over an existing model ------------------------------------------------------------------------------------


def test_saving_over_a_model_keeps_other_files(mllm, tmp_path):
    """The processor, say, or a folder of logs."""
    folder = tmp_path / "model"
    mllm.save_pretrained(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "logs").mkdir()
    (folder / "logs" / "log").write_text("also mine")
    with torch.no_grad():
        mllm.vision_encoder.projector.projection.bias += 1
    mllm.save_pretrained(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "logs" / "log").read_text() == "also mine"
    assert tiny.same(MultimodalModel.from_pretrained(folder), tiny.copies(mllm))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_crash_while_saving_leaves_the_old_model(mllm, tmp_path, monkeypatch):
    """Whatever was there stays, and nothing is left beside it."""
    folder = tmp_path / "model"
    mllm.save_pretrained(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    import transformers.modeling_utils as modeling

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(modeling, "safe_save_file", crash)
    mllm.set_modality_token_ids({"vision": 7})
    with pytest.raises(KeyboardInterrupt):
        mllm.save_pretrained(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tensors_that_share_memory_unknown_to_the_folder_are_refused(mllm, tmp_path):
    """A projector that is tied to another part can't come back tied: refused, and nothing is written."""
    head = mllm.vision_encoder.projector.projection
    head.weight = mllm.vision_encoder.module.encoder.layers[0].mlp.fc2.weight
    with pytest.raises(CheckpointError, match="share memory in a way that a folder can't hold; untie them"):
        mllm.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- composing by name ------------------------------------------------------------------------------------------------


def test_compose_loads_parts_by_folder(tmp_path):
    """A bare tower, or the vision half of a two-tower checkpoint, beside a causal language model."""
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
    """Whose names begin with where the encoder is; no weight is left random."""
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


def test_compose_refuses_an_encoder_without_a_single_weight(tmp_path):
    """A folder with other weights only: all of the encoder's would be drawn at random."""
    import sounds
    from safetensors.torch import save_file

    sounds.whisper().save_pretrained(tmp_path / "whisper")
    tiny.llama().save_pretrained(tmp_path / "llama")
    save_file({"decoder.scale": torch.ones(3)}, tmp_path / "whisper" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="audio: .*holds no weights of a WhisperEncoder"):
        MultimodalModel.compose(str(tmp_path / "llama"), {"audio": str(tmp_path / "whisper")})


def test_a_copied_folder_is_a_model_too(mllm, tmp_path):
    """Nothing in the folder depends on where it lies."""
    mllm.save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path / "b")), logits(mllm))


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_what_a_config_does_not_tell_is_recorded(pooler, mask, tmp_path):
    """ViT takes add_pooling_layer and use_mask_token beside its config; both come back."""
    from transformers import ViTConfig, ViTModel

    vit = ViTModel(ViTConfig(**tiny.VISION), add_pooling_layer=pooler, use_mask_token=mask)
    model = MultimodalModel(encoders={"vision": ModalEncoderModule(vit)}, language_model=tiny.llama())
    model.save_pretrained(tmp_path)
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path), tiny.copies(model))


def test_a_module_that_its_config_does_not_describe_is_refused(mllm, tmp_path):
    """A layer was taken out by hand: saved, it would not come back."""
    mllm.language_model.model.layers = mllm.language_model.model.layers[:1]
    with pytest.raises(CheckpointError, match=r"language_model: its config does not describe its weights \(.*layers.1"):
        mllm.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- what must come back, or be asked for -----------------------------------------------------------------------------


def skip_layers(module, inputs):
    """Run the encoder on doubled pixels."""
    return module(pixel_values=inputs["pixel_values"] * 2)


def test_every_function_of_ones_own_is_asked_for_again(tmp_path):
    """run_module and num_tokens are as little in a folder as the three callbacks; widths and names are."""
    callbacks = ModalCallbacks(run_module=skip_layers, num_tokens=lambda inputs, counts: [5], input_names=("extra",))
    encoder = ModalEncoderModule(tiny.clip(), callbacks=callbacks)
    model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    model.save_pretrained(tmp_path)
    for given in (None, ModalCallbacks(), ModalCallbacks(run_module=skip_layers)):
        with pytest.raises(CheckpointError, match=r"vision: its .*num_tokens callback .*num_tokens=\.\.\."):
            MultimodalModel.from_pretrained(tmp_path, callbacks={"vision": given} if given else None)
    again = ModalCallbacks(run_module=skip_layers, num_tokens=callbacks.num_tokens)
    loaded = MultimodalModel.from_pretrained(tmp_path, callbacks={"vision": again})
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.vision_encoder.modal_callbacks.input_names == ("extra",)


def test_callbacks_given_on_loading_override_parts_of_registered_ones(tmp_path):
    """They are used, not dropped."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(), callbacks="llava")}, language_model=tiny.llama()
    )
    model.save_pretrained(tmp_path)
    seen = []
    mine = ModalCallbacks(postprocess_projector=lambda inputs, output: seen.append(1) or output)
    loaded = MultimodalModel.from_pretrained(tmp_path, callbacks={"vision": mine})
    loaded.vision_encoder(pixel_values=tiny.pixels(1))
    assert seen == [1]


def test_a_whole_encoder_leaves_nothing_to_give_beside_it(mllm, tmp_path):
    """projectors= and callbacks= for the same key would be dropped."""
    mllm.save_pretrained(tmp_path)
    whole = ModalEncoderModule(tiny.clip())
    with pytest.raises(TypeError, match="vision: a ModalEncoderModule is given"):
        MultimodalModel.from_pretrained(tmp_path, encoders={"vision": whole}, projectors={"vision": nn.Identity()})


def test_variants_lie_side_by_side_and_replace_only_themselves(mllm, tmp_path):
    """Saving one leaves the other; saving it again in shards leaves no old file of it."""
    mllm.save_pretrained(tmp_path)
    plain = tiny.copies(mllm)
    with torch.no_grad():
        mllm.vision_encoder.projector.projection.bias += 1
    mllm.save_pretrained(tmp_path, variant="fp16")
    with torch.no_grad():
        mllm.vision_encoder.projector.projection.bias += 1
    mllm.save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path), plain)
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path, variant="fp16"), tiny.copies(mllm))


def test_the_older_name_of_dtype_works_and_a_given_config_stays(mllm, tmp_path):
    """torch_dtype= is dtype=; config= is not edited."""
    mllm.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path, torch_dtype="bfloat16", config=config)
    assert loaded.dtype == torch.bfloat16
    assert config.language_model["dtype"] == "float32"


def test_a_tied_language_model_may_be_wrapped_and_merged_after_composing(tmp_path):
    """Ties are looked for anew when the model is saved."""
    from peft import LoraConfig, get_peft_model

    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=tiny.llama(tie_word_embeddings=True)
    )
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model.language_model = get_peft_model(model.language_model, config)
    model.save_pretrained(tmp_path / "wrapped")
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path / "wrapped")), logits(model))
    model.language_model = model.language_model.merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path / "merged")), logits(model))


def test_weights_of_another_shape_than_the_config_says(mllm, tmp_path):
    """Refused when saving, and, in a folder where they got in, when loading."""
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
        ("language_model.class", 1, "language_model.class is a int"),
        ("text_config", [1], "text_config is a list"),
        ("text_config.hidden_size", "wide", "config.json can't be read"),
    ],
)
def test_a_damaged_config_is_named(mllm, tmp_path, path, value, message):
    """No crash deep inside: the error says which entry is wrong."""
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
