"""Write the project of a new plugin from the files in ``template/``.

The templates contain ``$names`` for :class:`string.Template`. Because of the suffix ``.template``, tools do not treat
the templates as code of this project.
"""

from __future__ import annotations

from pathlib import Path
from string import Template

import cornstarch_core

from .names import Names

__all__ = ["FILES", "render", "write"]

FILES = {
    ".github/workflows/test.yml": "test.yml",
    ".gitignore": "gitignore",
    "LICENSE": "LICENSE",
    "README.md": "README.md",
    "pyproject.toml": "pyproject.toml",
    "src/$package/__init__.py": "__init__.py",
    "src/$package/encoder.py": "encoder.py",
    "src/$package/plugin.py": "plugin.py",
    "src/$package/processor.py": "processor.py",
    "src/$package/py.typed": "py.typed",
    "tests/test_conformance.py": "test_conformance.py",
    "tests/test_encoder.py": "test_encoder.py",
}
"""The files of a project, each with the name of its template without the suffix."""

_TEMPLATES = Path(__file__).parent / "template"


def render(names: Names) -> dict[str, str]:
    """Render the files of a project from their templates.

    Args:
        names: names of the plugin.

    Returns:
        The text of each file, by its path in the project.

    Example:
        >>> files = render(Names("cornstarch-eeg", "eeg"))
        >>> [path for path in files if path.startswith("tests/")]
        ['tests/test_conformance.py', 'tests/test_encoder.py']
    """
    values = {
        "distribution": names.distribution,
        "id": names.id,
        "package": names.package,
        "modality": names.modality,
        "prefix": names.prefix,
        "core": f"cornstarch-core{_compatible(cornstarch_core.__version__)}",
    }
    texts = {path: (_TEMPLATES / f"{name}.template").read_text(encoding="utf-8") for path, name in FILES.items()}
    return {Template(path).substitute(values): Template(text).substitute(values) for path, text in texts.items()}


def _compatible(version: str) -> str:
    """Return the specifier of compatible versions: the same major version, or before 1.0 the same minor version."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f">={major}.{minor},<{major}.{minor + 1}" if major == 0 else f">={major}.{minor},<{major + 1}"


def write(names: Names, folder: Path) -> None:
    """Write the files of a project to a folder.

    Args:
        names: names of the plugin.
        folder: folder of the project; it is created if it does not exist.

    Raises:
        FileExistsError: the folder is a file, or is not empty.
        OSError: the folder can't be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name another folder with --into, or remove it")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name another folder with --into, or remove it")
    for path, text in render(names).items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
