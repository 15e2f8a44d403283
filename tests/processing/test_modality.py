"""Media of each modality: how they are given, prepared and counted, and what is said of broken ones."""

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
from cornstarch_core.errors import (
    CheckpointError,
    CompositionError,
    InputError,
    MediaError,
    PlaceholderMismatchError,
)

ITEM = 17  # features of one image: CLS and 16 patches


@pytest.fixture(scope="module")
def processor():
    """For one CLIP encoder; tests must not change it."""
    return words.processor()


# --- media ------------------------------------------------------------------------------------------------------------


def test_media_come_nested_flat_or_single(processor):
    """One list of items a sample, a flat list that the placeholders divide, and None for none mean the same."""
    a, b, c = (words.image(seed) for seed in range(3))
    texts = ["<vision> one", "none", "<vision><vision> two"]
    nested = processor(text=texts, vision=[[a], [], [b, c]])
    assert words.same(nested, processor(text=texts, images=[a, b, c]))
    assert words.same(nested, processor(text=texts, image=[a, None, (b, c)]))
    assert nested["encoder_inputs"]["vision"]["pixel_values"].shape[0] == 3
    assert words.same(processor(text="<vision>", vision=a), processor(text=["<vision>"], images=[[a]]))


@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        (["<vision>", "<vision><vision>"], [[0], [1]], "vision: sample 1: expected 2 items, .*; got 1"),
        (["<vision>", "no"], [[0], [1]], "vision: sample 1: expected 0 items, .*; got 1"),
        (["<vision>", "<vision>"], [0], r"vision: sample 1: expected 2 items, .*; got 1.*too few"),
        (["<vision>"], [0, 1], "vision: sample 0: expected 1 item, .*; got 2.*1 item would be left over"),
        (["a", "<vision>"], None, "vision: sample 1: the text has 1 times the placeholder .* and no items are given"),
        (["<vision>"], [[0], [1]], "vision: media are given for 2 samples, there are 1 texts"),
    ],
)
def test_placeholders_and_items_must_agree(processor, texts, given, message):
    """The error names modality, sample, expected and got, and what to do."""
    media = given and [[words.image(i) for i in one] if isinstance(one, list) else words.image(one) for one in given]
    with pytest.raises(PlaceholderMismatchError, match=message) as caught:
        processor(text=texts, vision=media)
    assert str(caught.value).endswith(".")


def test_media_for_a_modality_that_is_not_there(processor):
    """Audio for a vision model is bad input; a keyword that means nothing is a TypeError. Both list the modalities."""
    with pytest.raises(InputError, match=r"audio= is given, but this model has vision"):
        processor(text="a", audio=[np.zeros(10)])
    with pytest.raises(TypeError, match=r"nothing takes imagse=; this model has vision"):
        processor(text="a", imagse=[words.image()])
    with pytest.raises(TypeError, match="given twice"):
        processor(text="<vision>", images=words.image(), vision=words.image())
    assert processor(text="a", audio=None, videos=None)["input_ids"].shape[0] == 1


def test_two_image_encoders_side_by_side():
    """Each has its own placeholder and inputs; the name that both could take is refused, with the way out."""
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


@pytest.mark.parametrize(
    ("item", "reason"),
    [(np.full((4, 4, 3), 7.5), "values from 7.5"), (np.zeros((0, 4, 3)), "empty"), ("/no/such.png", "no image file")],
)
def test_a_broken_item_is_named_once(processor, item, reason):
    """Modality, sample and item stand before the plugin's reason, once."""
    with pytest.raises(MediaError, match=rf"^vision: sample 1, item 1: (?!.*vision:).*{reason}"):
        processor(text=["<vision>", "<vision><vision>"], vision=[[words.image()], [words.image(), item]])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "F"])
def test_images_of_any_mode_and_of_one_pixel(processor, mode):
    """They are converted, never a crash deep inside."""
    batch = processor(text="<vision>", vision=Image.new(mode, (1, 1)))
    assert batch["encoder_inputs"]["vision"]["pixel_values"].shape == (1, 3, 32, 32)


def test_an_image_processor_that_fails_is_told_with_the_item():
    """An error from deep inside an image processor is wrapped once, with the item that it can't take."""

    def fussy(items, return_tensors):
        if any(item.size == (7, 7) for item in items):
            raise KeyError("seven")
        return {"pixel_values": torch.zeros(len(items), 3, 32, 32)}

    processor = words.processor(processors={"vision": fussy})
    with pytest.raises(MediaError, match="vision: sample 1, item 0: function can't process it: 'seven'"):
        processor(text=["<vision>", "<vision>"], vision=[words.image(), words.image(size=(7, 7))])


