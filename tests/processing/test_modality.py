"""One modality: how its media are prepared and counted, and how errors name broken items."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import sounds
import tiny
import torch
import words
from PIL import Image

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch_core.errors import CompositionError, MediaError

ITEM = 17  # features of one image: CLS and 16 patches


@pytest.fixture(scope="module")
def processor():
    """For one CLIP encoder; tests must not change it."""
    return words.processor()


# --- preparing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "reason"),
    [(np.full((4, 4, 3), 7.5), "values from 7.5"), (np.zeros((0, 4, 3)), "empty"), ("/no/such.png", "no image file")],
)
def test_a_broken_item_is_named_once(processor, item, reason):
    """Modality, sample and item come before the plugin's reason, once."""
    with pytest.raises(MediaError, match=rf"^vision: sample 1, item 1: (?!.*vision:).*{reason}"):
        processor(text=["<vision>", "<vision><vision>"], vision=[[words.image()], [words.image(), item]])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "F"])
def test_images_of_any_mode_and_of_one_pixel_are_converted(processor, mode):
    """No mode makes the image processor fail."""
    batch = processor(text="<vision>", vision=Image.new(mode, (1, 1)))
    assert batch["encoder_inputs"]["vision"]["pixel_values"].shape == (1, 3, 32, 32)


def test_an_error_of_an_image_processor_names_the_item():
    """The error is wrapped once, with the item that the image processor refuses."""

    def fussy(items, return_tensors):
        if any(item.size == (7, 7) for item in items):
            raise KeyError("seven")
        return {"pixel_values": torch.zeros(len(items), 3, 32, 32)}

    processor = words.processor(processors={"vision": fussy})
    with pytest.raises(MediaError, match="vision: sample 1, item 0: function can't process it: 'seven'"):
        processor(text=["<vision>", "<vision>"], vision=[words.image(), words.image(size=(7, 7))])


def test_only_what_the_encoder_takes_is_passed_on():
    """Further outputs of an image processor are left out, unless there are callbacks, which may read them."""

    def chatty(items, return_tensors):
        return {"pixel_values": torch.zeros(len(items), 3, 32, 32), "names": ["x"] * len(items)}

    plain = words.processor(processors={"vision": chatty})(text="<vision>", vision=words.image())
    assert set(plain["encoder_inputs"]["vision"]) == {"pixel_values", "positions"}
    llava = words.processor("llava", processors={"vision": chatty})(text="<vision>", vision=words.image())
    assert llava["encoder_inputs"]["vision"]["names"] == ["x"]


def test_a_plugin_fits_a_given_processor_to_the_encoder(tmp_path):
    """``wrap`` gets given and loaded processors; the caller's object does not change."""
    from cornstarch_audio.extractors import AudioFeatureExtractor
    from transformers import WhisperFeatureExtractor

    model = MultimodalModel(
        encoders={"ear": ModalEncoderModule(sounds.whisper(), callbacks="audio")},
        language_model=tiny.llama(vocab_size=400),
    )
    given = WhisperFeatureExtractor(feature_size=16, chunk_length=30, dither=0.5)
    processor = words.processor(model=model, processors={"ear": given})
    wrapped = processor.processors["ear"]
    assert isinstance(wrapped, AudioFeatureExtractor)
    assert (wrapped.window, wrapped.extractor.dither) == (sounds.WINDOW, 0.5)
    assert wrapped.extractor is not given
    processor.save_pretrained(tmp_path)
    again = MultimodalProcessor.from_pretrained(tmp_path).processors["ear"]
    assert isinstance(again, AudioFeatureExtractor)
    assert (again.window, again.extractor.dither) == (sounds.WINDOW, 0.5)


def test_an_error_of_a_feature_extractor_names_the_item():
    """Also if only the call for the whole batch fails; the message begins with the user's modality key."""
    model = MultimodalModel(
        encoders={"ear": ModalEncoderModule(tiny_wav2vec2(), callbacks="audio")},
        language_model=tiny.llama(vocab_size=400),
    )
    processor = words.processor(model=model)
    clips = [[sounds.noise(4000)], [sounds.noise(4000), sounds.noise(399)]]
    with pytest.raises(MediaError) as caught:
        processor(text=["<ear>", "<ear> <ear>"], ear=clips)
    assert str(caught.value).startswith("ear: sample 1, item 1: a clip of 399 samples")


def test_an_error_of_counting_names_the_users_modality():
    """The message begins with the modality key, not with the plugin's name of the modality."""
    model = MultimodalModel(
        encoders={"ear": ModalEncoderModule(sounds.whisper())}, language_model=tiny.llama(vocab_size=400)
    )
    short = lambda items, return_tensors: {"input_features": torch.zeros(len(items), 16, 7)}  # noqa: E731
    processor = words.processor(model=model, processors={"ear": short})
    with pytest.raises(MediaError, match="^ear: input_features has a length of 7; this encoder takes 96 only"):
        processor(text="<ear>", ear=sounds.noise(4000))


