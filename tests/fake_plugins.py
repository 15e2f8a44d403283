"""Write plugin distributions, working and broken ones, into a folder, and let this process find no others."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

from cornstarch_core.plugins import reset_registry
from cornstarch_core.plugins.discovery import ALLOW, BLOCK, normalise

CORE = "cornstarch-core>=0.1,<0.2"
BUILT_IN = ["cornstarch-core/linear", "cornstarch-core/mlp"]
"""The projectors of the core, which are always registered."""
LIGHT = ("cornstarch_core", "importlib_metadata", "lazy_importer", "packaging", "pluggy", "typing_extensions", "zipp")

HEADER = """\
from cornstarch_core.hookspecs import hookimpl
from cornstarch_core.specs import *


class Fake(EncoderInterface):
    def num_tokens(self, config, encoder_inputs):
        return [1]

    def dummy_inputs(self, config):
        return {}


"""
SPEC = (
    "EncoderSpec(name={name!r}, modality='vision', classes=({cls!r},), input_names=('pixel_values',), "
    "target=__name__ + ':Fake')"
)


def hook(name: str, body: str, arguments: str = "", marker: str = "@hookimpl") -> str:
    """Write the code of one hook."""
    return f"{HEADER}{marker}\ndef cornstarch_{name}({arguments}):\n    {body}\n"


def _projector(name: str = "'a'", target: str = "'b:c'") -> str:
    return hook("register_projectors", f"return [ProjectorSpec(name={name}, target={target})]")


_MUTE = "class Mute(Exception):\n    def __str__(self):\n        raise RuntimeError\nraise Mute"
_CURIOUS = "from cornstarch_core.plugins import registry\nregistry().names('encoders')"

BROKEN = {
    "raises": ("raise RuntimeError('bo\\nom')", "RuntimeError: bo om"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "panics": ("class Panic(BaseException): pass\nraise Panic('rust')", "Panic: rust"),
    "mute": (_MUTE, "Mute: (it can't be shown)"),
    "syntax": ("def", "SyntaxError: "),
    "imports": ("import cornstarch_no_such_module", "ModuleNotFoundError: No module named 'cornstarch_no_such_module'"),
    "curious": (_CURIOUS, "PluginError: a plugin can't look anything up while it is being imported"),
    "misspelt": (
        hook("register_encoder", "return []"),
        "there is no hook 'cornstarch_register_encoder'; did you mean 'cornstarch_register_encoders'?",
    ),
    "mislabelled": (f"{HEADER}@hookimpl\ndef zzz(): pass", "there is no hook 'zzz'; the hooks are cornstarch_"),
    "argument": (
        hook("model_composed", "pass", "modle"),
        "cornstarch_model_composed asks for an unknown argument 'modle'; its arguments: model",
    ),
    "argued": (
        hook("register_encoders", "return []", "*, config"),
        "cornstarch_register_encoders asks for an unknown argument 'config'; its arguments: none",
    ),
    "unmarked": (
        hook("register_encoders", "return []", marker=""),
        "cornstarch_register_encoders lacks the @hookimpl marker",
    ),
    "wraps": (
        hook("register_encoders", "return (yield)", marker="@hookimpl(wrapper=True)"),
        "cornstarch_register_encoders is a hook wrapper",
    ),
    "asked": (hook("register_encoders", "raise KeyError('clip')"), "KeyError: 'clip'"),
    "dict": (
        hook("register_encoders", "return {}"),
        "cornstarch_register_encoders returned a value of type dict, expected a list of EncoderSpec",
    ),
    "none": (
        hook("register_projectors", "pass"),
        "cornstarch_register_projectors returned None, expected a list of ProjectorSpec",
    ),
    "item": (
        hook("register_checkpoints", "return [ProjectorSpec(name='a', target='b:c')]"),
        "cornstarch_register_checkpoints returned a value of type ProjectorSpec at [0], expected CheckpointSpec",
    ),
    "twice": (
        hook("register_projectors", "return [ProjectorSpec(name='a', target='b:c')] * 2"),
        "cornstarch_register_projectors returned 'a' twice",
    ),
    "function": (_projector(target="len"), "target is a value of type builtin_function_or_method, expected str"),
    "dotted": (_projector(target="'b.c'"), "target is 'b.c', expected 'package.module:Class'"),
    "path": (
        hook("register_encoders", "return [" + SPEC.format(name="clip", cls="a.B") + "]"),
        "classes is ('a.B',), expected 'package.module:Class'",
    ),
    "slash": (_projector(name="'a/b'"), "name is 'a/b', expected letters and digits"),
    "string": (
        hook("register_encoders", "return [" + SPEC.replace("({cls!r},)", "'a:B'").format(name="clip") + "]"),
        "classes is a value of type str, expected tuple[str, ...]",
    ),
}
"""For each way to be broken: the code of the plugin's module, and a part of the expected reason."""


