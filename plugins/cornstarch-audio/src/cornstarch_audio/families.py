"""The encoder families, and how many frames each gives for audio of some length: arithmetic on lengths.

The plugin's entry point imports this module, so that it must not import torch at the top. It reads no samples and no
weights.

A *length* is counted in what the encoder takes along time: samples of a raw waveform, or columns of a spectrogram. A
*frame* is one feature that the encoder gives. Checked with transformers 5.17 and 5.23.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from cornstarch_core.errors import CompositionError, MediaError
from cornstarch_core.specs import EncoderInterface, EncoderSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = [
    "ENCODERS",
    "FAMILIES",
    "LENGTHS",
    "MASKS",
    "WINDOWS",
    "AstEncoder",
    "AudioEncoder",
    "Family",
    "family_of",
    "shortest",
    "trainable_frames",
]

LENGTHS = "audio_lengths"
"""Encoder input: a list with the length of the audio in each row; the rest of the row is padding."""
WINDOWS = "audio_windows"
"""Encoder input: a list with the number of rows of each clip: several for a long clip, if an encoder has windows."""
MASKS = ("attention_mask", "feature_attention_mask", "input_features_mask")
"""The names that Hugging Face's processors give the mask over lengths."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is particular about a family of encoders.

    Args:
        main: name of the input that holds the audio, one row for each clip or window of a clip.
        time: axis of ``main`` along which length is counted.
        frames: ``(config, length) -> int``: the number of frames for audio of this length.
        width: ``(config) -> int``: the size of the other axis of ``main``; ``None``: there is no other axis.
        window: ``(config) -> int``: the only length that the encoder takes; ``None``: it takes any length.
        cut_late: whether a long clip is cut into windows after its spectrogram is made, not before.
        mask_name: the name that Hugging Face's processor gives the mask over lengths; ``None``: it makes no mask.
        takes_mask: whether the encoder takes that mask, under that name.
        masks: ``(config) -> bool``: whether the mask makes the frames of a padded clip equal to those of the clip
            alone. If it doesn't, and there is no window, clips of different lengths are encoded separately.
        prefix: number of tokens before the frames of a row.
        per_moment: ``(config) -> int``: number of frames for one moment in time, for an encoder that orders its frames
            by frequency first.
    """

    main: str
    time: int
    frames: Callable[[PreTrainedConfig, int], int]
    width: Callable[[PreTrainedConfig], int] | None = None
    window: Callable[[PreTrainedConfig], int] | None = None
    cut_late: bool = False
    mask_name: str | None = None
    takes_mask: bool = False
    masks: Callable[[PreTrainedConfig], bool] = lambda config: False
    prefix: int = 0
    per_moment: Callable[[PreTrainedConfig], int] = lambda config: 1


def family_of(config: PreTrainedConfig, key: str = "audio") -> Family:
    """Look up the family of an encoder.

    Args:
        config: the encoder's config.
        key: modality, for messages.

    Raises:
        CompositionError: this plugin doesn't know the encoder.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise CompositionError(
            f"{key}: {model_type!r} is no audio encoder that cornstarch-audio knows; it knows {', '.join(FAMILIES)}. "
            "Use callbacks of your own, ModalEncoderModule(..., callbacks=ModalCallbacks(...)), or register it in a "
            "plugin."
        )
    return FAMILIES[model_type]


