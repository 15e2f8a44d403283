"""Tests that need a GPU. They are skipped without one; run them with: pytest -m gpu."""

from __future__ import annotations

import pytest
import sounds
import tiny
import torch
import words

from cornstarch_core import ModalEncoderModule, MultimodalCollator, MultimodalModel, MultimodalProcessor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def question(images: int) -> list[dict]:
    """Make a conversation about this number of images."""
    content = [{"type": "image", "image": words.image(seed)} for seed in range(images)]
    return [
        {"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
    ]


def set_up(callbacks: str | None = None) -> tuple[MultimodalModel, dict]:
    """Make a model and a batch of conversations with 2, 0 and 1 images, both on the GPU."""
    model = words.model(callbacks)
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=model, chat_template=words.CHATML)
    batch = MultimodalCollator(processor)([question(2), question(0), question(1)])
    return model.cuda(), batch.to("cuda")


def set_up_audio(encoder: torch.nn.Module) -> tuple[MultimodalModel, dict]:
    """Make a model and a batch of conversations with 2, 1 and 0 clips of different lengths, both on the GPU."""
    model = MultimodalModel(
        encoders={"audio": ModalEncoderModule(encoder, callbacks="audio")}, language_model=tiny.llama(vocab_size=400)
    )
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=model, chat_template=words.CHATML)

    def ask(*lengths: int) -> list[dict]:
        content = [{"type": "audio", "audio": sounds.noise(length)} for length in lengths]
        return [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]

    samples = [ask(9000, 40000), ask(5000), question(0)]
    return model.cuda(), MultimodalCollator(processor)(samples).to("cuda")


PREPARED = {
    "bare": lambda: set_up(None),
    "llava": lambda: set_up("llava"),
    "whisper": lambda: set_up_audio(sounds.whisper()),
    "qwen2_audio": lambda: set_up_audio(sounds.qwen2_audio().model.audio_tower),
}


@pytest.mark.parametrize("kind", PREPARED)
def test_preparing_a_batch_does_not_make_the_host_wait(kind):
    """CUDA reports no synchronisation before the language model runs."""
    model, batch = PREPARED[kind]()
    arguments = (batch["input_ids"], None, batch["labels"], batch["encoder_inputs"], {})
    model._prepare(*arguments)  # the first call may initialise libraries
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        embeds, *_ = model._prepare(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert embeds.is_cuda


@pytest.mark.parametrize("kind", PREPARED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_agrees_with_the_cpu(dtype, kind):
    """The loss on the GPU equals that on the CPU within the precision of the dtype, and every gradient is finite."""
    model, batch = PREPARED[kind]()
    expected = model.cpu()(**batch.to("cpu")).loss
    loss = model.to("cuda", dtype)(**batch.to("cuda")).loss
    loss.backward()
    assert torch.allclose(loss.float().cpu(), expected, atol=1e-4 if dtype == torch.float32 else 5e-2)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_model_loads_onto_the_gpu_and_generates_there(tmp_path):
    """device_map= puts every part on the GPU, and generate gives the same ids as on the CPU."""
    model, _ = set_up()
    model.cpu().save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path, device_map="cuda")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    token_id = model.config.modality_token_ids["vision"]
    prompt = {k: v for k, v in tiny.prompt(1, token_id=token_id).items() if k != "labels"}
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    on_gpu = loaded.generate(
        **{name: tensor.cuda() for name, tensor in prompt.items()}, pixel_values=tiny.pixels(1).cuda(), **settings
    )
    expected = model.eval().generate(**prompt, pixel_values=tiny.pixels(1), **settings)
    assert torch.equal(on_gpu.cpu(), expected)
