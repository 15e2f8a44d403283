"""The tree of errors is the one in the docstring of its module, and what it promises to those who catch errors holds."""

from __future__ import annotations

import builtins
import pickle
import re

import pytest
import tiny
import torch
from pages import SOURCES, read

from cornstarch_core import ModalEncoderModule, MultimodalModel, errors
from cornstarch_core.modeling import placeholders
from cornstarch_core.plugins import registry


def tree(text: str) -> dict[str, set[type]]:
    """The bases of each error, as the tree in a docstring draws them."""
    found: dict[str, set[type]] = {}
    above: list[str] = []
    for indent, name, also in re.findall(r"^ {4}([│├└─ ]*)(\w+Error)\b.*?(?:\(also an? (\w+)\))?$", text, re.MULTILINE):
        above = [*above[: len(indent) // 4], name]
        parent = getattr(errors, above[-2]) if len(above) > 1 else Exception
        found[name] = {parent, *([getattr(builtins, also)] if also else [])}
    return found


def test_the_tree_in_the_docstring_is_that_of_the_classes():
    """Each error stands below its base, beside the built-in error that it can be caught as too."""
    drawn = tree(errors.__doc__)
    assert drawn == {name: set(getattr(errors, name).__bases__) for name in errors.__all__}
    assert len(drawn) == 12


def test_a_tree_that_is_drawn_wrong_is_seen():
    """An error in another place, and a built-in base that is left out, make another tree."""
    right = tree(errors.__doc__)
    assert tree(errors.__doc__.replace("(also an OSError)", "")) != right
    assert tree(errors.__doc__.replace("└── MissingPluginError", "MissingPluginError")) != right
    assert tree(errors.__doc__.replace("│   ├── PluginLoadError", "├── PluginLoadError")) != right


@pytest.mark.parametrize(
    ("fail", "error", "built_in"),
    [
        (lambda: registry().lookup("encoders", "no-such-thing"), errors.UnknownNameError, LookupError),
        (lambda: ModalEncoderModule(None), errors.CompositionError, ValueError),
        (
            lambda: placeholders.checked_features("vision", torch.zeros(1), torch.zeros(2, 1), (1, 1, 1)),
            errors.PlaceholderMismatchError,
            ValueError,
        ),
        (lambda: MultimodalModel.from_pretrained("/no/such/folder"), errors.CheckpointError, OSError),
    ],
    ids=["name", "composition", "input", "checkpoint"],
)
def test_errors_are_caught_as_ours_and_as_pythons(fail, error, built_in):
    """Code that catches ``OSError`` around ``from_pretrained``, as for any model, needs no change."""
    for kind in (error, errors.CornstarchError, built_in):
        with pytest.raises(kind):
            fail()


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_cross_processes(name):
    """The worker of a data loader raises in the main process, so an error must survive pickling with its message."""
    cls = getattr(errors, name)
    again = pickle.loads(pickle.dumps(cls("vision: what, where, and what to do next")))
    assert (type(again), str(again)) == (cls, "vision: what, where, and what to do next")


def test_every_error_that_can_be_caught_is_raised():
    """The core or a plugin makes each of them; the base of all is never raised by itself."""
    code = "".join(read(file) for file in SOURCES if file.name != "errors.py")
    assert {name for name in errors.__all__ if f"{name}(" not in code} == {"CornstarchError"}


def test_one_handler_tells_users_what_they_can_do(mllm):
    """A single ``except`` around a call gets the message with modality and numbers."""
    with pytest.raises(errors.CornstarchError, match="^vision: the prompt has 17 placeholder tokens, but no media"):
        mllm(**tiny.prompt(1))