def test_only_what_the_encoder_takes_is_passed_on():
    """An encoder would refuse further outputs of an image processor; for callbacks they are kept, tensors or not."""

    def chatty(items, return_tensors):
        return {"pixel_values": torch.zeros(len(items), 3, 32, 32), "names": ["x"] * len(items)}

    plain = words.processor(processors={"vision": chatty})(text="<vision>", vision=words.image())
    assert set(plain["encoder_inputs"]["vision"]) == {"pixel_values", "positions"}
    llava = words.processor("llava", processors={"vision": chatty})(text="<vision>", vision=words.image())
    assert llava["encoder_inputs"]["vision"]["names"] == ["x"]


def test_options_reach_one_image_processor_and_leave_no_trace():
    """Options of one call, or of one processor, don't leak into another."""
    one, other = words.processor(keys=("left", "right")), words.processor(keys=("left", "right"))
    media = {"left": words.image(0), "right": words.image(0)}
    usual = other(text="<left><right>", **media)
    changed = one(text="<left><right>", left_kwargs={"do_normalize": False}, **media)
    assert not torch.equal(*(b["encoder_inputs"]["left"]["pixel_values"] for b in (usual, changed)))
    assert torch.equal(*(b["encoder_inputs"]["right"]["pixel_values"] for b in (usual, changed)))
    assert words.same(usual, one(text="<left><right>", **media))
    one.tokens["left"] = "changed"
    assert words.processor(keys=("left", "right")).tokens["left"] == "<left>"


def test_sampling_rate_goes_to_those_who_know_one():
    """A feature extractor is told the rate; an image processor is not."""
    heard = {}

    class Ear:
        sampling_rate = 16_000

        def __call__(self, items, return_tensors, sampling_rate):
            heard["rate"] = sampling_rate
            return {"signal": torch.zeros(len(items), 4, 5)}

    counting = ModalCallbacks(num_tokens=lambda inputs, counts: [4] * len(inputs["signal"]))
    toy = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal", callbacks=counting)
    model = MultimodalModel(
        encoders={"audio": toy, "vision": ModalEncoderModule(tiny.clip())}, language_model=tiny.llama(vocab_size=400)
    )
    processor = words.processor(model=model, processors={"audio": Ear()})
    batch = processor(text="<audio><vision>", audio=[[0.1, 0.2]], vision=words.image(), sampling_rate=8_000)
    assert heard == {"rate": 8_000}
    assert model(**batch).logits.shape[1] == 4 + ITEM


def test_a_plugin_fits_a_given_processor_to_the_encoder(tmp_path):
    """``ProcessorSpec.wrap`` sees what a user gives, and what is loaded; the caller's own object stays as it is."""
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


def test_what_a_processor_says_of_an_item_comes_with_its_place():
    """Once, under the user's name for the modality, also where only the processor can tell."""
    model = MultimodalModel(
        encoders={"ear": ModalEncoderModule(tiny_wav2vec2(), callbacks="audio")},
        language_model=tiny.llama(vocab_size=400),
    )
    processor = words.processor(model=model)
    clips = [[sounds.noise(4000)], [sounds.noise(4000), sounds.noise(399)]]
    with pytest.raises(MediaError) as caught:
        processor(text=["<ear>", "<ear> <ear>"], ear=clips)
    assert str(caught.value).startswith("ear: sample 1, item 1: a clip of 399 samples")


def test_a_count_that_is_refused_names_the_users_modality():
    """Whatever the plugin calls it."""
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
    """Without an encoder, items are embeddings ``(tokens, width)``, each as long as it is."""
    encoder = ModalEncoderModule(None, hidden_size=8)
    model = MultimodalModel(encoders={"memory": encoder}, language_model=tiny.llama(vocab_size=400))
    processor = words.processor(model=model)
    batch = processor(text=["<memory> a", "<memory>"], memory=[torch.ones(3, 8), torch.ones(2, 8)])
    assert batch["encoder_inputs"]["memory"]["positions"].tolist()[:3] == [0, 1, 2]
    assert torch.isfinite(model(**batch).logits).all()
    with pytest.raises(MediaError, match=r"memory: sample 0, item 0: .*\(tokens, 8\) and a float dtype, not \(3, 9\)"):
        processor(text="<memory>", memory=torch.ones(3, 9))


def test_an_encoder_that_no_plugin_knows_needs_a_processor():
    """The error says what to give; with a function it works, and without counting that is asked for."""
    toy = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal")
    model = MultimodalModel(encoders={"signal": toy}, language_model=tiny.llama(vocab_size=400))
    with pytest.raises(CompositionError, match=r"signal: no plugin says how to prepare media.*processors="):
        words.processor(model=model)
    processor = words.processor(
        model=model, processors={"signal": lambda items, return_tensors: {"signal": torch.stack(items)}}
    )
    with pytest.raises(CompositionError, match="num_tokens"):
        processor(text="<signal>", signal=torch.zeros(4, 5))


