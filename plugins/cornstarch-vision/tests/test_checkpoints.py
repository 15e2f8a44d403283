"""LLaVA checkpoints of Hugging Face: what comes in and what goes out is equal to the bit, and nothing is copied."""

import json
import shutil

import pytest
import tiny
import torch
import words
from cornstarch_vision.checkpoints import LlavaFamily
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DeiTConfig,
    DeiTModel,
    DistilBertConfig,
    Emu3ForCausalLM,
    Emu3TextConfig,
    Gemma2Config,
    GPT2Config,
    HieraConfig,
    HieraModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PhiConfig,
    PixtralVisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
    ViTConfig,
    ViTModel,
)

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch_core.errors import CheckpointError
from cornstarch_core.interop import export_pretrained
from cornstarch_core.plugins import registry

VOCABULARY = 400
TOWERS = {"clip": (CLIPVisionConfig, 16), "siglip": (SiglipVisionConfig, 15)}
TEXTS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
CASES = [(tower, text, tie) for tower in TOWERS for text in TEXTS for tie in (False, True)]
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models are quicker on one thread."""
    torch.set_num_threads(1)


def tokenizer():
    """One that knows ``<image>``, with the id that it has in :func:`llava`."""
    made = words.tokenizer(bos=True)
    made.add_special_tokens({"extra_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    return made


IMAGE = tokenizer().convert_tokens_to_ids("<image>")


def llava(tower="clip", text=LlamaConfig, tie=False, **changes):
    """Hugging Face's model with random weights."""
    torch.manual_seed(0)
    text_config = text(vocab_size=VOCABULARY, tie_word_embeddings=tie, **SIZES) if isinstance(text, type) else text
    vision_config = TOWERS[tower][0](**tiny.VISION) if isinstance(tower, str) else tower
    config = LlavaConfig(vision_config=vision_config, text_config=text_config, image_token_index=IMAGE, **changes)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.max_new_tokens = 5
    return model


def llava_processor(**changes):
    """Hugging Face's processor for :func:`llava` with CLIP."""
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(images, tokenizer(), chat_template=words.TYPED, **{**settings, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as it is published: CLIP and Llama, with its processor. Not to be written to."""
    path = tmp_path_factory.mktemp("llava")
    llava().save_pretrained(path)
    llava_processor().save_pretrained(path)
    return path


def composed(module=None, text=None, options=None, vocabulary=VOCABULARY, token_id=IMAGE, kind="mlp", **changes):
    """A composition of one's own that is LLaVA's."""
    module = tiny.clip() if module is None else module
    encoder = ModalEncoderModule(module, **{"callbacks": "llava", "callback_options": options or {}, **changes})
    text = tiny.llama(vocab_size=vocabulary) if text is None else text
    model = MultimodalModel(encoders={"vision": encoder}, language_model=text, init_projector_type=kind).eval()
    model.set_modality_token_ids({"vision": token_id})
    return model


def batch(tokens=16, token_id=IMAGE, images=(1, 2, 0)):
    """Three prompts with one, two and no images."""
    prompt = tiny.prompt(*images, tokens=tokens, token_id=token_id)
    return {
        "input_ids": prompt["input_ids"],
        "attention_mask": prompt["attention_mask"],
        "pixel_values": tiny.pixels(3),
    }


def logits(model, **inputs):
    """What a model says to :func:`batch`."""
    with torch.no_grad():
        return model(**(inputs or batch())).logits


def loaded(path):
    """Hugging Face's model out of a folder in which nothing is missing, and nothing too much."""
    model, info = LlavaForConditionalGeneration.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return model


def names(path):
    """Tensors by name in a folder's files."""
    found = set()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found |= set(tensors.keys())
    return found


def pointers(module):
    """Where its parameters lie."""
    return {parameter.data_ptr() for parameter in module.parameters()}


# --- in, and out again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tower", "text", "tie"), CASES)
def test_import_and_export_are_equal(tower, text, tie, tmp_path):
    """In: logits. Out: logits, every tensor, and its name. In again: every tensor of ours."""
    theirs = llava(tower, TEXTS[text], tie)
    theirs.save_pretrained(tmp_path / "theirs")
    inputs = batch(TOWERS[tower][1])
    expected = logits(theirs, **inputs)
    ours = MultimodalModel.from_pretrained(tmp_path / "theirs")
    assert torch.equal(logits(ours, **inputs), expected)
    assert not ours.training
    export_pretrained(ours, tmp_path / "out")
    back = loaded(tmp_path / "out")
    assert tiny.same(back, tiny.copies(theirs))
    assert torch.equal(logits(back, **inputs), expected)
    loaded(tmp_path / "theirs").save_pretrained(tmp_path / "again")
    expected = {**json.loads((tmp_path / "again" / "config.json").read_text()), "image_seq_length": TOWERS[tower][1]}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == expected
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path / "out"), tiny.copies(ours))


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layer", [-1, [-2, -1]])
@pytest.mark.parametrize(("act", "bias"), [("relu", True), ("gelu", False), ("silu", False)])
def test_every_setting_comes_in_and_goes_out(strategy, layer, act, bias, tmp_path):
    """Layers, strategy, activation, and a projector without biases."""
    settings = {"vision_feature_select_strategy": strategy, "vision_feature_layer": layer}
    settings |= {"projector_hidden_act": act, "multimodal_projector_bias": bias}
    theirs = llava(**settings)
    theirs.save_pretrained(tmp_path / "theirs")
    inputs = batch(17 - (strategy == "default"))
    ours = MultimodalModel.from_pretrained(tmp_path / "theirs")
    assert torch.equal(logits(ours, **inputs), logits(theirs, **inputs))
    assert ours.vision_encoder.projector.is_custom is not bias
    export_pretrained(ours, tmp_path / "out")
    config = loaded(tmp_path / "out").config
    assert {name: getattr(config, name) for name in settings} == settings
    assert torch.equal(logits(loaded(tmp_path / "out"), **inputs), logits(theirs, **inputs))


