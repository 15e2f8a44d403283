"""The processor ``"audio"``: the Hugging Face feature extractor of an encoder's family, for clips of any length.

A feature extractor of transformers cuts clips off at the encoder's window, and not all of them tell how much of their
output is padding. :class:`AudioFeatureExtractor` makes several windows of a long clip, and lists the lengths. This
module must not know about tokens or models.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedConfig

from cornstarch_core.errors import CheckpointError, CompositionError, MediaError
from cornstarch_core.specs import EncoderContext, ProcessorInterface

from .families import LENGTHS, WINDOWS, Family, family_of
from .waveforms import AudioItem, Waveform, at_rate, prepare_audio

if TYPE_CHECKING:  # importing it would import soundfile
    from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

__all__ = ["Audio", "AudioFeatureExtractor"]

_MOST = 2**40  # samples; more than any clip has
_HOP, _FRAME = 160, 400  # samples of Kaldi's spectrograms, constants in transformers' code


# --- from samples to lengths ------------------------------------------------------------------------------------------


def _whisper_length(extractor: transformers.WhisperFeatureExtractor, samples: int) -> int:
    return -(-samples // extractor.hop_length)


def _kaldi_length(samples: int) -> int:
    return 1 + (samples - _FRAME) // _HOP if samples >= _FRAME else 0


def _parakeet_length(extractor: transformers.ParakeetFeatureExtractor, samples: int) -> int:
    length = samples // extractor.hop_length
    return length if length > 1 else 0  # the extractor divides by the length minus one


_LENGTH_OF: dict[str, Callable[[Any, int], int]] = {
    "WhisperFeatureExtractor": _whisper_length,
    "Wav2Vec2FeatureExtractor": lambda extractor, samples: samples,
    "SeamlessM4TFeatureExtractor": lambda extractor, samples: _kaldi_length(samples) // extractor.stride,
    "ASTFeatureExtractor": lambda extractor, samples: _kaldi_length(samples),
    "ParakeetFeatureExtractor": _parakeet_length,
}
"""For each extractor of transformers: the length of its output for a number of samples, without padding."""

_FIXED = {"max_length", "pad_to_multiple_of", "padding", "return_attention_mask", "truncation"}


def _kind(extractor: object) -> str | None:
    """The name of the class in the table above that an extractor is an instance of."""
    return next((name for name in _names(extractor) if name in _LENGTH_OF), None)


def _names(extractor: object) -> list[str]:
    return [cls.__name__ for cls in type(extractor).__mro__]


# --- the extractor ----------------------------------------------------------------------------------------------------


class AudioFeatureExtractor:
    """A feature extractor of transformers, for clips of any length.

    Args:
        extractor: a ``WhisperFeatureExtractor``, ``Wav2Vec2FeatureExtractor``, ``SeamlessM4TFeatureExtractor``,
            ``ASTFeatureExtractor`` or ``ParakeetFeatureExtractor``.
        main: name of the output that holds the audio.
        time: axis of that output along which length is counted.
        window: the largest number of samples in a row; a longer clip is cut into several rows, without overlap.
            ``None``: each clip is one row. Set it for an encoder that takes any length if a clip is too long for the
            memory.
        cut_late: whether a clip is cut after its features are made, as Voxtral's are, and not before.
        shortest: the smallest number of samples for which the encoder gives a frame.
        mask_name: name of the mask over lengths in the output; ``None``: there is no mask.

    Example:
        >>> import numpy as np
        >>> from cornstarch_core.specs import EncoderContext
        >>> from transformers import WhisperConfig
        >>> context = EncoderContext(key="audio", config=WhisperConfig(), hidden_size=256, text_hidden_size=64)
        >>> extractor = Audio().build(context)
        >>> inputs = extractor([np.zeros(8000), np.zeros(45 * 16000)])
        >>> inputs["input_features"].shape, inputs["audio_lengths"], inputs["audio_windows"]
        (torch.Size([3, 80, 3000]), [50, 3000, 1500], [1, 2])
    """

    def __init__(
        self,
        extractor: Any,
        *,
        main: str,
        time: int,
        window: int | None = None,
        cut_late: bool = False,
        shortest: int = 1,
        mask_name: str | None = None,
    ) -> None:
        self.extractor = extractor
        self.main = main
        self.time = time
        self.window = window
        self.cut_late = cut_late
        self.shortest = shortest
        self.mask_name = mask_name

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the encoder takes, in hertz."""
        return self.extractor.sampling_rate

    def length(self, samples: int) -> int:
        """The length of the extractor's output for a number of samples, without padding."""
        return _LENGTH_OF[str(_kind(self.extractor))](self.extractor, samples)

    def __call__(
        self,
        items: Sequence[AudioItem],
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        **options: object,
    ) -> dict[str, Any]:
        """Extract the features of clips.

        Args:
            items: clips, as :func:`~cornstarch_audio.waveforms.prepare_audio` takes them.
            sampling_rate: rate in hertz of clips that don't say their rate; default: the encoder's.
            return_tensors: ``"pt"``.
            **options: arguments of the extractor of transformers.

        Returns:
            What the extractor of transformers gives, one row for each clip or window, padded; ``audio_lengths``, a list
            with the length of the audio in each row; ``audio_windows``, a list with the number of rows of each clip;
            and the mask, ``(rows, length)`` int64, if it has a name.

        Raises:
            MediaError: a clip is too short; or it has another rate, and soxr is missing.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r}; features are PyTorch tensors: 'pt'.")
        fixed = sorted(_FIXED & options.keys())
        if fixed:
            raise TypeError(f"{', '.join(fixed)} can't be set: the counts depend on how clips are padded and cut.")
        clips = [self._clip(item, sampling_rate) for item in items]
        rows = [self._windows(clip) for clip in clips]
        flat = [row for windows in rows for row in windows]
        lengths = [self.length(len(row)) for row in flat]
        if self.cut_late:
            features = self._extract_whole(clips, options)
        else:
            features = self._extract(flat, {**options, **self._padding()})
        inputs = {self.main: features, LENGTHS: lengths, WINDOWS: [len(windows) for windows in rows]}
        if self.mask_name is not None:
            inputs[self.mask_name] = _mask(lengths, features.shape[self.time])
        return inputs

    def _extract(self, rows: Sequence[np.ndarray], settings: Mapping[str, object]) -> torch.Tensor:
        settings = {**settings, "return_attention_mask": True}  # without it, padding would be normalised too
        return self.extractor(rows, sampling_rate=self.sampling_rate, return_tensors="pt", **settings)[self.main]

    def _extract_whole(self, clips: Sequence[np.ndarray], options: Mapping[str, object]) -> torch.Tensor:
        """Each clip's features as one, padded to whole windows, then cut."""
        whole = {**options, "padding": "longest", "pad_to_multiple_of": self.window, "truncation": False}
        features = [self._extract([clip], whole)[0] for clip in clips]
        length = self.length(self.window or 0)
        return torch.cat([torch.stack(one.split(length, self.time - 1)) for one in features])

    def _clip(self, item: AudioItem, sampling_rate: int | None) -> np.ndarray:
        waveform = item if isinstance(item, Waveform) else prepare_audio(item)
        samples = at_rate(waveform, self.sampling_rate, sampling_rate)
        if len(samples) < self.shortest:
            raise MediaError(
                f"audio: a clip of {self._seconds(len(samples))} is too short; the encoder needs "
                f"{self._seconds(self.shortest)} for its first frame. Leave it out, or pad it with silence."
            )
        return samples

    def _seconds(self, samples: int) -> str:
        return f"{samples:,} samples ({samples / self.sampling_rate:.3f} s at {self.sampling_rate} Hz)"

    def _windows(self, samples: np.ndarray) -> list[np.ndarray]:
        if self.window is None:
            return [samples]
        if self.window < self.shortest:
            raise ValueError(
                f"window={self.window} samples, but the encoder needs {self.shortest} for its first frame; set more."
            )
        parts = [samples[start : start + self.window] for start in range(0, len(samples), self.window)]
        # the last part may be too short for a frame
        return parts if len(parts[-1]) >= self.shortest else parts[:-1]

    def _padding(self) -> dict[str, Any]:
        if _kind(self.extractor) == "WhisperFeatureExtractor":
            return {"padding": "max_length", "max_length": self.window}
        return {"padding": True}

    # --- as plain data ------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data, which :meth:`from_dict` reads."""
        settings = {name: value for name, value in vars(self).items() if name != "extractor"}
        return {**settings, "extractor": self.extractor.to_dict()}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> AudioFeatureExtractor:
        """Make an extractor from what :meth:`to_dict` gives.

        Raises:
            CheckpointError: the settings are damaged, or the extractor is not supported.
        """
        try:
            settings = dict(settings)
            saved = dict(settings.pop("extractor"))
            name = saved.get("feature_extractor_type")
            if name not in _LENGTH_OF:  # settings are not trusted, so no other name is looked up
                raise ValueError(f"{str(name)[:60]!r} is not one of {', '.join(_LENGTH_OF)}")
            return cls(getattr(transformers, name).from_dict(saved), **settings)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"audio: the saved feature extractor can't be loaded: {error}.") from error


