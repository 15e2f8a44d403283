"""Each hook says what it gets, what it returns and how it is written, and its example is a working plugin."""

from __future__ import annotations

import doctest
import inspect
import re
from typing import get_args, get_type_hints

import pytest
import tiny
from fake_plugins import HEADER, isolated, write_plugin
from transformers import PreTrainedModel

from cornstarch_core import ModalEncoderModule, MultimodalModel, hookspecs, specs
from cornstarch_core.plugins import registry
from cornstarch_core.plugins.activation import hooks, new_manager, spec_types

HOOKS = [name for name in hookspecs.__all__ if name.startswith("cornstarch_")]
REGISTERING = [name for name in HOOKS if name.startswith("cornstarch_register_")]


def example_of(hook: str) -> str:
    """The code in a hook's docstring."""
    return "".join(one.source for one in doctest.DocTestParser().get_examples(getattr(hookspecs, hook).__doc__))


def section(hook: str, title: str) -> str:
    """What stands below a title such as ``Returns:``, up to the next one."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", inspect.getdoc(getattr(hookspecs, hook)) + "\n", re.MULTILINE)
    return found[1] if found else ""


def test_every_public_function_is_a_hook_and_every_hook_is_public():
    """The functions with the marker, the names in ``__all__`` and the hooks that pluggy calls are the same."""
    functions = [name for name, value in vars(hookspecs).items() if inspect.isfunction(value)]
    assert sorted(functions) == sorted(HOOKS) == hooks()
    manager = new_manager()
    assert all(getattr(manager.hook, name).has_spec() for name in HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_says_what_it_gets_and_returns_and_shows_an_example(hook):
    """The docstring has a sentence that states when it runs, each argument, the result and code."""
    function = getattr(hookspecs, hook)
    assert re.search(r"\bRuns once (per process|for each model)\b", inspect.getdoc(function))
    assert section(hook, "Returns").strip()
    described = re.findall(r"^    (\w+): ", section(hook, "Args"), re.MULTILINE)
    assert described == list(inspect.signature(function).parameters)
    assert f"def {hook}(" in example_of(hook)
    assert example_of(hook).startswith("@hookimpl\n")


def test_registering_hooks_return_lists_of_specs():
    """Each kind of spec has one hook, and the hook that composes takes a model and returns nothing."""
    returned = {hook: get_type_hints(getattr(hookspecs, hook))["return"] for hook in REGISTERING}
    kinds = {hook.removeprefix("cornstarch_register_"): get_args(hint)[0] for hook, hint in returned.items()}
    assert [*returned.values()] == [list[spec] for spec in kinds.values()]
    assert kinds == spec_types()
    public = {getattr(specs, name) for name in specs.__all__ if name.endswith("Spec")}
    assert {*kinds.values(), specs.Spec} == public
    assert set(HOOKS) - set(REGISTERING) == {"cornstarch_model_composed"}
    hints = get_type_hints(hookspecs.cornstarch_model_composed, {"PreTrainedModel": PreTrainedModel})
    assert hints == {"model": PreTrainedModel, "return": type(None)}


@pytest.mark.parametrize("hook", REGISTERING)
def test_the_example_of_a_registering_hook_is_a_working_plugin(hook, tmp_path):
    """A module with nothing else than the example is activated, and what it registers is found by its name."""
    kind = hook.removeprefix("cornstarch_register_")
    with isolated(tmp_path) as site:
        write_plugin(site, "fake-example", HEADER + example_of(hook))
        registry().activate()
        (info,) = registry().plugins()
        assert (info.state, info.reason) == ("active", "")
        names = [name for name in registry().names(kind) if name.startswith("fake-example/")]
        assert names
        for name in names:
            assert type(registry().lookup(kind, name).spec) is spec_types()[kind]


def test_the_example_of_the_composing_hook_touches_every_encoder(mllm, capsys):
    """It attaches a tracer, which prints the class of an encoder when that runs; ready-made embeddings have none."""
    namespace = {"hookimpl": hookspecs.hookimpl}
    exec(example_of("cornstarch_model_composed"), namespace)
    ready_made = MultimodalModel(
        encoders={"eeg": ModalEncoderModule(None, hidden_size=12)}, language_model=mllm.language_model
    )
    for model in (mllm, ready_made):
        assert namespace["cornstarch_model_composed"](model) is None
    mllm(**tiny.prompt(1), pixel_values=tiny.pixels(1))
    assert capsys.readouterr().out == "CLIPVisionModel\n"


def test_the_module_says_when_hooks_run_and_holds_no_code_of_its_own():
    """Plugin authors read it first: below the markers there are signatures and docstrings only."""
    assert "No hook runs inside ``forward``" in " ".join(hookspecs.__doc__.split())
    for hook in HOOKS:
        body = inspect.getsource(getattr(hookspecs, hook)).split('"""')
        assert len(body) == 3
        assert body[2].strip() == ""
