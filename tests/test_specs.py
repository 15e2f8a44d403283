"""What plugins hand to the core: frozen specs, and interfaces whose required methods must be there."""

from __future__ import annotations

import pickle
import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from transformers import CLIPVisionConfig

from cornstarch_core import specs
from cornstarch_core.errors import CheckpointError
from cornstarch_core.specs import (
    CallbacksInterface,
    CallbackSpec,
    CheckpointInterface,
    CheckpointSpec,
    EncoderContext,
    EncoderInterface,
    EncoderSpec,
    ModalCallbacks,
    ProcessorInterface,
    ProcessorSpec,
    ProjectorInterface,
    ProjectorSpec,
)

REQUIRED = {
    CallbacksInterface: {"build"},
    CheckpointInterface: {"load"},
    EncoderInterface: {"num_tokens", "dummy_inputs"},
    ProcessorInterface: {"build"},
    ProjectorInterface: {"build"},
}
"""The methods that a target must have."""

SPECS = [
    CallbackSpec(name="a", modality="vision", target="b:C"),
    CheckpointSpec(name="a", target="b:C"),
    EncoderSpec(name="a", modality="vision", classes=("b:D",), input_names=("pixel_values",), target="b:C"),
    ProcessorSpec(name="a", modality="vision", target="b:C"),
    ProjectorSpec(name="a", target="b:C"),
]
CONTEXT = EncoderContext(key="vision", config=None, hidden_size=1, text_hidden_size=2)


def complete(interface: type) -> object:
    """A target with the required methods and nothing else."""
    methods = {name: lambda self, *args, **kwargs: None for name in REQUIRED[interface]}
    return type("Complete", (interface,), methods)()


def name_of(value: object) -> str:
    """The name of a class, or of the class of an object."""
    return value.__name__ if isinstance(value, type) else type(value).__name__


# --- interfaces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interface", REQUIRED, ids=name_of)
def test_a_target_that_lacks_a_required_method_can_not_be_made(interface):
    """Inheriting from the interface is enough to be told which method is missing."""
    assert interface.__abstractmethods__ == REQUIRED[interface]
    complete(interface)
    for missing in REQUIRED[interface]:
        methods = {name: lambda self: None for name in REQUIRED[interface] - {missing}}
        with pytest.raises(TypeError, match=f"abstract class Incomplete.*'?{missing}'?"):
            type("Incomplete", (interface,), methods)()


def test_the_defaults_of_an_encoder():
    """The width is the config's, there are no tokens before the first patch, and it can't be built again."""
    encoder = complete(EncoderInterface)
    assert encoder.hidden_size(CLIPVisionConfig(hidden_size=48)) == 48
    assert encoder.hidden_size({"hidden_size": 48}) is None
    assert encoder.hidden_size(None) is None
    assert encoder.prefix_tokens(CLIPVisionConfig()) == 0
    with pytest.raises(NotImplementedError):
        encoder.build({"hidden_size": 48})


def test_the_defaults_of_a_projector():
    """It keeps the number of tokens, and takes the smallest inputs of any encoder."""
    projector, inputs = complete(ProjectorInterface), {"pixel_values": object()}
    assert projector.num_tokens(None, [3, 5]) == [3, 5]
    assert projector.dummy_inputs(None, inputs, len) is inputs


def test_the_defaults_of_a_processor():
    """A given processor and an item are used as they are."""
    processor, given = complete(ProcessorInterface), object()
    assert processor.wrap(CONTEXT, given, vision_feature_layer=-2) is given
    assert processor.prepare(given) is given


def test_the_defaults_of_a_checkpoint_family():
    """It reads models; processors and export are refused by the name of the class."""
    family = complete(CheckpointInterface)
    with pytest.raises(CheckpointError, match="^somewhere: Complete reads models only, no processors.$"):
        family.load_processor("somewhere")
    with pytest.raises(CheckpointError, match="^Complete reads checkpoints only, and writes none.$"):
        family.export(None, None)


# --- specs ------------------------------------------------------------------------------------------------------------


def test_every_spec_has_the_interface_that_the_docstring_says():
    """The table at the top of the module pairs each spec with the interface of its target."""
    table = dict(re.findall(r"^:class:`(\w+Spec)`\s+:class:`(\w+)`$", specs.__doc__, re.MULTILINE))
    assert table == {name_of(spec): spec.interface.__name__ for spec in SPECS}
    assert {spec.interface for spec in SPECS} == set(REQUIRED)
    assert {name_of(spec) for spec in SPECS} == {name for name in specs.__all__ if name.endswith("Spec")} - {"Spec"}


@pytest.mark.parametrize("value", [*SPECS, CONTEXT, ModalCallbacks()], ids=name_of)
def test_specs_are_frozen_and_made_by_keyword(value):
    """Fields can be added later without changing what a plugin of today means."""
    cls, field = type(value), fields(value)[0]
    assert all(one.kw_only for one in fields(value))
    with pytest.raises(FrozenInstanceError):
        setattr(value, field.name, "other")
    with pytest.raises(TypeError, match="positional argument"):
        cls("a")
    assert replace(value) == value
    assert "interface" not in {one.name for one in fields(value)}


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_specs_are_values(spec):
    """They go to other processes, and equal ones are one."""
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert len({again, spec}) == 1


def test_fields_that_may_be_left_out_mean_that_there_is_none():
    """Their defaults are part of what a plugin of today relies on."""
    given = {"name", "target", "modality", "classes", "input_names"}
    defaults = {
        name_of(spec): {one.name: getattr(spec, one.name) for one in fields(spec) if one.name not in given}
        for spec in SPECS
    }
    assert defaults == {
        "CallbackSpec": {"processor": None},
        "CheckpointSpec": {"callback": None, "encoder": None},
        "EncoderSpec": {"layers": None, "processor": None},
        "ProcessorSpec": {"media_names": (), "content_types": ()},
        "ProjectorSpec": {"per_token": False},
    }
    assert (CONTEXT.prefix_tokens, CONTEXT.layers) == (0, None)
    assert set(vars(ModalCallbacks()).values()) == {None, False, ()}


@pytest.mark.slow
def test_a_type_checker_asks_for_the_required_methods_only(tmp_path):
    """A class with the required methods can be made; without one, mypy names it."""
    api = pytest.importorskip("mypy.api")
    required = {
        "EncoderInterface[Any]": ["num_tokens", "dummy_inputs"],
        "ProjectorInterface": ["build"],
        "ProcessorInterface[Any]": ["build"],
        "CallbacksInterface": ["build"],
        "CheckpointInterface": ["load"],
    }
    lines = ["from typing import Any", "from cornstarch_core import specs"]
    for number, (interface, methods) in enumerate(required.items()):
        bodies = [f"    def {name}(self, *args: Any, **kwargs: Any) -> Any: return None" for name in methods]
        lines += [f"class Whole{number}(specs.{interface}):", *bodies, f"Whole{number}()"]
        lines += [f"class Lacking{number}(specs.{interface}):", *(bodies[1:] or ["    pass"]), f"Lacking{number}()"]
    file = tmp_path / "targets.py"
    file.write_text("\n".join(lines))
    told, _, _ = api.run([str(file), "--ignore-missing-imports", "--follow-imports=silent", "--no-incremental"])
    abstract = [line for line in told.splitlines() if "Cannot instantiate" in line]
    assert [
        ("Lacking" in line, methods[0] in line) for line, methods in zip(abstract, required.values(), strict=True)
    ] == [(True, True)] * len(required), told