@pytest.mark.parametrize("where", ["here", "there"])
def test_weights_are_tied_as_they_are_in_the_checkpoint(where, tmp_path):
    """Whichever of the two configs says so, what counts is what transformers made of it."""
    text = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=where == "there", **SIZES)
    theirs = llava(text=text, tie_word_embeddings=where == "here")
    theirs.save_pretrained(tmp_path)
    ours = MultimodalModel.from_pretrained(tmp_path)
    theirs = loaded(tmp_path)
    tied = theirs.lm_head.weight is theirs.get_input_embeddings().weight
    assert (ours.get_output_embeddings().weight is ours.get_input_embeddings().weight) is tied
    assert ours.config.text_config.tie_word_embeddings is tied
    assert torch.equal(logits(ours), logits(theirs))


def test_generation_is_equal(folder):
    """Settings of the checkpoint included."""
    theirs, ours = loaded(folder), MultimodalModel.from_pretrained(folder)
    assert ours.generation_config.max_new_tokens == 5
    inputs = {name: value[:1] for name, value in batch(images=(1,)).items()}
    assert torch.equal(ours.generate(**inputs), theirs.generate(**inputs))


def test_shards_come_in_and_go_out(folder, tmp_path):
    """Several files, and none of the old ones stays."""
    loaded(folder).save_pretrained(tmp_path / "in", max_shard_size="100KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    ours = MultimodalModel.from_pretrained(tmp_path / "in")
    export_pretrained(ours, tmp_path / "out")
    export_pretrained(ours, tmp_path / "out", max_shard_size="100KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(loaded(folder)))


def test_an_imported_model_is_like_any_other(folder, tmp_path):
    """It saves and loads as a composed model, and the plugins that made it are on record."""
    ours = MultimodalModel.from_pretrained(folder)
    ours.save_pretrained(tmp_path)
    again = MultimodalModel.from_pretrained(tmp_path)
    assert tiny.same(again, tiny.copies(ours))
    assert torch.equal(logits(again), logits(loaded(folder)))
    assert again.config.encoders["vision"].callbacks.name == "cornstarch-vision/llava"
    assert again.config.plugins[0]["used"] == ["callbacks/llava", "encoders/clip"]
    assert again.vision_encoder.projector.config.projection_type == "mlp"


def test_names_in_the_files_are_those_of_published_checkpoints(folder, tmp_path):
    """Others than transformers were written for them."""
    export_pretrained(MultimodalModel.from_pretrained(folder), tmp_path)
    found = names(tmp_path)
    assert len(found) == len(names(folder))
    assert {"language_model.lm_head.weight", "language_model.model.embed_tokens.weight"} <= found
    assert {"vision_tower.vision_model.post_layernorm.bias", "multi_modal_projector.linear_1.bias"} <= found


def test_arguments_of_from_pretrained_are_honoured(folder):
    """dtype, attention, and what transformers says about the loading."""
    ours, info = MultimodalModel.from_pretrained(
        folder, dtype="bfloat16", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values())
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    assert ours.language_model.config._attn_implementation == "eager"
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype="bfloat16", attn_implementation="eager")
    assert torch.equal(logits(ours), logits(theirs))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_importing_copies_no_weight(folder, monkeypatch):
    """The parameters are the very ones that transformers loaded."""
    seen = []
    load = LlavaForConditionalGeneration.from_pretrained

    def spy(*args, **kwargs):
        model, info = load(*args, **kwargs)
        seen.append(dict(model.named_parameters()))
        return model, info

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", spy)
    ours = MultimodalModel.from_pretrained(folder)
    (theirs,) = seen
    assert {id(parameter) for parameter in ours.parameters()} == {id(parameter) for parameter in theirs.values()}


@pytest.mark.parametrize("tie", [True, False])
def test_exporting_copies_no_weight_and_changes_none(tie, tmp_path, monkeypatch):
    """What is saved lies where the model's own weights lie; what was frozen stays frozen."""
    ours = composed(text=tiny.llama(vocab_size=VOCABULARY, tie_word_embeddings=tie))
    ours.set_trainable(encoders={"vision": (False, True)}, language_model=False)
    before, wanted = tiny.copies(ours), [parameter.requires_grad for parameter in ours.parameters()]
    seen = []
    save = LlavaForConditionalGeneration.save_pretrained
    monkeypatch.setattr(
        LlavaForConditionalGeneration,
        "save_pretrained",
        lambda self, *args, **kwargs: (seen.append(pointers(self)), save(self, *args, **kwargs)),
    )
    export_pretrained(ours, tmp_path)
    assert seen == [pointers(ours)]
    assert tiny.same(ours, before)
    assert [parameter.requires_grad for parameter in ours.parameters()] == wanted
    assert torch.equal(logits(loaded(tmp_path)), logits(ours))


# --- compositions of one's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [True, False])
def test_a_placeholder_outside_the_table_gets_a_place_in_it(tie, tmp_path):
    """The same logits for the old vocabulary, the same words generated, and no new token is ever the likeliest."""
    ours = composed(text=tiny.llama(vocab_size=300, tie_word_embeddings=tie), token_id=302)
    export_pretrained(ours, tmp_path)
    theirs = loaded(tmp_path)
    assert theirs.config.image_token_id == 302
    assert theirs.config.text_config.vocab_size == 303
    assert (theirs.lm_head.weight is theirs.get_input_embeddings().weight) is tie
    inputs = batch(token_id=302)
    inputs["input_ids"] %= 303
    got = logits(theirs, **inputs)
    torch.testing.assert_close(got[..., :300], logits(ours, **inputs), rtol=0, atol=1e-6)  # BLAS may round otherwise
    assert (got[..., 300:] < got[..., :300].max(-1, keepdim=True).values).all()
    one = {name: value[:1] for name, value in batch(token_id=302, images=(1,)).items()}
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    assert torch.equal(theirs.generate(**one, **settings), ours.generate(**one, **settings))
    assert len(ours.get_input_embeddings().weight) == 300


@pytest.mark.parametrize("family", ["siglip", "vit", "dinov2"])
def test_towers_of_other_families_go_out(family, tiny_tower, tmp_path):
    """Whatever AutoModel makes again."""
    options = {"drop_tokens": 1} if family == "siglip" else {}
    ours = composed(tiny_tower(family), options=options)
    inputs = batch(TOWERS.get(family, (None, 16))[1])
    export_pretrained(ours, tmp_path)
    assert torch.equal(logits(loaded(tmp_path), **inputs), logits(ours, **inputs))


@pytest.fixture
def tiny_tower(tiny):
    """``tiny_tower(family) -> encoder`` of the width and size of those in ``tiny``."""
    return lambda family: tiny(family, hidden_size=32, intermediate_size=48, num_hidden_layers=3)


def test_a_model_without_ties_of_another_structure_goes_out(tmp_path):
    """GPT-2 has another tree; untied, their class holds it."""
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, tie_word_embeddings=False)
    ours = composed(text=AutoModelForCausalLM.from_config(config).eval())
    export_pretrained(ours, tmp_path)
    assert torch.equal(logits(loaded(tmp_path)), logits(ours))


def test_nothing_of_this_machine_is_in_the_config(tmp_path):
    """No path from which a part was loaded."""
    text = tiny.llama(vocab_size=VOCABULARY)
    text.config._name_or_path = "/home/someone/llama"
    ours = composed(text=text)
    ours.vision_encoder.module.config._name_or_path = "/home/someone/clip"
    export_pretrained(ours, tmp_path)
    assert "someone" not in (tmp_path / "config.json").read_text()
    assert text.config._name_or_path == "/home/someone/llama"


# --- processors -------------------------------------------------------------------------------------------------------

TEXTS_OF_SAMPLES = ["USER: <image>\nWhat is in the picture?", "<image> and <image>", "A cat."]
PICTURES = [words.image(0), words.image(1, (30, 50)), words.image(2, (33, 33))]


def same_as_theirs(ours, theirs):
    """Whether a batch of ours holds what Hugging Face's holds."""
    pixels = ours["encoder_inputs"]["vision"]["pixel_values"]
    return (
        torch.equal(ours["input_ids"], theirs["input_ids"])
        and torch.equal(ours["attention_mask"], theirs["attention_mask"])
        and torch.equal(pixels, theirs["pixel_values"])
    )


def process(processor):
    """Three samples, padded."""
    return processor(text=TEXTS_OF_SAMPLES, images=PICTURES, return_tensors="pt", padding=True)


def test_a_processor_comes_in_and_goes_out(folder, tmp_path):
    """Ids, masks and pixels are equal at every station; so are chats."""
    theirs, ours = LlavaProcessor.from_pretrained(folder), MultimodalProcessor.from_pretrained(folder)
    assert same_as_theirs(process(ours), process(theirs))
    model = MultimodalModel.from_pretrained(folder)
    export_pretrained(model, tmp_path, ours)
    back = LlavaProcessor.from_pretrained(tmp_path)
    assert words.same(dict(process(back)), dict(process(theirs)))
    assert back.to_dict() == theirs.to_dict()
    assert same_as_theirs(process(MultimodalProcessor.from_pretrained(tmp_path)), process(theirs))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompts = [one.apply_chat_template(chat, add_generation_prompt=True) for one in (theirs, ours, back)]
    assert prompts == ["USER: <image>\nWhat is it? ASSISTANT:"] * 3


def test_an_imported_processor_feeds_the_imported_model(folder, tmp_path):
    """The placeholder and its id are the checkpoint's; with the model at hand, too; and it saves as ours."""
    model = MultimodalModel.from_pretrained(folder)
    processor = MultimodalProcessor.from_pretrained(folder, model=model, padding_side="left")
    assert (processor.tokens, processor.token_ids) == ({"vision": "<image>"}, {"vision": IMAGE})
    assert processor.tokenizer.padding_side == "left"
    theirs = LlavaProcessor.from_pretrained(folder, padding_side="left")
    assert torch.equal(logits(model, **process(processor)), logits(loaded(folder), **process(theirs)))
    processor.save_pretrained(tmp_path)
    assert words.same(process(MultimodalProcessor.from_pretrained(tmp_path)), process(processor))


def test_counts_are_right_where_a_checkpoint_counts_wrongly(folder, tmp_path):
    """Older processors lack the number of additional tokens, and count one patch too few."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    llava_processor(num_additional_image_tokens=0).save_pretrained(tmp_path)
    assert same_as_theirs(process(MultimodalProcessor.from_pretrained(tmp_path)), process(llava_processor()))


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_the_processor_of_a_composition_goes_out(tower, strategy, tmp_path):
    """Theirs counts and prepares as ours does, and feeds their model, with a placeholder that was made here."""
    options = {"vision_feature_select_strategy": strategy}
    if strategy == "default" and tower == "siglip":
        options["drop_tokens"] = 1
    ours = composed(getattr(tiny, tower)(), options=options, vocabulary=335)
    processor = MultimodalProcessor(tokenizer=words.tokenizer(bos=True), model=ours, chat_template=words.CHATML)
    export_pretrained(ours, tmp_path, processor)
    theirs, back = loaded(tmp_path), LlavaProcessor.from_pretrained(tmp_path)
    assert back.image_token == "<vision>"
    assert theirs.config.image_token_id == back.image_token_id == processor.token_ids["vision"]
    texts = [text.replace("<image>", "<vision>") for text in TEXTS_OF_SAMPLES]
    batches = [one(text=texts, images=PICTURES, return_tensors="pt", padding=True) for one in (processor, back)]
    assert same_as_theirs(*batches)
    torch.testing.assert_close(logits(theirs, **batches[1])[..., :335], logits(ours, **batches[0]), rtol=0, atol=1e-6)
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path), **batches[0]), logits(theirs, **batches[1]))


# --- what is refused --------------------------------------------------------------------------------------------------


class Squash(nn.Module):
    """A projector of one's own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 64)

    def forward(self, features):
        """Project."""
        return self.linear(features)


