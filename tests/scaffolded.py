"""Plugin projects that the command or a documentation page writes, and the metadata that installing them would add."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from smoke.tutorial import steps

from cornstarch_core.cli import main
from cornstarch_core.scaffold.names import Names
from cornstarch_core.scaffold.project import write

_COMMAND = re.compile(r"^cornstarch plugins new (\S+) --modality (\S+)$", re.MULTILINE)


def new(folder: Path, names: Names) -> Path:
    """Write a project with the command, and add metadata so that Python treats it as installed."""
    project = folder / names.distribution
    assert main(["plugins", "new", names.distribution, "--modality", names.modality, "--into", str(project)]) == 0
    write_metadata(project)
    return project


def names_in(page: str) -> Names:
    """The names in the command of a page."""
    return Names(*_COMMAND.search(page).groups())


def install_from(page: Path, folder: Path) -> None:
    """Write the project that a page shows, and add metadata so that Python treats it as installed."""
    text = page.read_text(encoding="utf-8")
    taken = steps(text)
    if any(step.is_diff for step in taken):  # it changes files that the command writes
        write(names_in(text), folder)
    for step in taken:
        step.apply(folder)
    if (folder / "pyproject.toml").exists():
        write_metadata(folder)


def write_metadata(project: Path) -> None:
    """Write the metadata that installing a project would add, next to its package."""
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    name, version, needs = (
        re.search(rf'^{key} = (?:\[)?"(.+?)"', text, re.MULTILINE)[1] for key in ("name", "version", "dependencies")
    )
    entry = re.search(r'entry-points\."cornstarch.plugins"\]\n(\w+) = "(.+)"', text)
    info = project / "src" / f"{re.sub(r'[-_.]+', '_', name).lower()}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {needs}\n")
    (info / "entry_points.txt").write_text(f"[cornstarch.plugins]\n{entry[1]} = {entry[2]}\n")


def python(projects: list[Path], folder: Path, *arguments: str, code: int = 0) -> str:
    """Run Python with the projects on its path, check the exit code, and return the output."""
    path = os.pathsep.join(str(project / "src") for project in projects)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout
