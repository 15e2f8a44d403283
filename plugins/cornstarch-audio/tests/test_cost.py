"""What hearing costs beside the encoder: no device sync, and a frozen encoder leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from ops import Ops

# transformers' own code (5.23) waits there, to see whether its mask masks anything, and to set what is masked to zero.
WAITS = {"audio_flamingo3", "wav2vec2_bert", "wav2vec2", "hubert", "wavlm", "unispeech_sat"}


def forward(encoder, inputs, inside: bool) -> Ops:
    """The operations of a forward pass, with those inside the encoder or without."""
    ops = Ops()
    handles = [] if inside else [
        encoder.module.register_forward_pre_hook(lambda *_: setattr(ops, "paused", True)),
        encoder.module.register_forward_hook(lambda *_: setattr(ops, "paused", False)),
    ]  # fmt: skip
    with ops:
        encoder(**inputs)
    for handle in handles:
        handle.remove()
    return ops


def inputs_of(extractor, clip):
    """Clips of several lengths, with padding."""
    return extractor([clip(max(size, extractor.shortest), size) for size in (9000, 20000, 12345)])


def test_nothing_of_ours_waits_for_the_device(family, tiny, extractor_of, composed, clip):
    """Lengths and windows are lists on the host: masks and slices are made from those."""
    changes = {"feat_extract_norm": "layer"} if family in ("wav2vec2", "hubert", "wavlm", "unispeech_sat") else {}
    module = tiny(family, **changes)
    encoder = composed(module)
    inputs = inputs_of(extractor_of(family, module), clip)
    assert forward(encoder, inputs, inside=False).syncs == []
    assert bool(forward(encoder, inputs, inside=True).syncs) == (family in WAITS)


@pytest.mark.parametrize("name", ["whisper", "wav2vec2"])
def test_a_frozen_encoder_saves_nothing(name, tiny, extractor_of, composed, clip):
    """Run without a graph, all rows at once or one by one; the projector still learns."""
    module = tiny(name).requires_grad_(False)
    encoder = composed(module)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        features = encoder(**inputs_of(extractor_of(name, module), clip))[0]
    rows = sum(len(one) for one in features)
    assert sum(tensor.numel() for tensor in saved) <= rows * 32 + encoder.projector.num_parameters()
    sum(one.sum() for one in features).backward()
    assert encoder.projector.projection.weight.grad is not None