def sound(*encoders: str, cls: str = "fractions:Fraction", more: str = "") -> str:
    """Write the code of a working plugin that registers encoders and leaves a trace when it is imported."""
    specs = ", ".join(SPEC.format(name=name, cls=cls) for name in encoders)
    trace = "import pathlib\npathlib.Path(__file__ + '.imported').touch()\n"
    return f"{HEADER}{trace}@hookimpl\ndef cornstarch_register_encoders():\n    return [{specs}]\n{more}"


def exporting(module: str, *families: tuple[str, str | None], **encoders: str) -> str:
    """Write the code of a plugin that registers a callback ``"shared"``, and families that are exported by it.

    Args:
        module: the plugin's module.
        *families: name of each, and the encoder that it needs; exporting it raises "exported as NAME".
        **encoders: name of each, and the class that it describes.
    """
    specs = ", ".join(SPEC.format(name=name, cls=cls) for name, cls in encoders.items())
    checkpoints = ", ".join(
        f"CheckpointSpec(name={name!r}, target='{module}:{name.title()}', callback='shared', encoder={encoder!r})"
        for name, encoder in families
    )
    return "".join(
        [
            "from cornstarch_core.errors import CheckpointError\n",
            hook("register_encoders", f"return [{specs}]"),
            hook(
                "register_callbacks",
                f"return [CallbackSpec(name='shared', modality='vision', target='{module}:Shared')]",
            ),
            hook("register_checkpoints", f"return [{checkpoints}]"),
            "class Shared(CallbacksInterface):\n    def build(self, context):\n        return ModalCallbacks()\n",
            *(_FAMILY.format(cls=name.title(), name=name) for name, _ in families),
        ]
    )


_FAMILY = """
class {cls}(CheckpointInterface):
    def load(self, folder, **kwargs):
        raise CheckpointError("loaded as {name}")

    def export(self, model, processor):
        raise CheckpointError("exported as {name}")
"""


def was_imported(folder: Path, name: str) -> bool:
    """Whether the module of a working plugin was imported, in any process."""
    return (folder / f"{name.replace('-', '_')}.py.imported").exists()


def write_plugin(
    folder: Path,
    name: str,
    code: str = "",
    *,
    version: str = "0.1.0",
    requires: Sequence[str] = (CORE,),
    entry_points: str | None = None,
) -> None:
    """Install a plugin: its module and its metadata."""
    module = normalise(name).replace("-", "_")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}\nRequires-Dist: cornstarch-core>=99\n"
    )
    lines = f"fake = {module}" if entry_points is None else entry_points
    (info / "entry_points.txt").write_text(f"[console_scripts]\na = b:c\n\n[cornstarch.plugins]\n{lines}\n")


def write_broken(folder: Path) -> dict[str, str]:
    """Install every broken plugin, and return a part of the expected reason for each id."""
    for name, (code, _) in BROKEN.items():
        write_plugin(folder, f"broken-{name}", code)
    return {f"broken-{name}": reason for name, (_, reason) in BROKEN.items()}


def clean_path(folder: Path) -> list[str]:
    """Make a ``sys.path`` of this folder, the core, its light dependencies and the standard library, without torch."""
    room = folder.parent / "room"
    room.mkdir(exist_ok=True)
    for name in LIGHT:
        spec = find_spec(name)
        if spec and spec.origin:
            origin = Path(spec.origin)
            place = origin.parent if origin.name == "__init__.py" else origin
            (room / place.name).symlink_to(place)
    standard = [path for path in sys.path if path.startswith(sys.base_prefix) and "-packages" not in path]
    return [str(folder), str(room), *standard]


@contextmanager
def isolated(tmp_path: Path) -> Iterator[Path]:
    """Make an empty folder the only place where this process finds plugins, with a fresh registry."""
    folder = tmp_path / "site"
    folder.mkdir()
    modules = set(sys.modules)
    environment = {name: value for name, value in os.environ.items() if name not in (ALLOW, BLOCK)}
    with patch.object(sys, "path", clean_path(folder)), patch.dict(os.environ, environment, clear=True):
        reset_registry()
        yield folder
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    importlib.invalidate_caches()
    reset_registry()
