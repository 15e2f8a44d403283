"""The README tells the truth."""

import re
from pathlib import Path

import pytest
from cornstarch_audio import plugin
from cornstarch_audio.families import FAMILIES, family_of

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SECOND = 16000


def test_examples_run():
    """All examples, one after another, as a reader would."""
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(examples) == 3
    namespace = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), namespace)


@pytest.mark.parametrize("kind", ["encoder", "processor", "callback", "projector", "checkpoint"])
def test_every_registered_name_is_in_the_table(kind):
    """Nothing registered is missing, nothing listed is made up."""
    listed = re.findall(rf"^\| {kind} \| `(\w+)` \|", README, flags=re.MULTILINE)
    assert listed == [spec.name for spec in getattr(plugin, f"cornstarch_register_{kind}s")()]


def test_every_encoder_class_is_in_the_table():
    """By its class, as users know it."""
    assert all(
        f"`{path.split(':')[1]}`" in README for spec in plugin.cornstarch_register_encoders() for path in spec.classes
    )


def test_the_frames_of_a_second_are_those_of_the_published_sizes(specs):
    """From the configs' defaults, which are the published ones, over a whole minute or window."""
    from importlib import import_module

    said = {}
    for names, _, frames in re.findall(r"^\| ([^|]*`[^|]*) \| (any length|windows[^|]*) \| ([^|]*) \|", README, re.M):
        rates = [float(rate) for rate in re.findall(r"\d+\.?\d*", frames.split(", 12 for")[0])]
        families = [name for name in re.findall(r"`(\w+)`", names) if name in specs]
        for place, name in enumerate(families):
            last = name == "moonshine" or (len(rates) == len(families) > 1 and place > 0)
            said[name] = rates[-1] if last else rates[0]
    assert said.keys() == specs.keys()
    for name, rate in said.items():
        module, _, cls = specs[name].classes[0].partition(":")
        config = getattr(import_module(module), cls).config_class()
        family = family_of(config)
        lengths = {"wav2vec2_bert": 50, "parakeet": 100, "ast": 100}.get(name, 100 if family.time == 2 else SECOND)
        seconds = 10 if name == "ast" else 30
        assert family.frames(config, seconds * lengths) / seconds == pytest.approx(rate, rel=0.02), name


def test_no_family_is_left_out():
    """Sixteen of them."""
    assert len(FAMILIES) == 16
