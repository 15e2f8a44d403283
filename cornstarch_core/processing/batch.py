"""The batch that a processor or collator gives."""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature

__all__ = ["MultimodalBatch"]


class MultimodalBatch(BatchFeature):
    """``input_ids``, ``attention_mask`` and the like, and ``encoder_inputs`` by modality: ``mllm(**batch)``.

    Example:
        >>> import torch
        >>> from cornstarch_core.processing.batch import MultimodalBatch
        >>> batch = MultimodalBatch({"encoder_inputs": {"vision": {"pixel_values": torch.zeros(1, 3, 8, 8)}}})
        >>> batch.to(torch.bfloat16)["encoder_inputs"]["vision"]["pixel_values"].dtype
        torch.bfloat16
    """

    def to(self, *args: Any, **kwargs: Any) -> MultimodalBatch:
        """Move every tensor, those of ``encoder_inputs`` too; a dtype is for floating-point tensors only.

        Args:
            *args: as in ``BatchFeature.to``: a device or a dtype.
            **kwargs: likewise: ``device``, ``dtype``, ``non_blocking``.

        Returns:
            This batch.
        """
        super().to(*args, **kwargs)
        inputs = self.data.get("encoder_inputs")
        if inputs is not None:  # BatchFeature (5.23) does not look into dictionaries
            moved = {key: BatchFeature(dict(values)).to(*args, **kwargs).data for key, values in inputs.items()}
            self.data["encoder_inputs"] = moved
        return self