def tiny_wav2vec2():
    """An encoder that needs 400 samples for its first frame."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Wav2Vec2Model(Wav2Vec2Config(conv_dim=(8,) * 7, **sizes)).eval()


def test_ready_made_embeddings_are_media():
    """Without an encoder, items are embeddings ``(tokens, width)`` of any length."""
    encoder = ModalEncoderModule(None, hidden_size=8)
    model = MultimodalModel(encoders={"memory": encoder}, language_model=tiny.llama(vocab_size=400))
    processor = words.processor(model=model)
    batch = processor(text=["<memory> a", "<memory>"], memory=[torch.ones(3, 8), torch.ones(2, 8)])
    assert batch["encoder_inputs"]["memory"]["positions"].tolist()[:3] == [0, 1, 2]
    assert torch.isfinite(model(**batch).logits).all()
    with pytest.raises(MediaError, match=r"memory: sample 0, item 0: .*\(tokens, 8\) and a float dtype, not \(3, 9\)"):
        processor(text="<memory>", memory=torch.ones(3, 9))


def test_an_encoder_that_no_plugin_knows_needs_a_processor():
    """The error says what to pass. With a processor, a batch with media still needs a count function."""
    toy = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal")
    model = MultimodalModel(encoders={"signal": toy}, language_model=tiny.llama(vocab_size=400))
    with pytest.raises(CompositionError, match=r"signal: no plugin says how to prepare media.*processors="):
        words.processor(model=model)
    processor = words.processor(
        model=model, processors={"signal": lambda items, return_tensors: {"signal": torch.stack(items)}}
    )
    with pytest.raises(CompositionError, match="num_tokens"):
        processor(text="<signal>", signal=torch.zeros(4, 5))


def test_items_that_fail_only_together_are_reported():
    """If each item alone is fine, the message names none of them."""

    def unequal(items, return_tensors):
        sizes = {item.size for item in items}
        if len(sizes) > 1:
            raise ValueError("sizes differ")
        return {"pixel_values": torch.zeros(len(items), 3, 32, 32)}

    processor = words.processor(processors={"vision": unequal})
    with pytest.raises(MediaError, match="vision: function can't process these 2 items together.*sizes differ"):
        processor(text="<vision><vision>", vision=[words.image(), words.image(size=(7, 7))])


def test_a_count_function_with_a_wrong_number_of_counts_is_refused():
    """It must return one count an item; a count for each crop would shift all spans."""
    model = words.model(ModalCallbacks(num_tokens_before_projector=lambda inputs, counts: [*counts, 1]))
    with pytest.raises(CompositionError, match="num_tokens counted 2 items where 1 are given"):
        words.processor(model=model)(text="<vision>", vision=words.image())


# --- counting ---------------------------------------------------------------------------------------------------------


def test_registered_callbacks_are_counted():
    """LLaVA's callback removes CLS, so an image has 16 tokens."""
    model = words.model("llava")
    batch = words.processor(model=model)(text="<vision>", vision=words.image())
    assert batch["input_ids"].shape == (1, ITEM - 1)
    assert model(**batch).logits.shape[1] == ITEM - 1


def test_custom_callbacks_are_counted_by_their_functions():
    """The processor takes the functions from the model's encoder."""

    def halve(inputs, output):
        output.last_hidden_state = output.last_hidden_state[:, 1::2]
        return output

    callbacks = ModalCallbacks(
        postprocess_module=halve, num_tokens_before_projector=lambda inputs, counts: [n // 2 for n in counts]
    )
    model = words.model(callbacks)
    processor = words.processor(model=model)
    batch = processor(text="<vision>", vision=words.image())
    assert batch["input_ids"].shape == (1, 8)
    assert model(**batch).logits.shape[1] == 8


def test_prepare_on_host_runs_before_counting():
    """It runs once a batch, after the image processor; what it adds can be counted by, and is passed on."""
    calls = []

    def prepare(inputs):
        calls.append(sorted(inputs))
        return {**inputs, "kept": [3] * len(inputs["pixel_values"])}

    def keep(inputs, output):
        output.last_hidden_state = output.last_hidden_state[:, : inputs["kept"][0]]
        return output

    callbacks = ModalCallbacks(
        prepare_on_host=prepare,
        postprocess_module=keep,
        num_tokens_before_projector=lambda inputs, counts: inputs["kept"],
        input_names=("kept",),
    )
    model = words.model(callbacks)
    processor = words.processor(model=model)
    batch = processor(text=["<vision>", "<vision><vision>"], vision=[words.image(seed) for seed in range(3)])
    assert calls == [["pixel_values"]]
    assert batch["encoder_inputs"]["vision"]["kept"] == [3, 3, 3]
    assert model(**batch).logits.shape[1] == 6
    processor(text="no media")
    assert len(calls) == 1


def test_prepare_on_host_that_returns_nothing_is_refused():
    """The message names the callback and what it must return."""
    processor = words.processor(model=words.model(ModalCallbacks(prepare_on_host=lambda inputs: None)))
    with pytest.raises(TypeError, match="vision: prepare_on_host= returned None; it must return"):
        processor(text="<vision>", vision=words.image())


def test_a_processor_holds_no_weights():
    """Nothing reachable from a processor is a module or a parameter."""
    pickled = pickle.dumps(words.processor("llava"))
    assert b"nn.modules" not in pickled
    assert len(pickled) < 200_000


def test_a_processor_can_be_pickled(processor):
    """The copy in a data loader's worker makes the same batches."""
    clone = pickle.loads(pickle.dumps(processor))
    assert words.same(
        clone(text="<vision> a", vision=words.image()), processor(text="<vision> a", vision=words.image())
    )
