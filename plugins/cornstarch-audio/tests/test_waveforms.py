"""The check of one audio item, files of audio, and resampling."""

import base64
import io
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cornstarch_audio.waveforms import Waveform, at_rate, prepare_audio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cornstarch_core.errors import MediaError

RAMP = np.array([0.0, 0.25, -0.5, 0.75, -1.0, 0.125], np.float32)  # exact in 8 bits and more
SCALES = {"int8": 2**7, "int16": 2**15, "int32": 2**31}


@pytest.fixture(scope="module")
def soundfile():
    """The library, or a skipped test where the extra is not installed."""
    return pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def soxr():
    """The library, or a skipped test where the extra is not installed."""
    return pytest.importorskip("soxr")


@pytest.fixture
def written(soundfile, tmp_path):
    """Writes samples to a file of that name."""

    def write(samples, name="talk.wav", rate=16000, **options):
        path = tmp_path / name
        soundfile.write(path, samples, rate, **options)
        return path

    return write


def prepared_or_refused(item):
    """The waveform, or ``None`` if it is refused; any other error is the test's failure."""
    try:
        return prepare_audio(item)
    except MediaError:
        return None


def sine(hertz, rate, seconds=1.0):
    """A sine of half the full scale."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


# --- arrays, tensors and numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (np.array([-128, -64, 0, 127], np.int8), [-1, -0.5, 0, 127 / 128]),
        (np.array([0, 64, 128, 255], np.uint8), [-1, -0.5, 0, 127 / 128]),
        (np.array([-32768, -16384, 0, 1, 32767], np.int16), [-1, -0.5, 0, 1 / 32768, 32767 / 32768]),
        (np.array([-(2**31), 2**30, 2**31 - 129], np.int32), [-1, 0.5, 1 - 2**-24]),
    ],
)
def test_integers_are_scaled_by_their_range(item, expected):
    """Each dtype's least value is -1, and zero (128 for uint8) is silence; arrays and tensors alike."""
    for one in (item, item.astype(item.dtype.newbyteorder(">")), torch.from_numpy(item)):
        waveform = prepare_audio(one)
        assert waveform.samples.tolist() == expected
        assert waveform.samples.dtype == np.float32
        assert waveform.rate is None


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_floats_keep_their_values(dtype):
    """Floats of any width become float32; tensors may have gradients."""
    tensor = torch.tensor(RAMP.tolist(), dtype=getattr(torch, dtype), requires_grad=True)
    assert prepare_audio(tensor).samples.tolist() == RAMP.tolist()
    if dtype != "bfloat16":
        assert prepare_audio(tensor.detach().numpy()).samples.tolist() == RAMP.tolist()


def test_float32_is_not_copied():
    """Samples that are right already are shared, not copied."""
    assert np.shares_memory(prepare_audio(RAMP).samples, RAMP)


def test_items_are_not_edited():
    """What is handed in stays as it is."""
    for item in (np.array([[1, 2, 3], [5, 6, 7]], np.uint8), np.array([[0.5, 0.25], [0.0, 1.0], [0.5, 0.5]])):
        before = item.copy()
        prepare_audio(item)
        assert np.array_equal(item, before)


@pytest.mark.parametrize(
    "numbers", [[0.0, 0.5, -1.0], (0.0, 0.5, -1.0), [0, 0.5, -1], [np.float32(0), 0.5, np.int16(-1)]]
)
def test_numbers_are_samples(numbers):
    """A list or tuple is taken as floats."""
    assert prepare_audio(numbers).samples.tolist() == [0, 0.5, -1]


def test_whole_numbers_are_floats():
    """A list of Python integers has no range to be scaled by: it is 0, 1 and -1 that is meant."""
    assert prepare_audio([0, 1, -1]).samples.tolist() == [0, 1, -1]
    with pytest.raises(MediaError, match="unscaled integers"):
        prepare_audio([0, 16384, -16384])


def test_silence_is_audio():
    """Zeros are fine."""
    assert not prepare_audio(np.zeros(5, np.int16)).samples.any()


def test_a_stride_is_undone():
    """The samples lie next to each other, forwards."""
    samples = prepare_audio(RAMP[::-2]).samples
    assert samples.flags.c_contiguous
    assert samples.tolist() == RAMP[::-2].tolist()


