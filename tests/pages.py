"""Reading the pages of the documentation: where they are; and of their text the blocks, tables, headings and entries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
]
SOURCES = [
    *sorted((ROOT / "cornstarch_core").rglob("*.py")),
    *sorted(file for plugin in PLUGINS for file in (plugin / "src").rglob("*.py")),
]

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
_OPENING = re.compile(r'(\w*)(?: title="([^"]*)")?')


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, or ``""``, its title, what stands in it, and the line of its fence."""

    language: str
    title: str
    code: str
    line: int


def name_of(path: Path) -> str:
    """A file as tests are named after it."""
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    """A file's text."""
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """Every fenced block of a page.

    Raises:
        ValueError: a fence is not closed, or says something else than a language and a title.
    """
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None  # line, indentation, fence
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            said = _OPENING.fullmatch(fence[3].strip())
            if said is None:
                raise ValueError(
                    f'line {number} says {fence[3]!r} of a block; say its language, and title="..." if any'
                )
            opened, lines = (number, fence[1], fence[2]), []
        elif opened is not None and fence and fence[2] == opened[2] and not fence[3].strip():
            found.append(Block(said[1], said[2] or "", "".join(lines), opened[0]))
            opened = None
        elif opened is not None:
            lines.append(line.removeprefix(opened[1]) + "\n")
    if opened is not None:
        raise ValueError(f"the block of line {opened[0]} is not closed")
    return found


def prose(text: str) -> str:
    """A page without its code and its comments, neither of which a reader sees as text."""
    kept: list[str] = []
    opened = ""
    for line in text.splitlines(keepends=True):
        fence = _FENCE.match(line.rstrip("\n"))
        if not opened and fence:
            opened = fence[2]
        elif opened and fence and fence[2] == opened and not fence[3].strip():
            opened = ""
        elif not opened:
            kept.append(line)
    return re.sub(r"<!--.*?-->", "", "".join(kept), flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The headings of a page, as links write them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def entries(text: str) -> list[str]:
    """What a page shows the docstring of: ``::: package.module.name``."""
    return re.findall(r"^::: (\S+)$", prose(text), re.MULTILINE)


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """The table whose first column has this heading: its other cells, by the code in the first one.

    Raises:
        ValueError: the page has no such table, or several, of which it could be any; or a row stands there twice.
    """
    lines = text.splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith(f"| {heading} |")]
    if len(starts) != 1:
        raise ValueError(f"{len(starts)} tables begin with a column {heading!r}; there has to be one")
    found: dict[str, list[str]] = {}
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        first, *others = (cell.strip() for cell in line.strip("|").split(" | "))
        if first.strip("` ") in found:
            raise ValueError(f"the table {heading!r} has two rows {first}")
        found[first.strip("` ")] = others
    return found
