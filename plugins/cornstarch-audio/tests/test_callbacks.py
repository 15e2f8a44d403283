"""The callback ``"audio"``: what the encoder is given, what is passed on, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cornstarch_audio.callbacks import AudioCallbacks
from cornstarch_audio.families import LENGTHS, WINDOWS
from peft import LoraConfig, get_peft_model

from cornstarch_core.errors import CompositionError, InputError


def run(encoder, inputs):
    """Projected features, one tensor a clip."""
    with torch.no_grad():
        return encoder(**inputs)[0]


def test_only_sound_is_passed_on(tiny, extractor_of, composed, clip):
    """Half a second of a window of one second: 25 of 50 frames, and they are the encoder's first 25."""
    module = tiny("whisper")
    extractor, encoder = extractor_of("whisper", module), composed(module)
    inputs = extractor([clip(8000)])
    (features,) = run(encoder, inputs)
    with torch.no_grad():
        whole = encoder.projector(module(inputs["input_features"]).last_hidden_state)[0]
    assert torch.equal(features, whole[:25])
    assert len(whole) == 50


def test_a_long_clip_is_the_sum_of_its_windows(tiny, extractor_of, composed, clip):
    """The frames of three windows, one after another."""
    module = tiny("whisper")
    extractor, encoder = extractor_of("whisper", module), composed(module)
    sound = clip(40000)
    (long,) = run(encoder, extractor([sound]))
    pieces = run(encoder, extractor([sound[:16000], sound[16000:32000], sound[32000:]]))
    torch.testing.assert_close(long, torch.cat(list(pieces)), atol=1e-5, rtol=0)


def test_frames_of_a_window_can_be_kept(tiny, extractor_of, composed, clip):
    """``keep_padding=True``: all frames of each window, as Voxtral does."""
    module = tiny("voxtral")
    extractor, encoder = extractor_of("voxtral", module), composed(module, callback_options={"keep_padding": True})
    inputs = extractor([clip(100), clip(16000)])  # windows of 0.96 s
    assert encoder.info.num_tokens(inputs) == [48, 96]
    assert [len(one) for one in run(encoder, inputs)] == [48, 96]


def test_without_a_window_there_is_nothing_to_keep(tiny, context_of):
    """Refused when the model is composed."""
    with pytest.raises(CompositionError, match="keep_padding=True.*any length"):
        AudioCallbacks().build(context_of("wav2vec2", tiny("wav2vec2")), keep_padding=True)


def test_patches_come_moment_after_moment(tiny, extractor_of, composed, clip):
    """AST's come frequency by frequency, with CLS and distillation in front: here the columns are joined."""
    module = tiny("ast")  # 3 rows and 6 columns of patches a window
    extractor, encoder = extractor_of("ast", module), composed(module)
    inputs = extractor([clip(16000)])
    with torch.no_grad():
        first = encoder.projector(module(inputs["input_values"]).last_hidden_state)[0, 2:]
    (features,) = run(encoder, inputs)
    assert inputs[WINDOWS] == [2]
    assert len(features) == 18 + 12
    assert torch.allclose(features[0:3], first[[0, 6, 12]], atol=1e-6)
    assert torch.allclose(features[15:18], first[[5, 11, 17]], atol=1e-6)


@pytest.mark.parametrize("mask", ["attention_mask", "feature_attention_mask", "input_features_mask"])
def test_the_mask_of_a_hugging_face_processor_will_do(mask, tiny, extractor_of, composed, clip):
    """Lengths are taken from it, whatever it is called."""
    module = tiny("qwen2_audio")
    extractor, encoder = extractor_of("qwen2_audio", module), composed(module)
    inputs = extractor([clip(9000), clip(16000)])
    theirs = extractor.extractor(
        [clip(9000), clip(16000)],
        sampling_rate=16000,
        max_length=16000,
        return_attention_mask=True,
        return_tensors="pt",
    )
    flat = {"input_features": theirs["input_features"], mask: theirs["attention_mask"]}
    for one, other in zip(run(encoder, flat), run(encoder, inputs), strict=True):
        assert torch.equal(one, other)


def test_without_a_mask_all_of_the_input_is_sound(tiny, composed):
    """A waveform alone, as one may hand it to an encoder by oneself."""
    encoder = composed(tiny("wav2vec2"))
    (features,) = run(encoder, {"input_values": torch.randn(1, 4000)})
    assert len(features) == 12


def test_rows_and_lengths_that_do_not_fit_are_refused(tiny, extractor_of, composed, clip):
    """A batch that was split by tensors alone would give features to the wrong clips."""
    module = tiny("whisper")
    extractor, encoder = extractor_of("whisper", module), composed(module)
    inputs = extractor([clip(8000), clip(8000)])
    with pytest.raises(InputError, match="input_features has 1 rows, audio_lengths is for 2.*re-batched"):
        run(encoder, {**inputs, "input_features": inputs["input_features"][:1]})
    lists_only = {name: inputs[name] for name in (LENGTHS, WINDOWS)}
    with pytest.raises(InputError, match="input_features is missing; got audio_lengths"):
        encoder.callbacks.preprocess(lists_only)