class AudioEncoder(EncoderInterface["PreTrainedConfig"]):
    """Counts frames and makes inputs by the entry in :data:`FAMILIES` for the encoder's config."""

    def num_tokens(self, config: PreTrainedConfig, encoder_inputs: dict[str, Any]) -> list[int]:
        """Count the frames of each clip that the bare encoder gives, including those of padding.

        The callbacks ``"audio"`` keep only the frames of audio, and count those.

        Args:
            config: the encoder's config.
            encoder_inputs: ``input_features`` or ``input_values``, one row for each clip or window; and
                ``audio_windows``, a list with the number of rows of each clip. Without it each row is a clip.

        Returns:
            One count for each clip.

        Raises:
            MediaError: the input is missing, or too short or too long for the encoder.

        Example:
            >>> import torch
            >>> from transformers import WhisperConfig
            >>> inputs = {"input_features": torch.zeros(3, 80, 3000), "audio_windows": [1, 2]}
            >>> AudioEncoder().num_tokens(WhisperConfig(), inputs)
            [1500, 3000]
        """
        family = family_of(config)
        rows = encoder_inputs.get(family.main)
        if rows is None:
            raise MediaError(f"audio: {family.main} is missing; got {', '.join(encoder_inputs) or 'no inputs'}.")
        length = rows.shape[family.time]
        if family.window is not None and length != family.window(config):
            raise MediaError(
                f"audio: {family.main} has a length of {length}; this encoder takes {family.window(config)} only. "
                "Prepare clips with MultimodalProcessor, or pad them to it."
            )
        frames = family.frames(config, length)
        if frames < 1:
            raise MediaError(f"audio: a clip of length {length} is too short for this encoder: it gives no frame.")
        return [(family.prefix + frames) * windows for windows in encoder_inputs.get(WINDOWS) or [1] * rows.shape[0]]

    def dummy_inputs(self, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Make the smallest inputs that the encoder can be trained with: one short clip of zeros.

        Args:
            config: the encoder's config.

        Returns:
            ``input_features`` or ``input_values``, float32 zeros on the CPU of shape ``(1, length)``,
            ``(1, length, width)`` or ``(1, width, length)``, as the family takes it; and the mask ``(1, length)``,
            int64, if the encoder takes one.
        """
        import torch

        family = family_of(config)
        length = family.window(config) if family.window is not None else shortest(config, trainable_frames(config))
        shape = [1, length]
        if family.width is not None:
            shape.insert(3 - family.time, family.width(config))
        inputs = {family.main: torch.zeros(shape)}
        if family.takes_mask and family.mask_name is not None:
            inputs[family.mask_name] = torch.ones(1, length, dtype=torch.int64)
        return inputs

    def hidden_size(self, config: PreTrainedConfig) -> int:
        """Tell the width of the frames: the adapter's, if the encoder has an adapter.

        Args:
            config: the encoder's config.
        """
        return config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size


class AstEncoder(AudioEncoder):
    """AST: as the others, with a prefix."""

    def prefix_tokens(self, config: PreTrainedConfig) -> int:
        """Two: CLS and distillation."""
        return family_of(config).prefix


# --- frames of a length -----------------------------------------------------------------------------------------------


def _convolved(length: int, kernel: int, stride: int, padding: int = 0) -> int:
    """The length after a convolution; 0 if the length is 0, or shorter than the kernel."""
    return max((length + 2 * padding - kernel) // stride + 1, 0) if length > 0 else 0


def _halved(config: PreTrainedConfig, length: int) -> int:
    """Whisper's two convolutions, of which the second has a stride of 2."""
    return _convolved(length, kernel=3, stride=2, padding=1)


def _pooled(config: PreTrainedConfig, length: int) -> int:
    """Qwen2-Audio: Whisper's, then an average over pairs."""
    return _halved(config, length) // 2


def _from_waveform(config: PreTrainedConfig, length: int) -> int:
    """wav2vec 2.0 and related models: a stack of convolutions over samples, and an optional adapter."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        length = _convolved(length, kernel, stride)
    return _adapted(config, length, padding=1)


def _bert(config: PreTrainedConfig, length: int) -> int:
    """Wav2Vec2-BERT: one frame for each column of the spectrogram, and an optional adapter."""
    return _adapted(config, length, padding=getattr(config, "adapter_stride", 0) // 2)


def _adapted(config: PreTrainedConfig, length: int, padding: int) -> int:
    """The length after the adapter that ``add_adapter=True`` adds to the encoder: convolutions with a stride."""
    if not getattr(config, "add_adapter", False):
        return length
    kernel = getattr(config, "adapter_kernel_size", 3)
    for _ in range(config.num_adapter_layers):
        length = _convolved(length, kernel, config.adapter_stride, padding)
    return length


def _squeezed(config: PreTrainedConfig, length: int) -> int:
    """SEW: as wav2vec 2.0, but it needs as many frames as it squeezes into one."""
    frames = _from_waveform(config, length)
    return frames if frames >= config.squeeze_factor else 0


def _moonshine(config: PreTrainedConfig, length: int) -> int:
    for kernel, stride in ((127, 64), (7, 3), (3, 2)):
        length = _convolved(length, kernel, stride)
    return length


def _parakeet(config: PreTrainedConfig, length: int) -> int:
    kernel = config.subsampling_conv_kernel_size
    for _ in range(config.subsampling_factor.bit_length() - 1):
        length = _convolved(length, kernel, config.subsampling_conv_stride, (kernel - 1) // 2)
    return length


def _patches(config: PreTrainedConfig, length: int) -> int:
    """AST: the patches of every column that begins within the audio."""
    moments = _convolved(config.max_length, config.patch_size, config.time_stride)
    return _patch_rows(config) * min(-(-length // config.time_stride), moments)


def _patch_rows(config: PreTrainedConfig) -> int:
    return _convolved(config.num_mel_bins, config.patch_size, config.frequency_stride)


# --- families ---------------------------------------------------------------------------------------------------------


def _whisper_window(config: PreTrainedConfig) -> int:
    return 2 * config.max_source_positions


def _mel_bins(config: PreTrainedConfig) -> int:
    return config.num_mel_bins


def _is_masked_exactly(config: PreTrainedConfig) -> bool:
    """Whether a clip's frames don't depend on masked padding.

    They do if the first norm runs over time (``feat_extract_norm="group"``), or if an adapter's convolutions or a batch
    norm read the padding.
    """
    return (
        getattr(config, "feat_extract_norm", "layer") == "layer"
        and not getattr(config, "add_adapter", False)
        and not getattr(config, "conv_pos_batch_norm", False)
    )


# Whisper and related models: log-mel spectrograms of one length, usually of 30 seconds
_fixed = partial(Family, main="input_features", time=2, width=_mel_bins, window=_whisper_window)
# spectrograms of any length
_spectrogram = partial(Family, main="input_features", time=1, mask_name="attention_mask", takes_mask=True)
# raw samples, any number
_waveform = partial(
    Family, main="input_values", time=1, frames=_from_waveform, mask_name="attention_mask", takes_mask=True
)

FAMILIES: dict[str, Family] = {
    "whisper": _fixed(frames=_halved),
    "qwen2_audio_encoder": _fixed(frames=_pooled, mask_name="feature_attention_mask"),
    "voxtral_encoder": _fixed(frames=_halved, cut_late=True),
    "audioflamingo3_encoder": _fixed(frames=_pooled, mask_name="input_features_mask", takes_mask=True),
    "glmasr_encoder": _fixed(
        frames=_halved, mask_name="input_features_mask", window=lambda config: 2 * config.max_position_embeddings
    ),
    "wav2vec2": _waveform(masks=_is_masked_exactly),
    "hubert": _waveform(masks=_is_masked_exactly),
    "wavlm": _waveform(masks=_is_masked_exactly),
    "unispeech-sat": _waveform(masks=_is_masked_exactly),
    "data2vec-audio": _waveform(),  # positions come from five convolutions over time, which ignore the mask
    "sew": _waveform(frames=_squeezed),  # squeezes pairs of frames into one, also across the end of a clip
    "wav2vec2-conformer": _waveform(),  # the convolutions of its blocks ignore the mask
    "moonshine": _waveform(frames=_moonshine),  # a group norm runs over time
    "wav2vec2-bert": _spectrogram(
        frames=_bert, width=lambda config: config.feature_projection_input_dim, masks=_is_masked_exactly
    ),
    "parakeet_encoder": _spectrogram(frames=_parakeet, width=_mel_bins, masks=lambda config: True),
    "audio-spectrogram-transformer": Family(
        main="input_values",
        time=1,
        width=_mel_bins,
        frames=_patches,
        window=lambda config: config.max_length,
        prefix=2,
        per_moment=_patch_rows,
    ),
}
"""By the ``model_type`` of the encoder's config."""


def _spec(name: str, model: str, layers: str, inputs: str, target: type = AudioEncoder) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        modality="audio",
        classes=(f"transformers.models.{model}",),
        input_names=tuple(inputs.split()),
        target=f"{__name__}:{target.__name__}",
        layers=layers,
        processor="audio",
    )


