"""The callback ``"audio"``: the mask that an encoder needs, and only the frames that hold sound.

Frames of padding are of no use to a language model, and frames of sound must not depend on what a clip is batched with.
What an encoder needs for that is in :mod:`cornstarch_audio.families`; here it is done.

Shapes: R rows, which are clips or windows of clips, T frames a row, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput

from cornstarch_core.errors import CompositionError, InputError
from cornstarch_core.specs import EncoderContext, ModalCallbacks

from .families import LENGTHS, MASKS, WINDOWS, Family, family_of

__all__ = ["SoundFrames", "audio"]

_ROWS = "row_lengths"  # how preprocess tells the run about lengths: given inputs of callbacks never get there


def audio(context: EncoderContext, keep_padding: bool = False) -> ModalCallbacks:
    """Pass on the frames that hold sound: a list of one ``(frames, width)`` a clip, in the encoder's dtype.

    A clip's frames are the same whatever it is batched with. Where a mask makes them so, the encoder gets one. Where
    none can, because the encoder mixes frames in other places than attention, clips are run apart, those of one length
    together. A clip that takes several windows gives the frames of all of them, one after another.

    Args:
        context: the encoder.
        keep_padding: keep all frames of a window, also those of silence after the sound, as Voxtral does.

    Returns:
        Callbacks that read ``audio_lengths`` and ``audio_windows``, lists on the host, which
        :class:`~cornstarch_audio.extractors.AudioFeatureExtractor` makes; or the mask of a Hugging Face processor,
        which costs a device sync. Without either, all of the input counts as sound.

    Raises:
        CompositionError: the encoder is none that this plugin knows, or has no window to keep.

    Example:
        >>> from cornstarch_core.specs import EncoderContext
        >>> from transformers import WhisperConfig
        >>> context = EncoderContext(key="audio", config=WhisperConfig(), hidden_size=256, text_hidden_size=64)
        >>> callbacks = audio(context)
        >>> callbacks.num_tokens({"audio_lengths": [100, 3000, 7], "audio_windows": [1, 2]}, [1500, 3000])
        [50, 1504]
    """
    family = family_of(context.config, context.key)
    if keep_padding and family.window is None:
        raise CompositionError(
            f"{context.key}: keep_padding=True, but this encoder takes clips of any length and has no window to keep."
        )
    frames = SoundFrames(context.key, context.config, keep_padding)
    return ModalCallbacks(
        process=frames.prepare,
        preprocess=frames.mask,
        run_module=frames.run,
        calls_vary=frames.runs_apart,
        postprocess_module=frames.select,
        num_tokens=frames.num_tokens,
        input_names=(LENGTHS, WINDOWS, *MASKS),
    )


@dataclass(frozen=True)
class SoundFrames:
    """What ``"audio"`` was asked for, and how it is done.

    Args:
        key: modality, for messages.
        config: the encoder's; its attention implementation is read when it runs.
        keep_padding: whether all frames of a window are kept.
    """

    key: str
    config: Any
    keep_padding: bool = False

    @property
    def family(self) -> Family:
        """What is particular about the encoder; looked up, so that this can be sent to another process."""
        return family_of(self.config, self.key)

    # --- counting -----------------------------------------------------------------------------------------------------

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with ``audio_lengths`` and ``audio_windows``; those that have them go through as they are.

        Raises:
            InputError: the sound is missing, or its mask is of another kind.
        """
        if LENGTHS in inputs and WINDOWS in inputs:
            return inputs
        lengths = inputs[LENGTHS] if LENGTHS in inputs else self._lengths(inputs)
        return {**inputs, LENGTHS: lengths, WINDOWS: inputs.get(WINDOWS) or [1] * len(lengths)}

    def _lengths(self, inputs: dict[str, Any]) -> list[int]:
        rows = self._main(inputs)
        mask = next((inputs[name] for name in MASKS if inputs.get(name) is not None), None)
        if mask is None:
            return [rows.shape[self.family.time]] * len(rows)
        if mask.dim() != 2:
            raise InputError(
                f"{self.key}: a mask of shape {tuple(mask.shape)}; expected one over lengths, ({len(rows)}, length). "
                "The encoder's own is made here."
            )
        return mask.long().sum(-1).tolist()

    def num_tokens(self, encoder_inputs: dict[str, Any], counts: list[int]) -> list[int]:
        """Frames of each clip that are passed on."""
        frames = iter(self._frames(encoder_inputs[LENGTHS]))
        return [sum(islice(frames, windows)) for windows in encoder_inputs[WINDOWS]]

    def _frames(self, lengths: Sequence[int]) -> list[int]:
        if self.keep_padding and self.family.window is not None:
            lengths = [self.family.window(self.config)] * len(lengths)
        return [self.family.frames(self.config, length) for length in lengths]

    def _main(self, inputs: dict[str, Any]) -> torch.Tensor:
        rows = inputs.get(self.family.main)
        if rows is None:
            raise InputError(f"{self.key}: {self.family.main} is missing; got {', '.join(inputs) or 'nothing'}.")
        return rows

    # --- running ------------------------------------------------------------------------------------------------------

    def mask(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with the mask that the encoder takes."""
        inputs = self.prepare(inputs)
        rows, lengths = self._main(inputs), inputs[LENGTHS]
        if len(rows) != len(lengths) or sum(inputs[WINDOWS]) != len(lengths):
            raise InputError(
                f"{self.key}: {self.family.main} has {len(rows)} rows, {LENGTHS} tells of {len(lengths)} and {WINDOWS} "
                f"of {sum(inputs[WINDOWS])}; were they re-batched apart from each other?"
            )
        inputs = {**inputs, _ROWS: lengths}
        if self.config.model_type == "qwen2_audio_encoder":
            return {**inputs, "attention_mask": self._attention_mask(rows, lengths)}
        name = self.family.mask_name
        if name is not None and self.family.takes_mask and inputs.get(name) is None:
            inputs[name] = _mask(lengths, rows.shape[self.family.time], rows.device).long()
        return inputs

    def _attention_mask(self, rows: torch.Tensor, lengths: Sequence[int]) -> Any:
        """Qwen2-Audio's encoder takes a ready attention mask over the frames that its convolutions give."""
        whole, *frames = (-(-length // 2) for length in (rows.shape[-1], *lengths))
        if all(length == whole for length in frames):
            return None
        return create_bidirectional_mask(
            config=self.config,
            inputs_embeds=rows.new_empty(len(rows), whole, 1),
            attention_mask=_mask(frames, whole, rows.device),
            allow_is_bidirectional_skip=False,  # to find out whether it may be left out would cost a device sync
        )

    @property
    def runs_apart(self) -> bool:
        """Whether rows of different lengths can't be run at once: no mask would make their frames the same."""
        return self.family.window is None and not self.family.masks(self.config)

    def run(self, module: nn.Module, inputs: dict[str, Any]) -> Any:
        """Run the encoder: all rows at once where that gives the same frames, else those of one length at once."""
        lengths = inputs.pop(_ROWS, None)
        if lengths is None:
            raise CompositionError(
                f"{self.key}: a preprocess_callback stands in place of that of 'audio', which makes what the encoder "
                "needs. Compose without it, or give all of them yourself: cornstarch_audio.callbacks.audio makes them."
            )
        if not self.runs_apart:
            return module(**inputs)
        if self.family.mask_name is not None:
            inputs.pop(self.family.mask_name, None)
        return _run_apart(module, self.family.main, lengths, inputs)

    def select(self, inputs: dict[str, Any], output: Any) -> Any:
        """``output`` with the frames that are passed on, a list of one ``(frames, D)`` a clip, for ``(R, T, D)``."""
        kept = self._frames(inputs[LENGTHS])
        # unbound first, so that each slice's gradient is as large as its row, not as all rows
        rows = [row[:length] for row, length in zip(self._rows(output[0]), kept, strict=True)]
        parts = iter(rows)
        clips = [_joined(list(islice(parts, windows))) for windows in inputs[WINDOWS]]
        return (clips, *output[1:]) if isinstance(output, tuple) else replace(output, last_hidden_state=clips)

    def _rows(self, hidden: Any) -> Sequence[torch.Tensor]:
        """One ``(T, D)`` a row, moment after moment, without what stands before the frames."""
        if not isinstance(hidden, torch.Tensor):
            return hidden
        hidden = hidden[:, self.family.prefix :]
        patches = self.family.per_moment(self.config)
        if patches > 1:
            hidden = hidden.unflatten(1, (patches, -1)).transpose(1, 2).flatten(1, 2)
        return hidden.unbind()


@torch.compiler.disable  # it would compile anew for every set of lengths
def _run_apart(module: nn.Module, main: str, lengths: Sequence[int], inputs: dict[str, Any]) -> Any:
    """Run the encoder on the rows of one length at a time, without their padding."""
    rows = inputs.pop(main)
    frames: list[Any] = [None] * len(lengths)
    output: Any = ()
    for length in dict.fromkeys(lengths):
        alike = [row for row, other in enumerate(lengths) if other == length]
        output = module(**{main: torch.stack([rows[row, :length] for row in alike]), **inputs})
        for row, features in zip(alike, output[0].unbind(), strict=True):
            frames[row] = features
    return (frames,) if isinstance(output, tuple) else BaseModelOutput(last_hidden_state=frames)  # type: ignore[arg-type]


def _mask(lengths: Sequence[int], longest: int, device: torch.device) -> torch.Tensor:
    """``(R, longest)`` bool: true within each length."""
    ends = torch.tensor(lengths).to(device, non_blocking=True)
    return torch.arange(longest, device=device) < ends[:, None]


def _joined(windows: list[torch.Tensor]) -> torch.Tensor:
    return windows[0] if len(windows) == 1 else torch.cat(windows)
