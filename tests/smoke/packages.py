"""Check the files in the packages that were built: python packages.py FOLDER.

Each wheel has its licence, the marker for type checkers and no tests. The packages of the core contain no plugin.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path


def names_in(package: Path) -> list[str]:
    """The files in a wheel or an sdist."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            return wheel.namelist()
    with tarfile.open(package) as sdist:
        return sdist.getnames()


def problems(package: Path) -> list[str]:
    """The problems of one package."""
    names = names_in(package)
    is_core = package.name.startswith("cornstarch_core")
    found = [f"holds {name}" for name in names if is_core and "plugins/cornstarch-" in name]
    found += [f"lacks {wanted}" for wanted in ("LICENSE", "py.typed") if not any(n.endswith(wanted) for n in names)]
    if package.suffix == ".whl":
        found += [f"holds {name}" for name in names if name.startswith("tests/")]
    return found


def main(folder: Path) -> int:
    """Print the problems; return 1 if there are any."""
    packages = sorted(folder.iterdir())
    kinds = [package.suffix for package in packages]
    if kinds.count(".whl") < 2 or kinds.count(".whl") != kinds.count(".gz"):
        print(f"expected a wheel and an sdist of each project, got {', '.join(package.name for package in packages)}")
        return 1
    wrong = {package.name: found for package in packages if (found := problems(package))}
    for package in packages:
        size = package.stat().st_size / 1024
        print(f"{package.name} ({size:.0f} KiB): {'; '.join(wrong.get(package.name, ['ok']))}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