# --- channels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["(n, C)", "(C, n)"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_two_channels_are_averaged(layout, as_tensor):
    """Channels first or last, arrays or tensors: the same mean, without overflow of the integers."""
    channels = np.array([[32767, -32768, 100, 0], [32767, -32768, 50, 16384]], np.int16)
    item = channels if layout == "(C, n)" else channels.T
    samples = prepare_audio(torch.from_numpy(item.copy()) if as_tensor else item).samples
    assert samples.tolist() == [32767 / 32768, -1, 75 / 32768, 0.25]
    assert samples.flags.c_contiguous


@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_one_channel_keeps_its_values(shape):
    """Mono with a channel axis, first or last."""
    assert prepare_audio(RAMP.reshape(shape)).samples.tolist() == RAMP.tolist()
    assert prepare_audio(np.array([[0.5]])).samples.tolist() == [0.5]


@given(
    channels=st.integers(1, 8),
    extra=st.integers(1, 9),
    dtype=st.sampled_from(["int8", "int16", "int32", "uint8", "float16", "float32", "float64"]),
    first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_layout_and_dtype_is_the_mean_of_its_channels(channels, extra, dtype, first, seed):
    """The mean of the scaled channels, whichever the axis and dtype."""
    unit = np.random.default_rng(seed).uniform(-1, 1, (channels, channels + extra))
    if dtype in SCALES:
        item = np.floor(unit * SCALES[dtype]).astype(dtype)
        scaled = item / SCALES[dtype]
    elif dtype == "uint8":
        item = np.floor(unit * 128 + 128).astype(dtype)
        scaled = (item.astype(float) - 128) / 128
    else:
        item = scaled = unit.astype(dtype)
    waveform = prepare_audio(item if first else item.T)
    assert waveform.samples.shape == (channels + extra,)
    np.testing.assert_allclose(waveform.samples, scaled.astype(float).mean(0), atol=1e-6)


@given(samples=arrays.arrays(np.int16, st.integers(1, 50)))
def test_sixteen_bits_survive_the_round_trip(samples):
    """Scaled back and rounded they are the same integers."""
    assert np.array_equal(np.rint(prepare_audio(samples).samples * 32768).astype(np.int16), samples)


@pytest.mark.parametrize("shape", [(2, 2), (8, 8), (300, 300)])
def test_a_square_is_ambiguous(shape):
    """Neither axis is the shorter one: the message asks to average."""
    with pytest.raises(MediaError, match=r"^audio: samples of shape \(\d+, \d+\): .* which axis .*Average over it"):
        prepare_audio(np.zeros(shape))


@pytest.mark.parametrize("shape", [(9, 100), (100, 9), (80, 3000)])
def test_many_channels_are_refused(shape):
    """More than 8 are a batch or a spectrogram; the message has the number, and says what to do."""
    with pytest.raises(MediaError, match=rf"so {min(shape)} channels; expected at most 8\. .*one by one.*spectrogram"):
        prepare_audio(np.zeros(shape))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros(0), r"empty, of shape \(0,\); leave this item out"),
        ([], r"empty, of shape \(0,\)"),
        (torch.zeros(2, 0), r"empty, of shape \(2, 0\)"),
        (np.zeros((0, 16000), np.int16), r"empty, of shape \(0, 16000\)"),
        (np.array(0.5), r"shape \(\); expected \(n,\)"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\); expected \(n,\).*one by one"),
        (np.array([0.5, np.nan, np.inf]), "2 of 3 values are NaN or infinite, the first at index 1; clean"),
        (np.array([[0.5, 0.5, 0.5], [0.5, 0.5, -np.inf]]), r"1 of 6 values .* the first at index \(1, 2\)"),
        (torch.tensor([float("nan")], dtype=torch.bfloat16), "1 of 1 values"),
        (np.array([0.0, -32768.0]), "magnitude up to 32768; .*divide by 32768 or give int16"),
        (np.array([1e300]), "magnitude up to 1e\\+300"),
        (np.array([10.5]), "magnitude up to 10.5"),
        (np.array([True, False]), "dtype bool; expected floats"),
        (np.array([1, 2]), r"dtype int64; .*\.astype\('int16'\)"),
        (torch.tensor([1, 2]), "dtype int64"),
        (np.array([1, 2], np.uint16), "dtype uint16"),
        (np.array([1j]), "dtype complex128"),
        (torch.tensor([1j]), "dtype complex64"),
        (np.array([None]), "dtype object"),
        ([0.5, None], "dtype object"),
        (["0.5"], "dtype <U3"),
        ([True], "dtype bool"),
        ([[0.5], [0.5, 0.5]], "a list with entries that are no numbers"),
        ([np.zeros(5), np.zeros(5)], "a list with entries that are no numbers; .*several items one by one"),
        ((torch.zeros(1, 5), 16000), "a tuple with entries that are no numbers; .*'sampling_rate'"),
        (torch.zeros(2, device="meta"), r"this Tensor can't be read: .*numpy array \(n,\)"),
    ],
)
def test_samples_that_are_no_audio_are_refused(item, message):
    """The message has what was found and what to do."""
    with pytest.raises(MediaError, match=f"^audio: .*{message}"):
        prepare_audio(item)


def test_overshoot_up_to_ten_is_taken():
    """Loud recordings go beyond 1."""
    assert prepare_audio(np.array([-10.0, 1.5])).samples.tolist() == [-10, 1.5]


@pytest.mark.parametrize("item", [None, 3, 0.5, object(), {1, 2}])
def test_other_things_are_refused(item):
    """The message has the type, and what audio can be."""
    with pytest.raises(MediaError, match=f"^audio: {type(item).__name__} is not audio; give an array"):
        prepare_audio(item)


@settings(deadline=None)
@given(
    array=arrays.arrays(
        st.sampled_from([np.uint8, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=10),
    ),
    as_tensor=st.booleans(),
)
def test_any_array_is_a_waveform_or_a_clear_error(array, as_tensor):
    """Mono, finite, contiguous float32; or a ``MediaError``."""
    waveform = prepared_or_refused(torch.from_numpy(array) if as_tensor else array)
    if waveform is None:
        return
    assert waveform.samples.shape == (max(array.shape),)
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.flags.c_contiguous
    assert np.abs(waveform.samples).max() <= 10


# --- Waveform ---------------------------------------------------------------------------------------------------------


def test_a_waveform_goes_through():
    """Preparing twice is preparing once."""
    waveform = prepare_audio(RAMP)
    assert prepare_audio(waveform) is waveform


def test_waveforms_are_pickled():
    """They travel to the workers of a data loader."""
    waveform = pickle.loads(pickle.dumps(prepare_audio({"array": RAMP, "sampling_rate": 8000})))
    assert (waveform.samples.tolist(), waveform.rate) == (RAMP.tolist(), 8000)


def test_waveforms_compare_by_identity():
    """Arrays don't compare as true or false, so waveforms don't try."""
    one, other = prepare_audio(RAMP), prepare_audio(RAMP)
    assert one == one
    assert one != other
    assert len({one, other}) == 2


# --- datasets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, np.int64(8000), torch.tensor(8000)])
@pytest.mark.parametrize("array", [RAMP, torch.from_numpy(RAMP), RAMP.tolist()])
def test_decoded_dicts_know_their_rate(array, rate):
    """As ``datasets`` gives them, formatted as numpy, torch or Python."""
    waveform = prepare_audio({"path": "nowhere.wav", "array": array, "sampling_rate": rate})
    assert waveform.samples.tolist() == RAMP.tolist()
    assert type(waveform.rate) is int
    assert waveform.rate == 8000


@pytest.mark.parametrize("rate", [0, -8000, 8000.0, "8000", None, True, [8000]])
def test_rates_that_make_no_sense_are_refused(rate):
    """Only positive integers are rates."""
    with pytest.raises(MediaError, match=r"^audio: sampling_rate=.*; expected a positive integer, in hertz"):
        prepare_audio({"array": RAMP, "sampling_rate": rate})


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"array": RAMP}, "'array' but no 'sampling_rate'; add it, or give the array alone"),
        ({"array": "talk.wav", "sampling_rate": 8000}, "'array' is a str; expected an array"),
        ({"array": [], "sampling_rate": 8000}, "empty"),
        ({"raw": RAMP, "rate": 8000}, "a dict with 'raw', 'rate'; expected 'array' and 'sampling_rate'"),
        ({"bytes": None, "path": None}, "a dict with 'bytes', 'path'; expected"),
        ({}, "a dict with nothing"),
        ({"bytes": None, "path": "nowhere.wav"}, "there is no audio file 'nowhere.wav'"),
    ],
)
def test_dicts_that_are_no_audio_are_refused(item, message):
    """The message has the keys there are, or what is wrong with the value."""
    with pytest.raises(MediaError, match=f"^audio: .*{message}"):
        prepare_audio(item)


