"""Saving and loading processors: loaded equals saved, and nothing in a folder is trusted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny
import torch
import words
from torch import nn
from transformers import AutoProcessor, CLIPImageProcessor

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch_core.errors import (
    CheckpointError,
    CompositionError,
    MissingPluginError,
)

ITEM = 17  # features of one image: CLS and 16 patches


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callbacks", [None, "llava"])
def test_loaded_equals_saved(tmp_path, callbacks):
    """A folder of its own, without the model: the same batch for the same input, from text and from chat."""
    processor = words.processor(callbacks, tokens={"vision": "<image>"}, chat_template=words.TYPED)
    processor.save_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path)
    given = {"text": ["<image> a cat", "a"], "vision": words.image()}
    assert words.same(loaded(**given), processor(**given))
    said = [{"role": "user", "content": [{"type": "image", "image": words.image()}, {"type": "text", "text": "a cat"}]}]
    both = (one.apply_chat_template(said, tokenize=True, return_dict=True) for one in (loaded, processor))
    assert words.same(*both)
    assert loaded.to_json_string() == processor.to_json_string()


def test_settings_of_a_given_image_processor_are_saved(tmp_path):
    """Its class and its own settings come back, not those of the plugin."""
    images = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, do_normalize=False, image_mean=[0.1, 0.2, 0.3]
    )
    words.processor(processors={"vision": images}).save_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path).processors["vision"]
    assert type(loaded) is type(images)
    assert loaded.to_dict() == images.to_dict()


def test_a_plugins_own_class_comes_back(tmp_path):
    """The image processor for encoders with one channel is the plugin's: it is built by the plugin again."""
    encoder = ModalEncoderModule(tiny.clip(num_channels=1))
    model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama(vocab_size=400))
    processor = words.processor(model=model)
    processor.processors["vision"].image_mean = [0.25]
    processor.save_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path)
    given = {"text": "<vision>", "vision": words.image()}
    assert words.same(loaded(**given), processor(**given))


def test_model_and_processor_share_a_folder(tmp_path):
    """Either may be saved first; both load, and ``AutoProcessor`` finds the processor."""
    model = words.model("llava")
    processor = words.processor(model=model, chat_template=words.CHATML)
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = MultimodalModel.from_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, MultimodalProcessor)
    assert loaded.token_ids == again.config.modality_token_ids
    batch = loaded(text="<vision> a cat", images=words.image())
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)


def test_a_fresh_process_loads_it(tmp_path):
    """Nothing but the folder and the import is needed."""
    words.processor("llava").save_pretrained(tmp_path)
    code = (
        "import sys; from transformers import AutoProcessor; from cornstarch_core import MultimodalProcessor\n"
        "import PIL.Image\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1])\n"
        "print(processor(text='<vision>', images=PIL.Image.new('RGB', (9, 9)))['input_ids'].shape[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["16"]


def test_saving_again_replaces_the_old_tokenizer_and_keeps_other_files(tmp_path):
    """Files of the old processor don't survive; those of others do."""
    words.processor(chat_template=words.CHATML).save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    files = words.processor().save_pretrained(tmp_path)
    assert files == [str(tmp_path / "processor_config.json")]
    assert not (tmp_path / "chat_template.jinja").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_counting_of_ones_own_needs_the_model_again(tmp_path):
    """A function isn't saved; the error says how to pass the model, and with it it works."""
    model = words.model(ModalCallbacks(num_tokens=lambda inputs, counts: counts))
    processor = words.processor(model=model)
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"vision: .*from_pretrained\(folder, model=mllm\)"):
        MultimodalProcessor.from_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path, model=model)
    given = {"text": "<vision>", "vision": words.image()}
    assert words.same(loaded(**given), processor(**given))


def test_an_image_processor_of_ones_own_is_to_be_passed_again(tmp_path):
    """A class that a file names is never imported."""

    class Mine(nn.Module):
        def __call__(self, items, return_tensors):
            return {"pixel_values": torch.zeros(len(items), 3, 32, 32)}

    words.processor(processors={"vision": Mine()}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"from_pretrained\(folder, processors=\{'vision': the_processor\}\)"):
        MultimodalProcessor.from_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path, processors={"vision": Mine()})
    assert loaded(text="<vision>", vision=words.image())["input_ids"].shape == (1, ITEM)