_WAVEFORM = "input_values attention_mask"

ENCODERS: tuple[EncoderSpec, ...] = (
    _spec("whisper", "whisper.modeling_whisper:WhisperEncoder", "layers", "input_features"),
    _spec("wav2vec2", "wav2vec2.modeling_wav2vec2:Wav2Vec2Model", "encoder.layers", _WAVEFORM),
    _spec("hubert", "hubert.modeling_hubert:HubertModel", "encoder.layers", _WAVEFORM),
    _spec("wavlm", "wavlm.modeling_wavlm:WavLMModel", "encoder.layers", _WAVEFORM),
    _spec("data2vec_audio", "data2vec.modeling_data2vec_audio:Data2VecAudioModel", "encoder.layers", _WAVEFORM),
    _spec("unispeech_sat", "unispeech_sat.modeling_unispeech_sat:UniSpeechSatModel", "encoder.layers", _WAVEFORM),
    _spec("sew", "sew.modeling_sew:SEWModel", "encoder.layers", _WAVEFORM),
    _spec(
        "wav2vec2_conformer",
        "wav2vec2_conformer.modeling_wav2vec2_conformer:Wav2Vec2ConformerModel",
        "encoder.layers",
        _WAVEFORM,
    ),
    _spec(
        "wav2vec2_bert",
        "wav2vec2_bert.modeling_wav2vec2_bert:Wav2Vec2BertModel",
        "encoder.layers",
        "input_features attention_mask",
    ),
    _spec(
        "ast",
        "audio_spectrogram_transformer.modeling_audio_spectrogram_transformer:ASTModel",
        "layers",
        "input_values",
        AstEncoder,
    ),
    _spec(
        "qwen2_audio",
        "qwen2_audio.modeling_qwen2_audio:Qwen2AudioEncoder",
        "layers",
        "input_features attention_mask",  # a ready attention mask over the frames of its convolutions
    ),
    _spec("voxtral", "voxtral.modeling_voxtral:VoxtralEncoder", "layers", "input_features"),
    _spec(
        "audio_flamingo3",
        "audioflamingo3.modeling_audioflamingo3:AudioFlamingo3Encoder",
        "layers",
        "input_features input_features_mask",
    ),
    _spec("glm_asr", "glmasr.modeling_glmasr:GlmAsrEncoder", "layers", "input_features"),
    _spec("moonshine", "moonshine.modeling_moonshine:MoonshineEncoder", "layers", _WAVEFORM),
    _spec("parakeet", "parakeet.modeling_parakeet:ParakeetEncoder", "layers", "input_features attention_mask"),
)
"""What :func:`cornstarch_audio.plugin.cornstarch_register_encoders` registers."""


# --- smallest lengths -------------------------------------------------------------------------------------------------


def shortest(config: PreTrainedConfig, least: int = 1) -> int:
    """Find the smallest length for which the encoder gives a number of frames.

    Args:
        config: the encoder's config.
        least: the number of frames.
    """
    frames = family_of(config).frames
    return next(length for length in count(1) if frames(config, length) >= least)


def trainable_frames(config: PreTrainedConfig) -> int:
    """Tell the smallest number of frames with which the encoder runs in training mode.

    Batch norms need two, and SpecAugment needs as many as it masks in a row (transformers 5.23 raises otherwise).

    Args:
        config: the encoder's config.
    """
    masks = getattr(config, "apply_spec_augment", False) and getattr(config, "mask_time_prob", 0) > 0
    return max(2, config.mask_time_length if masks else 0)
