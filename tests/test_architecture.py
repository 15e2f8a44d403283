"""How the rooms lie: imports go one way, and each quirk and each heavy import has its place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cornstarch_core

CORE = Path(cornstarch_core.__file__).parent
FLOORS = [
    "errors specs folders",
    "hookspecs",
    "runtime.metadata",
    "runtime.discovery",
    "runtime.activation runtime.records",
    "plugins",
    "runtime.doctor scaffold.names",
    "scaffold.project",
    "cli",
    "_hf",
    "config projector adapters merge decoders",
    "counting",
    "encoder",
    "routing export description distributed",
    "checkpoint",
    "model",
    "training.parts training.resume",
    "training.audit training.rates training.sharding training.trained",
    "processing.media processing.spans processing.batch processing.subprocessors processing.templates",
    "processing.chat processing.modality",
    "processing.arguments processing.encoding processing.files",
    "processor",
    "collator families",
    "testing.pieces testing.probe testing.promises",
    "testing.composed testing.package",
    "testing.subject",
    "testing.features",
    "testing.training testing.whole",
    "testing.encoder",
]
"""A module may import, when it is loaded, only from floors above its own."""

HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor.split()}
LIGHT = [name for name in HEIGHT if HEIGHT[name] <= HEIGHT["cli"]]


def modules() -> dict[str, Path]:
    """Every module of the core by its name."""
    files = [file for file in CORE.rglob("*.py") if file.name != "__init__.py"]
    return {".".join(file.relative_to(CORE).with_suffix("").parts): file for file in files}


def imports(file: Path, name: str) -> set[str]:
    """Names of the core's modules that ``file`` imports when it is loaded, type checking aside."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            parents = name.split(".")[: -node.level]
            base = ".".join([*parents, *(node.module.split(".") if node.module else [])])
            found |= {base} if base in HEIGHT else {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
    return found


def test_every_module_has_its_floor():
    """A new file is put on a floor on purpose."""
    assert modules().keys() == HEIGHT.keys()


@pytest.mark.parametrize("name", sorted(HEIGHT))
def test_imports_go_one_way(name):
    """Whatever a module needs when it is loaded lies on a higher floor."""
    for needed in imports(modules()[name], name):
        assert HEIGHT[needed] < HEIGHT[name], f"{name} imports {needed}"


def test_nothing_imports_the_conformance_kit():
    """It is for the tests of plugins; also where an import stands inside a function."""
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            imported = {source, *names, *(f"{source}.{one}" for one in names)}
            outside = not any("testing" in one.split(".") for one in imported)
            assert name.startswith("testing.") or outside, f"{name}:{node.lineno}"


def test_only_one_file_knows_private_names_of_transformers_and_peft():
    """Quirks live in _hf.py: no other module imports a name with an underscore from either."""
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("transformers", "peft"):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert name == "_hf" or not private, f"{name}: {private}"


def test_the_core_imports_no_plugin_and_the_light_half_no_torch():
    """In a fresh process: sys.modules tells, also of imports by name."""
    light = ", ".join(f"cornstarch_core.{name}" for name in LIGHT)
    code = (
        f"import sys, {light}\n"
        "assert not {'torch', 'transformers', 'numpy', 'peft'} & set(sys.modules)\n"
        "import cornstarch_core.collator, cornstarch_core.model\n"
        "print([name for name in sys.modules if name.startswith('cornstarch_') and 'core' not in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_no_hook_runs_at_call_time():
    """The files that run in a forward pass never touch the registry there; only building does."""
    for name in ("merge", "routing"):
        assert "plugins" not in imports(modules()[name], name)
    forward = CORE / "model.py"
    for node in ast.walk(ast.parse(forward.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in ("forward", "generate", "_prepare", "_encode"):
            assert "registry" not in ast.unparse(node)
