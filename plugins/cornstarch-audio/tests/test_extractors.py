"""Clips of every kind as features: windows, rates, what is refused, and extractors as plain data."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
import transformers
from cornstarch_audio.extractors import Audio, AudioFeatureExtractor
from cornstarch_audio.families import LENGTHS, WINDOWS

from cornstarch_core.errors import CheckpointError, CompositionError, MediaError
from cornstarch_core.processing.saved_processor import SavedProcessor

SECOND = 16000


@pytest.fixture
def whisper(tiny, extractor_of):
    """Windows of one second."""
    return extractor_of("whisper", tiny("whisper"))


def test_a_long_clip_becomes_windows(whisper, clip):
    """Two and a half seconds are two whole windows and a half one; each is what the extractor makes of that piece."""
    sound = clip(5 * SECOND // 2)
    inputs = whisper([sound, sound[:1000]])
    assert inputs[WINDOWS] == [3, 1]
    assert inputs[LENGTHS] == [100, 100, 50, 7]
    third = whisper([sound[2 * SECOND :]])["input_features"][0]
    torch.testing.assert_close(inputs["input_features"][2], third, atol=1e-5, rtol=0)


def test_a_rest_too_short_for_a_frame_is_left_out(tiny, extractor_of, clip):
    """Qwen2-Audio makes its first frame of 321 samples; a window for less would hold nothing."""
    extractor = extractor_of("qwen2_audio", tiny("qwen2_audio"))
    assert extractor.shortest == 321
    assert extractor([clip(SECOND + 320)])[WINDOWS] == [1]
    assert extractor([clip(SECOND + 321)])[WINDOWS] == [2]


def test_features_are_those_of_hugging_face(whisper, clip):
    """Nothing but windows and lengths is ours."""
    theirs = whisper.extractor(
        [clip(SECOND), clip(900, 1)], sampling_rate=SECOND, max_length=SECOND, return_tensors="pt"
    )
    assert torch.equal(whisper([clip(SECOND), clip(900, 1)])["input_features"], theirs["input_features"])


@pytest.mark.slow
def test_ten_minutes_are_heard_by_every_family(family, tiny, extractor_of, composed, clip):
    """In windows of the encoder's own, or else of any length that is set; the frames are as many as counted."""
    module = tiny(family)
    extractor, encoder = extractor_of(family, module), composed(module)
    if extractor.window is None:
        extractor.window = 20 * SECOND
    inputs = extractor([clip(600 * SECOND)])
    assert inputs[WINDOWS] == [-(-600 * SECOND // extractor.window)]
    with torch.no_grad():
        (features,) = encoder(**inputs)[0]
    assert [len(features)] == encoder.info.num_tokens(inputs)
    assert torch.isfinite(features).all()


def test_a_clip_of_any_length_is_one_row_by_default(tiny, extractor_of, clip):
    """Ten minutes of it, too: nothing is cut unless that is asked for."""
    inputs = extractor_of("wav2vec2", tiny("wav2vec2"))([clip(600 * SECOND)])
    assert (inputs[WINDOWS], inputs[LENGTHS]) == ([1], [600 * SECOND])


FORMS = {
    "float64": lambda sound: sound.astype(np.float64),
    "int16": lambda sound: np.round(sound * 2**15).astype(np.int16),
    "stereo": lambda sound: np.stack([sound * 2, sound * 0], axis=1),
    "tensor": torch.from_numpy,
    "dictionary": lambda sound: {"array": sound, "sampling_rate": SECOND},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_family_takes_sound_of_every_form(form, family, tiny, extractor_of, clip):
    """float64, int16, stereo, tensors and dictionaries give the features of the same sound as float32."""
    extractor = extractor_of(family, tiny(family))
    given, expected, other = (
        extractor([sound])[extractor.main] for sound in (FORMS[form](clip(8000)), clip(8000), clip(8000, seed=1))
    )
    # 16 bits are a little less exact, and the logarithms of spectrograms tell
    torch.testing.assert_close(given, expected, atol=0.05 if form == "int16" else 1e-5, rtol=0)
    assert (other - expected).abs().max() > 0.1


def test_every_family_takes_silence(family, tiny, extractor_of, composed):
    """Finite features of nothing."""
    module = tiny(family)
    with torch.no_grad():
        (features,) = composed(module)(**extractor_of(family, module)([np.zeros(8000, np.float32)]))[0]
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.array([0.0, np.nan] * 4000), "4,?000.*NaN|NaN"),
        (np.full(8000, 30000.0), "unscaled integers"),
    ],
)
def test_every_family_refuses_what_is_no_sound(sound, message, family, tiny, extractor_of):
    """Empty, NaN, unscaled."""
    with pytest.raises(MediaError, match=message):
        extractor_of(family, tiny(family))([sound])