def test_clips_of_one_length_are_run_together(tiny, extractor_of, composed, clip):
    """Where no mask helps: a run for each length, not for each clip."""
    module = tiny("data2vec_audio")
    extractor, encoder = extractor_of("data2vec_audio", module), composed(module)
    shapes = []
    module.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_values"].shape)), with_kwargs=True
    )
    run(encoder, extractor([clip(4000), clip(9000, 1), clip(4000, 2), clip(9000, 3)]))
    assert shapes == [(2, 4000), (2, 9000)]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_mask_of_qwen2_audio_follows_the_implementation(
    implementation, tiny, extractor_of, composed, clip
):
    """Chosen after composing, too: the mask is made when the encoder runs. Nothing to mask: no mask."""
    module = tiny("qwen2_audio")
    extractor, encoder = extractor_of("qwen2_audio", module), composed(module)
    module.set_attn_implementation(implementation)
    whole, part = extractor([clip(16000)]), extractor([clip(16000), clip(8000)])
    assert encoder.callbacks.preprocess(whole)["attention_mask"] is None
    mask = encoder.callbacks.preprocess(part)["attention_mask"]
    assert mask.shape == (2, 1, 50, 50)
    assert mask.dtype == (torch.bool if implementation == "sdpa" else torch.float32)
    assert torch.isfinite(run(encoder, part)[1]).all()


def test_frames_change_without_the_mask(tiny, extractor_of, clip):
    """Without its mask Qwen2-Audio's encoder attends to padding: valid frames differ, so the mask is no luxury."""
    module = tiny("qwen2_audio")
    features = extractor_of("qwen2_audio", module)([clip(8000)])["input_features"]
    mask = (torch.arange(50) < 25)[None, None, None].expand(1, 1, 50, 50)
    with torch.no_grad():
        with_mask, without = (module(features, attention_mask=m).last_hidden_state[0, :12] for m in (mask, None))
    assert (with_mask - without).abs().max() > 1e-3


def test_a_wrapped_encoder_is_really_run(tiny, extractor_of, composed, clip):
    """LoRA on the encoder changes what comes out, and gets gradients; for a masked and an unmasked family."""
    for family in ("wav2vec2", "whisper"):
        module = tiny(family)
        extractor = extractor_of(family, module)
        inputs = extractor([clip(9000), clip(5000)])
        before = run(composed(module), inputs)
        wrapped = get_peft_model(module, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        encoder = composed(wrapped.eval())
        after = encoder(**inputs)[0]
        assert [len(one) for one in after] == encoder.info.num_tokens(inputs)
        assert not torch.equal(after[0], before[0])
        sum(one.sum() for one in after).backward()
        assert all(p.grad is not None for n, p in wrapped.named_parameters() if "lora" in n)


def test_gradients_do_not_depend_on_the_batch(family, tiny, extractor_of, composed, clip):
    """Of a batch with padding they are the sum of those of its clips alone."""
    module = tiny(family)
    extractor, encoder = extractor_of(family, module), composed(module)
    clips = [clip(max(9000, extractor.shortest)), clip(max(5000, extractor.shortest), 1)]

    def gradients(*groups: list[np.ndarray]) -> dict[str, torch.Tensor]:
        encoder.zero_grad()
        for group in groups:
            sum(one.square().sum() for one in encoder(**extractor(group))[0]).backward()
        return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}

    together, apart = gradients(clips), gradients(clips[:1], clips[1:])
    assert together.keys() == apart.keys()
    for name, gradient in together.items():
        scale = gradient.abs().max().clamp(min=1)
        torch.testing.assert_close(apart[name] / scale, gradient / scale, atol=2e-5, rtol=0, msg=name)


def test_lengths_and_windows_fill_each_other_in(tiny, extractor_of, composed, clip):
    """Either alone will do: windows default to one a clip, lengths to the whole rows."""
    module = tiny("whisper")
    extractor, encoder = extractor_of("whisper", module), composed(module)
    inputs = extractor([clip(8000), clip(16000)])
    no_windows = {name: value for name, value in inputs.items() if name != WINDOWS}
    assert [len(one) for one in run(encoder, no_windows)] == [25, 50]
    no_lengths = {"input_features": inputs["input_features"], WINDOWS: [2]}
    assert [len(one) for one in run(encoder, no_lengths)] == [100]


@pytest.mark.parametrize("name", ["whisper", "qwen2_audio", "wav2vec2"])
def test_a_callback_in_place_of_what_makes_the_mask_is_refused(name, tiny, extractor_of, composed, clip):
    """Without it an encoder would hear padding, or not know where a clip ends."""
    module = tiny(name)
    encoder = composed(module, preprocess_callback=lambda inputs: inputs)
    with pytest.raises(CompositionError, match="preprocess_callback replaces that of 'audio'"):
        run(encoder, extractor_of(name, module)([clip(9000)]))


def test_a_mask_that_is_not_over_lengths_is_refused(tiny, extractor_of, composed, clip):
    """The encoder's own attention mask is made by the callback."""
    module = tiny("qwen2_audio")
    features = extractor_of("qwen2_audio", module)([clip(9000)])["input_features"]
    with pytest.raises(InputError, match=r"a mask of shape \(1, 1, 50, 50\); expected one over lengths"):
        run(composed(module), {"input_features": features, "attention_mask": torch.ones(1, 1, 50, 50)})


@pytest.mark.parametrize("name", ["parakeet", "wav2vec2_conformer"])
def test_a_frozen_encoder_can_be_kept_as_it_is_while_training(name, tiny, extractor_of, composed, clip):
    """As the README says: its batch norms stay, and a clip's frames with them, whoever calls train()."""
    module = tiny(name).requires_grad_(False)
    extractor, encoder = extractor_of(name, module), composed(module)
    inputs = extractor([clip(9000), clip(5000, 1)])
    before = run(encoder, inputs)
    frozen = encoder.module.eval()
    frozen.train = lambda mode=True: frozen
    encoder.train()
    assert encoder.training
    for one, other in zip(run(encoder, inputs), before, strict=True):
        assert torch.equal(one, other)
    encoder.eval()
    assert all(torch.equal(one, other) for one, other in zip(run(encoder, inputs), before, strict=True))