def two_encoders():
    """Which LLaVA has not."""
    encoders = {key: ModalEncoderModule(tiny.clip(), callbacks="llava") for key in ("vision", "depth")}
    return MultimodalModel(encoders=encoders, language_model=tiny.llama())


def without_a_token(model):
    """As before a processor was made."""
    model.config.encoders["vision"].token_id = None
    return model


def causal(config):
    """A causal language model."""
    return AutoModelForCausalLM.from_config(config).eval()


REFUSED = {
    "no placeholder": (lambda: without_a_token(composed()), "placeholder has no id; make a MultimodalProcessor"),
    "linear": (lambda: composed(kind="linear"), "projector is of type 'linear'; .* init_projector_type='mlp'"),
    "own linear": (lambda: composed(projector=nn.Linear(32, 64)), "projector is a Linear of your own"),
    "own projector": (lambda: composed(projector=Squash()), "projector is a Squash of your own"),
    "two encoders": (two_encoders, r"2 encoders \(vision, depth\), that class has one"),
    "own callback": (
        lambda: composed(preprocess_callback=lambda inputs: inputs),
        r"callbacks of your own \(preprocess\) stand in place of cornstarch-vision/llava's",
    ),
    "tokens": (
        lambda: composed(tiny.siglip(), options={"drop_tokens": 2}),
        "drops 2 tokens of each image, and that class always drops one .* drop_tokens=1",
    ),
    "no tokens": (lambda: composed(tiny.siglip()), "drops 0 tokens"),
    "prefix": (lambda: composed(DeiTModel(DeiTConfig(**tiny.VISION))), "drops 2 tokens"),
    "pooler": (
        lambda: composed(ViTModel(ViTConfig(**tiny.VISION), add_pooling_layer=False)),
        r"2 of its tensors are missing, .*pooler.dense.bias.* add_pooling_layer=False",
    ),
    "tied under another name": (
        lambda: composed(text=causal(GPT2Config(vocab_size=400, n_embd=64, n_layer=1, n_head=4))),
        "can't be built for a gpt2 model",
    ),
    "unknown to the auto classes": (
        lambda: composed(text=Emu3ForCausalLM(Emu3TextConfig(vocab_size=400, **SIZES))),
        "can't be built for a emu3_text_model model",
    ),
    "no plugin": (
        lambda: composed(HieraModel(HieraConfig(embed_dim=4)), hidden_size=32),
        "no plugin describes HieraModel",
    ),
    "head with a bias": (
        lambda: composed(text=causal(PhiConfig(vocab_size=400, **SIZES))),
        r"1 of its tensors are missing, .*\(lm_head.bias",
    ),
    "capped logits": (
        lambda: composed(text=causal(Gemma2Config(vocab_size=400, head_dim=16, **SIZES))),
        "Gemma2ForCausalLM does more to its logits than to apply its head",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_their_class_can_not_hold_is_refused(case, tmp_path):
    """With the reason and the way out; nothing is written."""
    build, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message):
        export_pretrained(build(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_that_auto_classes_make_otherwise_are_refused(tmp_path):
    """A subclass of a language model's decoder, and a tower with a head."""

    class Mine(type(tiny.llama().model)):
        """The same, but another class."""

    text = tiny.llama(vocab_size=VOCABULARY)
    text.model.__class__ = Mine
    with pytest.raises(CheckpointError, match="its decoder is a Mine, .* makes a LlamaModel"):
        export_pretrained(composed(text=text), tmp_path)
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**tiny.VISION))
    encoder = {"name": "clip", "hidden_size": 32, "input_names": ["pixel_values"]}
    with pytest.raises(CheckpointError, match="vision tower is a CLIPVisionModelWithProjection"):
        export_pretrained(composed(tower, **encoder), tmp_path)


def test_a_projector_of_theirs_with_another_activation_is_refused(folder, tmp_path):
    """Its config would not tell."""
    ours = MultimodalModel.from_pretrained(folder)
    projection = llava(projector_hidden_act="relu").model.multi_modal_projector
    model = composed(ours.vision_encoder.module, ours.language_model, projector=projection)
    with pytest.raises(CheckpointError, match="LlavaMultiModalProjector of your own"):
        export_pretrained(model, tmp_path / "out")


def test_an_image_processor_that_transformers_can_not_load_is_refused(tmp_path):
    """That for one channel is a class of this plugin's."""
    ours = composed(tiny.clip(num_channels=1))
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=ours)
    with pytest.raises(CheckpointError, match="a GrayscaleImageProcessor, which transformers can't load"):
        export_pretrained(ours, tmp_path / "out", processor)
    export_pretrained(ours, tmp_path / "out")
    assert loaded(tmp_path / "out").config.vision_config.num_channels == 1