def test_loading_takes_options_for_the_tokenizer(tmp_path):
    """As ``AutoTokenizer`` takes them."""
    words.processor().save_pretrained(tmp_path)
    processor = MultimodalProcessor.from_pretrained(tmp_path, padding_side="left", local_files_only=True)
    assert processor(text=["a", "a cat"])["attention_mask"].tolist()[0][0] == 0


def test_embeddings_come_back(tmp_path):
    """The core's own processor of ready-made embeddings needs neither plugin nor transformers."""
    encoder = ModalEncoderModule(None, hidden_size=8)
    model = MultimodalModel(encoders={"memory": encoder}, language_model=tiny.llama(vocab_size=400))
    processor = words.processor(model=model)
    processor.save_pretrained(tmp_path)
    given = {"text": "<memory> a", "memory": torch.ones(3, 8)}
    assert words.same(MultimodalProcessor.from_pretrained(tmp_path)(**given), processor(**given))


def test_named_templates_come_back(tmp_path):
    """A dictionary of templates is saved as files."""
    templates = {"default": words.CHATML, "short": "{{ messages[0].content }}"}
    words.processor(chat_template=templates).save_pretrained(tmp_path)
    assert MultimodalProcessor.from_pretrained(tmp_path).chat_template == templates


def edit(folder, change):
    """Change the saved config."""
    path = folder / "processor_config.json"
    saved = json.loads(path.read_text())
    change(saved)
    path.write_text(json.dumps(saved))


@pytest.mark.parametrize("path", ["os:system", "transformers:pipeline", "subprocess:Popen", "transformers.x:AutoModel"])
def test_a_class_in_the_file_is_not_trusted(tmp_path, path):
    """Whatever a file names as class, only what transformers exports as a processor, or the plugin builds, is made."""
    words.processor().save_pretrained(tmp_path)
    edit(tmp_path, lambda saved: saved["modalities"]["vision"]["processor"].update({"class": path, "config": {}}))
    with pytest.raises(CheckpointError):
        MultimodalProcessor.from_pretrained(tmp_path)


def test_a_missing_plugin_is_named(tmp_path):
    """With what to install."""
    words.processor().save_pretrained(tmp_path)
    edit(tmp_path, lambda saved: saved["plugins"][0].update(distribution="cornstarch-smell"))
    with pytest.raises(MissingPluginError, match='pip install "cornstarch-smell'):
        MultimodalProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "processor_config.json").unlink(),
        lambda folder: (folder / "processor_config.json").write_text('{"modalities": '),
        lambda folder: (folder / "processor_config.json").write_text('{"image_processor": {}}'),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: edit(folder, lambda saved: saved["modalities"]["vision"].pop("recipe")),
        lambda folder: edit(folder, lambda saved: saved["modalities"]["vision"]["recipe"].pop("projector")),
        lambda folder: edit(folder, lambda saved: saved["modalities"].update(vision=[])),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage):
    """One clear error, whichever file is broken."""
    words.processor().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        MultimodalProcessor.from_pretrained(tmp_path)


def test_a_config_is_as_good_as_the_model():
    """Counting needs no weights: ``model=mllm.config`` gives the same processor."""
    model = words.model("llava")
    one, other = (words.processor(model=given) for given in (model, model.config))
    given = {"text": "<vision>", "vision": words.image()}
    assert words.same(one(**given), other(**given))
    with pytest.raises(TypeError, match=r"model= must be a MultimodalModel.*from_pretrained"):
        MultimodalProcessor(tokenizer=words.tokenizer())
    with pytest.raises(TypeError, match="tokenizer= is missing"):
        MultimodalProcessor(model=model)


def test_a_config_does_not_know_callbacks_of_ones_own():
    """They may change the counts, so the model itself is asked for."""
    model = words.model(ModalCallbacks(postprocess_module=lambda inputs, output: output))
    with pytest.raises(CompositionError, match="vision: .*give model= the model itself"):
        words.processor(model=model.config)
