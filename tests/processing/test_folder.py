"""The folder of a saved processor: loaded equals saved, and nothing in a folder is trusted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import words
from transformers import AutoProcessor

from cornstarch_core import ModalCallbacks, MultimodalModel, MultimodalProcessor
from cornstarch_core.errors import CheckpointError, MissingPluginError
from cornstarch_core.processing.folder import is_processor_file


@pytest.mark.parametrize("callbacks", [None, "llava"])
def test_loaded_equals_saved(tmp_path, callbacks):
    """A loaded processor makes the same batches from text and from conversations, without the model."""
    processor = words.processor(callbacks, tokens={"vision": "<image>"}, chat_template=words.TYPED)
    processor.save_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path)
    given = {"text": ["<image> a cat", "a"], "vision": words.image()}
    assert words.same(loaded(**given), processor(**given))
    said = [{"role": "user", "content": [{"type": "image", "image": words.image()}, {"type": "text", "text": "a cat"}]}]
    both = (one.apply_chat_template(said, tokenize=True, return_dict=True) for one in (loaded, processor))
    assert words.same(*both)
    assert loaded.to_json_string() == processor.to_json_string()


def test_model_and_processor_share_a_folder(tmp_path):
    """They can be saved in any order; both load, and ``AutoProcessor`` finds the processor."""
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


def test_a_fresh_process_loads_a_folder(tmp_path):
    """The folder and an import of the core are enough."""
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
    """Files of the old processor are removed; other files stay."""
    words.processor(chat_template=words.CHATML).save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    files = words.processor().save_pretrained(tmp_path)
    assert files == [str(tmp_path / "processor_config.json")]
    assert not (tmp_path / "chat_template.jinja").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "belongs"),
    [
        *(
            (name, True)
            for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja", "chat_templates", "vocab.txt")
        ),
        *(
            (name, False)
            for name in ("config.json", "model.safetensors", "notes.txt", "my-tokenizer.json", "tokenizer.txt")
        ),
    ],
)
def test_files_of_a_processor_are_known_by_name(name, belongs):
    """Files of the model and other files in the same folder do not belong to the processor."""
    assert is_processor_file(name) is belongs


def test_custom_counting_needs_the_model_again(tmp_path):
    """Functions are not saved. The error asks for the model, and with the model it works."""
    model = words.model(ModalCallbacks(num_tokens_before_projector=lambda inputs, counts: counts))
    processor = words.processor(model=model)
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"vision: .*from_pretrained\(folder, model=mllm\)"):
        MultimodalProcessor.from_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path, model=model)
    given = {"text": "<vision>", "vision": words.image()}
    assert words.same(loaded(**given), processor(**given))


def test_custom_preparing_needs_the_model_again(tmp_path):
    """``prepare_on_host`` is not saved either, so the error asks for the model."""
    processor = words.processor(model=words.model(ModalCallbacks(prepare_on_host=dict)))
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="pass the model"):
        MultimodalProcessor.from_pretrained(tmp_path)


def test_loading_takes_options_for_the_tokenizer(tmp_path):
    """``from_pretrained`` passes keywords on to ``AutoTokenizer``."""
    words.processor().save_pretrained(tmp_path)
    processor = MultimodalProcessor.from_pretrained(tmp_path, padding_side="left", local_files_only=True)
    assert processor(text=["a", "a cat"])["attention_mask"].tolist()[0][0] == 0


def test_named_templates_come_back(tmp_path):
    """A dictionary of chat templates is saved as files and loaded again."""
    templates = {"default": words.CHATML, "short": "{{ messages[0].content }}"}
    words.processor(chat_template=templates).save_pretrained(tmp_path)
    assert MultimodalProcessor.from_pretrained(tmp_path).chat_template == templates


def edit(folder, change):
    """Change the saved config."""
    path = folder / "processor_config.json"
    saved = json.loads(path.read_text())
    change(saved)
    path.write_text(json.dumps(saved))


def test_a_missing_plugin_is_named(tmp_path):
    """The error names the plugin that made the folder, and the command that installs it."""
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
        lambda folder: edit(folder, lambda saved: saved["modalities"]["vision"].pop("encoder")),
        lambda folder: edit(folder, lambda saved: saved["modalities"]["vision"]["encoder"].pop("projector")),
        lambda folder: edit(folder, lambda saved: saved["modalities"].update(vision=[])),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage):
    """Whatever file is broken, the error names the folder."""
    words.processor().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        MultimodalProcessor.from_pretrained(tmp_path)