def test_an_encoder_of_ones_own_under_a_usual_key_takes_the_usual_names():
    """``images=`` means the modality ``vision`` also where no plugin knows the encoder."""
    counting = ModalCallbacks(num_tokens=lambda inputs, counts: [4] * len(inputs["signal"]))
    toy = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal", callbacks=counting)
    model = MultimodalModel(encoders={"vision": toy}, language_model=tiny.llama(vocab_size=400))
    processor = words.processor(
        model=model, processors={"vision": lambda items, return_tensors: {"signal": torch.stack(items)}}
    )
    batch = processor(text="<vision> a", images=torch.zeros(4, 5))
    assert model(**batch).logits.shape[1] == 5


def test_items_that_do_not_go_together_are_told():
    """Each item alone is fine, but they don't stack: then no item is blamed."""

    def unequal(items, return_tensors):
        sizes = {item.size for item in items}
        if len(sizes) > 1:
            raise ValueError("sizes differ")
        return {"pixel_values": torch.zeros(len(items), 3, 32, 32)}

    processor = words.processor(processors={"vision": unequal})
    with pytest.raises(MediaError, match="vision: function can't process these 2 items together.*sizes differ"):
        processor(text="<vision><vision>", vision=[words.image(), words.image(size=(7, 7))])


def test_a_count_function_that_counts_something_else_is_refused():
    """One count an item; a count for each crop would shift all spans."""
    model = words.model(ModalCallbacks(num_tokens=lambda inputs, counts: [*counts, 1]))
    with pytest.raises(CompositionError, match="num_tokens counted 2 items where 1 are given"):
        words.processor(model=model)(text="<vision>", vision=words.image())


# --- counting ---------------------------------------------------------------------------------------------------------


def test_registered_callbacks_are_counted():
    """LLaVA's callback leaves CLS out, so an image is 16 tokens."""
    model = words.model("llava")
    batch = words.processor(model=model)(text="<vision>", vision=words.image())
    assert batch["input_ids"].shape == (1, ITEM - 1)
    assert model(**batch).logits.shape[1] == ITEM - 1


def test_callbacks_of_ones_own_are_counted_by_their_functions():
    """The functions are taken from the model's encoder; the model itself is not held."""

    def halve(inputs, output):
        output.last_hidden_state = output.last_hidden_state[:, 1::2]
        return output

    callbacks = ModalCallbacks(postprocess_module=halve, num_tokens=lambda inputs, counts: [n // 2 for n in counts])
    model = words.model(callbacks)
    processor = words.processor(model=model)
    batch = processor(text="<vision>", vision=words.image())
    assert batch["input_ids"].shape == (1, 8)
    assert model(**batch).logits.shape[1] == 8


def test_callbacks_work_on_the_batch_before_it_is_counted():
    """Once for all items, right after the image processor; what they add is counted by, and passed on."""
    calls = []

    def process(inputs):
        calls.append(sorted(inputs))
        return {**inputs, "kept": [3] * len(inputs["pixel_values"])}

    def keep(inputs, output):
        output.last_hidden_state = output.last_hidden_state[:, : inputs["kept"][0]]
        return output

    callbacks = ModalCallbacks(
        process=process,
        postprocess_module=keep,
        num_tokens=lambda inputs, counts: inputs["kept"],
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


def test_what_callbacks_do_to_a_batch_is_not_saved(tmp_path):
    """A function of one's own, as those that count: the processor needs the model to come back."""
    processor = words.processor(model=words.model(ModalCallbacks(process=dict)))
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="pass the model"):
        MultimodalProcessor.from_pretrained(tmp_path)


def test_a_process_callback_that_returns_nothing_is_named():
    """The message says which, and what it has to return."""
    processor = words.processor(model=words.model(ModalCallbacks(process=lambda inputs: None)))
    with pytest.raises(TypeError, match="vision: process= returned None; it must return"):
        processor(text="<vision>", vision=words.image())


def test_no_weights_are_held():
    """Nothing reachable from a processor is a module or a parameter."""
    pickled = pickle.dumps(words.processor("llava"))
    assert b"nn.modules" not in pickled
    assert len(pickled) < 200_000


def test_it_can_be_sent_to_another_process(processor):
    """A data loader's worker gets a copy that does the same."""
    clone = pickle.loads(pickle.dumps(processor))
    assert words.same(
        clone(text="<vision> a", vision=words.image()), processor(text="<vision> a", vision=words.image())
    )