def test_a_processor_that_theirs_can_not_be_is_refused(tmp_path):
    """Patches that are not square; a tokenizer that has another placeholder of its own."""
    ours = composed(ViTModel(ViTConfig(**{**tiny.VISION, "patch_size": (8, 4)})))
    with pytest.raises(CheckpointError, match=r"counts in square patches, and the tower has \(8, 4\)"):
        export_pretrained(ours, tmp_path / "out", MultimodalProcessor(tokenizer=words.tokenizer(), model=ours))
    ours = composed()
    named = words.tokenizer(extra_special_tokens={"image_token": "<image>"})
    processor = MultimodalProcessor(tokenizer=named, model=ours, tokens={"vision": "<vision>"})
    with pytest.raises(CheckpointError, match=r"names '<image>' as the image token; .* tokens=\{'vision': '<image>'\}"):
        export_pretrained(ours, tmp_path / "out", processor)


def test_checkpoints_that_would_not_be_equal_are_refused(tmp_path):
    """Logits that the language model caps and theirs doesn't; a tower that nobody describes."""
    llava(text=Gemma2Config(vocab_size=VOCABULARY, head_dim=16, **SIZES)).save_pretrained(tmp_path / "gemma")
    with pytest.raises(CheckpointError, match="Gemma2ForCausalLM does more to its logits"):
        MultimodalModel.from_pretrained(tmp_path / "gemma")
    llava(text=PhiConfig(vocab_size=VOCABULARY, **SIZES)).save_pretrained(tmp_path / "phi")
    with pytest.raises(
        CheckpointError, match="PhiForCausalLM does not consist of its decoder, a PhiModel, and its head"
    ):
        MultimodalModel.from_pretrained(tmp_path / "phi")
    sizes = {"dim": 64, "n_layers": 1, "n_heads": 4, "hidden_dim": 64, "tie_word_embeddings": False}
    llava(text=DistilBertConfig(vocab_size=VOCABULARY, **sizes)).save_pretrained(tmp_path / "text")
    with pytest.raises(CheckpointError, match="there is no causal language model for its decoder"):
        MultimodalModel.from_pretrained(tmp_path / "text")
    pixtral = {**tiny.VISION, "head_dim": 16}
    llava(tower=PixtralVisionConfig(**pixtral)).save_pretrained(tmp_path / "pixtral")
    with pytest.raises(CheckpointError, match="no plugin describes its vision tower, a PixtralVisionModel"):
        MultimodalModel.from_pretrained(tmp_path / "pixtral")


def edited(folder, copy, **changes):
    """A copy of a checkpoint whose config says something else."""
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def test_broken_checkpoints_are_refused(folder, tmp_path):
    """A tensor is missing; a file is cut off."""
    copy = edited(folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("multi_modal_projector.linear_1.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 tensors missing from the files .*linear_1.weight"):
        MultimodalModel.from_pretrained(copy)
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="weight file is damaged or cut off"):
        MultimodalModel.from_pretrained(copy)


def test_processors_that_do_not_fit_are_refused(folder, tmp_path):
    """There is none, or the model's placeholder is another token."""
    with pytest.raises(CheckpointError, match="placeholder '<image>' has id .*, the model's is 7"):
        MultimodalProcessor.from_pretrained(edited(folder, tmp_path / "other", image_token_index=7))
    loaded(folder).save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="holds no processor that can be read"):
        MultimodalProcessor.from_pretrained(tmp_path / "bare")


def test_parts_can_not_be_handed_to_an_import(folder):
    """They would be dropped without a word."""
    with pytest.raises(TypeError, match="loaded as it is: without encoders="):
        MultimodalModel.from_pretrained(folder, encoders={"vision": tiny.clip()})


def test_the_registered_target_is_the_family():
    """Under the name of its ``model_type``, and by its callback."""
    registration = registry().lookup("checkpoints", "cornstarch-vision/llava")
    assert registration.spec.callback == "llava"
    assert type(registration.load()) is LlavaFamily
