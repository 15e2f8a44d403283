"""Exporting: which family is chosen, what every family refuses, and what happens to the folder."""

from __future__ import annotations

import pytest
import tiny
import torch
import words
from fake_plugins import exporting, isolated, write_plugin
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch_core.errors import CheckpointError
from cornstarch_core.interop import export, export_pretrained
from cornstarch_core.plugins import Registration, registry
from cornstarch_core.specs import CheckpointSpec


def composed(**changes) -> MultimodalModel:
    """A model of CLIP, an MLP and Llama, with LLaVA's callback."""
    encoder = ModalEncoderModule(tiny.clip(), callbacks="llava")
    model = MultimodalModel(
        encoders={"vision": encoder}, language_model=tiny.llama(vocab_size=400, **changes), init_projector_type="mlp"
    )
    model.set_modality_token_ids({"vision": 399})
    return model.eval()


# --- which family -----------------------------------------------------------------------------------------------------


def test_the_callback_in_use_chooses_the_family(tmp_path):
    """Without a callback no family is chosen, and the error lists the families that plugins register."""
    model = MultimodalModel(encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=tiny.llama())
    with pytest.raises(
        CheckpointError,
        match=r"no encoder has a callback that decides the family: .*cornstarch-vision/llava for the callback '.*llava'",
    ):
        export_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_families_for_one_callback_are_ambiguous(tmp_path, monkeypatch):
    """The error names both families, and how to block one."""
    spec = CheckpointSpec(name="other", target="a:b", callback="cornstarch-vision/llava")
    other = Registration("checkpoints", spec, "else", "1.0")

    class Both:
        """The registry with one more family."""

        def names(self, kind):
            """Return all names."""
            return [*registry().names(kind), other.qualified_name]

        def lookup(self, kind, name, prefer=None):
            """Look up by name."""
            return other if name == other.qualified_name else registry().lookup(kind, name, prefer=prefer)

    monkeypatch.setattr(export, "registry", Both)
    with pytest.raises(CheckpointError, match="could be any of cornstarch-vision/llava, else/other; .*DISABLE_PLUGINS"):
        export_pretrained(composed(), tmp_path / "out")


CLIP = "transformers.models.clip.modeling_clip:CLIPVisionModel"
SIGLIP = "transformers.models.siglip.modeling_siglip:SiglipVisionModel"


@pytest.fixture
def site(tmp_path):
    """An empty folder: the only place where this process finds plugins."""
    with isolated(tmp_path) as folder:
        yield folder


def of_parts(**encoders) -> MultimodalModel:
    """A model with an encoder for each key, from a module and the name of its callback, or ``None``."""
    modules = {
        key: ModalEncoderModule(module, callbacks=callback, hidden_size=32, input_names=["pixel_values"])
        for key, (module, callback) in encoders.items()
    }
    return MultimodalModel(encoders=modules, language_model=tiny.llama())


def test_families_that_share_a_callback_are_told_apart_by_the_encoder(site, tmp_path):
    """The encoder decides, also if another plugin has an encoder of the same name."""
    write_plugin(site, "fake-a", exporting("fake_a", ("one", "clip"), ("two", "siglip"), clip=CLIP, siglip=SIGLIP))
    write_plugin(site, "fake-b", exporting("fake_b", clip="fractions:Fraction"))
    for name, module in (("one", tiny.clip()), ("two", tiny.siglip())):
        with pytest.raises(CheckpointError, match=f"^exported as {name}$"):
            export_pretrained(of_parts(vision=(module, "fake-a/shared")), tmp_path / "out")


def test_the_callback_alone_is_not_enough_for_a_family_that_names_an_encoder(site, tmp_path):
    """The encoder alone is not enough either; the error names those of the model and those of the family."""
    write_plugin(site, "fake-a", exporting("fake_a", ("one", "clip"), clip=CLIP, siglip=SIGLIP))
    family = "plugins export fake-a/one for the callback 'fake-a/shared' with the encoder 'fake-a/clip'"
    cases = {
        "the callback 'fake-a/shared' with the encoder 'fake-a/siglip'": (tiny.siglip(), "shared"),
        "the callback 'fake-a/shared'": (tiny.ToyEncoder(), "shared"),
        "no callback with the encoder 'fake-a/clip'": (tiny.clip(), None),
    }
    for has, part in cases.items():
        with pytest.raises(
            CheckpointError, match=f"no encoder has a callback that decides the family: vision has {has}; {family}"
        ):
            export_pretrained(of_parts(vision=part), tmp_path / "out")


def test_callback_and_encoder_must_be_of_one_and_the_same_encoder(site, tmp_path):
    """A callback around one encoder and the class of another encoder do not choose a family together."""
    write_plugin(site, "fake-a", exporting("fake_a", ("one", "clip"), clip=CLIP, siglip=SIGLIP))
    parts = {"vision": (tiny.clip(), None), "depth": (tiny.siglip(), "shared")}
    with pytest.raises(
        CheckpointError, match="vision has no callback with .*clip', depth has the callback .*siglip'; "
    ):
        export_pretrained(of_parts(**parts), tmp_path / "out")
    parts["depth"] = (tiny.clip(), "shared")
    with pytest.raises(CheckpointError, match="^exported as one$"):
        export_pretrained(of_parts(**parts), tmp_path / "out")


