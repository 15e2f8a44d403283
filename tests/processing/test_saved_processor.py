"""Image processors and feature extractors come back as they were saved, and no class that a file names is trusted."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
import words
from torch import nn
from transformers import CLIPImageProcessor

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch_core.errors import CheckpointError

ITEM = 17  # features of one image: CLS and 16 patches


def test_settings_of_a_given_image_processor_are_saved(tmp_path):
    """A loaded processor has its class and settings, not those of the plugin's."""
    images = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, do_normalize=False, image_mean=[0.1, 0.2, 0.3]
    )
    words.processor(processors={"vision": images}).save_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path).processors["vision"]
    assert type(loaded) is type(images)
    assert loaded.to_dict() == images.to_dict()


def test_a_plugins_own_class_comes_back(tmp_path):
    """The plugin builds its own image processor for encoders with one channel again, with the saved settings."""
    encoder = ModalEncoderModule(tiny.clip(num_channels=1))
    model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama(vocab_size=400))
    processor = words.processor(model=model)
    processor.processors["vision"].image_mean = [0.25]
    processor.save_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path)
    given = {"text": "<vision>", "vision": words.image()}
    assert words.same(loaded(**given), processor(**given))


def test_the_processor_of_embeddings_comes_back(tmp_path):
    """It is a class of the core; neither a plugin nor transformers is needed."""
    encoder = ModalEncoderModule(None, hidden_size=8)
    model = MultimodalModel(encoders={"memory": encoder}, language_model=tiny.llama(vocab_size=400))
    processor = words.processor(model=model)
    processor.save_pretrained(tmp_path)
    given = {"text": "<memory> a", "memory": torch.ones(3, 8)}
    assert words.same(MultimodalProcessor.from_pretrained(tmp_path)(**given), processor(**given))


def test_a_custom_image_processor_must_be_passed_again(tmp_path):
    """Its class is not imported. The error says how to pass it, and with it loading works."""

    class Mine(nn.Module):
        def __call__(self, items, return_tensors):
            return {"pixel_values": torch.zeros(len(items), 3, 32, 32)}

    words.processor(processors={"vision": Mine()}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"from_pretrained\(folder, processors=\{'vision': the_processor\}\)"):
        MultimodalProcessor.from_pretrained(tmp_path)
    loaded = MultimodalProcessor.from_pretrained(tmp_path, processors={"vision": Mine()})
    assert loaded(text="<vision>", vision=words.image())["input_ids"].shape == (1, ITEM)


@pytest.mark.parametrize("path", ["os:system", "transformers:pipeline", "subprocess:Popen", "transformers.x:AutoModel"])
def test_a_class_in_the_file_is_not_trusted(tmp_path, path):
    """Only processors that transformers exports, or that the plugin builds, are made."""
    words.processor().save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    saved = json.loads(file.read_text())
    saved["modalities"]["vision"]["processor"].update({"class": path, "config": {}})
    file.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError):
        MultimodalProcessor.from_pretrained(tmp_path)
