"""Counts of every family, held against the encoders themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cornstarch_audio.families import FAMILIES, LENGTHS, AudioEncoder, family_of, trainable_frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cornstarch_core.errors import CompositionError, MediaError
from cornstarch_core.plugins import resolve

MINUTE = 60 * 16000
LENGTH = st.one_of(st.integers(1, 4000), st.integers(1, MINUTE))
VARIANTS = [
    *((family, {}) for family in ("whisper", "ast", "qwen2_audio", "voxtral", "audio_flamingo3", "glm_asr")),
    *((family, {"feat_extract_norm": "group"}) for family in ("wav2vec2", "hubert", "wavlm", "unispeech_sat", "sew")),
    *((family, {"feat_extract_norm": "layer"}) for family in ("wav2vec2", "hubert", "wavlm", "unispeech_sat", "sew")),
    ("wav2vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    ("wav2vec2", {"feat_extract_norm": "layer", "add_adapter": True, "output_hidden_size": 40}),
    *(("wav2vec2", {"add_adapter": True, "adapter_kernel_size": k, "adapter_stride": s}) for k, s in ((1, 1), (5, 3))),
    ("hubert", {"feat_extract_norm": "layer", "conv_pos_batch_norm": True}),
    ("data2vec_audio", {}),
    *(("wav2vec2_conformer", {"feat_extract_norm": "layer", "position_embeddings_type": p}) for p in ("relative", "rotary")),
    *(("wav2vec2_bert", {"position_embeddings_type": p}) for p in ("relative_key", "rotary")),
    ("wav2vec2_bert", {"add_adapter": True, "output_hidden_size": 40}),
    *(("wav2vec2_bert", {"add_adapter": True, "adapter_kernel_size": k, "adapter_stride": s}) for k, s in ((3, 1), (5, 4))),
    ("moonshine", {}),
    ("parakeet", {}),
]  # fmt: skip
NAMES = ["-".join([family, *map(str, changes.values())]) for family, changes in VARIANTS]


def test_every_family_is_among_the_variants(specs):
    """No encoder goes untested."""
    assert {family for family, _ in VARIANTS} == specs.keys()


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=NAMES)
def test_counts_are_the_frames_and_frames_do_not_depend_on_the_batch(
    family, changes, tiny, extractor_of, composed, clip
):
    """From one sample to a minute, batched with padding: as many frames as counted, and the same as of the clip alone."""
    module = tiny(family, **changes)
    extractor = extractor_of(family, module)
    encoder = composed(module)

    def features(clips: list[np.ndarray]) -> list[torch.Tensor]:
        inputs = extractor(clips)
        with torch.no_grad():
            given = encoder(**inputs)[0]
        assert [len(one) for one in given] == encoder.info.num_tokens(inputs)
        assert all(len(one) >= 1 for one in given)
        return given

    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(LENGTH, min_size=2, max_size=4))
    def holds(lengths: list[int]) -> None:
        clips = [clip(max(length, extractor.shortest), seed) for seed, length in enumerate(lengths)]
        for one, batched in zip(clips, features(clips), strict=True):
            (alone,) = features([one])
            assert alone.abs().mean() > 0.01
            torch.testing.assert_close(batched, alone, atol=1e-5, rtol=0)

    holds()


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=NAMES)
def test_counts_of_the_bare_encoder_are_all_that_it_gives(family, changes, tiny, extractor_of, composed, clip):
    """Without callbacks the frames of padding, and AST's CLS, are counted too."""
    module = tiny(family, **changes)
    extractor = extractor_of(family, module)
    encoder = composed(module, callbacks=None)
    inputs = extractor([clip(20000), clip(max(900, extractor.shortest))])
    taken = {name: value for name, value in inputs.items() if name in encoder.info.all_input_names}
    with torch.no_grad():
        given = encoder(**taken)[0]
    counts = AudioEncoder().num_tokens(module.config, inputs)
    assert len(counts) == 2
    assert sum(counts) == given.shape[0] * given.shape[1]


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=NAMES)
def test_the_shortest_clip_is_the_one_that_gives_a_frame(family, changes, tiny, extractor_of, composed, clip):
    """A sample less, and there is none: the clip is refused, with the number of samples it takes."""
    module = tiny(family, **changes)
    extractor = extractor_of(family, module)
    with torch.no_grad():
        (features,) = composed(module)(**extractor([clip(extractor.shortest)]))[0]
    widened = 6 if changes.get("adapter_kernel_size") == 1 else 0  # by padding, over three layers
    assert len(features) == {"ast": 3, "sew": 2}.get(family, 1) + widened
    assert torch.isfinite(features).all()
    if extractor.shortest > 1:
        assert family_of(module.config).frames(module.config, extractor.length(extractor.shortest - 1)) == 0
        with pytest.raises(MediaError, match=f"too short.*needs {extractor.shortest:,} samples .* for its first frame"):
            extractor([clip(extractor.shortest - 1)])


def test_dummy_inputs_run_with_and_without_the_callback(family, tiny, composed, specs):
    """They are one clip, as short as can be; also in training mode, where SpecAugment and batch norms want more."""
    module = tiny(family).train()
    dummy = resolve(specs[family].target)().dummy_inputs(module.config)
    for callbacks in (None, "audio"):
        with torch.no_grad():
            given = composed(module, callbacks)(**dummy)[0]
        assert len(given) == 1
        assert torch.isfinite(given[0]).all()
    known, length = family_of(module.config), dummy[family_of(module.config).main].shape[family_of(module.config).time]
    least = trainable_frames(module.config)
    assert known.window or known.frames(module.config, length) >= least > known.frames(module.config, length - 1)


def test_lengths_are_those_of_the_mask_that_hugging_face_makes(family, tiny, extractor_of, clip):
    """The arithmetic on the host, and the extractor's own mask."""
    module = tiny(family)
    extractor = extractor_of(family, module)
    if family == "ast":
        pytest.skip("its extractor makes no mask")
    for wanted in (1, 1601, 7999, 8000, 8001, 15037):
        samples = max(wanted, extractor.shortest)
        padding = extractor._padding()
        mask = extractor.extractor(
            [clip(samples)], sampling_rate=16000, return_tensors="pt", return_attention_mask=True, **padding
        )["attention_mask"]
        assert extractor([clip(samples)])[LENGTHS] == mask.sum(-1).tolist()


def test_an_unknown_encoder_is_refused_with_the_known_ones(tiny):
    """The message names the families, and the way out."""
    config = tiny("whisper").config
    config.model_type = "mimi"
    with pytest.raises(CompositionError, match="'mimi' is no audio encoder.*whisper.*ModalCallbacks"):
        family_of(config)


def test_bare_counts_refuse_what_the_encoder_would(tiny):
    """Another length than the window's, one too short, nothing at all."""
    whisper, wav2vec2 = tiny("whisper").config, tiny("wav2vec2").config
    with pytest.raises(MediaError, match="length of 99; this encoder takes 100 only"):
        AudioEncoder().num_tokens(whisper, {"input_features": torch.zeros(1, 16, 99)})
    with pytest.raises(MediaError, match="length 399 is too short"):
        AudioEncoder().num_tokens(wav2vec2, {"input_values": torch.zeros(1, 399)})
    with pytest.raises(MediaError, match="input_values is missing; got input_features"):
        AudioEncoder().num_tokens(wav2vec2, {"input_features": torch.zeros(1, 399)})


def test_families_are_those_of_the_specs(specs, tiny):
    """Each encoder's config has a family, and no family is left over."""
    assert {tiny(name).config.model_type for name in specs} == FAMILIES.keys()
