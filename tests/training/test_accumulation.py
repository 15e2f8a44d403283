"""Gradient accumulation: every token has the same weight, whichever micro-batch it is in."""

from __future__ import annotations

import torch
import two_modalities


def test_four_micro_batches_of_unequal_length_give_the_gradients_of_one_batch():
    """With ``num_items_in_batch``, the gradients of micro-batches add up to those of the whole batch."""
    model = two_modalities.compose().eval()  # no dropout
    shares = ("v", "a t", "t", "v a v")
    batches = [two_modalities.make_batch(model, share) for share in shares]
    counts = [two_modalities.learned(batch) for batch in batches]
    assert len(set(counts)) > 2
    for batch in batches:
        model(**batch, num_items_in_batch=sum(counts)).loss.backward()
    accumulated = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    samples = [two_modalities.sample(kind, seed) for share in shares for seed, kind in enumerate(share.split())]
    model(**two_modalities.collate(model, samples)).loss.backward()
    assert accumulated.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(accumulated[name], parameter.grad, atol=1e-6, rtol=1e-5, msg=name)
