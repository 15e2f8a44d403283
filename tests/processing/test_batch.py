"""The batch that a processor or collator makes."""

from __future__ import annotations

import torch
import words


def test_moving_a_batch_moves_the_encoder_inputs():
    """``to`` moves the tensors in nested dictionaries, too. A dtype changes floating-point tensors only."""
    batch = words.processor()(text="<vision>", vision=words.image())
    assert batch.to("meta", torch.bfloat16) is batch
    vision = batch["encoder_inputs"]["vision"]
    assert vision["pixel_values"].dtype == torch.bfloat16
    assert vision["positions"].dtype == torch.int64
    assert {tensor.device.type for tensor in (*vision.values(), batch["input_ids"])} == {"meta"}
