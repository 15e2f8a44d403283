"""The callbacks ``"audio"``: the mask that an encoder needs, and only the frames of audio, without those of padding.

A language model has no use for frames of padding, and the frames of a clip must not depend on the other clips in its
batch. What each encoder needs for that is in :mod:`cornstarch_audio.families`.

Shapes: R rows, which are clips or windows of clips, T frames a row, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput

from cornstarch_core.errors import CompositionError, InputError
from cornstarch_core.specs import CallbacksInterface, EncoderContext, ModalCallbacks

from .families import LENGTHS, MASKS, WINDOWS, Family, family_of

__all__ = ["AudioCallbacks", "AudioFrames"]

_ROWS = "row_lengths"  # an input that preprocess adds for run, which never gets the inputs that only callbacks read

Output = BaseModelOutput | tuple[Any, ...]


class AudioCallbacks(CallbacksInterface):
    """Makes the ``"audio"`` callbacks."""

    def build(self, context: EncoderContext, keep_padding: bool = False) -> ModalCallbacks:
        """Pass on the frames of audio: a list with one ``(frames, width)`` for each clip, in the encoder's dtype.

        The frames of a clip don't depend on the other clips in its batch. If a mask is enough for that, the encoder
        gets a mask. If it isn't, because the encoder mixes frames outside of attention, clips are encoded separately,
        those of one length together. A clip that takes several windows gives the frames of all of them, in order.

        Args:
            context: the encoder.
            keep_padding: keep all frames of a window, including those of the padding after the audio, as Voxtral does.

        Returns:
            Callbacks that read ``audio_lengths`` and ``audio_windows``, lists on the host, which
            :class:`~cornstarch_audio.extractors.AudioFeatureExtractor` makes; or the mask of a Hugging Face processor,
            which costs a device sync. Without either, the whole input counts as audio.

        Raises:
            CompositionError: this plugin doesn't know the encoder, or ``keep_padding`` is given for an encoder without
                windows.

        Example:
            >>> from cornstarch_core.specs import EncoderContext
            >>> from transformers import WhisperConfig
            >>> context = EncoderContext(key="audio", config=WhisperConfig(), hidden_size=256, text_hidden_size=64)
            >>> count = AudioCallbacks().build(context).num_tokens_before_projector
            >>> count({"audio_lengths": [100, 3000, 7], "audio_windows": [1, 2]}, [1500, 3000])
            [50, 1504]
        """
        family = family_of(context.config, context.key)
        if keep_padding and family.window is None:
            raise CompositionError(
                f"{context.key}: keep_padding=True, but this encoder takes clips of any length and has no window to "
                "keep."
            )
        frames = AudioFrames(context.key, context.config, keep_padding)
        return ModalCallbacks(
            prepare_on_host=frames.prepare,
            preprocess=frames.mask,
            run_module=frames.run,
            data_dependent_calls=frames.runs_separately,
            postprocess_module=frames.select,
            num_tokens_before_projector=frames.num_tokens,
            input_names=(LENGTHS, WINDOWS, *MASKS),
        )


@dataclass(frozen=True)
class AudioFrames:
    """Which frames to pass on, and how to get them.

    Args:
        key: modality, for messages.
        config: the encoder's config; its attention implementation is read when the encoder runs.
        keep_padding: whether all frames of a window are kept.
    """

    key: str
    config: PreTrainedConfig
    keep_padding: bool = False

    @property
    def family(self) -> Family:
        """What is particular about the encoder. It is looked up, since functions in it can't be pickled."""
        return family_of(self.config, self.key)

    # --- counting -----------------------------------------------------------------------------------------------------

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Add ``audio_lengths`` and ``audio_windows`` to the inputs, unless they have both.

        Args:
            inputs: what a feature extractor gives.

        Raises:
            InputError: the encoder's main input is missing, or the mask is not one over lengths.
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
                "The callback makes the encoder's own mask from it."
            )
        return mask.long().sum(-1).tolist()

    def num_tokens(self, encoder_inputs: dict[str, Any], counts: list[int]) -> list[int]:
        """Count the frames of each clip that are passed on.

        Args:
            encoder_inputs: inputs as :meth:`prepare` returns them.
            counts: the frames that the encoder gives for each clip.
        """
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
        """Add the mask that the encoder takes to the inputs.

        Args:
            inputs: what a feature extractor gives; prepared or not.

        Raises:
            InputError: lengths, windows and rows don't fit.
        """
        inputs = self.prepare(inputs)
        rows, lengths = self._main(inputs), inputs[LENGTHS]
        if len(rows) != len(lengths) or sum(inputs[WINDOWS]) != len(lengths):
            raise InputError(
                f"{self.key}: {self.family.main} has {len(rows)} rows, {LENGTHS} is for {len(lengths)} and {WINDOWS} "
                f"for {sum(inputs[WINDOWS])}; were they re-batched separately?"
            )
        inputs = {**inputs, _ROWS: lengths}
        if self.config.model_type == "qwen2_audio_encoder":
            return {**inputs, "attention_mask": self._attention_mask(rows, lengths)}
        name = self.family.mask_name
        if name is not None and self.family.takes_mask and inputs.get(name) is None:
            inputs[name] = _mask(lengths, rows.shape[self.family.time], rows.device).long()
        return inputs

    def _attention_mask(self, rows: torch.Tensor, lengths: Sequence[int]) -> Any:
        """The attention mask over the frames of the convolutions, which Qwen2-Audio's encoder takes."""
        whole, *frames = (-(-length // 2) for length in (rows.shape[-1], *lengths))
        if all(length == whole for length in frames):
            return None
        return create_bidirectional_mask(
            config=self.config,
            inputs_embeds=rows.new_empty(len(rows), whole, 1),
            attention_mask=_mask(frames, whole, rows.device),
            allow_is_bidirectional_skip=False,  # deciding whether to skip the mask would cost a device sync
        )

    @property
    def runs_separately(self) -> bool:
        """Whether rows of different lengths are encoded separately: with any mask, their frames depend on padding."""
        return self.family.window is None and not self.family.masks(self.config)

    def run(self, module: nn.Module, inputs: dict[str, Any]) -> Any:
        """Run the encoder on all rows at once, or on those of one length at a time.

        Args:
            module: the encoder.
            inputs: inputs as :meth:`mask` returns them, without those that only callbacks read.

        Raises:
            CompositionError: another ``preprocess_callback`` stands in place of :meth:`mask`.
        """
        lengths = inputs.pop(_ROWS, None)
        if lengths is None:
            raise CompositionError(
                f"{self.key}: your preprocess_callback replaces that of 'audio', which makes what the encoder needs. "
                "Compose without it, or call the preprocess of cornstarch_audio.callbacks.AudioCallbacks in it."
            )
        if not self.runs_separately:
            return module(**inputs)
        if self.family.mask_name is not None:
            inputs.pop(self.family.mask_name, None)
        return _run_separately(module, self.family.main, lengths, inputs)

    def select(self, inputs: dict[str, Any], output: Output) -> Output:
        """Replace the features ``(R, T, D)`` by a list with one ``(frames, D)`` for each clip.

        Args:
            inputs: inputs as :meth:`prepare` returns them.
            output: what the encoder gives.
        """
        kept = self._frames(inputs[LENGTHS])
        # unbound first, so that each slice's gradient is as large as its row, not as all rows
        rows = [row[:length] for row, length in zip(self._rows(output[0]), kept, strict=True)]
        parts = iter(rows)
        clips = [_joined(list(islice(parts, windows))) for windows in inputs[WINDOWS]]
        if isinstance(output, tuple):
            return (clips, *output[1:])
        return replace(output, last_hidden_state=clips)  # type: ignore[arg-type]  # a list is fine here

    def _rows(self, hidden: torch.Tensor | list[torch.Tensor]) -> Sequence[torch.Tensor]:
        """One ``(T, D)`` for each row, ordered by time, without the prefix."""
        if not isinstance(hidden, torch.Tensor):
            return hidden
        frames: torch.Tensor = hidden[:, self.family.prefix :]
        patches = self.family.per_moment(self.config)
        if patches > 1:
            frames = frames.unflatten(1, (patches, -1)).transpose(1, 2).flatten(1, 2)
        return frames.unbind()


@torch.compiler.disable  # it would compile anew for every set of lengths
def _run_separately(module: nn.Module, main: str, lengths: Sequence[int], inputs: dict[str, Any]) -> Output:
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
    """``(R, longest)`` bool, true within each length."""
    ends = torch.tensor(lengths).to(device, non_blocking=True)
    return torch.arange(longest, device=device) < ends[:, None]


def _joined(windows: list[torch.Tensor]) -> torch.Tensor:
    return windows[0] if len(windows) == 1 else torch.cat(windows)