def test_one_sample_is_taken_or_refused_with_the_least_there_must_be(family, tiny, extractor_of, composed):
    """Whisper and its kin hear a frame in it; the others say how many samples they need."""
    module = tiny(family)
    extractor = extractor_of(family, module)
    sound = np.full(1, 0.5, np.float32)
    if extractor.shortest > 1:
        with pytest.raises(MediaError, match=rf"1 samples \(0.000 s.*too short.*{extractor.shortest:,} samples"):
            extractor([sound])
        return
    with torch.no_grad():
        (features,) = composed(module)(**extractor([sound]))[0]
    assert len(features) == 1


def test_another_rate_is_resampled(whisper):
    """A tone stays the tone it is; the item's own rate wins over the one that is given."""
    pytest.importorskip("soxr")
    seconds = np.arange(8000) / 8000
    tone = np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    at_16k = np.sin(2 * np.pi * 440 * np.arange(SECOND) / SECOND).astype(np.float32)
    given = whisper([tone], sampling_rate=8000)
    own = whisper([{"array": tone, "sampling_rate": 8000}], sampling_rate=44100)
    assert given[LENGTHS] == own[LENGTHS] == [100]
    assert torch.equal(given["input_features"], own["input_features"])
    expected = whisper([at_16k])["input_features"]
    assert (given["input_features"].argmax(1)[0, 2:98] == expected.argmax(1)[0, 2:98]).all()


def test_another_rate_without_soxr_names_both_and_what_to_install(whisper, monkeypatch):
    """The error is for people who did not ask for the extra."""
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(MediaError, match=r'8000 Hz.*16000 Hz.*pip install "cornstarch-audio\[io\]"'):
        whisper([np.zeros(8000, np.float32)], sampling_rate=8000)


def test_a_given_extractor_of_transformers_is_fitted_to_the_encoder(tiny, context_of, clip):
    """A checkpoint's own keeps its settings; the caller's object is not touched."""
    module = tiny("wav2vec2", feat_extract_norm="layer")
    theirs = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    ours = Audio().wrap(context_of("wav2vec2", module), theirs)
    assert isinstance(ours, AudioFeatureExtractor)
    assert ours.extractor is not theirs
    assert ours.extractor.do_normalize is False
    assert torch.equal(ours([clip(500)])["input_values"][0], torch.from_numpy(clip(500)))
    ours.window = 1000
    again = Audio().wrap(context_of("wav2vec2", module), ours)
    assert {**vars(again), "extractor": 0} == {**vars(ours), "extractor": 0}


def test_what_is_no_extractor_of_transformers_is_used_as_it_is(tiny, context_of):
    """A function of the user's own knows what it does."""

    def mine(items, return_tensors="pt"):
        return {"input_features": torch.zeros(len(items), 16, 100)}

    assert Audio().wrap(context_of("whisper", tiny("whisper")), mine) is mine


@pytest.mark.parametrize(
    ("family", "extractor", "message"),
    [
        ("whisper", transformers.Wav2Vec2FeatureExtractor(), "gives input_values.*'whisper', takes input_features"),
        ("whisper", transformers.WhisperFeatureExtractor(feature_size=80), "spectrograms of 80 bins.*takes 16"),
        ("wav2vec2_bert", transformers.SeamlessM4TFeatureExtractor(), "spectrograms of 160 bins.*takes 32"),
        (
            "ast",
            transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128),
            "max_length=128, the encoder takes 64",
        ),
        (
            "whisper",
            transformers.ClapFeatureExtractor(),
            "a ClapFeatureExtractor is not one of the supported feature extractors",
        ),
    ],
)
def test_an_extractor_that_does_not_fit_is_refused(family, extractor, message, tiny, context_of):
    """At once, and not by a shape inside the encoder."""
    with pytest.raises(CompositionError, match=message):
        Audio().wrap(context_of(family, tiny(family)), extractor)


