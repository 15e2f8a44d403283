"""Qwen2-Audio, loaded as a composed model, equals Hugging Face's class with the same weights (CPU, float32).

Hugging Face's class scatters features to expanded placeholders; the tests compare this path. For single placeholders it has
a legacy path, which also changes the padding. Its loss ignores ``num_items_in_batch``, so a test compares the composed
model's loss with a sum over the batch instead.
"""

from __future__ import annotations

import pytest
import sounds
import torch
from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor, WhisperFeatureExtractor

from cornstarch_core import MultimodalModel, MultimodalProcessor

TEXTS = ["<|AUDIO|> What is it?", "<|AUDIO|> and <|AUDIO|>, or a cat <|AUDIO|>?", "A dog and <|AUDIO|> <|AUDIO|>"]
CLIPS = [[9000], [sounds.WINDOW, 321, 5000], [700, 12345]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint in the published format, with its processor; tests must not change it."""
    path = tmp_path_factory.mktemp("qwen2_audio")
    sounds.qwen2_audio().save_pretrained(path)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    extractor.n_samples = sounds.WINDOW
    Qwen2AudioProcessor(extractor, sounds.tokenizer()).save_pretrained(path)
    return path


@pytest.fixture
def pair(folder):
    """Hugging Face's model, the composed model, and the composed model's processor."""
    theirs = Qwen2AudioForConditionalGeneration.from_pretrained(folder).eval()
    ours = MultimodalModel.from_pretrained(folder)
    return theirs, ours, MultimodalProcessor.from_pretrained(folder)


def clips(sizes):
    """Make clips of noise of these lengths; each length has its own noise."""
    return [[sounds.noise(size, seed=size) for size in one] for one in sizes]


def flat(batch, extractor, sizes):
    """Convert our batch to the inputs of Hugging Face's class."""
    features = extractor.extractor(
        [one for sample in clips(sizes) for one in sample],
        sampling_rate=sounds.RATE,
        max_length=sounds.WINDOW,
        return_attention_mask=True,
        return_tensors="pt",
    )
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {
        **text,
        "input_features": features["input_features"],
        "feature_attention_mask": features["attention_mask"],
    }


def both(pair, texts=TEXTS, sizes=CLIPS, **options):
    """Make ``(their batch, our batch)`` for the same samples."""
    _, _, processor = pair
    ours = processor(text=texts, audio=clips(sizes), **options)
    return flat(ours, processor.processors["audio"], sizes), ours


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_loss_and_every_gradient_are_equal(pair, side, attention):
    """Both models agree for one to three clips in a sample, from very short ones to a full window, padded on either side."""
    theirs, ours, _ = pair
    their_batch, our_batch = both(pair, padding_side=side)
    labels = our_batch["input_ids"].masked_fill(our_batch["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == sounds.AUDIO, -100)
    theirs.set_attn_implementation(attention)
    ours.set_attn_implementation(attention)
    expected, given = theirs(**their_batch, labels=labels), ours(**our_batch, labels=labels)
    kept = our_batch["attention_mask"].bool()
    assert torch.equal(given.logits[kept], expected.logits[kept])
    assert torch.allclose(given.loss, expected.loss, atol=1e-6)
    expected.loss.backward()
    given.loss.backward()
    gradients = dict(theirs.named_parameters())
    names = {
        "audio_encoder.module": "model.audio_tower",
        "audio_encoder.projector.projection": "model.multi_modal_projector.linear",
        "language_model.model": "model.language_model",
    }
    compared = 0
    for name, parameter in ours.named_parameters():
        for place, their_place in names.items():
            name = name.replace(place, their_place)
        name = name.replace("language_model.lm_head", "lm_head")
        if gradients[name].grad is None:
            assert parameter.grad is None
            continue
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-6, rtol=1e-5, msg=name)
        compared += 1
    assert compared == sum(parameter.grad is not None for parameter in gradients.values())


def test_flat_inputs_of_hugging_faces_processor_are_accepted(pair):
    """Flat inputs without lists of lengths give the same logits and ids."""
    theirs, ours, _ = pair
    their_batch, our_batch = both(pair)
    with torch.no_grad():
        assert torch.equal(ours(**their_batch).logits, ours(**our_batch).logits)
        generated = [one.generate(**their_batch, max_new_tokens=5, do_sample=False)[:, -5:] for one in (theirs, ours)]
    assert torch.equal(*generated)


def test_the_loss_is_divided_by_num_items_in_batch(pair):
    """The loss is the sum over the tokens divided by ``num_items_in_batch``, which Hugging Face's class ignores."""
    _, ours, _ = pair
    _, batch = both(pair)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == sounds.AUDIO, -100)
    learned = int((labels[:, 1:] != -100).sum())
    with torch.no_grad():
        mean, share = (
            ours(**batch, labels=labels).loss,
            ours(**batch, labels=labels, num_items_in_batch=4 * learned).loss,
        )
    assert torch.allclose(4 * share, mean)


def test_greedy_generation_is_equal_alone_and_batched_with_left_padding(pair):
    """Each sample generates the same ids alone, in a padded batch, and with Hugging Face's class."""
    theirs, ours, processor = pair
    their_batch, our_batch = both(pair, padding_side="left")
    batched = ours.generate(**our_batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(batched, theirs.generate(**their_batch, max_new_tokens=8, do_sample=False))
    for row, (text, sizes) in enumerate(zip(TEXTS, CLIPS, strict=True)):
        alone = processor(text=text, audio=clips([sizes]))
        said = ours.generate(**alone, max_new_tokens=8, do_sample=False)
        assert torch.equal(said[0, -8:], batched[row, -8:])


def test_the_processor_gives_the_batch_of_hugging_faces_processor(pair, folder):
    """The processor gives the ids and the features of Hugging Face's processor."""
    _, _, processor = pair
    theirs = Qwen2AudioProcessor.from_pretrained(folder)
    texts, sizes = TEXTS[:1] * 2, [[9000], [321]]
    expected = theirs(
        text=texts,
        audio=[one for sample in clips(sizes) for one in sample],
        sampling_rate=sounds.RATE,
        max_length=sounds.WINDOW,
        return_tensors="pt",
        padding=True,
    )
    ours = processor(text=texts, audio=clips(sizes))
    assert torch.equal(ours["input_ids"], expected["input_ids"])
    assert torch.equal(ours["encoder_inputs"]["audio"]["input_features"], expected["input_features"])
