"""CONTRIBUTING.md describes the layout of the core as it is."""

from __future__ import annotations

from pages import ROOT, read, rows
from test_architecture import LAYERS


def test_the_layout_has_every_file_and_package_in_the_order_of_the_layers():
    """The table has one row for each; a file is named with its suffix, a package with a slash."""
    found = rows(read(ROOT / "CONTRIBUTING.md"), "Path")
    assert all((ROOT / "cornstarch_core" / path).exists() for path in found)
    names = [path.removesuffix(".py").removesuffix("/") for path in found]
    layers = {name: number for number, layer in enumerate(LAYERS) for name in layer.split()}
    assert sorted(names) == sorted(layers)
    assert [layers[name] for name in names] == sorted(layers[name] for name in names)
