"""The cost of a step: frozen parts save no tensors for backward, and the core never waits for the device."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import tiny
import torch
import two_modalities
import words
from ops import Ops
from peft import LoraConfig, get_peft_model

from cornstarch_core import ModalEncoderModule, MultimodalCollator, MultimodalModel, MultimodalProcessor


def composed() -> MultimodalModel:
    """Compose CLIP and Llama with a placeholder id outside the embedding table."""
    model = MultimodalModel(encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=tiny.llama())
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    return model


def enable_checkpointing(model: MultimodalModel) -> None:
    """Enable checkpointing by the name that this release of transformers uses: 5.17 has only the older name."""
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()


def batch(*images: int) -> dict:
    """Make a training batch."""
    return {**tiny.prompt(*images), "pixel_values": tiny.pixels(sum(images))}


def outside_the_language_model(model: MultimodalModel, batch: dict) -> Ops:
    """The operations of one forward pass that run outside the language model."""
    ops = Ops()
    handles = [
        model.language_model.register_forward_pre_hook(lambda *_: setattr(ops, "paused", True)),
        model.language_model.register_forward_hook(lambda *_: setattr(ops, "paused", False)),
    ]
    with ops:
        model(**batch)
    for handle in handles:
        handle.remove()
    return ops


@pytest.mark.parametrize("callbacks", [None, "llava"])
def test_a_batch_from_the_processor_costs_no_sync_for_any_number_of_images(callbacks):
    """With 0 to 9 images, no operation makes the host wait, and the number of operations stays the same."""
    model = words.model(callbacks)
    collate = MultimodalCollator(
        MultimodalProcessor(tokenizer=words.tokenizer(), model=model, chat_template=words.CHATML)
    )
    counts = []
    for images in ((1, 1), (9, 5), (0, 3), (1, 0, 0, 2)):
        samples = [conversation(number) for number in images]
        ops = outside_the_language_model(model, collate(samples))
        assert ops.syncs == []
        counts.append(len(ops.names))
    assert len(set(counts)) == 1
    assert counts[0] > 50


def conversation(images: int) -> list[dict]:
    """Make a conversation about this number of images."""
    content = [{"type": "image", "image": words.image(seed)} for seed in range(images)]
    question = {"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]}
    return [question, {"role": "assistant", "content": "A cat."}]


def test_a_batch_without_media_costs_no_sync():
    """Empty positions tell the model that there are no placeholders, so it does not search for them."""
    model = words.model()
    collate = MultimodalCollator(
        MultimodalProcessor(tokenizer=words.tokenizer(), model=model, chat_template=words.CHATML)
    )
    assert outside_the_language_model(model, collate([conversation(0)])).syncs == []


def test_the_check_for_syncs_finds_one():
    """Finding placeholders by their token id costs a sync, and the check reports it."""
    model = composed()
    ops = outside_the_language_model(model, {**tiny.prompt(1), "pixel_values": tiny.pixels(1)})
    assert any("nonzero" in name for name in ops.syncs)


class Saved:
    """Counts the bytes that autograd keeps while the encoder runs."""

    def __init__(self, module):
        self.bytes, self.calls, self.module = 0, 0, module

    def __enter__(self):
        self.handles = [
            self.module.register_forward_pre_hook(lambda *_: self._start()),
            self.module.register_forward_hook(lambda *_: self.hooks.__exit__(None, None, None)),
        ]
        return self

    def _start(self):
        self.calls += 1
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor)
        self.hooks.__enter__()

    def _save(self, tensor):
        self.bytes += tensor.nbytes
        return tensor

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("peft", [None, "language model", "whole", "encoders"])
def test_frozen_encoders_leave_no_graph(checkpointing, peft):
    """A frozen encoder saves no bytes for backward and runs once, with activation checkpointing and with PEFT on any part."""
    model = two_modalities.compose()
    batch = two_modalities.make_batch(model, "v a t")
    if peft == "encoders":
        for encoder in model.encoders.values():
            encoder.module = get_peft_model(encoder.module, LoraConfig(target_modules=["q_proj"]))
    model.set_trainable(encoders={"vision": (False, True), "audio": (False, True)})
    if peft == "language model":
        model.language_model = get_peft_model(model.language_model, LoraConfig(target_modules=["q_proj"]))
    run = model
    if peft == "whole":
        lora = LoraConfig(target_modules=r"language_model.*q_proj", modules_to_save=["projector"])
        run = get_peft_model(model, lora)
    if checkpointing:
        enable_checkpointing(model)
    run.train()
    with ExitStack() as stack:
        saved = [stack.enter_context(Saved(encoder.module)) for encoder in model.encoders.values()]
        run(**batch).loss.backward()
    assert [(one.bytes, one.calls) for one in saved] == [(0, 1), (0, 1)]
    for encoder in model.encoders.values():
        gradients = [weight.grad for weight in encoder.projector.parameters() if weight.requires_grad]
        assert gradients
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_check_for_saved_bytes_finds_some():
    """An encoder that trains saves tensors for backward, and the check counts their bytes."""
    model = composed().train()
    with Saved(model.vision_encoder.module) as saved:
        model(**batch(1)).loss.backward()
    assert saved.bytes > 0


def test_pixels_that_require_gradients_get_them():
    """A frozen encoder still passes gradients to pixels that require them."""
    model = composed()
    model.set_trainable(encoders={"vision": (False, False)}, language_model=False)
    pixels = tiny.pixels(1).requires_grad_()
    model(**tiny.prompt(1), pixel_values=pixels).loss.backward()
    assert pixels.grad.abs().sum() > 0


def test_activation_checkpointing_changes_no_gradient():
    """All gradients are the same with and without activation checkpointing."""
    gradients = []
    for checkpointing in (False, True):
        model = composed().train()
        if checkpointing:
            enable_checkpointing(model)
        model(**batch(1, 1)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-7) for name in plain)
