"""Qwen2-Audio, Voxtral and Audio Flamingo 3 checkpoints of Hugging Face, in and out, equal to the bit.

What all families share is tested with LLaVA's in cornstarch-vision; more batches, losses and gradients are compared in
``tests/parity``.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import sounds
import tiny
import torch
import words
from cornstarch_audio.checkpoints import AudioFlamingo3Family, Qwen2AudioFamily, VoxtralFamily
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    AutoProcessor,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    SeamlessM4TFeatureExtractor,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)

from cornstarch_core import (
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    MultimodalProjector,
    MultimodalProjectorConfig,
)
from cornstarch_core.errors import CheckpointError
from cornstarch_core.interop import export_pretrained
from cornstarch_core.plugins import registry

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for c in m['content'] %}{% if c['type'] == 'audio' %}TOKEN{% else %}{{ c['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHAT = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": " What is it?"}]}]


@dataclass(frozen=True)
class Kind:
    """A family, and what is needed to test it."""

    family: type
    model: type
    processor: type
    build: Any  # Hugging Face's model, tiny
    tokenizer: Any
    token: str
    token_id: int
    mask: str | None
    projector: dict[str, Any]
    text: Any
    options: dict[str, Any] = field(default_factory=dict)

    def our_processor(self, model, **changes):
        """Ours, for a model."""
        settings = {"tokenizer": self.tokenizer(), "tokens": {"audio": self.token}, **changes}
        return MultimodalProcessor(model=model, **settings)

    def batch(self, model):
        """Three samples with two clips, one that takes two windows, and none."""
        texts = [f"{self.token} or {self.token}?", f"What is {self.token}?", "A cat."]
        return self.our_processor(model)(text=texts, audio=sounds.clips([[9000, 700], [20000], []]), padding=True)

    def heard(self, batch):
        """A batch of ours in the form that Hugging Face's class takes."""
        audio = batch["encoder_inputs"]["audio"]
        flat = {**sounds.text_of(batch), "input_features": audio["input_features"]}
        if self.mask is not None:
            lengths = torch.tensor(audio["audio_lengths"])
            flat[self.mask] = (torch.arange(audio["input_features"].shape[-1]) < lengths[:, None]).int()
        return flat

    def loaded(self, folder):
        """Hugging Face's model out of a folder in which nothing is missing, and nothing too much."""
        model, info = self.model.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        return model

    def tower(self, **changes):
        """The encoder of Hugging Face's model."""
        config = {**self.build().config.audio_config.to_dict(), **changes}
        return self.build(audio_config=config).model.audio_tower

    def composed(self, module=None, projector=None, text=None, **changes):
        """A composition of one's own that is this family's."""
        module, text = module or self.tower(), text or self.text
        projector = projector or projector_of(**self.projector)
        encoder = ModalEncoderModule(
            module, projector, **{"callbacks": "audio", "callback_options": self.options, **changes}
        )
        model = MultimodalModel(encoders={"audio": encoder}, language_model=text()).eval()
        model.set_modality_token_ids({"audio": self.token_id})
        return model


def projector_of(**settings):
    """A projector between the encoder and the language model of the tests."""
    torch.manual_seed(2)
    return MultimodalProjector(MultimodalProjectorConfig(in_features=32, out_features=64, **settings))


def qwen2(**changes):
    """A language model."""
    torch.manual_seed(3)
    return Qwen2ForCausalLM(Qwen2Config(**{**sounds.TEXT, **changes}))


STACK = {"projection_type": "frame_stack", "stack_factor": 4, "norm": False, "bias": False}
QWEN = Kind(
    family=Qwen2AudioFamily,
    model=Qwen2AudioForConditionalGeneration,
    processor=Qwen2AudioProcessor,
    build=sounds.qwen2_audio,
    tokenizer=partial(sounds.tokenizer, "<|AUDIO|>"),
    token="<|AUDIO|>",
    token_id=sounds.AUDIO,
    mask="feature_attention_mask",
    projector={"projection_type": "linear"},
    text=qwen2,
)
FLAMINGO = Kind(
    family=AudioFlamingo3Family,
    model=AudioFlamingo3ForConditionalGeneration,
    processor=AudioFlamingo3Processor,
    build=sounds.audio_flamingo3,
    tokenizer=partial(sounds.tokenizer, "<sound>"),
    token="<sound>",
    token_id=sounds.AUDIO,
    mask="input_features_mask",
    projector={"projection_type": "mlp", "activation": "relu"},
    text=qwen2,
)
VOX = Kind(
    family=VoxtralFamily,
    model=VoxtralForConditionalGeneration,
    processor=VoxtralProcessor,
    build=sounds.voxtral,
    tokenizer=sounds.voxtral_tokenizer,
    token="[AUDIO]",
    token_id=sounds.VOXTRAL_AUDIO,
    mask=None,
    projector={**STACK, "activation": "silu"},
    text=partial(tiny.llama, vocab_size=sounds.VOCABULARY),
    options={"keep_padding": True},
)
KINDS = {"qwen2_audio": QWEN, "audioflamingo3": FLAMINGO, "voxtral": VOX}


