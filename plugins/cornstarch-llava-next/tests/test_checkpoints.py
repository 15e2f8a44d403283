"""LLaVA-NeXT checkpoints of Hugging Face, in and out, equal to the bit. What they share with LLaVA's is tested there."""

import json

import pytest
import tiny
import torch
import words
from cornstarch_llava_next.checkpoints import LlavaNextFamily
from safetensors import safe_open
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch_core.errors import CheckpointError, CompositionError
from cornstarch_core.interop import export_pretrained
from cornstarch_core.plugins import registry

VOCABULARY = 400
CROP = tiny.VISION["image_size"]
PINPOINTS = [[CROP, 2 * CROP], [2 * CROP, CROP], [2 * CROP, 2 * CROP]]
# Hugging Face's model runs no other strategies: a CLS token, or a patch less, leaves no grid.
TOWERS = {"clip": (CLIPVisionConfig, "default"), "siglip": (SiglipVisionConfig, "full")}
TEXTS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
CASES = [(tower, text, tie) for tower in TOWERS for text in TEXTS for tie in (False, True)]
TEXTS_OF_SAMPLES = ["USER: <image>\nWhat is in the picture?", "<image> and <image>", "A cat."]
PICTURES = [words.image(0, (90, 30)), words.image(1, (30, 50)), words.image(2, (33, 33))]


def tokenizer():
    """One that knows ``<image>``, with the id that it has in :func:`llava_next`."""
    made = words.tokenizer(bos=True)
    made.add_special_tokens({"extra_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    return made


IMAGE = tokenizer().convert_tokens_to_ids("<image>")


def llava_next(tower="clip", text="llama", tie=False, **changes):
    """Hugging Face's model with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
    settings = {"image_grid_pinpoints": PINPOINTS, "vision_feature_select_strategy": TOWERS[tower][1], **changes}
    config = LlavaNextConfig(
        vision_config=TOWERS[tower][0](**tiny.VISION),
        text_config=TEXTS[text](num_hidden_layers=2, tie_word_embeddings=tie, **sizes, **tokens),
        image_token_index=IMAGE,
        tie_word_embeddings=tie,
        **settings,
    )
    return LlavaNextForConditionalGeneration(config).eval()


def llava_next_processor(tower="clip"):
    """Hugging Face's processor for :func:`llava_next`."""
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": CROP}, crop_size={"height": CROP, "width": CROP}, image_grid_pinpoints=PINPOINTS
    )
    strategy = TOWERS[tower][1]
    extra = {"num_additional_image_tokens": int(tower == "clip"), "vision_feature_select_strategy": strategy}
    return LlavaNextProcessor(images, tokenizer(), patch_size=8, chat_template=words.TYPED, **extra)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as it is published: CLIP and Llama, with its processor. Not to be written to."""
    path = tmp_path_factory.mktemp("llava_next")
    llava_next().save_pretrained(path)
    llava_next_processor().save_pretrained(path)
    return path


def composed(module=None, options=None, vocabulary=VOCABULARY, **changes):
    """A composition of one's own."""
    module = tiny.clip() if module is None else module
    encoder = ModalEncoderModule(module, callbacks="llava-next", callback_options=options or {}, **changes)
    text = tiny.llama(vocab_size=vocabulary)
    model = MultimodalModel(encoders={"vision": encoder}, language_model=text, init_projector_type="mlp").eval()
    model.set_modality_token_ids({"vision": IMAGE})
    return model


def process(processor, token="<image>"):
    """Three samples, with one, two and no images, padded."""
    texts = [text.replace("<image>", token) for text in TEXTS_OF_SAMPLES]
    return processor(text=texts, images=PICTURES, return_tensors="pt", padding=True)


def logits(model, inputs):
    """What a model says to a batch."""
    with torch.no_grad():
        return model(**inputs).logits


def loaded(path):
    """Hugging Face's model out of a folder in which nothing is missing, and nothing too much."""
    model, info = LlavaNextForConditionalGeneration.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return model


def same_as_theirs(ours, theirs):
    """Whether a batch of ours holds what Hugging Face's holds: its crops without the padding."""
    vision = ours["encoder_inputs"]["vision"]
    crops = [crops for crops, _ in vision["packing_sizes"]]
    kept = torch.cat([pixels[:count] for pixels, count in zip(theirs["pixel_values"], crops, strict=True)])
    return (
        torch.equal(ours["input_ids"], theirs["input_ids"])
        and torch.equal(ours["attention_mask"], theirs["attention_mask"])
        and torch.equal(vision["pixel_values"], kept)
        and torch.equal(vision["image_sizes"], theirs["image_sizes"])
    )


# --- in, and out again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tower", "text", "tie"), CASES)
def test_import_and_export_are_equal(tower, text, tie, tmp_path):
    """In: logits. Out: logits and every tensor, the newline among them. In again: every tensor of ours."""
    theirs = llava_next(tower, text, tie)
    theirs.save_pretrained(tmp_path / "theirs")
    inputs = process(llava_next_processor(tower))
    expected = logits(theirs, inputs)
    ours = MultimodalModel.from_pretrained(tmp_path / "theirs")
    assert torch.equal(logits(ours, inputs), expected)
    export_pretrained(ours, tmp_path / "out")
    back = loaded(tmp_path / "out")
    assert tiny.same(back, tiny.copies(theirs))
    assert torch.equal(logits(back, inputs), expected)
    loaded(tmp_path / "theirs").save_pretrained(tmp_path / "again")
    config = {**json.loads((tmp_path / "again" / "config.json").read_text()), "image_seq_length": 16}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path / "out"), tiny.copies(ours))