def _mask(lengths: Sequence[int], longest: int) -> torch.Tensor:
    return (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()


# --- for an encoder ---------------------------------------------------------------------------------------------------


def _whisper(config: PreTrainedConfig) -> SequenceFeatureExtractor:
    family = family_of(config)
    assert family.window is not None
    seconds = -(-family.window(config) * _HOP // 16000)
    return transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds)


def _wav2vec2(config: PreTrainedConfig) -> SequenceFeatureExtractor:
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)


def _not_normalised(config: PreTrainedConfig) -> SequenceFeatureExtractor:
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)


def _wavlm(config: PreTrainedConfig) -> SequenceFeatureExtractor:
    """WavLM and UniSpeech-SAT: only the large models, which begin with layer norms, take normalised samples."""
    return _wav2vec2(config) if config.feat_extract_norm == "layer" else _not_normalised(config)


def _seamless(config: PreTrainedConfig) -> SequenceFeatureExtractor:
    bins = config.feature_projection_input_dim // 2
    return transformers.SeamlessM4TFeatureExtractor(feature_size=bins, num_mel_bins=bins, stride=2)


def _ast(config: PreTrainedConfig) -> SequenceFeatureExtractor:
    return transformers.ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)


def _parakeet(config: PreTrainedConfig) -> SequenceFeatureExtractor:
    try:
        return transformers.ParakeetFeatureExtractor(feature_size=config.num_mel_bins)
    except (ImportError, NameError) as error:  # before transformers 5.23 the extractor needs librosa
        raise CompositionError(
            f"audio: the feature extractor of Parakeet can't be made: {error}. Install librosa, or a later "
            "transformers."
        ) from error