@pytest.fixture(params=KINDS)
def kind(request):
    """Each family in turn."""
    return KINDS[request.param]


def logits(model, inputs):
    """What a model says to a batch."""
    with torch.no_grad():
        return model(**inputs).logits


# --- in, and out again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [False, True])
def test_import_and_export_are_equal(kind, tie, tmp_path):
    """In: logits. Out: logits, every tensor and the config. In again: every tensor of ours."""
    kind.build(tie).save_pretrained(tmp_path / "theirs")
    theirs = kind.loaded(tmp_path / "theirs")
    ours = MultimodalModel.from_pretrained(tmp_path / "theirs")
    batch = kind.batch(ours)
    expected = logits(theirs, kind.heard(batch))
    assert torch.equal(logits(ours, batch), expected)
    assert not ours.training
    export_pretrained(ours, tmp_path / "out")
    back = kind.loaded(tmp_path / "out")
    assert tiny.same(back, tiny.copies(theirs))
    assert torch.equal(logits(back, kind.heard(batch)), expected)
    theirs.config.tie_word_embeddings = theirs.config.text_config.tie_word_embeddings = False  # they never tie (5.23)
    theirs.save_pretrained(tmp_path / "again")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "again")]
    assert configs[0] == configs[1]
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path / "out"), tiny.copies(ours))


def test_generation_is_equal(kind, tmp_path):
    """Greedy, with a clip of two windows."""
    kind.build().save_pretrained(tmp_path)
    theirs, ours = kind.loaded(tmp_path), MultimodalModel.from_pretrained(tmp_path)
    batch = kind.our_processor(ours)(text=f"What is {kind.token}?", audio=sounds.clips([[20000]]))
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    assert torch.equal(ours.generate(**batch, **settings), theirs.generate(**kind.heard(batch), **settings))


RELOADED = """
import sys, torch
from safetensors.torch import load_file
from cornstarch_core import MultimodalModel
model = MultimodalModel.from_pretrained(sys.argv[1])
batch = load_file(sys.argv[2])
expected = batch.pop("logits")
with torch.no_grad():
    assert torch.equal(model(**batch).logits, expected)
"""


def test_an_imported_model_is_like_any_other(kind, tmp_path):
    """It saves and loads as a composed model, also in another process, with a projector of a type that is known."""
    kind.build().save_pretrained(tmp_path / "theirs")
    ours = MultimodalModel.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = MultimodalModel.from_pretrained(tmp_path / "ours")
    batch = kind.batch(ours)
    expected = logits(ours, batch)
    assert tiny.same(again, tiny.copies(ours))
    assert torch.equal(logits(again, batch), expected)
    assert again.config.encoders["audio"].callbacks.name == "cornstarch-audio/audio"
    projector = again.audio_encoder.projector
    assert not projector.is_custom
    assert projector.config.projection_type == kind.projector["projection_type"]
    if kind is not VOX:  # once is enough, and that one has the most to find again
        return
    save_file({**kind.heard(batch), "logits": expected}, tmp_path / "batch.safetensors")
    arguments = [sys.executable, "-c", RELOADED, tmp_path / "ours", tmp_path / "batch.safetensors"]
    subprocess.run(arguments, check=True, capture_output=True)


