"""Keywords of a processor: each belongs to one modality, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import words

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import InputError

ITEM = 17  # features of one image: CLS and 16 patches


@pytest.fixture(scope="module")
def processor():
    """For one CLIP encoder; tests must not change it."""
    return words.processor()


def test_media_for_a_modality_that_the_model_lacks_are_refused(processor):
    """Media names raise an InputError, unknown keywords a TypeError. Both messages list the model's modalities."""
    with pytest.raises(InputError, match=r"audio= is given, but this model has vision"):
        processor(text="a", audio=[np.zeros(10)])
    with pytest.raises(TypeError, match=r"nothing takes imagse=; this model has vision"):
        processor(text="a", imagse=[words.image()])
    with pytest.raises(TypeError, match="given twice"):
        processor(text="<vision>", images=words.image(), vision=words.image())
    assert processor(text="a", audio=None, videos=None)["input_ids"].shape[0] == 1


def test_two_image_encoders_have_their_own_inputs():
    """Each has its own placeholder and inputs. A name that could mean both is refused; the message names the keys."""
    model = words.model(keys=("left", "right"))
    processor = words.processor(model=model)
    batch = processor(text="<right> and <left><right>", left=words.image(0), right=[words.image(1), words.image(2)])
    inputs = batch["encoder_inputs"]
    assert [len(inputs[key]["pixel_values"]) for key in ("left", "right")] == [1, 2]
    flat = batch["input_ids"].flatten()
    assert all((flat[inputs[key]["positions"]] == processor.token_ids[key]).all() for key in inputs)
    assert torch.isfinite(model(**batch).logits).all()
    with pytest.raises(TypeError, match="images= could be for any of left, right; use the key, such as left="):
        processor(text="<left>", images=words.image())


def test_a_custom_encoder_under_a_usual_key_takes_the_usual_names():
    """``images=`` means the modality ``vision`` also if no plugin describes the encoder."""
    counting = ModalCallbacks(num_tokens_before_projector=lambda inputs, counts: [4] * len(inputs["signal"]))
    toy = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal", callbacks=counting)
    model = MultimodalModel(encoders={"vision": toy}, language_model=tiny.llama(vocab_size=400))
    processor = words.processor(
        model=model, processors={"vision": lambda items, return_tensors: {"signal": torch.stack(items)}}
    )
    batch = processor(text="<vision> a", images=torch.zeros(4, 5))
    assert model(**batch).logits.shape[1] == 5


def test_options_reach_one_image_processor_of_one_call():
    """Options of one call do not change other calls, other modalities or other processors."""
    one, other = words.processor(keys=("left", "right")), words.processor(keys=("left", "right"))
    media = {"left": words.image(0), "right": words.image(0)}
    usual = other(text="<left><right>", **media)
    changed = one(text="<left><right>", left_kwargs={"do_normalize": False}, **media)
    assert not torch.equal(*(b["encoder_inputs"]["left"]["pixel_values"] for b in (usual, changed)))
    assert torch.equal(*(b["encoder_inputs"]["right"]["pixel_values"] for b in (usual, changed)))
    assert words.same(usual, one(text="<left><right>", **media))
    one.tokens["left"] = "changed"
    assert words.processor(keys=("left", "right")).tokens["left"] == "<left>"


def test_the_sampling_rate_goes_to_feature_extractors_only():
    """A feature extractor with a ``sampling_rate`` gets the rate; an image processor does not."""
    heard = {}

    class Ear:
        sampling_rate = 16_000

        def __call__(self, items, return_tensors, sampling_rate):
            heard["rate"] = sampling_rate
            return {"signal": torch.zeros(len(items), 4, 5)}

    counting = ModalCallbacks(num_tokens_before_projector=lambda inputs, counts: [4] * len(inputs["signal"]))
    toy = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal", callbacks=counting)
    model = MultimodalModel(
        encoders={"audio": toy, "vision": ModalEncoderModule(tiny.clip())}, language_model=tiny.llama(vocab_size=400)
    )
    processor = words.processor(model=model, processors={"audio": Ear()})
    batch = processor(text="<audio><vision>", audio=[[0.1, 0.2]], vision=words.image(), sampling_rate=8_000)
    assert heard == {"rate": 8_000}
    assert model(**batch).logits.shape[1] == 4 + ITEM
