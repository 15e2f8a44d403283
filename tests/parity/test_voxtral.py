"""Voxtral, loaded as a composed model, equals Hugging Face's class with the same weights (CPU, float32).

Hugging Face's processor prepares audio only with the tokenizer of mistral-common, which is not installed here. Its method
that prepares clips needs no tokenizer, and the tests compare its output.
"""

from __future__ import annotations

import pytest
import sounds
import torch
from transformers import VoxtralForConditionalGeneration, VoxtralProcessor, WhisperFeatureExtractor

from cornstarch_core import MultimodalModel, MultimodalProcessor

TEXTS = ["[AUDIO] What is it?", "[AUDIO] and [AUDIO], or a cat [AUDIO]?", "A dog and [AUDIO] [AUDIO]"]
CLIPS = [[9000], [sounds.WINDOW, 321, 40000], [700, 12345]]  # samples; one clip needs three windows
TOKENS = 12  # tokens of a window: 48 frames, four in each token


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint in the published format, with its processor; tests must not change it."""
    path = tmp_path_factory.mktemp("voxtral")
    sounds.voxtral().save_pretrained(path)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    VoxtralProcessor(extractor, sounds.voxtral_tokenizer()).save_pretrained(path)
    return path


@pytest.fixture
def pair(folder):
    """Hugging Face's model, the composed model, and the composed model's processor."""
    theirs = VoxtralForConditionalGeneration.from_pretrained(folder).eval()
    return theirs, MultimodalModel.from_pretrained(folder), MultimodalProcessor.from_pretrained(folder)


def their_features(folder, sizes):
    """Their processor's features of clips: a row for each window."""
    flat = [clip for sample in sounds.clips(sizes) for clip in sample]
    settings = {"sampling_rate": sounds.RATE, "padding": True, "truncation": False, "return_tensors": "pt"}
    processor = VoxtralProcessor.from_pretrained(folder)
    return processor._retrieve_input_features(flat, 96, pad_to_multiple_of=sounds.WINDOW, **settings)


def both(processor, folder, sizes=CLIPS, **options):
    """Make ``(their batch, our batch)`` for the same samples."""
    ours = processor(text=TEXTS, audio=sounds.clips(sizes), **options)
    return {**sounds.text_of(ours), "input_features": their_features(folder, sizes)}, ours


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_loss_and_every_gradient_are_equal(pair, folder, side, attention):
    """Both models agree for one to three clips in a sample, from very short ones to three windows, padded on either side."""
    theirs, ours, processor = pair
    their_batch, our_batch = both(processor, folder, padding_side=side)
    labels = sounds.labels_of(our_batch, sounds.VOXTRAL_AUDIO)
    theirs.set_attn_implementation(attention)
    ours.set_attn_implementation(attention)
    expected, given = theirs(**their_batch, labels=labels), ours(**our_batch, labels=labels)
    assert torch.equal(given.logits, expected.logits)
    assert torch.equal(given.loss, expected.loss)
    expected.loss.backward()
    given.loss.backward()
    for name, (our_gradient, their_gradient) in sounds.gradients(ours, theirs).items():
        assert (our_gradient is None) is (their_gradient is None), name
        if our_gradient is not None:
            torch.testing.assert_close(our_gradient, their_gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_the_loss_with_num_items_in_batch_is_equal(pair, folder):
    """Both models scale the loss by ``num_items_in_batch``, which a trainer passes when it accumulates gradients."""
    theirs, ours, processor = pair
    their_batch, our_batch = both(processor, folder)
    settings = {"labels": sounds.labels_of(our_batch, sounds.VOXTRAL_AUDIO), "num_items_in_batch": 100}
    with torch.no_grad():
        assert torch.equal(ours(**our_batch, **settings).loss, theirs(**their_batch, **settings).loss)


def test_the_processor_prepares_clips_like_hugging_faces_processor(pair, folder):
    """The features are equal, and a partly filled window has as many tokens as a full one."""
    _, _, processor = pair
    batch = processor(text=TEXTS, audio=sounds.clips(CLIPS))
    assert torch.equal(batch["encoder_inputs"]["audio"]["input_features"], their_features(folder, CLIPS))
    assert (batch["input_ids"] == sounds.VOXTRAL_AUDIO).sum(-1).tolist() == [TOKENS, 5 * TOKENS, 2 * TOKENS]


def test_flat_inputs_of_hugging_faces_processor_are_accepted(pair, folder):
    """Flat inputs without lists of lengths, also for a clip of three windows, give the same logits and ids."""
    theirs, ours, processor = pair
    batch, _ = both(processor, folder, CLIPS, padding_side="left")
    assert len(batch["input_features"]) == 8
    with torch.no_grad():
        assert torch.equal(ours(**batch).logits, theirs(**batch).logits)
    generated = [one.generate(**batch, max_new_tokens=5, do_sample=False) for one in (ours, theirs)]
    assert torch.equal(*generated)


def test_greedy_generation_is_equal_alone_and_batched_with_left_padding(pair, folder):
    """Each sample generates the same ids alone, in a padded batch, and with Hugging Face's class."""
    theirs, ours, processor = pair
    their_batch, our_batch = both(processor, folder, padding_side="left")
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    batched = ours.generate(**our_batch, **settings)
    assert torch.equal(batched, theirs.generate(**their_batch, **settings))
    for row, (text, sizes) in enumerate(zip(TEXTS, CLIPS, strict=True)):
        alone = processor(text=text, audio=sounds.clips([sizes]))
        assert torch.equal(ours.generate(**alone, **settings)[0, -8:], batched[row, -8:])
