"""The README and the docstrings tell the truth."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
from cornstarch_timeseries import plugin

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_examples_run(tmp_path, monkeypatch):
    """All examples, one after another, as a reader would."""
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(examples) == 5
    namespace = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), namespace)


@pytest.mark.parametrize("kind", ["encoder", "processor", "callback", "projector"])
def test_every_registered_name_is_in_the_table(kind):
    """Nothing registered is missing, nothing listed is made up."""
    listed = re.findall(rf"^\| {kind} \| `(\w+)` \|", README, flags=re.MULTILINE)
    assert listed == [spec.name for spec in getattr(plugin, f"cornstarch_register_{kind}s")()]


@pytest.mark.parametrize("module", ["conv", "patch_merge", "patchtst", "processors", "series"])
def test_examples_of_docstrings_run(module):
    """As written, with what they print."""
    failed, tried = doctest.testmod(importlib.import_module(f"cornstarch_timeseries.{module}"))
    assert tried > 0
    assert failed == 0