def test_a_family_without_an_encoder_takes_any_encoder(site, tmp_path):
    """With a family that names the encoder, it is ambiguous; the name of an encoder is never taken for a callback's."""
    write_plugin(site, "fake-a", exporting("fake_a", ("one", "clip"), ("any", None), clip=CLIP, shared=SIGLIP))
    with pytest.raises(CheckpointError, match="^exported as any$"):
        export_pretrained(of_parts(vision=(tiny.siglip(), "shared")), tmp_path / "out")
    both = (
        "could be any of fake-a/any, fake-a/one; vision has the callback 'fake-a/shared' with .* 'fake-a/clip'. Block"
    )
    with pytest.raises(CheckpointError, match=both):
        export_pretrained(of_parts(vision=(tiny.clip(), "shared")), tmp_path / "out")
    with pytest.raises(CheckpointError, match="vision has no callback with the encoder 'fake-a/shared'"):
        export_pretrained(of_parts(vision=(tiny.siglip(), None)), tmp_path / "out")


# --- what no family takes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["language_model", "encoder", "whole", "injected"])
def test_adapters_have_to_be_merged_first(where, tmp_path):
    """Adapters in any part are refused; after merging, the model is exported with equal logits."""
    from peft import LoraConfig, get_peft_model, inject_adapter_in_model

    model, config = composed(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    if where == "language_model":
        model.language_model = get_peft_model(model.language_model, config)
    elif where == "encoder":
        model.vision_encoder.module = get_peft_model(model.vision_encoder.module, config)
    elif where == "injected":
        inject_adapter_in_model(config, model.language_model)
    given = get_peft_model(model, config) if where == "whole" else model
    with pytest.raises(CheckpointError, match="has adapters; merge them first"):
        export_pretrained(given, tmp_path / "out")
    if where != "language_model":
        return
    batch = {**tiny.prompt(1, tokens=16, token_id=399), "pixel_values": tiny.pixels(1)}
    model.language_model = model.language_model.merge_and_unload()
    export_pretrained(model, tmp_path / "out")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(theirs(**batch).logits, model(**batch).logits)


def test_parts_of_different_dtypes_are_refused(tmp_path):
    """transformers would load all parts in one dtype."""
    model = composed()
    model.language_model.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"in bfloat16.* in float32.*mllm.to\(torch.bfloat16\)"):
        export_pretrained(model, tmp_path / "out")
    export_pretrained(model.to(torch.bfloat16), tmp_path / "out")
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_processor_of_another_model_is_refused(tmp_path):
    """A processor with other placeholder ids is refused, and so is an object that is no processor."""
    model, other = composed(), composed()
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=other)
    with pytest.raises(CheckpointError, match=r"processor's placeholder ids are .*, the model's \{'vision': 399\}"):
        export_pretrained(model, tmp_path / "out", processor)
    with pytest.raises(TypeError, match="must be a MultimodalProcessor, not"):
        export_pretrained(model, tmp_path / "out", words.tokenizer())


def test_weights_that_share_memory_are_refused(tmp_path):
    """Weights that are shared, but not tied by the config, are refused."""
    model = composed()
    layers = model.language_model.model.layers
    layers[0].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    with pytest.raises(CheckpointError, match="share memory"):
        export_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_loses_values_is_refused(tmp_path, monkeypatch):
    """If saving loses values, the export is refused and nothing is replaced."""
    save = LlavaForConditionalGeneration.save_pretrained

    def lossy(self, *args, **kwargs):
        state = {name: tensor for name, tensor in self.state_dict().items() if "lm_head" not in name}
        save(self, *args, state_dict=state, **kwargs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", lossy)
    with pytest.raises(CheckpointError, match="values were written; nothing was replaced"):
        export_pretrained(composed(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the folder -------------------------------------------------------------------------------------------------------


def test_an_export_replaces_an_old_model(tmp_path):
    """Weights and processor of the old model are removed, other files stay."""
    model = composed()
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=model)
    model.save_pretrained(tmp_path / "out", max_shard_size="100KB")
    processor.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    export_pretrained(model, tmp_path / "out", processor)
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert LlavaProcessor.from_pretrained(tmp_path / "out").image_token == "<vision>"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_crash_leaves_the_old_folder(tmp_path, monkeypatch):
    """The old files are unchanged, and no other folder lies beside them."""
    model = composed()
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=model)
    export_pretrained(model, tmp_path / "out", processor)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(LlavaProcessor, "save_pretrained", crash)
    with pytest.raises(KeyboardInterrupt):
        export_pretrained(model.to(torch.bfloat16), tmp_path / "out", processor)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_model_can_be_training(tmp_path):
    """A model with dropout in training mode is exported, and stays in training mode."""
    model = composed(attention_dropout=0.5)
    model.train()
    export_pretrained(model, tmp_path / "out")
    assert model.language_model.training