def test_it_comes_back_from_json(family, tiny, extractor_of, clip):
    """As a saved processor holds it: the same features."""
    extractor = extractor_of(family, tiny(family))
    saved = json.loads(json.dumps(asdict(SavedProcessor.of(extractor))))
    again = SavedProcessor(**saved).load("audio", extractor)
    one, other = extractor([clip(9000)]), again([clip(9000)])
    assert one.keys() == other.keys()
    assert torch.equal(one[extractor.main], other[extractor.main])
    assert {**vars(again), "extractor": 0} == {**vars(extractor), "extractor": 0}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"extractor": {"feature_extractor_type": "os.system"}, "main": "x", "time": 1},
        {"extractor": {"feature_extractor_type": "WhisperFeatureExtractor"}, "main": "x", "time": 1, "rm": "-rf"},
        {"extractor": 3, "main": "x", "time": 1},
    ],
)
def test_damaged_settings_are_refused(settings):
    """Nothing but the known extractors is ever looked up."""
    with pytest.raises(CheckpointError, match="audio: the saved feature extractor can't be loaded"):
        AudioFeatureExtractor.from_dict(settings)


def test_it_goes_to_other_processes(whisper, clip):
    """Data loader workers get it pickled."""
    again = pickle.loads(pickle.dumps(whisper))
    assert torch.equal(again([clip(500)])["input_features"], whisper([clip(500)])["input_features"])


def test_parakeet_without_librosa_says_what_to_install(tiny, context_of, monkeypatch):
    """Older transformers take their mel filters from it."""

    def refuse(**settings):
        raise NameError("name 'librosa' is not defined")

    monkeypatch.setattr(transformers, "ParakeetFeatureExtractor", refuse)
    with pytest.raises(CompositionError, match="Install librosa, or a later transformers"):
        Audio().build(context_of("parakeet", tiny("parakeet")))


@pytest.mark.parametrize(("norm", "normalised"), [("group", False), ("layer", True)])
@pytest.mark.parametrize("name", ["wavlm", "unispeech_sat"])
def test_only_the_large_models_of_some_families_see_normalised_samples(name, norm, normalised, tiny, extractor_of):
    """As their published checkpoints are."""
    assert extractor_of(name, tiny(name, feat_extract_norm=norm)).extractor.do_normalize is normalised


def test_a_class_made_from_a_known_extractor_is_known(tiny, context_of):
    """As checkpoints with code of their own have."""

    class Mine(transformers.WhisperFeatureExtractor):
        pass

    ours = Audio().wrap(context_of("whisper", tiny("whisper")), Mine(feature_size=16))
    assert isinstance(ours, AudioFeatureExtractor)


@pytest.mark.parametrize("options", [{"truncation": True, "max_length": 400}, {"return_attention_mask": False}])
def test_what_counts_rest_on_can_not_be_set(options, whisper, clip):
    """Padding and cutting are the extractor's own business."""
    with pytest.raises(TypeError, match=f"{', '.join(sorted(options))} can't be set"):
        whisper([clip(500)], **options)


def test_features_are_tensors_of_pytorch(whisper, clip):
    """Others are refused, and not given silently."""
    with pytest.raises(ValueError, match="return_tensors='np'"):
        whisper([clip(500)], return_tensors="np")


def test_a_window_without_a_frame_is_refused(tiny, extractor_of, clip):
    """It is the setting that is wrong, not the clip."""
    extractor = extractor_of("wav2vec2", tiny("wav2vec2"))
    extractor.window = 300
    with pytest.raises(ValueError, match="window=300 samples, but the encoder needs 400 for its first frame"):
        extractor([clip(900)])