def test_dicts_with_a_file_are_read(written):
    """As ``datasets`` gives them with ``decode=False``: the content, or a path to it."""
    path = written(RAMP, rate=8000)
    for item in ({"bytes": path.read_bytes(), "path": "talk.wav"}, {"bytes": None, "path": str(path)}):
        waveform = prepare_audio(item)
        assert (waveform.samples.tolist(), waveform.rate) == (RAMP.tolist(), 8000)


def test_decoders_of_torchcodec_are_decoded():
    """What ``datasets`` gives since its version 4: channels are first, however few samples there are."""
    decoded = SimpleNamespace(data=torch.tensor([[0.5, 0.25], [0.0, 0.75]]), sample_rate=8000)
    waveform = prepare_audio(SimpleNamespace(get_all_samples=lambda: decoded))
    assert (waveform.samples.tolist(), waveform.rate) == ([0.25, 0.5], 8000)


def test_a_decoder_that_fails_is_refused():
    """Whatever it raises comes out as ``MediaError``."""

    def fail():
        raise RuntimeError("no audio stream")

    with pytest.raises(MediaError, match="^audio: this SimpleNamespace can't be read: no audio stream"):
        prepare_audio(SimpleNamespace(get_all_samples=fail))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("talk.wav", "PCM_U8"),
        ("talk.wav", "PCM_16"),
        ("talk.wav", "PCM_24"),
        ("talk.wav", "PCM_32"),
        ("talk.wav", "FLOAT"),
        ("talk.flac", "PCM_16"),
        ("talk.flac", "PCM_24"),
    ],
)
def test_lossless_files_keep_their_samples(written, name, subtype):
    """Any width of integers, and floats; the rate is the file's."""
    waveform = prepare_audio(written(RAMP, name, rate=22050, subtype=subtype))
    assert waveform.samples.tolist() == RAMP.tolist()
    assert waveform.rate == 22050


@pytest.mark.parametrize("name", ["talk.ogg", "talk.mp3"])
def test_lossy_files_sound_alike(soundfile, written, name):
    """Ogg Vorbis and, where this build has it, MP3: the sine is still the sine."""
    if Path(name).suffix[1:].upper() not in soundfile.available_formats():
        pytest.skip(f"this build of libsndfile has no {name}")
    tone = sine(440, 16000)
    waveform = prepare_audio(written(tone, name))
    assert waveform.rate == 16000
    assert waveform.samples.shape == tone.shape
    assert np.corrcoef(waveform.samples, tone)[0, 1] > 0.99


@pytest.mark.parametrize("name", ["talk.wav", "talk.flac"])
@pytest.mark.parametrize("samples", [1, 2, 3, 50])
def test_channels_of_files_are_known(written, name, samples):
    """Stereo is averaged, also where there are no more samples than channels."""
    stereo = np.stack([np.full(samples, 0.5), np.full(samples, -0.25)], -1)
    path = written(stereo, name)
    for item in (path, path.read_bytes()):
        assert prepare_audio(item).samples.tolist() == [0.125] * samples


def test_files_of_many_channels_are_refused(written):
    """Microphone arrays are not averaged."""
    with pytest.raises(MediaError, match="so 16 channels; expected at most 8"):
        prepare_audio(written(np.zeros((100, 16))))


@pytest.mark.parametrize("kind", ["str", "path", "bytes", "bytearray", "memoryview", "file", "data", "folded data"])
def test_files_are_read_in_any_form(written, kind):
    """By path, by URL, or by content."""
    path = written(RAMP, "naïve talk #1.wav", rate=8000)
    content = path.read_bytes()
    items = {
        "str": str(path),
        "path": path,
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "file": path.as_uri(),
        "data": f"data:audio/wav;base64,{base64.b64encode(content).decode()}",
        "folded data": f"DATA:audio/x-wav;codecs=1;base64,{base64.encodebytes(content).decode()}",
    }
    waveform = prepare_audio(items[kind])
    assert (waveform.samples.tolist(), waveform.rate) == (RAMP.tolist(), 8000)


@pytest.mark.parametrize("path", ["nowhere.wav", "", "file:///nowhere/talk.wav", "x" * 5000, "nul\0.wav"])
def test_missing_files_are_refused(path):
    """A path where nothing is, however long; soundfile isn't needed to say so."""
    with pytest.raises(MediaError, match="^audio: there is no audio file") as caught:
        prepare_audio(path)
    assert len(str(caught.value)) < 300


