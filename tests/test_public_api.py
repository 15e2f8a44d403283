"""What users import: exactly what is promised, sorted, documented, and lazily."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import cornstarch_core


def test_the_public_names_are_these():
    """A name is added or removed on purpose only."""
    assert cornstarch_core.__all__ == [
        "ModalCallbacks",
        "ModalEncoderModule",
        "MultimodalCollator",
        "MultimodalConfig",
        "MultimodalModel",
        "MultimodalProcessor",
        "MultimodalProjector",
        "MultimodalProjectorConfig",
    ]
    assert set(cornstarch_core.__all__) <= set(dir(cornstarch_core))


@pytest.mark.parametrize("name", cornstarch_core.__all__)
def test_every_public_name_is_a_documented_class(name):
    """Each has a docstring of its own, and so has each of its public methods."""
    cls = getattr(cornstarch_core, name)
    assert inspect.isclass(cls)
    assert cls.__doc__
    for member, value in vars(cls).items():
        if inspect.isfunction(value) and not member.startswith("_"):
            assert inspect.getdoc(value), f"{name}.{member}"


def test_an_unknown_name_is_an_attribute_error():
    """As for any module."""
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        cornstarch_core.Nope  # noqa: B018


def modules() -> list[str]:
    """Every module of the core."""
    return [info.name for info in pkgutil.walk_packages(cornstarch_core.__path__, "cornstarch_core.")]


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_it_is_and_lists_its_names(name):
    """A docstring and an __all__ (which the linter keeps sorted) whose names exist, each once."""
    module = importlib.import_module(name)
    assert module.__doc__
    if not hasattr(module, "__path__"):
        names = module.__all__
        assert len(names) == len(set(names))
        assert all(hasattr(module, one) for one in names)


def test_version_is_the_distributions():
    """The installed metadata and the package agree."""
    from importlib_metadata import version

    assert version("cornstarch-core") == cornstarch_core.__version__
