"""The encoder families, and how many frames each gives for how much sound: arithmetic on lengths.

Must not import torch at the top (the plugin's light module imports this table), nor look at samples or weights.

A *length* is counted in what the encoder takes along time: samples of a raw waveform, or frames of a spectrogram. A
*frame* is one feature that the encoder gives. Checked on transformers 5.17 and 5.23.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from cornstarch_core.errors import CompositionError, MediaError
from cornstarch_core.specs import EncoderSpec

if TYPE_CHECKING:
    import torch

__all__ = [
    "ENCODERS",
    "FAMILIES",
    "LENGTHS",
    "MASKS",
    "WINDOWS",
    "Family",
    "ast_prefix_tokens",
    "dummy_inputs",
    "family_of",
    "hidden_size",
    "num_tokens",
    "shortest",
    "trainable_frames",
]

LENGTHS = "audio_lengths"
"""Encoder input: a list with the length of the sound in each row; what comes after it is padding."""
WINDOWS = "audio_windows"
"""Encoder input: a list with the rows of each clip; an encoder of a fixed length takes a long clip as several rows."""
MASKS = ("attention_mask", "feature_attention_mask", "input_features_mask")
"""What Hugging Face's processors call the mask over lengths."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is particular about a family of encoders.

    Args:
        main: name of the input that holds the sound, one row a window or clip.
        time: axis of ``main`` along which length is counted.
        width: ``(config) -> int``: the size of its other axis; ``None``: there is none.
        frames: ``(config, length) -> int``: the frames that belong to sound of this length.
        window: ``(config) -> int``: the only length that the encoder takes; ``None``: it takes any.
        cut_late: whether a long clip is cut into windows only after its spectrogram was made.
        mask_name: what Hugging Face's processor calls the mask over lengths; ``None``: it makes none.
        takes_mask: whether the encoder itself takes that mask, under that name.
        masks: ``(config) -> bool``: whether the mask makes a padded clip's frames those of the clip alone. Without a
            window, clips of an encoder for which it does not are run apart from each other.
        prefix: tokens before the frames of a row.
        per_moment: ``(config) -> int``: how many frames stand for one moment, if the encoder gives them frequency by
            frequency and not moment by moment.
    """

    main: str
    time: int
    frames: Callable[[Any, int], int]
    width: Callable[[Any], int] | None = None
    window: Callable[[Any], int] | None = None
    cut_late: bool = False
    mask_name: str | None = None
    takes_mask: bool = False
    masks: Callable[[Any], bool] = lambda config: False
    prefix: int = 0
    per_moment: Callable[[Any], int] = lambda config: 1


def family_of(config: Any, key: str = "audio") -> Family:
    """The family of an encoder's config.

    Raises:
        CompositionError: it is none of this plugin's.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise CompositionError(
            f"{key}: {model_type!r} is no audio encoder that cornstarch-audio knows; it knows {', '.join(FAMILIES)}. "
            "Use callbacks of your own, ModalEncoderModule(..., callbacks=ModalCallbacks(...)), or register it in a "
            "plugin."
        )
    return FAMILIES[model_type]


# --- frames of a length -----------------------------------------------------------------------------------------------


