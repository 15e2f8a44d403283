"""The README tells the truth."""

import inspect
import re
from pathlib import Path

import pytest
from cornstarch_llava_next import plugin
from cornstarch_llava_next.anyres import DEFAULT_GRIDS
from cornstarch_llava_next.callbacks import LlavaNext

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_examples_run():
    """All examples, one after another, as a reader would."""
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(examples) == 3
    namespace = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), namespace)


@pytest.mark.parametrize("kind", ["processor", "callback"])
def test_every_registered_name_is_in_the_table(kind):
    """Nothing registered is missing, nothing listed is made up."""
    listed = re.findall(rf"^\| {kind} \| `([\w-]+)` \|", README, flags=re.MULTILINE)
    assert listed == [spec.name for spec in getattr(plugin, f"cornstarch_register_{kind}s")()]


def test_every_option_is_in_the_table_with_its_default():
    """In the order of the signature."""
    listed = re.findall(r"^\| `(\w+)` \| (.+?) \|", README, flags=re.MULTILINE)
    options = list(inspect.signature(LlavaNext().build).parameters.values())[1:]
    assert [name for name, _ in listed] == [option.name for option in options]
    for (_, default), option in zip(listed, options, strict=True):
        shown = repr(option.default).replace("'", '"')
        assert default == f"`{shown}`" or option.default is None


def test_the_default_grids_are_listed():
    """As they are tried."""
    assert ", ".join(f"{rows}x{columns}" for rows, columns in DEFAULT_GRIDS) in README
