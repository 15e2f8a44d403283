"""The batch that a processor or collator returns."""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature

__all__ = ["MultimodalBatch"]


class MultimodalBatch(BatchFeature):
    """A batch for a model, ``mllm(**batch)``: ``input_ids`` and other tensors, and ``encoder_inputs`` by modality.

    Example:
        >>> import torch
        >>> from cornstarch_core.processing.batch import MultimodalBatch
        >>> batch = MultimodalBatch({"encoder_inputs": {"vision": {"pixel_values": torch.zeros(1, 3, 8, 8)}}})
        >>> batch.to(torch.bfloat16)["encoder_inputs"]["vision"]["pixel_values"].dtype
        torch.bfloat16
    """

    def to(self, *args: Any, **kwargs: Any) -> MultimodalBatch:
        """Move or cast all tensors, including those in ``encoder_inputs``; only floating-point tensors are cast.

        Args:
            *args: device or dtype, as for ``BatchFeature.to``.
            **kwargs: ``device``, ``dtype`` or ``non_blocking``, as for ``BatchFeature.to``.

        Returns:
            This batch.
        """
        super().to(*args, **kwargs)
        inputs = self.data.get("encoder_inputs")
        if inputs is not None:  # BatchFeature (5.23) does not look into dictionaries
            moved = {key: BatchFeature(dict(values)).to(*args, **kwargs).data for key, values in inputs.items()}
            self.data["encoder_inputs"] = moved
        return self