def test_folders_are_refused(tmp_path):
    """A folder is not a file."""
    with pytest.raises(MediaError, match="^audio: .* is a folder; give the path of one file"):
        prepare_audio(tmp_path)


@pytest.mark.parametrize("url", ["https://example.org/a.wav", "HTTP://example.org", "s3://b/c.flac"])
def test_urls_are_refused(url):
    """Nothing is downloaded; the message says to do it first."""
    with pytest.raises(MediaError, match="^audio: .* is a URL; nothing is downloaded here"):
        prepare_audio(url)


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "data:audio/wav,x", "data:,"])
def test_other_data_urls_are_refused(url):
    """An image, or audio that is not base64; the message shows the form."""
    with pytest.raises(MediaError, match=f"^audio: '{url}' is not a URL of audio; expected data:audio/...;base64,"):
        prepare_audio(url)


def test_files_on_other_machines_are_refused():
    """A ``file://`` URL with a host is not of this machine."""
    with pytest.raises(MediaError, match="a URL of another machine; nothing is downloaded here"):
        prepare_audio("file://server/share/talk.wav")


def test_broken_base64_is_refused():
    """The message says what is broken, before a decoder sees it."""
    with pytest.raises(MediaError, match="^audio: a data: URL with broken base64"):
        prepare_audio("data:audio/wav;base64,UklGR*")


@pytest.mark.parametrize("name", ["talk.wav", "talk.raw", "talk.txt"])
def test_text_is_not_audio(soundfile, tmp_path, name):
    """Whatever the file is called; the message has its path and what to do."""
    path = tmp_path / name
    path.write_text("Not a sound. " * 20)
    with pytest.raises(MediaError, match=rf"{name}' can't be read as audio: .*\. Check the file, or convert it to wav"):
        prepare_audio(path)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"Not a sound."])
def test_bytes_that_are_no_file_are_refused(soundfile, content):
    """The message has their number and no address in memory."""
    with pytest.raises(MediaError, match=rf"^audio: a file of {len(content)} bytes can't be read as audio: (?!.*0x)"):
        prepare_audio(content)


def test_files_without_samples_are_refused(written):
    """A header alone is no audio."""
    with pytest.raises(MediaError, match=r"^audio: .*talk\.wav' holds no audio"):
        prepare_audio(written(np.zeros(0)))


