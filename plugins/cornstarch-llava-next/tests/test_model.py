"""Whole models: composing, processing, training, saving, loading, generating, and what it costs."""

import pickle
import random

import numpy as np
import pytest
import torch
from cornstarch_llava_next.callbacks import INDEX, SIZES
from cornstarch_llava_next.images import AnyResolutionImages
from PIL import Image
from transformers import LlavaNextProcessor

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch_core.errors import MediaError, MissingPluginError, PlaceholderMismatchError
from cornstarch_core.plugins import reset_registry

PAIRS = [("clip", "mistral"), ("siglip", "llama"), ("dinov2", "qwen2"), ("clip", "gpt2"), ("registers", "llama")]
NEWLINE = "vision_encoder.postprocess_projector_callback.image_newline"
SAMPLES = ([(40, 90)], [], [(64, 64), (20, 180)], [(30, 30), (1, 1), (180, 20)])
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def same(one, other):
    """Whether two batches or state dicts are equal."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if hasattr(one, "items"):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return one == other


# --- the life of a model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_compositions_train_save_load_and_generate(compose, tmp_path, vision, text):
    """The seed's two, and three that Hugging Face has no class for; text-only samples and several images in a batch."""
    composition = compose(vision, text)
    model, batch = composition.model, composition.batch(*SAMPLES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert NEWLINE in changed
    assert any(name.startswith("vision_encoder.module.") for name in changed)

    model.eval().save_pretrained(tmp_path)
    composition.processor.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert same(loaded.state_dict(), model.state_dict())
    assert loaded.config.plugins[0]["used"] == ["callbacks/llava-next"]
    again = MultimodalProcessor.from_pretrained(tmp_path)
    images = [[Image.new("RGB", (90, 40), "red")], [Image.new("RGB", (30, 60))] * 2]
    texts = ["USER: <image> what is", "<image> and <image> in the picture"]
    batch = composition.processor(text=texts, images=images, padding_side="left")
    assert same(again(text=texts, images=images, padding_side="left").data, batch.data)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert torch.equal(loaded.generate(**batch, **GREEDY), model.generate(**batch, **GREEDY))


def test_options_are_saved(compose, tmp_path):
    """They come back with the model, and with the processor alone."""
    options = {
        "image_grid_pinpoints": [[64, 64]],
        "vision_feature_layer": [-2, -1],
        "vision_feature_select_strategy": "full",
        "use_image_newline": False,
    }
    composition = compose("siglip", **options)
    composition.model.save_pretrained(tmp_path / "model")
    composition.processor.save_pretrained(tmp_path / "processor")
    loaded = MultimodalModel.from_pretrained(tmp_path / "model")
    assert loaded.vision_encoder.callback_options == options
    assert NEWLINE not in loaded.state_dict()
    again = MultimodalProcessor.from_pretrained(tmp_path / "processor")
    batch = again(text="<image>", images=Image.new("RGB", (50, 60)))
    assert loaded(**batch).logits.shape[1] == 16 + 8 * 6  # a view, and the 50x60 in 64x64 without its padding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_newline_moves_with_the_model(compose, tmp_path, dtype):
    """To another dtype, and through a folder."""
    composition = compose()
    model = composition.model.to(dtype)
    assert model.get_parameter(NEWLINE).dtype == dtype
    assert model(**composition.batch(*SAMPLES)).logits.dtype == dtype
    model.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert loaded.get_parameter(NEWLINE).dtype == dtype
    assert same(loaded.state_dict(), model.state_dict())


def test_a_newline_of_another_dtype_gives_features_of_the_projectors(compose):
    """As in Hugging Face's model: parts of several dtypes go together."""
    model, batch = (composition := compose()).model, composition.batch(*SAMPLES)
    model.get_parameter(NEWLINE).data = model.get_parameter(NEWLINE).data.double()
    assert model.vision_encoder(**batch["encoder_inputs"]["vision"])[0][0].dtype == torch.float32


def test_a_frozen_part_stays(compose):
    """The newline goes with the projector."""
    model, batch = (composition := compose()).model, composition.batch([(40, 90)])
    for trains in (True, False):
        model.set_trainable(encoders={"vision": (False, trains)}, language_model=True)
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        assert (model.get_parameter(NEWLINE).grad is not None) == trains
        assert all(parameter.grad is None for parameter in model.vision_encoder.module.parameters())


def test_a_projector_with_fewer_tokens(compose, tower):
    """Pixel shuffle makes four tokens one, so a crop has a grid of 2x2."""
    part = ModalEncoderModule(tower("dinov2"), callbacks="llava-next", callback_options={"tokens_per_crop": 4})
    llm = compose().model.language_model
    model = MultimodalModel(
        encoders={"vision": part}, language_model=llm, init_projector_type="pixel_shuffle", init_activation="gelu"
    )
    composition = compose()
    composition.processor = MultimodalProcessor(
        tokenizer=composition.processor.tokenizer, model=model, tokens={"vision": "<image>"}
    )
    batch = composition.batch([(64, 64)])
    assert batch["encoder_inputs"]["vision"]["positions"].shape == (4 + 4 * 5,)
    assert model(**batch).logits.isfinite().all()


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2", "registers"])
@pytest.mark.parametrize("grids", [None, [(1, 1)], [(1, 6), (6, 1), (2, 3), (3, 2)], [(2, 2)]], ids=str)
def test_counted_is_what_the_model_gives(compose, vision, grids):
    """Real images of forty random sizes through the processor and the encoder, each item by itself."""
    composition = compose(vision, image_grid_pinpoints=grids and [[32 * rows, 32 * columns] for rows, columns in grids])
    generator = random.Random(0)
    sizes = [tuple(int(2 ** generator.uniform(0, 8)) for _ in range(2)) for _ in range(40)]
    sizes = [size for size in sizes if max(size) <= 200 * min(size)]
    batch = composition.batch(*([size] for size in sizes))
    with torch.no_grad():
        features = composition.model.vision_encoder(**batch["encoder_inputs"]["vision"]).last_hidden_state
    placeholders = (batch["input_ids"] == composition.processor.token_ids["vision"]).sum(1).tolist()
    assert placeholders == [len(one) for one in features]


@pytest.mark.parametrize(("vision", "strategy", "extra"), [("clip", "default", 1), ("siglip", "full", 0)])
def test_token_ids_and_pixels_are_those_of_llava_nexts_processor(compose, image, tokenizer, vision, strategy, extra):
    """If it is told how many tokens come before the patches: by default it forgets CLS, and is off by one."""
    composition = compose(vision, vision_feature_select_strategy=strategy)
    theirs = LlavaNextProcessor(
        image_processor=AnyResolutionImages().build(composition.model.vision_encoder.info.context),
        tokenizer=composition.processor.tokenizer,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
    )
    generator = random.Random(1)
    sizes = [tuple(generator.randint(1, 200) for _ in range(2)) for _ in range(30)] + [(20, 180), (180, 20)]
    images = [image(size, seed) for seed, size in enumerate(sizes)]
    texts = ["USER: <image> what is in <image> ?"] * (len(sizes) // 2)
    expected = theirs(text=texts, images=images, padding=True, return_tensors="pt")
    ours = composition.processor(text=texts, images=images)
    assert torch.equal(ours["input_ids"], expected["input_ids"])
    assert torch.equal(ours["attention_mask"], expected["attention_mask"])
    with torch.no_grad():
        logits = composition.model(**ours).logits
        assert torch.equal(logits, composition.model(**expected).logits)
    media = ours["encoder_inputs"]["vision"]
    assert torch.equal(media["image_sizes"], expected["image_sizes"])
    assert len(media["pixel_values"]) == sum(crops for crops, _ in media[SIZES])


def test_a_prompt_that_forgets_cls_is_refused(compose, image):
    """Hugging Face's processor with its default settings: the message names sample and item."""
    composition = compose()
    theirs = LlavaNextProcessor(
        image_processor=composition.processor.processors["vision"],
        tokenizer=composition.processor.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
    )
    texts, images = ["a cat", "<image> and <image>"], [image((40, 90)), image((64, 64))]
    batch = theirs(text=texts, images=images, padding=True, return_tensors="pt")
    with pytest.raises(PlaceholderMismatchError, match=r"vision: sample 1, item 1: the prompt has \d+ placeholder"):
        composition.model(**batch)


def test_chat_messages_with_images(compose, image):
    """Interleaved with text, several in a message."""
    processor = compose().processor
    template = (
        "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    parts = [("image", image((40, 90))), ("text", "and"), ("image", image((64, 64))), ("text", "what is")]
    messages = [{"role": "USER:", "content": [{"type": kind, kind: value} for kind, value in parts]}]
    batch = processor.apply_chat_template(messages, template, tokenize=True, return_dict=True)
    direct = processor(text="USER: <image> and <image> what is", images=[parts[0][1], parts[2][1]])
    assert same(batch.data, direct.data)


def test_usual_names_of_media_still_work_for_encoders_of_ones_own(compose, image, tower):
    """That two plugins prepare images changes nothing for an encoder that none of them knows."""

    class Own(torch.nn.Module):
        def forward(self, pixel_values):
            return pixel_values.flatten(2)[:, :, :32]

    from cornstarch_core import ModalCallbacks

    part = ModalEncoderModule(
        Own(),
        hidden_size=32,
        input_names=["pixel_values"],
        callbacks=ModalCallbacks(num_tokens_before_projector=lambda inputs, counts: [3] * len(inputs["pixel_values"])),
    )
    one = compose()
    model = MultimodalModel(encoders={"vision": part}, language_model=one.model.language_model)
    own = MultimodalProcessor(
        processors={"vision": lambda items, return_tensors: {"pixel_values": torch.zeros(len(items), 3, 32, 32)}},
        tokenizer=one.processor.tokenizer,
        model=model,
    )
    assert model(**own(text="<vision> a", images=image((5, 5)))).logits.shape[1] == 4


# --- images of every kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1), (40, 90), (1, 200), (2000, 10)])
def test_images_of_any_mode_and_shape_are_taken(compose, mode, size):
    """Gray, with a palette, transparent; of one pixel, one pixel wide, and up to 200 times as long as wide."""
    composition = compose()
    batch = composition.batch([Image.new(mode, (size[1], size[0]))])
    assert composition.model(**batch).logits.isfinite().all()


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (np.zeros((0, 4, 3), np.uint8), "an empty image"),
        (np.zeros((4, 0), np.uint8), "an empty image"),
        (Image.new("RGB", (10_000, 10)), "10000 pixels wide and 10 high; at most 200:1"),
        (Image.new("L", (10, 10_000)), "10 pixels wide and 10000 high; at most 200:1"),
        ("/no/such.png", "no image file"),
        (7, "int is not an image"),
    ],
    ids=["no height", "no width", "wide", "high", "no file", "no image"],
)
def test_other_images_are_refused_by_name(compose, item, reason):
    """By modality, sample and item, before anything is tiled."""
    with pytest.raises(MediaError, match=rf"^vision: sample 1, item 1: .*{reason}"):
        compose().batch([(5, 5)], [(5, 5), item])


# --- cost -------------------------------------------------------------------------------------------------------------


def test_as_many_operations_for_64_images_as_for_one_and_no_sync(compose, operations):
    """The whole encoder, forward and backward, on a batch from the processor."""
    composition = compose()
    encoder, counts = composition.model.vision_encoder, []
    for images in (1, 64):
        sizes = [(40, 90) if number % 2 else (64, 64) for number in range(images)]
        inputs = composition.batch(sizes)["encoder_inputs"]["vision"]
        operations.names.clear()
        with operations:
            features = torch.cat(encoder(**inputs).last_hidden_state)
            features.backward(torch.ones_like(features))
        counts.append(len(operations.names))
        encoder.zero_grad()
    assert operations.syncs == []
    assert counts[0] == counts[1] > 100


def test_a_training_step_on_a_batch_of_the_processor_makes_no_sync(compose, operations):
    """Nor does the merge; the language model is not asked."""
    composition = compose()
    batch = composition.batch(*SAMPLES)
    composition.model.language_model.forward = lambda inputs_embeds, attention_mask: inputs_embeds
    with operations:
        composition.model(**batch).sum().backward()
    assert operations.syncs == []


def test_the_processor_sends_crops_that_count_and_an_index(compose):
    """No padding is moved to the device, and plain numbers stay on the host."""
    composition = compose()
    batch = composition.batch(*SAMPLES)
    media = batch["encoder_inputs"]["vision"]
    assert media.keys() == {"pixel_values", "image_sizes", INDEX, SIZES, "positions"}
    assert media["pixel_values"].shape == (sum(crops for crops, _ in media[SIZES]), 3, 32, 32)
    moved = batch.to(torch.bfloat16)["encoder_inputs"]["vision"]
    assert (moved["pixel_values"].dtype, moved[INDEX].dtype) == (torch.bfloat16, torch.int64)
    assert moved[SIZES] == media[SIZES]


def test_the_processor_holds_no_weights_and_can_be_sent_to_workers(compose):
    """A copy does the same."""
    composition = compose()
    pickled = pickle.dumps(composition.processor)
    assert b"nn.modules" not in pickled
    composition.processor, batch = pickle.loads(pickled), composition.batch(*SAMPLES)
    assert same(batch.data, composition.batch(*SAMPLES).data)


# --- without the plugin -----------------------------------------------------------------------------------------------


@pytest.fixture
def without_plugin(monkeypatch):
    """A function that switches the plugin off."""

    def switch_off():
        monkeypatch.setenv("CORNSTARCH_DISABLE_PLUGINS", "cornstarch-llava-next")
        reset_registry()

    yield switch_off
    monkeypatch.undo()
    reset_registry()


def test_without_the_plugin_loading_says_what_to_install(compose, tmp_path, without_plugin):
    """The model and the processor, with the exact command."""
    composition = compose()
    composition.model.save_pretrained(tmp_path / "model")
    composition.processor.save_pretrained(tmp_path / "processor")
    without_plugin()
    for cls, folder in ((MultimodalModel, "model"), (MultimodalProcessor, "processor")):
        with pytest.raises(MissingPluginError, match=r'pip install "cornstarch-llava-next>=0\.1,<0\.2"'):
            cls.from_pretrained(tmp_path / folder)


def test_a_missing_distribution_is_told_likewise(compose, tmp_path, monkeypatch):
    """As after ``pip uninstall``: nothing of that name is found."""
    from cornstarch_core.plugins import manager as plugins

    composition = compose()
    composition.model.save_pretrained(tmp_path)
    found = [info for info in plugins.discover() if info.id != "cornstarch-llava-next"]
    monkeypatch.setattr(plugins, "discover", lambda: found)
    reset_registry()
    try:
        with pytest.raises(MissingPluginError, match=r"which is not installed: pip install \"cornstarch-llava-next>="):
            MultimodalModel.from_pretrained(tmp_path)
    finally:
        monkeypatch.undo()
        reset_registry()


def test_the_newline_keeps_its_dtype_through_a_folder(tmp_path):
    """A float32 newline beside a bfloat16 language model is not rounded on the way back."""
    import tiny
    import torch

    from cornstarch_core import ModalEncoderModule, MultimodalModel

    encoder = ModalEncoderModule(tiny.clip(), callbacks="llava-next")
    model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
    model.language_model.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    newline = MultimodalModel.from_pretrained(tmp_path).vision_encoder.postprocess_projector_callback.image_newline
    assert newline.dtype == torch.float32
    assert torch.equal(newline, encoder.postprocess_projector_callback.image_newline)
