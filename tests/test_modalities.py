"""Several encoders in one model: vision and audio, two of one modality, three; and samples with any subset of media."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import sounds
import tiny
import torch
import words

from cornstarch_core import ModalEncoderModule, MultimodalCollator, MultimodalModel, MultimodalProcessor

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<vision>{% elif c['type'] == 'audio' %}<audio>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCHES = tiny.PATCHES  # features of an image with "llava"
SUBSETS = [[], ["image"], ["audio"], ["image", "audio"], ["audio", "image", "audio"]]


def compose(**changes) -> MultimodalModel:
    """Compose CLIP, Whisper and a Llama with the tokenizer's vocabulary."""
    encoders = {
        "vision": ModalEncoderModule(tiny.clip(), callbacks="llava"),
        "audio": ModalEncoderModule(sounds.whisper(), callbacks="audio"),
    }
    return MultimodalModel(encoders=encoders, language_model=tiny.llama(vocab_size=400), **changes)


def make_processor(model: MultimodalModel, template: str = TEMPLATE) -> MultimodalProcessor:
    """Make a processor for a model of this file."""
    return MultimodalProcessor(tokenizer=words.tokenizer(), model=model, chat_template=template)


def part(kind: str, seed: int = 0) -> dict:
    """Make one media item of a conversation."""
    item = words.image(seed) if kind == "image" else sounds.noise(4000 + 1000 * seed, seed)
    return {"type": kind, kind: item}


def conversation(kinds: list[str], answer: str | None = "A cat.") -> list[dict]:
    """Make a conversation with these kinds of media, in this order."""
    content = [part(kind, seed) for seed, kind in enumerate(kinds)]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def counts(batch) -> dict[str, int]:
    """The number of placeholders of each modality in a batch."""
    return {key: len(inputs["positions"]) for key, inputs in batch["encoder_inputs"].items()}