def _convolved(length: int, kernel: int, stride: int, padding: int = 0) -> int:
    """What a convolution makes of a length: nothing of nothing, nor of what is shorter than the kernel."""
    return max((length + 2 * padding - kernel) // stride + 1, 0) if length > 0 else 0


def _halved(config: Any, length: int) -> int:
    """Whisper's two convolutions, of which the second has a stride of 2."""
    return _convolved(length, kernel=3, stride=2, padding=1)


def _pooled(config: Any, length: int) -> int:
    """Qwen2-Audio: Whisper's, then an average over pairs."""
    return _halved(config, length) // 2


def _from_waveform(config: Any, length: int) -> int:
    """wav2vec 2.0 and its kin: a stack of convolutions over samples, and perhaps an adapter."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        length = _convolved(length, kernel, stride)
    return _adapted(config, length, padding=1)


def _bert(config: Any, length: int) -> int:
    """Wav2Vec2-BERT takes frames as they are, and may have an adapter."""
    return _adapted(config, length, padding=getattr(config, "adapter_stride", 0) // 2)


def _adapted(config: Any, length: int, padding: int) -> int:
    """The adapter that ``add_adapter=True`` puts behind the encoder: convolutions with a stride."""
    if not getattr(config, "add_adapter", False):
        return length
    kernel = getattr(config, "adapter_kernel_size", 3)
    for _ in range(config.num_adapter_layers):
        length = _convolved(length, kernel, config.adapter_stride, padding)
    return length


def _squeezed(config: Any, length: int) -> int:
    """SEW: squeezes frames together and takes them apart again, for which it needs enough of them."""
    frames = _from_waveform(config, length)
    return frames if frames >= config.squeeze_factor else 0


def _moonshine(config: Any, length: int) -> int:
    for kernel, stride in ((127, 64), (7, 3), (3, 2)):
        length = _convolved(length, kernel, stride)
    return length


def _parakeet(config: Any, length: int) -> int:
    kernel = config.subsampling_conv_kernel_size
    for _ in range(config.subsampling_factor.bit_length() - 1):
        length = _convolved(length, kernel, config.subsampling_conv_stride, (kernel - 1) // 2)
    return length


def _patches(config: Any, length: int) -> int:
    """AST: the patches of every column that begins within the sound."""
    moments = _convolved(config.max_length, config.patch_size, config.time_stride)
    return _patch_rows(config) * min(-(-length // config.time_stride), moments)


def _patch_rows(config: Any) -> int:
    return _convolved(config.num_mel_bins, config.patch_size, config.frequency_stride)


def ast_prefix_tokens(config: Any) -> int:
    """Two tokens before AST's patches: CLS and distillation."""
    return FAMILIES["audio-spectrogram-transformer"].prefix


# --- families ---------------------------------------------------------------------------------------------------------


def _whisper_window(config: Any) -> int:
    return 2 * config.max_source_positions


def _mel_bins(config: Any) -> int:
    return config.num_mel_bins


def _is_masked_exactly(config: Any) -> bool:
    """Whether padding, once masked, leaves no trace.

    It leaves one where the first norm runs over time (``feat_extract_norm="group"``), and where an adapter's
    convolutions or a batch norm see it.
    """
    return (
        getattr(config, "feat_extract_norm", "layer") == "layer"
        and not getattr(config, "add_adapter", False)
        and not getattr(config, "conv_pos_batch_norm", False)
    )


def _fixed(frames: Callable[[Any, int], int], mask_name: str | None = None, **changes: Any) -> Family:
    """Whisper's kin: log-mel spectrograms of one length, which 30 seconds fill."""
    settings = {"window": _whisper_window, **changes}
    return Family(main="input_features", time=2, width=_mel_bins, frames=frames, mask_name=mask_name, **settings)


def _spectrogram(frames: Callable[[Any, int], int], **settings: Any) -> Family:
    """Spectrograms of any length."""
    return Family(main="input_features", time=1, frames=frames, mask_name="attention_mask", takes_mask=True, **settings)


def _waveform(frames: Callable[[Any, int], int] = _from_waveform, **settings: Any) -> Family:
    """Raw samples, any number."""
    return Family(main="input_values", time=1, frames=frames, mask_name="attention_mask", takes_mask=True, **settings)


FAMILIES: dict[str, Family] = {
    "whisper": _fixed(_halved),
    "qwen2_audio_encoder": _fixed(_pooled, "feature_attention_mask"),
    "voxtral_encoder": _fixed(_halved, cut_late=True),
    "audioflamingo3_encoder": _fixed(_pooled, "input_features_mask", takes_mask=True),
    "glmasr_encoder": _fixed(_halved, "input_features_mask", window=lambda config: 2 * config.max_position_embeddings),
    "wav2vec2": _waveform(masks=_is_masked_exactly),
    "hubert": _waveform(masks=_is_masked_exactly),
    "wavlm": _waveform(masks=_is_masked_exactly),
    "unispeech-sat": _waveform(masks=_is_masked_exactly),
    "data2vec-audio": _waveform(),  # five convolutions over time tell positions, and see past the mask
    "sew": _waveform(_squeezed),  # squeezes pairs of frames into one, also across the end of a clip
    "wav2vec2-conformer": _waveform(),  # the convolutions of its blocks see past the mask
    "moonshine": _waveform(_moonshine),  # a group norm runs over time
    "wav2vec2-bert": _spectrogram(
        _bert, width=lambda config: config.feature_projection_input_dim, masks=_is_masked_exactly
    ),
    "parakeet_encoder": _spectrogram(_parakeet, width=_mel_bins, masks=lambda config: True),
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


def _encoder(name: str, model: str, layers: str, inputs: str, prefix: str | None = None) -> EncoderSpec:
    here = f"{__name__}:"
    return EncoderSpec(
        name=name,
        modality="audio",
        classes=(f"transformers.models.{model}",),
        input_names=tuple(inputs.split()),
        num_tokens=here + "num_tokens",
        dummy_inputs=here + "dummy_inputs",
        hidden_size=here + "hidden_size",
        prefix_tokens=here + prefix if prefix else None,
        layers=layers,
        processor="audio",
    )


_WAVEFORM = "input_values attention_mask"

ENCODERS: tuple[EncoderSpec, ...] = (
    _encoder("whisper", "whisper.modeling_whisper:WhisperEncoder", "layers", "input_features"),
    _encoder("wav2vec2", "wav2vec2.modeling_wav2vec2:Wav2Vec2Model", "encoder.layers", _WAVEFORM),
    _encoder("hubert", "hubert.modeling_hubert:HubertModel", "encoder.layers", _WAVEFORM),
    _encoder("wavlm", "wavlm.modeling_wavlm:WavLMModel", "encoder.layers", _WAVEFORM),
    _encoder("data2vec_audio", "data2vec.modeling_data2vec_audio:Data2VecAudioModel", "encoder.layers", _WAVEFORM),
    _encoder("unispeech_sat", "unispeech_sat.modeling_unispeech_sat:UniSpeechSatModel", "encoder.layers", _WAVEFORM),
    _encoder("sew", "sew.modeling_sew:SEWModel", "encoder.layers", _WAVEFORM),
    _encoder(
        "wav2vec2_conformer",
        "wav2vec2_conformer.modeling_wav2vec2_conformer:Wav2Vec2ConformerModel",
        "encoder.layers",
        _WAVEFORM,
    ),
    _encoder(
        "wav2vec2_bert",
        "wav2vec2_bert.modeling_wav2vec2_bert:Wav2Vec2BertModel",
        "encoder.layers",
        "input_features attention_mask",
    ),
    _encoder(
        "ast",
        "audio_spectrogram_transformer.modeling_audio_spectrogram_transformer:ASTModel",
        "layers",
        "input_values",
        prefix="ast_prefix_tokens",
    ),
    _encoder(
        "qwen2_audio",
        "qwen2_audio.modeling_qwen2_audio:Qwen2AudioEncoder",
        "layers",
        "input_features attention_mask",  # a ready one, over its convolutions' frames
    ),
    _encoder("voxtral", "voxtral.modeling_voxtral:VoxtralEncoder", "layers", "input_features"),
    _encoder(
        "audio_flamingo3",
        "audioflamingo3.modeling_audioflamingo3:AudioFlamingo3Encoder",
        "layers",
        "input_features input_features_mask",
    ),
    _encoder("glm_asr", "glmasr.modeling_glmasr:GlmAsrEncoder", "layers", "input_features"),
    _encoder("moonshine", "moonshine.modeling_moonshine:MoonshineEncoder", "layers", _WAVEFORM),
    _encoder("parakeet", "parakeet.modeling_parakeet:ParakeetEncoder", "layers", "input_features attention_mask"),
)
"""What :func:`cornstarch_audio.plugin.cornstarch_register_encoders` registers."""


# --- what specs name --------------------------------------------------------------------------------------------------


def hidden_size(config: Any) -> int:
    """Width of the frames: the adapter's, if the encoder has one."""
    return config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size


def num_tokens(config: Any, encoder_inputs: dict[str, Any]) -> list[int]:
    """Frames per clip of the bare encoder, those of padding and silence included.

    The callback ``"audio"`` keeps only the frames that hold sound, and counts those.

    Args:
        config: the encoder's config.
        encoder_inputs: ``input_features`` or ``input_values``, one row a window or clip, and ``audio_windows``, a list
            with the rows of each clip; without it each row is a clip.

    Returns:
        One count per clip.

    Raises:
        MediaError: the input is missing, or too short or too long for the encoder.

    Example:
        >>> import torch
        >>> from transformers import WhisperConfig
        >>> num_tokens(WhisperConfig(), {"input_features": torch.zeros(3, 80, 3000), "audio_windows": [1, 2]})
        [1500, 3000]
    """
    family = family_of(config)
    rows = encoder_inputs.get(family.main)
    if rows is None:
        raise MediaError(f"audio: {family.main} is missing; got {', '.join(encoder_inputs) or 'no inputs'}.")
    length = rows.shape[family.time]
    if family.window is not None and length != family.window(config):
        raise MediaError(
            f"audio: {family.main} has a length of {length}; this encoder takes {family.window(config)} only. Prepare "
            "clips with MultimodalProcessor, or pad them to it."
        )
    frames = family.frames(config, length)
    if frames < 1:
        raise MediaError(f"audio: a clip of length {length} is too short for this encoder: it gives no frame.")
    return [(family.prefix + frames) * windows for windows in encoder_inputs.get(WINDOWS) or [1] * rows.shape[0]]


def dummy_inputs(config: Any) -> dict[str, torch.Tensor]:
    """The least that the encoder can be trained with: one clip of zeros, as short as can be.

    Returns:
        ``input_features`` or ``input_values``, float32 zeros on the CPU: ``(1, length)``, ``(1, length, width)`` or
        ``(1, width, length)``, as the family takes it; and the mask ``(1, length)``, int64, if the encoder takes one.
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


def shortest(config: Any, least: int = 1) -> int:
    """The smallest length of which the encoder makes a frame, or so many."""
    frames = family_of(config).frames
    return next(length for length in count(1) if frames(config, length) >= least)


def trainable_frames(config: Any) -> int:
    """The fewest frames with which the encoder runs in training mode, too.

    Batch norms need two, and SpecAugment as many as it masks in a row (transformers 5.23 raises otherwise).
    """
    masks = getattr(config, "apply_spec_augment", False) and getattr(config, "mask_time_prob", 0) > 0
    return max(2, config.mask_time_length if masks else 0)
