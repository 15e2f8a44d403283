"""What the tests of the kit share: a folder with all toy plugins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testing.toys import ALL, write_toy
from transformers import CONFIG_MAPPING

from cornstarch_core.plugins import reset_registry


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Path]:
    """A folder with all of the toys."""
    folder = tmp_path_factory.mktemp("site")
    write_toy(folder, "sound")
    for name, broken in ALL.items():
        write_toy(folder, name, broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    for name in [name for name in sys.modules if name.startswith("cornstarch_toy_")]:
        del sys.modules[name]
    CONFIG_MAPPING._extra_content.pop("cornstarch_toy", None)


@pytest.fixture
def only(site, monkeypatch) -> Iterator[Callable[..., None]]:
    """Makes one toy the only plugin of this process."""

    def use(*names: str) -> None:
        monkeypatch.setenv("CORNSTARCH_PLUGINS", ",".join(f"cornstarch-toy-{name}" for name in names))
        reset_registry()

    yield use
    monkeypatch.undo()
    reset_registry()