def test_an_mlp_without_biases_comes_in_and_goes_out(tmp_path):
    """Audio Flamingo 3 may have one: here it is a stack of single frames, which saves and loads."""
    FLAMINGO.build(projector_bias=False, projector_hidden_act="silu").save_pretrained(tmp_path / "theirs")
    theirs, ours = FLAMINGO.loaded(tmp_path / "theirs"), MultimodalModel.from_pretrained(tmp_path / "theirs")
    batch = FLAMINGO.batch(ours)
    expected = logits(theirs, FLAMINGO.heard(batch))
    torch.testing.assert_close(logits(ours, batch), expected, rtol=0, atol=1e-6)  # clip by clip it may round otherwise
    ours.save_pretrained(tmp_path / "ours")
    export_pretrained(MultimodalModel.from_pretrained(tmp_path / "ours"), tmp_path / "out")
    back = FLAMINGO.loaded(tmp_path / "out")
    assert tiny.same(back, tiny.copies(theirs))
    assert (back.config.projector_bias, back.config.projector_hidden_act) == (False, "silu")


def test_what_their_class_keeps_in_float32_goes_out_in_it(tmp_path):
    """Of a Voxtral in bfloat16 the positions stay in float32, in their class and in ours."""
    VOX.build().save_pretrained(tmp_path / "theirs")
    theirs, ours = (one.from_pretrained(tmp_path / "theirs", dtype="bfloat16") for one in (VOX.model, MultimodalModel))
    assert {name for name, one in ours.named_parameters() if one.dtype == torch.float32} == {
        "audio_encoder.module.embed_positions.weight"
    }
    batch = VOX.batch(ours)
    assert torch.equal(logits(ours, batch), logits(theirs, VOX.heard(batch)))
    export_pretrained(ours, tmp_path / "out")
    back = VOX.loaded(tmp_path / "out")
    assert back.dtype == torch.bfloat16
    assert tiny.same(back, tiny.copies(theirs))
    ours.audio_encoder.module.conv1.float()
    with pytest.raises(CheckpointError, match="different dtypes .*conv1.bias in float32"):
        export_pretrained(ours, tmp_path / "out")


# --- compositions of one's own ----------------------------------------------------------------------------------------


def test_a_composition_goes_out(kind, tmp_path):
    """An encoder, a projector and a language model; nothing is missing in their class, and the logits are equal."""
    ours = kind.composed()
    export_pretrained(ours, tmp_path)
    batch = kind.batch(ours)
    theirs = kind.loaded(tmp_path)
    assert torch.equal(logits(theirs, kind.heard(batch)), logits(ours, batch))
    assert tiny.same(MultimodalModel.from_pretrained(tmp_path), tiny.copies(ours))


def test_a_composition_goes_out_with_its_processor(tmp_path):
    """Theirs counts and prepares as ours does, with a placeholder that was made here and gets a place in the table."""
    ours = FLAMINGO.composed(text=partial(qwen2, vocab_size=335))
    processor = FLAMINGO.our_processor(ours, tokenizer=words.tokenizer(bos=True), tokens=None)
    export_pretrained(ours, tmp_path, processor)
    theirs, back = FLAMINGO.loaded(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert back.audio_token == "<audio>"
    assert theirs.config.audio_token_id == back.audio_token_id == processor.token_ids["audio"]
    texts, (clips,) = ["<audio> What is it?", "It is <audio>"], sounds.clips([[9000, 700]])
    their_batch, our_batch = back(text=texts, audio=clips), processor(text=texts, audio=clips, padding_side="left")
    assert words.same(dict(their_batch), FLAMINGO.heard(our_batch))
    got = logits(theirs, their_batch)[..., :335]
    torch.testing.assert_close(got, logits(ours, our_batch), rtol=0, atol=1e-6)  # BLAS may round otherwise


def test_qwen2_audio_takes_any_decoder(tmp_path):
    """Whatever AutoModel makes again, such as a Llama."""
    ours = QWEN.composed(text=VOX.text)
    export_pretrained(ours, tmp_path)
    batch = QWEN.batch(ours)
    assert torch.equal(logits(QWEN.loaded(tmp_path), QWEN.heard(batch)), logits(ours, batch))


# --- processors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2_audio", "audioflamingo3"])
def test_a_processor_comes_in_and_goes_out(name, tmp_path):
    """Ids, masks and features are equal at every station; so are chats."""
    kind = KINDS[name]
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    kind.build(audio_config=kind.tower(max_source_positions=50).config.to_dict()).save_pretrained(tmp_path / "theirs")
    template = TEMPLATE.replace("TOKEN", kind.token)
    kind.processor(extractor, kind.tokenizer(), chat_template=template).save_pretrained(tmp_path / "theirs")
    theirs, ours = (one.from_pretrained(tmp_path / "theirs") for one in (kind.processor, MultimodalProcessor))
    model = MultimodalModel.from_pretrained(tmp_path / "theirs")
    export_pretrained(model, tmp_path / "out", ours)
    back = kind.processor.from_pretrained(tmp_path / "out")
    assert back.to_dict() == theirs.to_dict()
    texts, (clips,) = [f"{kind.token} What is it?", f"A dog and {kind.token}"], sounds.clips([[9000, sounds.SECOND]])
    settings = {"padding": True, "padding_side": "left", "return_tensors": "pt", "sampling_rate": sounds.RATE}
    expected = dict(theirs(text=texts, audio=clips, **settings))
    assert words.same(dict(back(text=texts, audio=clips, **settings)), expected)
    for one in (ours, MultimodalProcessor.from_pretrained(tmp_path / "out")):
        assert one.token_ids == {"audio": kind.token_id}
        batch = one(text=texts, audio=clips, **settings)
        assert words.same(kind.heard(batch), expected)
        assert torch.equal(logits(model, batch), logits(model, expected))
    prompts = {one.apply_chat_template(CHAT, add_generation_prompt=True) for one in (theirs, ours, back)}
    assert prompts == {f"USER: {kind.token} What is it? ASSISTANT:"}


@pytest.fixture
def published(tmp_path):
    """A Voxtral as it is published: with mistral-common's file for a tokenizer."""
    folder = tmp_path / "published"
    VOX.build(audio_config={**sounds.TOWER, "max_source_positions": 100}).save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    VoxtralProcessor(extractor, sounds.voxtral_tokenizer()).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "tekken.json").write_text(sounds.tekken())
    return folder


