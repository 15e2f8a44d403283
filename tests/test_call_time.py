"""The code that runs in a forward pass before the language model: few functions, and none of the plugin registry."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import words

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch_core.plugins import registry

MOST_FUNCTIONS = 25


@contextmanager
def traced() -> Iterator[list[tuple[str, str]]]:
    """Record ``(file, name)`` of every Python function that is called; comprehensions belong to their function."""
    calls: list[tuple[str, str]] = []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and not frame.f_code.co_name.startswith("<"):
            calls.append((frame.f_code.co_filename, f"{frame.f_code.co_name}:{frame.f_code.co_firstlineno}"))

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def is_ours(file: str) -> bool:
    """Whether a file belongs to the core or to a plugin."""
    return any(part.startswith("cornstarch_") for part in Path(file).parts)


def composed(vocabulary: int = 400) -> tuple[MultimodalModel, dict[str, Any]]:
    """Compose a frozen CLIP with ``"llava"``, a projector and Llama, and make a batch of one image with labels."""
    encoder = ModalEncoderModule(tiny.clip(), callbacks="llava")
    model = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama(vocab_size=vocabulary)).eval()
    model.set_trainable(encoders={"vision": (False, True)})
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=model, chat_template=words.CHATML)
    batch = processor(text=f"{processor.tokens['vision']} What is it?", vision=[words.image()])
    return model, {**batch, "labels": batch["input_ids"].clone()}


@pytest.mark.parametrize("outside", [False, True])
def test_few_functions_run_before_the_language_model(outside):
    """With ``"llava"`` and labels, at most 25 run, with the placeholder's id inside the embedding table and outside."""
    vocabulary = len(words.tokenizer()) if outside else 400
    model, batch = composed(vocabulary)
    assert (batch["input_ids"].max() >= vocabulary) == outside
    model(**batch)  # the first call reads the signature of the language model's forward, once for each class
    before: list[tuple[str, str]] = []
    with traced() as calls:
        hook = model.language_model.register_forward_pre_hook(lambda *_: before.extend(calls))
        model(**batch)
    hook.remove()
    functions = {call for call in before if is_ours(call[0])}
    assert 10 < len(functions) <= MOST_FUNCTIONS, sorted(functions)


@pytest.fixture
def of_the_registry():
    """Give a function that runs another one and returns the names of the registry functions it calls."""

    def run(function: Any) -> list[str]:
        with traced() as calls:
            function()
        return [name for file, name in calls if "cornstarch_core/plugins/" in Path(file).as_posix()]

    return run


def test_no_hook_runs_at_call_time(of_the_registry):
    """forward and generate call no function of the registry, because look-ups happen when a model is composed."""
    model, batch = composed()
    prompt = {name: value for name, value in batch.items() if name != "labels"}
    assert of_the_registry(lambda: model(**batch)) == []
    with torch.no_grad():
        assert of_the_registry(lambda: model.generate(**prompt, max_new_tokens=2)) == []


def test_the_check_finds_a_look_up_at_call_time(of_the_registry, monkeypatch):
    """A look-up added to the encoder's forward is found by the check of the test above."""
    model, batch = composed()
    forward = ModalEncoderModule.forward

    def looks_up(self, **inputs):
        registry().names("encoders")
        return forward(self, **inputs)

    monkeypatch.setattr(ModalEncoderModule, "forward", looks_up)
    assert of_the_registry(lambda: model(**batch)) != []
