"""Tests the README of the project that ``cornstarch plugins new`` writes; copied there as tests/test_use.py.

A small local language model replaces the one that the README loads from the hub.
"""

import re
from pathlib import Path

import torch

from cornstarch_core.testing.pieces import tiny_language_model, tiny_tokenizer


def test_a_model_trains_and_comes_back(tmp_path, monkeypatch):
    """All weights of the encoder get gradients, the loss falls, and a saved model gives equal logits after loading."""
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tiny_language_model().save_pretrained("llm")
    tiny_tokenizer().save_pretrained("llm")
    found: dict = {}
    exec(re.sub('llm = ".*"', 'llm = "llm"', code), found)
    model, batch = found["mllm"], found["batch"]
    (inputs,) = batch["encoder_inputs"].values()
    assert len(inputs["positions"]) == 7
    assert all(weight.grad.abs().sum() > 0 for weight in found["encoder"].parameters())
    with torch.no_grad():
        before, after = (one.eval()(**batch).logits for one in (model, found["again"]))
    assert after.equal(before)

    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
    assert loss < found["loss"] / 2
    model.eval().save_pretrained("trained more")
    again = type(model).from_pretrained("trained more").eval()
    with torch.no_grad():
        assert again(**batch).logits.equal(model(**batch).logits)