def test_voxtrals_processor_comes_in_and_goes_out(published, tmp_path):
    """The tokenizer that transformers makes of mistral-common's file knows the placeholder."""
    model, ours = (one.from_pretrained(published) for one in (MultimodalModel, MultimodalProcessor))
    assert (ours.tokens, ours.token_ids) == ({"audio": "[AUDIO]"}, {"audio": 24})
    batch = ours(text="[AUDIO] What?", audio=sounds.clips([[9000]]))
    assert batch["input_ids"][0].tolist() == [24] * 25 + sounds.voxtral_tokenizer()(" What?")["input_ids"]
    export_pretrained(model, tmp_path / "out", ours)
    theirs, back = (VoxtralProcessor.from_pretrained(folder) for folder in (published, tmp_path / "out"))
    assert back.feature_extractor.to_dict() == theirs.feature_extractor.to_dict()
    assert back.tokenizer("[AUDIO] What?") == theirs.tokenizer("[AUDIO] What?")
    again = MultimodalProcessor.from_pretrained(tmp_path / "out")
    assert words.same(again(text="[AUDIO] What?", audio=sounds.clips([[9000]])), batch)


class MistralCommon:
    """As much of that tokenizer as is asked for; it does not find placeholders in a text."""

    def convert_tokens_to_ids(self, token):
        """Of the placeholder."""
        return {"[AUDIO]": 24}[token]


def test_where_mistral_common_is_installed_another_tokenizer_is_made_of_its_file(published, monkeypatch):
    """With the settings that were asked for."""
    theirs = VoxtralProcessor.from_pretrained(published)
    theirs.tokenizer = MistralCommon()
    monkeypatch.setattr(VoxtralProcessor, "from_pretrained", lambda *args, **kwargs: theirs)
    tokenizer = MultimodalProcessor.from_pretrained(published, padding_side="left").tokenizer
    assert tokenizer("[AUDIO]")["input_ids"] == [24]
    assert tokenizer.padding_side == "left"


# --- what is refused --------------------------------------------------------------------------------------------------


def two_encoders(kind):
    """Which none of the classes has."""
    settings = {"callbacks": "audio", "callback_options": kind.options}
    encoders = {key: ModalEncoderModule(kind.tower(), **settings) for key in ("audio", "noise")}
    return MultimodalModel(encoders=encoders, language_model=kind.text())


