"""The public names: their exact list, their docstrings, and the version."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import cornstarch_core


def test_the_package_has_exactly_the_listed_public_names():
    """__all__ and dir() contain the listed names, so a change of the public API must change this test."""
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
    """Each public class and each of its public methods has a docstring."""
    cls = getattr(cornstarch_core, name)
    assert inspect.isclass(cls)
    assert cls.__doc__
    for member, value in vars(cls).items():
        if inspect.isfunction(value) and not member.startswith("_"):
            assert inspect.getdoc(value), f"{name}.{member}"


def test_an_unknown_name_raises_an_attribute_error():
    """The package raises the same error as any module for a name that it does not have."""
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        cornstarch_core.Nope  # noqa: B018


def modules() -> list[str]:
    """The names of all modules of the core."""
    return [info.name for info in pkgutil.walk_packages(cornstarch_core.__path__, "cornstarch_core.")]


@pytest.mark.parametrize("name", modules())
def test_every_module_has_a_docstring_and_lists_its_names(name):
    """Each name in __all__ (which the linter keeps sorted) exists and is listed once."""
    module = importlib.import_module(name)
    assert module.__doc__
    if not hasattr(module, "__path__"):
        names = module.__all__
        assert len(names) == len(set(names))
        assert all(hasattr(module, one) for one in names)


def test_the_version_equals_that_of_the_distribution():
    """The version in the installed metadata equals __version__."""
    from importlib_metadata import version

    assert version("cornstarch-core") == cornstarch_core.__version__
