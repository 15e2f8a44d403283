"""The README tells the truth."""

import re
from pathlib import Path

import pytest
from cornstarch_vision import plugin

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_examples_run(tmp_path, monkeypatch):
    """All examples, one after another, as a reader would, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(examples) == 4
    namespace = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), namespace)


@pytest.mark.parametrize("kind", ["encoder", "processor", "callback", "projector"])
def test_every_registered_name_is_in_the_table(kind):
    """Nothing registered is missing, nothing listed is made up."""
    listed = re.findall(rf"^\| {kind} \| `(\w+)` \|", README, flags=re.MULTILINE)
    assert listed == [spec.name for spec in getattr(plugin, f"cornstarch_register_{kind}s")()]


def test_every_encoder_class_is_in_the_table():
    """By its class, as users know it."""
    assert all(
        f"`{path.split(':')[1]}`" in README for spec in plugin.cornstarch_register_encoders() for path in spec.classes
    )
