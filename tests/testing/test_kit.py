"""The kit itself: what importing it costs, what it says, and that its checks are documented."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pages import DOCS, read, rows

from cornstarch_core import testing
from cornstarch_core.testing import EncoderConformance, PluginConformance
from cornstarch_core.testing.composed import distance
from cornstarch_core.testing.pieces import WORDS, tiny_language_model, tiny_tokenizer
from cornstarch_core.testing.promises import Promises, fail, promise, say
from cornstarch_core.testing.subject import EncoderSubject

PAGE = read(DOCS / "how-to" / "test-a-plugin.md")
CHECKS = [name for kind in (PluginConformance, EncoderConformance) for name in dir(kind) if name.startswith("test_")]


def test_the_processes_of_the_kit_start_light():
    """What runs in a child imports neither pytest nor anything heavy, and the core does not import the kit."""
    code = (
        "import sys, cornstarch_core.plugins; assert 'cornstarch_core.testing' not in sys.modules\n"
        "import cornstarch_core.testing.probe\n"
        "print([name for name in ('numpy', 'pytest', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pytest_collects_nothing_of_the_kit_by_itself():
    """The names that it offers do not begin as those of tests do."""
    assert testing.__all__ == ["EncoderConformance", "PluginConformance"]
    assert set(testing.__all__) <= set(dir(testing))
    with pytest.raises(AttributeError, match="no attribute 'TestPlugin'"):
        testing.TestPlugin  # noqa: B018


def test_every_check_is_documented():
    """The page's table has them all, and each has a sentence as its docstring."""
    assert sorted(rows(PAGE, "Check")) == sorted(CHECKS)
    for kind in (PluginConformance, EncoderConformance):
        for name in (name for name in CHECKS if hasattr(kind, name)):
            text = inspect.getdoc(getattr(kind, name))
            assert text.endswith("."), name
            assert "\n" not in text, name


def test_every_attribute_is_documented():
    """What an author can set stands in the page's table and in the docstring, and nothing else does."""
    table = [name for line in rows(PAGE, "Attribute") for name in line.replace("`", "").split(", ")]
    text = inspect.getdoc(EncoderConformance).partition("Attributes:\n")[2].partition("\n\n")[0]
    assert table == list(EncoderSubject.__annotations__)
    assert table == re.findall(r"^    (\w+): ", text, re.MULTILINE)


def test_a_check_waits_for_those_that_it_builds_on():
    """It is skipped while one fails, and runs while one is taken out."""

    class Two(Promises):
        ran = 0

        @promise()
        def test_first(self):
            fail("it is broken.", "Mend it.")

        @promise("test_first")
        def test_second(self):
            type(self).ran += 1

    class Without(Two):
        test_first = None

    with pytest.raises(pytest.fail.Exception, match="it is broken.\n  fix: Mend it."):
        Two().test_first()
    with pytest.raises(pytest.skip.Exception, match="test_first has to pass first"):
        Two().test_second()
    Without().test_second()
    assert (Two.ran, Without.ran) == (0, 1)


def test_an_error_is_told_with_the_place_in_the_authors_code():
    """Not with the one in a library; of an error that wraps another, where that one came from."""

    def raise_in_torch():
        torch.zeros(2) @ torch.zeros(3)

    def wrap():
        try:
            raise_in_torch()
        except RuntimeError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as caught:
        wrap()
    line = raise_in_torch.__code__.co_firstlineno + 1
    assert say(caught.value) == f"ValueError: outer ({Path(__file__).name}, line {line})"
    assert say(KeyError()) == "KeyError"


def test_methods_to_give_say_so():
    """An author who forgot one reads what it is to return."""
    subject = type("Subject", (EncoderConformance,), {"encoder": "clip"})()
    with pytest.raises(NotImplementedError, match="give make_module.*a small encoder"):
        subject.test_its_spec_describes_the_module()
    with pytest.raises(NotImplementedError, match="give make_items.*a list of random items"):
        subject.items(0)
    empty = type("Empty", (EncoderConformance,), {"encoder": "clip", "make_items": lambda self, rng: []})()
    with pytest.raises(pytest.fail.Exception, match="20 calls of make_items gave 0 items.\n  fix: Let it return one"):
        empty.items(0)


def test_distances_are_relative_and_tell_shapes_apart():
    """By the largest entry of the second; nothing is as far as another shape."""
    assert distance(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 4.0])) == 0.25
    assert distance(torch.zeros(2, 3), torch.zeros(3, 3)) == float("inf")
    assert distance(torch.zeros(0, 3), torch.zeros(0, 3)) == 0
    assert not distance(torch.tensor([float("nan")]), torch.ones(1)) <= 1


def test_the_language_model_knows_the_words_of_the_tokenizer():
    """Every word has a token of its own inside the table."""
    tokenizer, model = tiny_tokenizer(), tiny_language_model()
    ids = tokenizer(" ".join(WORDS))["input_ids"]
    assert len(set(ids)) == len(WORDS)
    assert tokenizer.unk_token_id not in ids
    assert len(tokenizer) == model.config.vocab_size