COMPOSE_STACK = (
    r"MultimodalProjectorConfig\(projection_type='frame_stack', stack_factor=4, norm=False, bias=False, \.\.\.\)"
)
REFUSED = {
    "linear for mlp": (
        FLAMINGO,
        lambda: FLAMINGO.composed(projector=projector_of()),
        "type 'linear'; .* one of type 'mlp'",
    ),
    "mlp for linear": (
        QWEN,
        lambda: QWEN.composed(projector=projector_of(projection_type="mlp")),
        "type 'mlp'; .* one of type 'linear'",
    ),
    "linear for stack": (
        VOX,
        lambda: VOX.composed(projector=projector_of()),
        "type 'linear'; .* one of type 'frame_stack'",
    ),
    "own": (QWEN, lambda: QWEN.composed(projector=nn.Linear(32, 64)), "type 'custom'; .* one of type 'linear'"),
    "stack of pairs for mlp": (
        FLAMINGO,
        lambda: FLAMINGO.composed(projector=projector_of(**{**STACK, "stack_factor": 2})),
        "type 'frame_stack'; .* one of type 'mlp'",
    ),
    "another stack": (
        VOX,
        lambda: VOX.composed(projector=projector_of(**{**STACK, "stack_factor": 2})),
        f"has stack_factor=2, norm=False, bias=False, .* has stack_factor=4, .* Compose with {COMPOSE_STACK}",
    ),
    "default stack": (
        VOX,
        lambda: VOX.composed(projector=projector_of(projection_type="frame_stack")),
        f"has stack_factor=8, norm=True, bias=False, .* {COMPOSE_STACK}",
    ),
    "window that stacks do not divide": (
        VOX,
        lambda: VOX.composed(VOX.tower(max_source_positions=50)),
        "for windows of 50 frames; that class has .* and windows of whole stacks",
    ),
    "padding left out": (
        VOX,
        lambda: VOX.composed(callback_options={}),
        "keep_padding=False, .* Compose with callback_options={'keep_padding': True}",
    ),
    "padding kept": (
        QWEN,
        lambda: QWEN.composed(callback_options={"keep_padding": True}),
        "keep_padding=True, .* Compose with callback_options={'keep_padding': False}",
    ),
    "padding kept, too": (
        FLAMINGO,
        lambda: FLAMINGO.composed(callback_options={"keep_padding": True}),
        "keep_padding=True, .* Compose with callback_options={'keep_padding': False}",
    ),
    **{
        f"two encoders for {name}": (
            kind,
            partial(two_encoders, kind),
            r"2 encoders \(audio, noise\), that class has one",
        )
        for name, kind in KINDS.items()
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_their_class_can_not_hold_is_refused(case, tmp_path):
    """With the reason and the way out; nothing is written."""
    kind, build, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=f"{kind.model.__name__} can't hold this model: .*{message}"):
        export_pretrained(build(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


EXTRACTORS = {
    "of another kind": (
        SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8, stride=2),
        "its feature extractor is a SeamlessM4TFeatureExtractor, .* Leave 'audio' out of MultimodalProcessor",
    ),
    "for another window": (
        WhisperFeatureExtractor(feature_size=16, chunk_length=2),
        "pads clips to 32,000 samples by itself, but the encoder takes 16,000",
    ),
    "of one's own": (lambda clips, **options: {}, "its feature extractor is a function, which transformers can't load"),
}


@pytest.mark.parametrize("case", EXTRACTORS)
def test_a_feature_extractor_that_their_processor_can_not_use_is_refused(case, tmp_path):
    """It would prepare other features, or none; without a processor the model goes out."""
    extractor, message = EXTRACTORS[case]
    ours = FLAMINGO.composed()
    processor = FLAMINGO.our_processor(ours, processors={"audio": extractor})
    with pytest.raises(CheckpointError, match=message):
        export_pretrained(ours, tmp_path / "out", processor)
    assert not (tmp_path / "out").exists()
    export_pretrained(ours, tmp_path / "out")


def test_a_placeholder_that_is_not_voxtrals_is_refused(tmp_path):
    """Its processor has the id in its code."""
    ours = VOX.composed(VOX.tower(max_source_positions=100))
    processor = VOX.our_processor(ours, tokenizer=sounds.tokenizer("[AUDIO]"))
    with pytest.raises(CheckpointError, match=r"placeholder '\[AUDIO\]' has id 330, .* uses 24 .* export without"):
        export_pretrained(ours, tmp_path / "out", processor)


def test_the_registered_target_is_the_family(kind):
    """Under the name of its ``model_type``, by the callback that they share and the encoder that they don't."""
    registration = registry().lookup("checkpoints", f"cornstarch-audio/{kind.model.config_class.model_type}")
    spec = registration.spec
    assert spec.callback == "audio"
    assert type(kind.build().model.audio_tower).__name__.lower().startswith(spec.encoder.replace("_", ""))
    assert type(registration.load()) is kind.family