@pytest.mark.parametrize("changes", [{"vision_feature_layer": [-2, -1]}, {"multimodal_projector_bias": False}])
def test_every_setting_comes_in_and_goes_out(changes, tmp_path):
    """Layers, and a projector without biases."""
    theirs = llava_next(projector_hidden_act="silu", **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, inputs = MultimodalModel.from_pretrained(tmp_path / "theirs"), process(llava_next_processor())
    assert torch.equal(logits(ours, inputs), logits(theirs, inputs))
    export_pretrained(ours, tmp_path / "out")
    assert torch.equal(logits(loaded(tmp_path / "out"), inputs), logits(theirs, inputs))


def test_generation_is_equal(folder):
    """Greedy, with an image of several crops."""
    theirs, ours = loaded(folder), MultimodalModel.from_pretrained(folder)
    inputs = llava_next_processor()(text=TEXTS_OF_SAMPLES[0], images=PICTURES[0], return_tensors="pt")
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    assert torch.equal(ours.generate(**inputs, **settings), theirs.generate(**inputs, **settings))


def test_shards_come_in_and_go_out(folder, tmp_path):
    """Several files."""
    loaded(folder).save_pretrained(tmp_path / "in", max_shard_size="100KB")
    export_pretrained(MultimodalModel.from_pretrained(tmp_path / "in"), tmp_path / "out", max_shard_size="100KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert tiny.same(loaded(tmp_path / "out"), tiny.copies(loaded(folder)))


def test_an_imported_model_is_like_any_other(folder, tmp_path):
    """It saves and loads as a composed model, newline included."""
    ours = MultimodalModel.from_pretrained(folder)
    ours.save_pretrained(tmp_path)
    again = MultimodalModel.from_pretrained(tmp_path)
    assert tiny.same(again, tiny.copies(ours))
    assert again.config.encoders["vision"].callbacks.options["image_grid_pinpoints"] == PINPOINTS


def test_no_weight_is_copied(folder, tmp_path, monkeypatch):
    """In: the parameters that transformers loaded. Out: what is saved lies where the model's weights lie."""
    seen = []
    load, save = LlavaNextForConditionalGeneration.from_pretrained, LlavaNextForConditionalGeneration.save_pretrained

    def load_spy(*args, **kwargs):
        model, info = load(*args, **kwargs)
        seen.append({parameter.data_ptr() for parameter in model.parameters()})
        return model, info

    def save_spy(self, *args, **kwargs):
        seen.append({parameter.data_ptr() for parameter in self.parameters()})
        save(self, *args, **kwargs)

    monkeypatch.setattr(LlavaNextForConditionalGeneration, "from_pretrained", load_spy)
    monkeypatch.setattr(LlavaNextForConditionalGeneration, "save_pretrained", save_spy)
    ours = MultimodalModel.from_pretrained(folder)
    export_pretrained(ours, tmp_path)
    assert seen == [{parameter.data_ptr() for parameter in ours.parameters()}] * 2


def test_names_in_the_files_are_those_of_published_checkpoints(folder, tmp_path):
    """Others than transformers were written for them."""
    export_pretrained(MultimodalModel.from_pretrained(folder), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
    assert {"image_newline", "language_model.lm_head.weight", "vision_tower.vision_model.post_layernorm.bias"} <= names


# --- processors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", TOWERS)
def test_a_processor_comes_in_and_goes_out(tower, tmp_path):
    """Ids, masks, crops and sizes are equal at every station; so are chats."""
    theirs = llava_next_processor(tower)
    llava_next(tower).save_pretrained(tmp_path / "theirs")
    theirs.save_pretrained(tmp_path / "theirs")
    model, ours = (one.from_pretrained(tmp_path / "theirs") for one in (MultimodalModel, MultimodalProcessor))
    assert same_as_theirs(process(ours), process(theirs))
    assert torch.equal(logits(model, process(ours)), logits(model, process(theirs)))
    export_pretrained(model, tmp_path / "out", ours)
    back = LlavaNextProcessor.from_pretrained(tmp_path / "out")
    assert words.same(dict(process(back)), dict(process(theirs)))
    assert back.to_dict() == LlavaNextProcessor.from_pretrained(tmp_path / "theirs").to_dict()
    assert same_as_theirs(process(MultimodalProcessor.from_pretrained(tmp_path / "out")), process(theirs))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    assert len({one.apply_chat_template(chat) for one in (theirs, ours, back)}) == 1


@pytest.mark.parametrize("tower", TOWERS)
def test_a_composition_goes_out_with_its_processor(tower, tmp_path):
    """Default pinpoints are written down; the placeholder gets a place in the table."""
    options = {"vision_feature_select_strategy": TOWERS[tower][1]}
    ours = composed(getattr(tiny, tower)(), options, vocabulary=335)
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=ours)
    export_pretrained(ours, tmp_path, processor)
    theirs, back = loaded(tmp_path), LlavaNextProcessor.from_pretrained(tmp_path)
    grids = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
    assert theirs.config.image_grid_pinpoints == [[rows * CROP, columns * CROP] for rows, columns in grids]
    batches = [process(one, "<vision>") for one in (processor, back)]
    assert same_as_theirs(*batches)
    got = logits(theirs, batches[1])[..., :335]
    torch.testing.assert_close(got, logits(ours, batches[0]), rtol=0, atol=1e-6)  # BLAS may round otherwise
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path), batches[0]), logits(theirs, batches[1]))


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "newline": (lambda: composed(options={"use_image_newline": False}), "that class always has newlines"),
    "tokens per crop": (lambda: composed(options={"tokens_per_crop": 16}), "tokens_per_crop is given"),
    "projector": (lambda: composed(projector=torch.nn.Linear(32, 64)), "projector is a Linear of your own"),
    "own callback": (lambda: composed(preprocess_callback=lambda inputs: inputs), "callbacks of your own"),
    "tokens": (lambda: composed(tiny.siglip()), "drops 0 tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_their_class_can_not_hold_is_refused(case, tmp_path):
    """With the reason; nothing is written."""
    build, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=f"LlavaNextForConditionalGeneration can't hold this model: .*{message}"):
        export_pretrained(build(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_processor_for_other_pinpoints_is_refused(tmp_path):
    """Their processor would count for one, their model pack for the other."""
    ours = composed()
    other = LlavaNextImageProcessorPil(image_grid_pinpoints=PINPOINTS)
    processor = MultimodalProcessor({"vision": other}, words.tokenizer(), ours)
    with pytest.raises(
        CheckpointError, match="its image processor tiles for image_grid_pinpoints=.*Leave 'vision' out"
    ):
        export_pretrained(ours, tmp_path / "out", processor)


def test_a_checkpoint_that_their_own_class_can_not_run_is_refused(tmp_path):
    """SigLIP has no CLS to drop: a patch less leaves no grid."""
    llava_next("siglip", vision_feature_select_strategy="default").save_pretrained(tmp_path)
    with pytest.raises(CompositionError, match="a crop has 15 tokens"):
        MultimodalModel.from_pretrained(tmp_path)


def test_the_registered_target_is_the_family():
    """Under the name of its ``model_type``, and by its callback."""
    registration = registry().lookup("checkpoints", "cornstarch-llava-next/llava_next")
    assert registration.spec.callback == "llava-next"
    assert type(registration.load()) is LlavaNextFamily