@pytest.mark.parametrize("order", list(itertools.permutations(["image", "audio", "audio"])))
@pytest.mark.parametrize("template", [TEMPLATE, words.CHATML], ids=["typed", "plain"])
def test_placeholders_follow_the_order_of_media_in_a_conversation(order, template):
    """Any order is kept, with a template that handles typed content and with one that handles only text."""
    model = compose().eval()
    processor = make_processor(model, template)
    batch = processor.apply_chat_template(conversation(list(order), None), tokenize=True, return_dict=True)
    ids = batch["input_ids"][0].tolist()
    stretches = [key for key, _ in itertools.groupby(ids)]
    seen = [kind for token in stretches for kind, key in (("image", "vision"), ("audio", "audio")) if token == processor.token_ids[key]]  # fmt: skip
    expected = [kind for kind, _ in itertools.groupby(order)]
    assert seen == expected
    lengths = [-(-(4000 + 1000 * seed) // 320) for seed, kind in enumerate(order) if kind == "audio"]
    assert counts(batch) == {"vision": PATCHES, "audio": sum(lengths)}
    with torch.no_grad():
        assert model(**batch).logits.shape[1] == len(ids)


def test_both_encoders_and_projectors_learn():
    """A batch with images and audio gives finite gradients to all weights that are used."""
    model = compose()
    batch = MultimodalCollator(make_processor(model))([conversation(kinds) for kinds in SUBSETS])
    model(**batch).loss.backward()
    for key, encoder in model.encoders.items():
        for name, parameter in encoder.named_parameters():
            # "llava" does not run CLIP's last block and norm; Whisper's positions are fixed
            if any(unused in name for unused in ("layers.2", "post_layernorm", "embed_positions")):
                continue
            assert parameter.grad is not None, f"{key}: {name}"
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0 or "k_proj.bias" in name, f"{key}: {name}"


@pytest.mark.parametrize("kinds", list(itertools.product(SUBSETS, repeat=2)), ids=str)
def test_a_batch_with_any_subsets_of_media_trains(kinds):
    """If a sample or the batch lacks a modality, or all of them, the loss is finite and the projectors that ran learn."""
    model = compose()
    batch = MultimodalCollator(make_processor(model))([conversation(list(one)) for one in kinds])
    loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite()
    for key, kind in (("vision", "image"), ("audio", "audio")):
        learned = model.encoders[key].projector.projection.weight.grad is not None
        assert learned == any(kind in one for one in kinds)


def test_samples_of_a_batch_do_not_influence_each_other():
    """The logits of a sample are the same alone and in a batch with other samples."""
    model = compose().eval()
    processor = make_processor(model)
    collate = MultimodalCollator(processor)
    samples = [conversation(kinds) for kinds in SUBSETS]
    with torch.no_grad():
        together = collate(samples)
        logits = model(**together).logits
        for row, sample in enumerate(samples):
            alone = model(**collate([sample])).logits[0]
            torch.testing.assert_close(logits[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_generation_is_equal_alone_and_batched_with_left_padding():
    """Samples with any subset of modalities generate the same ids alone and in a padded batch."""
    model = compose().eval()
    processor = make_processor(model)
    chats = [conversation(kinds, None) for kinds in SUBSETS]
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    batched = model.generate(**processor.apply_chat_template(chats, **settings), max_new_tokens=6, do_sample=False)
    for row, chat in enumerate(chats):
        alone = model.generate(**processor.apply_chat_template(chat, **settings), max_new_tokens=6, do_sample=False)
        assert torch.equal(alone[0, -6:], batched[row, -6:])


def test_packed_samples_have_the_token_losses_of_padded_samples():
    """With all samples packed into one row, the loss of each token equals its loss in the padded batch."""
    model = compose().eval()
    processor = make_processor(model)
    samples = [conversation(kinds) for kinds in SUBSETS]
    padded, packed = (MultimodalCollator(processor, packing=packing)(samples) for packing in (False, True))
    with torch.no_grad():
        expected, found = (token_losses(model(**batch).logits, batch["labels"]) for batch in (padded, packed))
    assert len(expected) > 3 * len(SUBSETS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The losses of all tokens with a label, in order."""
    learned = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(logits[:, :-1][learned], labels[:, 1:][learned], reduction="none")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("changed", range(len(SUBSETS)))
def test_no_token_attends_to_another_conversation_of_its_row(changed, attention):
    """When one packed conversation gets other media and other words, the logits of the other conversations stay equal."""
    model = compose().eval()
    model.set_attn_implementation(attention)
    collate = MultimodalCollator(make_processor(model), packing=True)
    samples = [conversation(kinds) for kinds in SUBSETS]
    batch, other = collate(samples), collate(samples)
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["input_ids"].shape[1]]
    own = slice(starts[changed], starts[changed + 1])
    assert len(starts) == len(SUBSETS) + 1
    other["input_ids"][:, own.stop - 3] = 7
    for key, name in (("vision", "pixel_values"), ("audio", "input_features")):
        inputs = other["encoder_inputs"][key]
        inputs[name] = inputs[name].clone()
        inputs[name][items_in(samples, key, changed)] *= -1.0
    with torch.no_grad():
        before, after = model(**batch).logits[0], model(**other).logits[0]
    assert not torch.equal(before[own], after[own])
    kept = [*range(own.start), *range(own.stop, len(before))]
    assert torch.equal(before[kept], after[kept])


def items_in(samples: list[list[dict]], key: str, sample: int) -> list[int]:
    """The indices of the media items in a batch that belong to a sample."""
    kind = {"vision": "image", "audio": "audio"}[key]
    owners = [i for i, one in enumerate(samples) for part in one[0]["content"] if part["type"] == kind]
    return [item for item, owner in enumerate(owners) if owner == sample]


def test_two_vision_encoders_and_one_audio_encoder_work_together():
    """Each of three encoders gets its own inputs and its own placeholders."""
    model = MultimodalModel(
        encoders={
            "near": ModalEncoderModule(tiny.clip(), callbacks="llava"),
            "far": ModalEncoderModule(tiny.siglip(), callbacks="llava"),
            "audio": ModalEncoderModule(sounds.whisper(), callbacks="audio"),
        },
        language_model=tiny.llama(vocab_size=400),
    ).eval()
    processor = make_processor(model)
    texts = ["<near> and <far>", "<audio> <far> <audio>", "nothing"]
    media = {
        "near": [[words.image(0)], [], []],
        "far": [[words.image(1)], [words.image(2)], []],
        "audio": [[], [sounds.noise(5000), sounds.noise(3200)], []],
    }
    batch = processor(text=texts, **media)
    assert counts(batch) == {"near": 16, "far": 32, "audio": 16 + 10}
    with torch.no_grad():
        logits = model(**batch).logits
        swapped = {**media, "near": [*media["far"][:1], [], []], "far": [media["near"][0], *media["far"][1:]]}
        other = model(**processor(text=texts, **swapped)).logits
    assert not torch.allclose(logits[0], other[0], atol=1e-3)
    torch.testing.assert_close(logits[1:], other[1:])


def test_two_audio_encoders_take_different_windows():
    """Whisper divides a long clip into windows, wav2vec 2.0 takes the whole clip; audio= is refused, because both take it."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MultimodalModel(
        encoders={
            "speech": ModalEncoderModule(Wav2Vec2Model(Wav2Vec2Config(conv_dim=(8,) * 7, **sizes)), callbacks="audio"),
            "sound": ModalEncoderModule(sounds.whisper(), callbacks="audio"),
        },
        language_model=tiny.llama(vocab_size=400),
    ).eval()
    processor = make_processor(model)
    clip = sounds.noise(40000)
    batch = processor(text="<speech> <sound>", speech=clip, sound=clip)
    assert batch["encoder_inputs"]["sound"]["audio_windows"] == [3]
    assert batch["encoder_inputs"]["speech"]["audio_windows"] == [1]
    assert counts(batch) == {"speech": 124, "sound": 48 + 48 + 29}
    with pytest.raises(TypeError, match="audio= could be for any of speech, sound; use the key"):
        processor(text="<speech> <sound>", audio=[clip, clip])


@pytest.mark.parametrize("kind", ["frame_stack", "conv_downsample", "resampler"])
def test_projectors_that_merge_tokens_work_for_every_modality(kind):
    """With the same projector type on both encoders, the counts match the features and all weights get gradients."""
    options = {"frame_stack": 4, "conv_downsample": 4, "resampler": 64}
    model = compose(init_projector_type=kind)
    processor = make_processor(model)
    batch = MultimodalCollator(processor)([conversation(kinds) for kinds in SUBSETS])
    images, clips = sum(one.count("image") for one in SUBSETS), [
        -(-(4000 + 1000 * seed) // 320) for one in SUBSETS for seed, k in enumerate(one) if k == "audio"
    ]  # fmt: skip
    if kind == "resampler":
        assert counts(batch) == {"vision": 64 * images, "audio": 64 * len(clips)}
    else:
        step = options[kind] * (2 if kind == "frame_stack" else 1)
        assert counts(batch) == {"vision": images * -(-PATCHES // step), "audio": sum(-(-n // step) for n in clips)}
    model(**batch).loss.backward()
    for encoder in model.encoders.values():
        assert all(parameter.grad is not None for parameter in encoder.projector.parameters())


def test_a_saved_model_generates_the_same_in_a_new_process(tmp_path):
    """A model and a processor that another process loads generate the same ids for the same image and clip."""
    model = compose(init_projector_type="frame_stack").eval()
    processor = make_processor(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    np.save(tmp_path / "sound.npy", sounds.noise(30000))
    words.image(0).save(tmp_path / "image.png")

    code = (
        "import sys, numpy as np, torch\n"
        "from PIL import Image\n"
        "from cornstarch_core import MultimodalModel, MultimodalProcessor\n"
        "torch.set_num_threads(1)\n"
        "def say(model, processor, folder):\n"
        "    content = [{'type': 'audio', 'audio': np.load(folder + '/sound.npy')},"
        " {'type': 'image', 'image': Image.open(folder + '/image.png')}, {'type': 'text', 'text': 'What is it?'}]\n"
        "    batch = processor.apply_chat_template([{'role': 'user', 'content': content}], add_generation_prompt=True,"
        " tokenize=True, return_dict=True)\n"
        "    return model.generate(**batch, max_new_tokens=8, do_sample=False).tolist()\n"
    )
    run = (
        code
        + "f = sys.argv[1]\nprint(say(MultimodalModel.from_pretrained(f), MultimodalProcessor.from_pretrained(f), f))"
    )
    done = subprocess.run([sys.executable, "-c", run, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    namespace: dict = {}
    exec(code, namespace)
    assert done.stdout.strip().splitlines()[-1] == str(namespace["say"](model, processor, str(tmp_path)))


def test_a_collator_can_be_pickled():
    """A data loader pickles its collator to spawn workers; the copy makes the same batch."""
    import pickle

    model = compose()
    collate = MultimodalCollator(make_processor(model))
    again = pickle.loads(pickle.dumps(collate))
    sample = conversation(["audio", "image"])
    assert words.same(dict(again([sample])), dict(collate([sample])))