_EXTRACTORS: dict[str, Callable[[PreTrainedConfig], SequenceFeatureExtractor]] = {
    "whisper": _whisper,
    "qwen2_audio_encoder": _whisper,
    "voxtral_encoder": _whisper,
    "audioflamingo3_encoder": _whisper,
    "glmasr_encoder": _whisper,
    "wav2vec2": _wav2vec2,
    "hubert": _wav2vec2,
    "wavlm": _wavlm,
    "unispeech-sat": _wavlm,
    "data2vec-audio": _wav2vec2,
    "sew": _wav2vec2,
    "wav2vec2-conformer": _wav2vec2,
    "moonshine": _not_normalised,
    "wav2vec2-bert": _seamless,
    "parakeet_encoder": _parakeet,
    "audio-spectrogram-transformer": _ast,
}


class Audio(ProcessorInterface[AudioItem]):
    """Prepares clips with the Hugging Face feature extractor of the encoder's family."""

    def build(self, context: EncoderContext, **callback_options: object) -> AudioFeatureExtractor:
        """Make the feature extractor of an encoder's family, set to the encoder's mel bins and window.

        Args:
            context: the encoder; its ``config`` tells the family.
            **callback_options: ignored: no callbacks of this plugin change how clips are prepared.

        Raises:
            CompositionError: the family is unknown, or a library that its extractor needs is missing.
        """
        family_of(context.config, context.key)
        extractor = _EXTRACTORS[context.config.model_type](context.config)
        return _wrapped(context, extractor)

    def wrap(self, context: EncoderContext, processor: Any, **callback_options: object) -> Any:
        """Make an :class:`AudioFeatureExtractor` for an encoder out of a feature extractor of transformers.

        Args:
            context: the encoder.
            processor: for example the checkpoint's own, ``AutoFeatureExtractor.from_pretrained("...")``. What is no
                class of transformers is used as it is, and called with a list of
                :class:`~cornstarch_audio.waveforms.Waveform`.
            **callback_options: ignored.

        Raises:
            CompositionError: its output doesn't fit the encoder, or its class is not supported.
        """
        extractor = processor.extractor if isinstance(processor, AudioFeatureExtractor) else processor
        if _kind(extractor) is None:
            _check_is_custom(context.key, extractor)
            return extractor
        wrapped = _wrapped(context, extractor)
        if isinstance(processor, AudioFeatureExtractor) and family_of(context.config).window is None:
            wrapped.window = processor.window
        return wrapped

    def prepare(self, item: AudioItem) -> Waveform:
        """Check one clip and convert it to mono float32; arguments and errors are those of :func:`prepare_audio`."""
        return prepare_audio(item)


