"""Imports go one way, whether a module is loaded, a function runs or a type checker reads; quirks and heavy imports have their places."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import cornstarch_core

CORE = Path(cornstarch_core.__file__).parent
LAYERS = [
    "errors specs hookspecs",
    "_hf plugins",
    "config",
    "modeling",
    "saving",
    "model processing",
    "processor",
    "collator interop scaffold training",
    "cli testing",
]
"""Files and packages of the core. Each may import from the layers above its own, and within itself."""

LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names.split()}
LIGHT = ["errors", "specs", "hookspecs", "plugins", "scaffold", "cli", "modeling.builtin_projectors"]


def modules() -> dict[str, Path]:
    """Every module of the core by its name below the package; a package by its own."""
    files = (file for file in CORE.rglob("*.py") if file != CORE / "__init__.py")
    return {".".join(file.relative_to(CORE).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = modules()


def kinds_of_imports(tree: ast.AST, kind: str = "load") -> Iterator[tuple[str, ast.ImportFrom | ast.Import]]:
    """Every import with its kind: ``load``, ``lazy`` (inside a function) or ``typing`` (``if TYPE_CHECKING``)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield kind, node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from kinds_of_imports(node, "typing")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and kind == "load":
            yield from kinds_of_imports(node, "lazy")
        else:
            yield from kinds_of_imports(node, kind)


def imported(name: str, source: str, is_package: bool) -> Iterator[tuple[str, str]]:
    """``(kind, module of the core)`` for every import in a module's source."""
    for kind, node in kinds_of_imports(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name.removeprefix("cornstarch_core.") for alias in node.names]
            yield from ((kind, one) for one in found if one in MODULES)
            continue
        package = name.split(".") if is_package else name.split(".")[:-1]
        if node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        elif (node.module or "").split(".")[0] == "cornstarch_core":
            base = (node.module or "").split(".")[1:]
        else:
            continue
        module = ".".join(filter(None, base))
        for alias in node.names:
            inner = f"{module}.{alias.name}".lstrip(".")
            yield kind, inner if inner in MODULES else module


def arrows() -> Iterator[tuple[str, str, str]]:
    """``(importing module, kind, imported module)``, all of the core's."""
    for name, file in MODULES.items():
        for kind, target in imported(name, file.read_text(), file.name == "__init__.py"):
            if target in MODULES and not f"{name}.".startswith(f"{target}."):
                yield name, kind, target


def circles(edges: set[tuple[str, str]]) -> list[set[str]]:
    """Sets of modules that import each other, directly or through others."""
    graph = defaultdict(set)
    for start, end in edges:
        graph[start].add(end)

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += graph.get(node, ())
        return seen

    reach = {node: reachable(node) for node in [*graph]}
    return [{other for other in reach[node] if node in reach.get(other, ())} for node in reach if node in reach[node]]


def test_every_file_and_package_has_its_layer():
    """A new one is put into a layer on purpose; there are at most 18 at the top level."""
    entries = {path.stem for path in CORE.iterdir() if path.name not in ("__init__.py", "__pycache__", "py.typed")}
    assert entries == LAYER.keys()
    assert len(entries) <= 18


def test_imports_go_one_way():
    """From a later layer to an earlier one, or within a package: at load, in functions and for types alike."""
    wrong = []
    for name, kind, target in arrows():
        start, end = name.split(".")[0], target.split(".")[0]
        if start != end and LAYER[end] >= LAYER[start] and LAYER[start] > 0:  # the contract is in order by itself
            wrong.append(f"{name} imports {target} ({kind})")
    assert wrong == []


@pytest.mark.parametrize("kinds", [{"load"}, {"load", "lazy"}, {"load", "lazy", "typing"}])
def test_no_module_imports_itself_through_others(kinds):
    """No circle when modules are loaded, none with imports inside functions, none with imports for types."""
    assert circles({(name, target) for name, kind, target in arrows() if kind in kinds}) == []


def test_the_check_sees_every_kind_of_import():
    """Planted imports are found with their kind, and a planted circle is one."""
    source = (
        "from typing import TYPE_CHECKING\nfrom .errors import InputError\nimport cornstarch_core.model\n"
        "if TYPE_CHECKING:\n    from .processor import MultimodalProcessor\n"
        "def f():\n    from . import collator\n"
    )
    found = list(imported("config", source, False))
    assert found == [("load", "errors"), ("load", "model"), ("typing", "processor"), ("lazy", "collator")]
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")}) == [{"a", "b", "c"}] * 3


def test_every_module_has_a_test_file_of_its_name():
    """``cornstarch_core/x/y.py`` is tested by ``tests/x/test_y.py``; a package's ``__init__.py`` by those of its modules."""
    tests = Path(__file__).parent
    wanted = [file.relative_to(CORE) for file in MODULES.values() if file.name != "__init__.py"]
    expected = [tests / file.parent / f"test_{file.name}" for file in wanted]
    missing = [file.relative_to(tests).as_posix() for file in expected if not file.exists()]
    assert not missing, f"{len(missing)} of {len(expected)} are missing: {', '.join(missing)}"


def test_nothing_imports_the_conformance_kit():
    """It is for the tests of plugins; also where an import stands inside a function."""
    assert [
        name for name, _, target in arrows() if target.startswith("testing") and not name.startswith("testing")
    ] == []


@pytest.mark.parametrize("library", ["transformers", "peft", "torch"])
def test_private_names_of_other_libraries_live_in_hf(library):
    """No other module imports a name or a module with an underscore from transformers, PEFT or torch."""
    for name, file in MODULES.items():
        for _, node in kinds_of_imports(ast.parse(file.read_text())):
            paths = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            if paths[0].split(".")[0] == library:
                private = [part for path in [*paths, *names] for part in path.split(".") if part.startswith("_")]
                assert name.startswith("_hf.") or not private, f"{name}:{node.lineno}: {private}"


def test_private_names_of_torch_are_guarded():
    """Without the names that torch may rename, the core still imports, and reads no tensor ahead of time."""
    code = (
        "import torch, transformers.modeling_utils\n"
        "del torch._C._functorch.is_functorch_wrapped_tensor\n"
        "from cornstarch_core._hf import torch_private\n"
        "assert not torch_private.is_readable(torch.zeros(1))\n"
        "import cornstarch_core.model\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_core_imports_no_plugin_and_the_light_half_no_torch():
    """In a fresh process: sys.modules tells, also of imports by name."""
    light = [name for name in MODULES if name in LIGHT or name.split(".")[0] in LIGHT]
    code = (
        f"import sys, {', '.join(f'cornstarch_core.{name}' for name in light)}\n"
        "assert not {'torch', 'transformers', 'numpy', 'peft'} & set(sys.modules)\n"
        "import cornstarch_core.collator, cornstarch_core.model\n"
        "print([name for name in sys.modules if name.startswith('cornstarch_') and 'core' not in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
