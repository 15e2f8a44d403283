"""A small working plugin, and copies of it with one mistake each, which the kit has to find."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from fake_plugins import write_plugin

from cornstarch_core.testing import EncoderConformance, PluginConformance

PLUGIN = """\
from cornstarch_core.hookspecs import hookimpl
from cornstarch_core.specs import EncoderSpec, ProcessorSpec

HERE = "{module}_encoder"

ENCODER = EncoderSpec(
    name="toy",
    modality="series",
    classes=(f"{HERE}:ToyEncoder",),
    input_names=("series",),
    target=f"{HERE}:Toy",
    processor="series",
)
PROCESSOR = ProcessorSpec(name="series", modality="series", target=f"{HERE}:Series")


@hookimpl
def cornstarch_register_encoders():
    return [ENCODER]


@hookimpl
def cornstarch_register_processors():
    return [PROCESSOR]
"""

ENCODER = """\
import torch
from cornstarch_core.specs import CallbacksInterface, EncoderInterface, ModalCallbacks, ProcessorInterface
from torch import nn
from torch.nn.functional import linear


class ToyEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config["patch"], config["hidden_size"])
        self.mix = nn.Linear(config["hidden_size"], config["hidden_size"])

    def forward(self, series):
        patch = self.config["patch"]
        cut = [one[: len(one) // patch * patch].view(-1, patch) for one in series]
        embedded = [self.embed(one) for one in cut]
        return [self.mix(one.tanh()) * self.config["gain"] for one in embedded]


class Toy(EncoderInterface):
    def num_tokens(self, config, encoder_inputs):
        return [len(one) // config["patch"] for one in encoder_inputs["series"]]

    def dummy_inputs(self, config):
        return {"series": [torch.zeros(config["patch"])]}

    def hidden_size(self, config):
        return config["hidden_size"]

    def build(self, config):
        return ToyEncoder(config)


class ToyProcessor:
    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, items, return_tensors="pt"):
        return {"series": [torch.as_tensor(item, dtype=torch.float32) * self.scale for item in items]}

    def to_dict(self):
        return {"scale": self.scale}

    @classmethod
    def from_dict(cls, settings):
        return cls(**settings)


class Series(ProcessorInterface):
    def build(self, context, **callback_options):
        return ToyProcessor(scale=0.5)


class Callbacks(CallbacksInterface):
    def build(self, context, **callback_options):
        return ModalCallbacks()
"""

CONFIG = {"patch": 4, "hidden_size": 12, "gain": 2.0}

_NO_MASK = '''

@hookimpl
def cornstarch_model_composed(model):
    """Patch the language model with a kernel that takes no mask."""
    from functools import wraps

    forward = model.language_model.forward

    @wraps(forward)
    def without_mask(*args, attention_mask=None, **kwargs):
        return forward(*args, **kwargs)

    model.language_model.forward = without_mask
'''

_NO_RECORD = '''

@hookimpl
def cornstarch_model_composed(model):
    """Save a config without entries that this plugin does not know."""
    import json
    from pathlib import Path

    save = model.save_pretrained

    def save_tidily(folder, **kwargs):
        save(folder, **kwargs)
        file = Path(folder) / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "plugins": []}))

    model.save_pretrained = save_tidily
'''


@dataclass(frozen=True)
class Broken:
    """One mistake.

    Args:
        check: the only check of the kit that fails.
        message: a pattern for the failure and its fix.
        old: a part of the working plugin's code.
        new: the code that replaces it.
    """

    check: str
    message: str
    old: str
    new: str


def _other(spec: str) -> tuple[str, str]:
    """Register a second processor, which the encoder does not use."""
    return "return [PROCESSOR]", f"return [PROCESSOR, {spec}]"


_HOOK = "@hookimpl\ndef cornstarch_register_encoders():\n    return [ENCODER]"
_EMBED = "self.embed(one) for one in cut"

BROKEN = {
    "heavy": Broken(
        "test_importing_it_is_light",
        r"activating it imports numpy \(.*cornstarch_toy_heavy.py, line 1\).*\n  fix: .*name classes in the specs as",
        "from cornstarch_core.hookspecs",
        "import numpy\nfrom cornstarch_core.hookspecs",
    ),
    "appends": Broken(
        "test_activating_it_again_gives_the_same_specs",
        r"activated a second time in a spawned worker, it fails \(.*'toy' twice.*\n  fix: Let the hooks return new lists",
        _HOOK,
        "REGISTERED = []\n\n@hookimpl\ndef cornstarch_register_encoders():\n    REGISTERED.append(ENCODER)\n    return REGISTERED",
    ),
    "misspelt": Broken(
        "test_every_target_resolves",
        r"ProcessorSpec 'other': target: can't import 'cornstarch_toy_misspelt_encoder:Serie'.*\n  fix: Name a class",
        *_other('ProcessorSpec(name="other", modality="series", target=f"{HERE}:Serie")'),
    ),
    "local": Broken(
        "test_specs_can_be_pickled",
        r"encoders 'toy' can't be pickled: .*\n  fix: Return a plain EncoderSpec of cornstarch_core.specs",
        _HOOK,
        "@hookimpl\ndef cornstarch_register_encoders():\n    class Noted(EncoderSpec):\n        pass\n\n"
        "    return [Noted(**vars(ENCODER))]",
    ),
    "registers": Broken(
        "test_auto_mappings_stay_as_they_were",
        r"changes CONFIG_MAPPING\[cornstarch_toy\] of transformers.*\n  fix: Remove calls such as AutoConfig.register",
        "class ToyEncoder(",
        "from transformers import AutoConfig, PreTrainedConfig\n\nclass ToyConfig(PreTrainedConfig):\n"
        "    model_type = 'cornstarch_toy'\n\nAutoConfig.register('cornstarch_toy', ToyConfig)\n\nclass ToyEncoder(",
    ),
    "unclaimed": Broken(
        "test_its_spec_describes_the_module",
        r"a ToyEncoder, which is described by no spec.\n  fix: Name its class '\w+:ToyEncoder' in EncoderSpec.classes",
        ':ToyEncoder",)',
        ':ToyProcessor",)',
    ),
    "narrow": Broken(
        "test_features_are_as_wide_as_it_says",
        r"features that enter the projector are 12 wide, expected 4.\n  fix: Make Toy.hidden_size, by default .* say 12",
        'return config["hidden_size"]',
        'return config["patch"]',
    ),
    "miscounts": Broken(
        "test_features_are_as_many_as_were_counted",
        r"item \d of \d has \d features, but \d are counted.\n  fix: Make Toy.num_tokens tell what ToyEncoder.forward",
        'return [len(one) // config["patch"] for',
        'return [-(-len(one) // config["patch"]) for',
    ),
    "hollow": Broken(
        "test_dummy_inputs_are_one_valid_item",
        r"its dummy inputs, series \(list\), are counted as items with \[0\] f.*\n  fix: Let Toy.dummy_inputs return",
        'torch.zeros(config["patch"])',
        'torch.zeros(config["patch"] - 1)',
    ),
    "detached": Broken(
        "test_gradients_reach_every_weight_that_is_used",
        r"2 weights make a difference.*\(module.embed.weight, module.embed.bias\).\n  fix: .*look for detach\(\)",
        _EMBED,
        "self.embed(one).detach() for one in cut",
    ),
    "single": Broken(
        "test_it_runs_in_bfloat16",
        r"it doesn't run in bfloat16: RuntimeError: .*_encoder.py, line \d+\).\n  fix: ToyEncoder.forward .*\.float\(\)",
        _EMBED,
        "self.embed(one.float()) for one in cut",
    ),
    "social": Broken(
        "test_features_do_not_depend_on_the_rest_of_the_batch",
        r"item 0 of a batch of \d has \d features, and alone \d, that differ.*\n  fix: Let nothing in ToyEncoder.forward mix",
        _EMBED,
        "self.embed(one - torch.cat(cut).mean()) for one in cut",
    ),
    "unmasked": Broken(
        "test_generation_with_left_padding_equals_single",
        r"gets other logits for new token 0 in a left-padded batch.*\n  fix: .*attention_mask.*cornstarch_model_composed",
        "    return [PROCESSOR]\n",
        f"    return [PROCESSOR]\n{_NO_MASK}",
    ),
    "undefined": Broken(
        "test_a_batch_without_the_modality_trains",
        r"on a batch of text alone .* would be NaN or infinite.\n  fix: .*Toy.dummy_inputs.*an epsilon",
        _EMBED,
        "self.embed(one / one.std()) for one in cut",
    ),
    "bypassed": Broken(
        "test_adapters_in_the_module_are_run",
        r"2 of 4 adapter weights get no gradient \(.*embed.*\n  fix: Let ToyEncoder.forward call its layers.*self.layer.weight",
        _EMBED,
        "linear(one, self.embed.weight, self.embed.bias) for one in cut",
    ),
    "forgetful": Broken(
        "test_a_saved_model_comes_back_equal",
        r"comes back with logits that differ.*\n  fix: .*Toy.build must make the module again from its config",
        "return ToyEncoder(config)",
        'return ToyEncoder({**config, "gain": 1.0})',
    ),
    "unsettled": Broken(
        "test_a_saved_processor_comes_back_equal",
        r"comes back and makes other series.\n  fix: What the ProcessorSpec's target builds .*to_dict and from_dict",
        'return {"scale": self.scale}',
        "return {}",
    ),
    "anonymous": Broken(
        "test_loading_without_the_plugin_names_what_to_install",
        r'should say pip install "cornstarch-toy-anonymous…"; it raises UnknownNameError.*\n  fix: .*leave config.plugins',
        "    return [PROCESSOR]\n",
        f"    return [PROCESSOR]\n{_NO_RECORD}",
    ),
}
"""By name: ``cornstarch-toy-<name>`` is the distribution."""

_IN_WORKER = (
    "@hookimpl\ndef cornstarch_register_encoders():\n    import multiprocessing, os\n    {}\n    return [ENCODER]"
)

FURTHER = {
    "dies": Broken(
        "test_activating_it_again_gives_the_same_specs",
        r"a spawned worker that activates it dies.\n  fix: ",
        _HOOK,
        _IN_WORKER.format("if multiprocessing.parent_process(): os._exit(3)"),
    ),
    "hides": Broken(
        "test_activating_it_again_gives_the_same_specs",
        r"activated in a spawned worker, it lacks encoders 'toy'.\n  fix: ",
        _HOOK,
        _IN_WORKER.format("if multiprocessing.parent_process(): return []"),
    ),
    "constant": Broken(
        "test_every_target_resolves",
        r"ProcessorSpec 'other': target: 'math:pi' is not a class.\n  fix: Name a class that inherits from ProcessorInt",
        *_other('ProcessorSpec(name="other", modality="series", target="math:pi")'),
    ),
    "partial": Broken(
        "test_every_target_resolves",
        r"ProcessorSpec 'other': target: '\w+:Toy' lacks the methods wrap, prepare of ProcessorInterface.\n  fix: Name",
        *_other('ProcessorSpec(name="other", modality="series", target=f"{HERE}:Toy")'),
    ),
    "elsewhere": Broken(
        "test_every_target_resolves",
        r"EncoderSpec 'toy': classes: 'statistics:Fraction' is defined as 'fractions:Fraction'.\n  fix: Name each class by",
        ':ToyEncoder",)',
        ':ToyEncoder", "statistics:Fraction")',
    ),
    "dangling": Broken(
        "test_every_target_resolves",
        r"CallbackSpec 'other': processor: no processor for 'absent'.*\n  fix: Register a ProcessorSpec of that name",
        "from cornstarch_core.specs import EncoderSpec, ProcessorSpec\n",
        "from cornstarch_core.specs import CallbackSpec, EncoderSpec, ProcessorSpec\n\n@hookimpl\n"
        "def cornstarch_register_callbacks():\n"
        "    return [CallbackSpec(name='other', modality='series', target=f'{HERE}:Callbacks', processor='absent')]\n",
    ),
    "renames": Broken(
        "test_features_are_as_wide_as_it_says",
        r"can't be prepared and counted: KeyError: 'series' \(\w+_encoder.py, line \d+\).\n  fix: .*at the ProcessorSpec's target",
        'return {"series": [torch.as',
        'return {"serie": [torch.as',
    ),
    "signature": Broken(
        "test_features_are_as_wide_as_it_says",
        r"ToyEncoder can't be run on what the processor makes, series \(list\): TypeError.*\n"
        r"  fix: Name in EncoderSpec.input_names what ToyEncoder.forward takes, values, series; it has series.",
        "def forward(self, series):",
        "def forward(self, values, series=()):",
    ),
    "renamed": Broken(
        "test_features_are_as_wide_as_it_says",
        r"the processor makes, nothing of what EncoderSpec.input_names has: InputError: .*\n"
        r"  fix: Name in EncoderSpec.input_names what ToyEncoder.forward takes, series; it has signals.",
        'input_names=("series",)',
        'input_names=("signals",)',
    ),
    "attributes": Broken(
        "test_features_are_as_wide_as_it_says",
        r"can't be run on what the processor makes, series \(list\): TypeError: .*\n"
        r"  fix: Let the ProcessorSpec's target make EncoderSpec.input_names \(series\) as forward",
        "cut = [one[:",
        "cut = [one.values[:",
    ),
    "configless": Broken(
        "test_its_spec_describes_the_module",
        r"can be composed: TypeError: 'NoneType' object is not subscriptable.*\n  fix: Keep in ToyEncoder.config what they",
        "        self.config = config\n",
        "        self.settings = config\n",
    ),
    "tensors": Broken(
        "test_features_are_as_many_as_were_counted",
        r"counts are not a list of int; a Tensor was found.\n  fix: Let Toy.num_tokens return plain numbers",
        'return [len(one) // config["patch"] for',
        'return [torch.tensor(len(one) // config["patch"]) for',
    ),
    "deep": Broken(
        "test_features_are_as_wide_as_it_says",
        r"features that enter the projector are \(1, \d+, 12\).\n  fix: Return \(items, tokens, width\)",
        'self.config["gain"] for one in embedded',
        'self.config["gain"] for one in [one[None] for one in embedded]',
    ),
    "flat": Broken(
        "test_features_are_as_many_as_were_counted",
        r"\d items have \d+ features, but \d+ are counted \(\d+.*\).\n  fix: Make Toy.num_tokens",
        'return [self.mix(one.tanh()) * self.config["gain"] for one in embedded]',
        "return torch.cat([self.mix(one)[1:] for one in embedded])",
    ),
    "faulty": Broken(
        "test_dummy_inputs_are_one_valid_item",
        r"its dummy inputs can't be counted and run: KeyError: 'patches' \(.*\n  fix: Let Toy.dummy_inputs",
        'torch.zeros(config["patch"])',
        'torch.zeros(config["patches"])',
    ),
    "wild": Broken(
        "test_gradients_reach_every_weight_that_is_used",
        r"gradients of module.embed.weight are not finite on \d items.*\n  fix: .*a root",
        _EMBED,
        "self.embed(one) + (0 * self.embed.weight).abs().sum().sqrt() for one in cut",
    ),
    "inplace": Broken(
        "test_gradients_reach_every_weight_that_is_used",
        r"it can't be trained: RuntimeError: .*modified by an inplace operation.*\n  fix: .*operations in place",
        _EMBED,
        "self.embed(one).exp().mul_(2) for one in cut",
    ),
    "coarse": Broken(
        "test_it_runs_in_bfloat16",
        r"features in bfloat16 differ from those in float32 by \d+\.\d%, more than bf16_tolerance=0.1",
        _EMBED,
        "self.embed(one + 1000 - 1000) for one in cut",
    ),
    "unbuilt": Broken(
        "test_a_saved_model_comes_back_equal",
        r"a saved model can't be loaded: CheckpointError: .*\n  fix: .*Toy.build must make",
        "    def build(self, config):\n        return ToyEncoder(config)\n",
        "",
    ),
    "particular": Broken(
        "test_a_saved_processor_comes_back_equal",
        r"a saved processor can't be loaded: TypeError: .*scale.*\n  fix: .*to_dict and from_dict",
        "return cls(**settings)",
        "return cls(**settings, **settings)",
    ),
}
"""Further ways to break a promise."""


def write_toy(folder: Path, name: str, broken: Broken | None = None) -> None:
    """Install a toy plugin: two modules, and its metadata."""
    module = f"cornstarch_toy_{name}"
    plugin, encoder = PLUGIN.replace("{module}", module), ENCODER
    if broken is not None:
        changed = [code.replace(broken.old, broken.new) for code in (plugin, encoder)]
        assert changed != [plugin, encoder], f"{name} is not broken"
        plugin, encoder = changed
    write_plugin(folder, f"cornstarch-toy-{name}", plugin)
    (folder / f"{module}_encoder.py").write_text(encoder)


# --- running the kit --------------------------------------------------------------------------------------------------

ALL = {**BROKEN, **FURTHER}
MAPPINGS = "test_auto_mappings_stay_as_they_were"  # starts a process that imports transformers


class Toy(EncoderConformance):
    """The checks of a toy plugin; ``module`` is the name of the module with its encoder."""

    module: str

    def make_module(self):
        """The toy encoder."""
        return import_module(self.module).ToyEncoder(CONFIG)

    def make_items(self, rng):
        """One or two series."""
        return [rng.normal(size=rng.integers(4, 40)).tolist() for _ in range(rng.integers(1, 3))]


def checks_of(name: str) -> tuple[type, type]:
    """The package's and the encoder's checks of one toy."""
    package = type("Package", (PluginConformance,), {"distribution": f"cornstarch-toy-{name}"})
    settings = {"encoder": f"cornstarch-toy-{name}/toy", "module": f"cornstarch_toy_{name}_encoder"}
    return package, type("Encoder", (Toy,), settings)


def run(checks: type, left_out: tuple[str, ...] = ()) -> tuple[dict[str, str], list[str]]:
    """Run all checks of a class; return those that fail, with their messages, and those that are skipped."""
    failed, skipped = {}, []
    for name in (name for name in dir(checks) if name.startswith("test_") and name not in left_out):
        try:
            getattr(checks(), name)()
        except pytest.skip.Exception:
            skipped.append(name)
        except pytest.fail.Exception as failure:
            failed[name] = str(failure)
    return failed, skipped


def toys_that_fail(kind: type) -> list[str]:
    """The toys whose mistake a check of this class finds."""
    return [name for name, broken in ALL.items() if broken.check in vars(kind)]


def assert_one_check_fails(name: str) -> None:
    """The check that is meant for a toy fails, with the expected message, and no other check does."""
    broken = ALL[name]
    package, encoder = checks_of(name)
    failed = run(package, () if broken.check == MAPPINGS else (MAPPINGS,))[0] | run(encoder)[0]
    assert list(failed) == [broken.check], failed
    message = failed[broken.check]
    assert message.startswith(f"cornstarch-toy-{name}")
    assert re.search(broken.message, message), message