def _wrapped(context: EncoderContext, extractor: SequenceFeatureExtractor) -> AudioFeatureExtractor:
    """An extractor of a supported class, with what the encoder needs."""
    config, family = context.config, family_of(context.config, context.key)
    _check_fit(context.key, config, family, extractor)
    wrapped = AudioFeatureExtractor(
        copy.deepcopy(extractor), main=family.main, time=family.time, cut_late=family.cut_late
    )
    wrapped.shortest = _first(lambda samples: family.frames(config, wrapped.length(samples)) > 0)
    if family.window is not None:
        length = family.window(config)
        wrapped.window = _first(lambda samples: wrapped.length(samples) > length) - 1
    if family.takes_mask and getattr(config, "feat_extract_norm", "layer") != "group":  # those were trained without one
        wrapped.mask_name = family.mask_name
    return wrapped


def _check_is_custom(key: str, given: object) -> None:
    """Refuse classes that transformers has for other encoders, which can't be called with a waveform."""
    if "ProcessorMixin" in _names(given):  # by name, since importing the class would import soundfile
        raise CompositionError(f"{key}: a {type(given).__name__} prepares text too; pass its .feature_extractor.")
    if "FeatureExtractionMixin" in _names(given):
        raise CompositionError(
            f"{key}: a {type(given).__name__} is not one of the supported feature extractors, "
            f"{', '.join(_LENGTH_OF)}. Wrap it in your own function (waveforms, return_tensors='pt') -> dict."
        )


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest number of samples for which ``holds`` is true; it must stay true for all larger numbers."""
    return bisect_left(range(_MOST), True, lo=1, key=holds)


def _check_fit(key: str, config: PreTrainedConfig, family: Family, extractor: Any) -> None:
    if family.main not in extractor.model_input_names:
        raise CompositionError(
            f"{key}: a {type(extractor).__name__} gives {extractor.model_input_names[0]}; this encoder, of type "
            f"{config.model_type!r}, takes {family.main}. Leave {key!r} out of "
            "MultimodalProcessor(processors=...) to get the right one."
        )
    longest = getattr(extractor, "max_length", None)
    if family.window is not None and longest is not None and longest != family.window(config):
        raise CompositionError(
            f"{key}: the feature extractor has max_length={longest}, the encoder takes {family.window(config)}. Take "
            "the extractor of the same checkpoint."
        )
    if family.width is None:
        return
    bins = getattr(extractor, "num_mel_bins", extractor.feature_size) * getattr(extractor, "stride", 1)
    if bins != family.width(config):
        raise CompositionError(
            f"{key}: the feature extractor gives spectrograms of {bins} bins, the encoder takes "
            f"{family.width(config)}. Take the extractor of the same checkpoint."
        )
