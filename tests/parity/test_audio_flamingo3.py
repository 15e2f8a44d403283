"""Audio Flamingo 3, loaded as a composed model, equals Hugging Face's class with the same weights (CPU, float32).

Hugging Face's processor takes one clip for each sample. Batches with more clips are compared with the output of its
feature extractor.
"""

from __future__ import annotations

import pytest
import sounds
import torch
from transformers import AudioFlamingo3ForConditionalGeneration, AudioFlamingo3Processor, WhisperFeatureExtractor

from cornstarch_core import MultimodalModel, MultimodalProcessor

TEXTS = ["<sound> What is it?", "<sound> and <sound>, or a cat <sound>?", "A dog and <sound> <sound>"]
CLIPS = [[9000], [sounds.SECOND, 321, 40000], [700, 12345]]  # samples; one clip needs three windows
LONG = [40000, 2 * sounds.SECOND, sounds.SECOND + 1, 5000]  # the rest of the third clip is too short for a frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint in the published format, with its processor; tests must not change it."""
    path = tmp_path_factory.mktemp("audio_flamingo3")
    sounds.audio_flamingo3().save_pretrained(path)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    AudioFlamingo3Processor(extractor, sounds.tokenizer("<sound>")).save_pretrained(path)
    return path


@pytest.fixture
def pair(folder):
    """Hugging Face's model, the composed model, and the composed model's processor."""
    theirs = AudioFlamingo3ForConditionalGeneration.from_pretrained(folder).eval()
    return theirs, MultimodalModel.from_pretrained(folder), MultimodalProcessor.from_pretrained(folder)


def both(processor, **options):
    """Make ``(their batch, our batch)`` for the same samples."""
    ours = processor(text=TEXTS, audio=sounds.clips(CLIPS), **options)
    rows = [
        clip[start : start + sounds.SECOND]
        for sample in sounds.clips(CLIPS)
        for clip in sample
        for start in range(0, len(clip), sounds.SECOND)
    ]
    extractor = processor.processors["audio"].extractor
    features = extractor(rows, sampling_rate=sounds.RATE, return_attention_mask=True, return_tensors="pt")
    audio = {"input_features": features["input_features"], "input_features_mask": features["attention_mask"]}
    return {**sounds.text_of(ours), **audio}, ours


def of_their_processor(folder, sizes, **options):
    """Their processor's batch for a clip of each of these lengths."""
    processor = AudioFlamingo3Processor.from_pretrained(folder)
    return processor(
        text=TEXTS[:1] * len(sizes), audio=[clip for (clip,) in sounds.clips([[s] for s in sizes])], **options
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_loss_and_every_gradient_are_equal(pair, side, attention):
    """Both models agree for one to three clips in a sample, from very short ones to three windows, padded on either side."""
    theirs, ours, processor = pair
    their_batch, our_batch = both(processor, padding_side=side)
    labels = sounds.labels_of(our_batch, sounds.AUDIO)
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


def test_the_loss_with_num_items_in_batch_is_equal(pair):
    """Both models scale the loss by ``num_items_in_batch``, which a trainer passes when it accumulates gradients."""
    theirs, ours, processor = pair
    their_batch, our_batch = both(processor)
    settings = {"labels": sounds.labels_of(our_batch, sounds.AUDIO), "num_items_in_batch": 100}
    with torch.no_grad():
        assert torch.equal(ours(**our_batch, **settings).loss, theirs(**their_batch, **settings).loss)


def test_flat_inputs_of_hugging_faces_processor_are_accepted(pair, folder):
    """Flat inputs without lists of lengths, also for clips of several windows, give the same logits and ids."""
    theirs, ours, _ = pair
    batch = of_their_processor(folder, LONG)
    with torch.no_grad():
        assert torch.equal(ours(**batch).logits, theirs(**batch).logits)
    generated = [one.generate(**batch, max_new_tokens=5, do_sample=False) for one in (ours, theirs)]
    assert torch.equal(*generated)


def test_the_processor_gives_the_batch_of_hugging_faces_processor(pair, folder):
    """Ids, features and mask are equal for clips of one to three windows; a window without a frame is left out here."""
    _, ours, processor = pair
    sizes = [size for size in LONG if size != sounds.SECOND + 1]
    theirs = of_their_processor(folder, sizes)
    batch = processor(text=TEXTS[:1] * len(sizes), audio=sounds.clips([[s] for s in sizes]), padding_side="left")
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batch[name], theirs[name])
    for name in ("input_features", "input_features_mask"):
        assert torch.equal(batch["encoder_inputs"]["audio"][name], theirs[name])
    theirs = of_their_processor(folder, [sounds.SECOND + 1])
    batch = processor(text=TEXTS[0], audio=sounds.clips([[sounds.SECOND + 1]]))
    assert torch.equal(batch["input_ids"], theirs["input_ids"])
    assert [len(theirs["input_features"]), *batch["encoder_inputs"]["audio"]["audio_windows"]] == [2, 1]
    with torch.no_grad():  # rounding differs with the number of rows
        torch.testing.assert_close(ours(**batch).logits, ours(**theirs).logits, rtol=0, atol=1e-6)


def test_greedy_generation_is_equal_alone_and_batched_with_left_padding(pair):
    """Each sample generates the same ids alone, in a padded batch, and with Hugging Face's class."""
    theirs, ours, processor = pair
    their_batch, our_batch = both(processor, padding_side="left")
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    batched = ours.generate(**our_batch, **settings)
    assert torch.equal(batched, theirs.generate(**their_batch, **settings))
    for row, (text, sizes) in enumerate(zip(TEXTS, CLIPS, strict=True)):
        alone = processor(text=text, audio=sounds.clips([sizes]))
        assert torch.equal(ours.generate(**alone, **settings)[0, -8:], batched[row, -8:])