def test_truncated_files(written):
    """Of a wav the rest is taken, as its length in the header is often wrong; a flac is refused."""
    tone = sine(440, 16000)
    content = written(tone, subtype="FLOAT").read_bytes()
    rest = prepare_audio(content[: len(content) // 2]).samples
    assert 7000 < len(rest) < 9000
    assert np.array_equal(rest, tone[: len(rest)])
    content = written(tone, "talk.flac").read_bytes()
    with pytest.raises(MediaError, match="can't be read as audio: .*flac"):
        prepare_audio(content[: len(content) // 2])


def test_values_of_files_are_checked(written):
    """A wav of floats may hold anything."""
    with pytest.raises(MediaError, match="1 of 3 values are NaN or infinite"):
        prepare_audio(written(np.array([0, np.nan, 0], np.float32), subtype="FLOAT"))
    with pytest.raises(MediaError, match="magnitude up to 300"):
        prepare_audio(written(np.array([0, 300, 0], np.float32), subtype="FLOAT"))


@settings(deadline=None, max_examples=60)
@given(
    cut=st.integers(0, 400), flip=st.integers(0, 400), file_format=st.sampled_from(["WAV", "FLAC", "OGG", "AIFF", "AU"])
)
def test_broken_files_are_a_waveform_or_a_clear_error(soundfile, cut, flip, file_format):
    """Truncated or with a byte flipped: whatever the decoder raises comes out as ``MediaError``."""
    file = io.BytesIO()
    soundfile.write(file, sine(440, 8000, 0.05), 8000, format=file_format)
    content = bytearray(file.getvalue())
    content[flip % len(content)] ^= 0xFF
    waveform = prepared_or_refused(bytes(content[: max(0, len(content) - cut)]))
    assert waveform is None or waveform.samples.size > 0


# --- rates ------------------------------------------------------------------------------------------------------------


def peak_hertz(samples, rate):
    """Frequency of the strongest bin."""
    return np.fft.rfftfreq(len(samples), 1 / rate)[np.abs(np.fft.rfft(samples)).argmax()]


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_a_resampled_sine_keeps_its_frequency(soxr, rate):
    """And its loudness; the length is that of the same second."""
    samples = at_rate(prepare_audio({"array": sine(440, rate), "sampling_rate": rate}), 16000)
    assert samples.dtype == np.float32
    assert abs(len(samples) - 16000) <= 1
    assert peak_hertz(samples, 16000) == pytest.approx(440, abs=1.01)
    assert np.sqrt(np.mean(samples[1000:-1000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


def test_what_the_new_rate_can_not_hold_is_filtered_out(soxr):
    """A tone above half the new rate is gone, not folded down."""
    samples = at_rate(Waveform(sine(12000, 48000), 48000), 16000)
    assert np.abs(samples[1000:-1000]).max() < 1e-3


@settings(deadline=None)
@given(n=st.integers(10, 3000), rate=st.sampled_from([8000, 11025, 22050, 24000, 44100, 48000, 96000]))
def test_resampled_lengths(soxr, n, rate):
    """Within one sample of ``n * 16000 / rate``, contiguous float32."""
    samples = at_rate(Waveform(np.zeros(n, np.float32), rate), 16000)
    assert abs(len(samples) - n * 16000 / rate) <= 1
    assert (samples.dtype, samples.ndim, samples.flags.c_contiguous) == (np.float32, 1, True)


@pytest.mark.parametrize(("rate", "given_rate"), [(16000, None), (16000, 8000), (None, None), (None, 16000)])
def test_samples_at_the_right_rate_are_not_touched(rate, given_rate):
    """The item's own rate wins, then the given one; without either the item is taken to be right."""
    waveform = Waveform(RAMP, rate)
    assert at_rate(waveform, 16000, given_rate) is RAMP


def test_a_given_rate_is_for_items_that_do_not_know_theirs(soxr):
    """It resamples the bare array as its own rate would; for others it is ignored."""
    tone = sine(440, 8000)
    own = at_rate(Waveform(tone, 8000), 16000)
    assert np.array_equal(at_rate(Waveform(tone, None), 16000, 8000), own)
    assert np.array_equal(at_rate(Waveform(tone, 8000), 16000, 44100), own)


@pytest.mark.parametrize("rates", [(0, None), (16000.0, None), (16000, 0), (16000, "8000"), (16000, True)])
def test_wanted_and_given_rates_are_checked(rates):
    """Both are positive integers."""
    with pytest.raises(MediaError, match="^audio: sampling_rate=.*; expected a positive integer"):
        at_rate(Waveform(RAMP, None), *rates)


def test_a_waveform_too_short_to_resample_is_refused(soxr):
    """One sample at 48000 Hz is a third of one at 16000."""
    with pytest.raises(MediaError, match="^audio: 1 samples at 48000 Hz are too few .*16000 Hz"):
        at_rate(Waveform(np.ones(1, np.float32), 48000), 16000)


# --- without the extra ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_files_without_soundfile(monkeypatch, tmp_path, kind):
    """The message says what to install; arrays work all the same."""
    monkeypatch.setitem(sys.modules, "soundfile", None)
    path = tmp_path / "talk.wav"
    path.write_bytes(b"RIFF")
    with pytest.raises(MediaError, match=r'^audio: .*soundfile.*pip install "cornstarch-audio\[io\]"'):
        prepare_audio(path if kind == "path" else path.read_bytes())
    assert prepare_audio(RAMP).samples.tolist() == RAMP.tolist()


def test_resampling_without_soxr(monkeypatch):
    """The message has both rates and what to do; equal rates work all the same."""
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(
        MediaError, match=r'44100 Hz where 16000 Hz .*pip install "cornstarch-audio\[io\]", or resample it yourself'
    ):
        at_rate(Waveform(RAMP, 44100), 16000)
    assert at_rate(Waveform(RAMP, 16000), 16000) is RAMP


def test_the_extra_is_not_imported_before_it_is_needed():
    """Neither the import nor an array at the right rate asks for it."""
    code = (
        "import sys; from cornstarch_audio.waveforms import at_rate, prepare_audio; at_rate(prepare_audio([0.5]), 16000);"
        "assert not {'soundfile', 'soxr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
