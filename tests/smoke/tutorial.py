"""Apply the steps of a documentation page to a folder: python tutorial.py PAGE FOLDER [--fewer-than LINES].

A block whose title is the name of a file is the content of that file. A block in the language ``diff`` changes the file:
the ``+`` lines replace the ``-`` lines above them, which the file must contain exactly once. Both sorts of blocks count as
lines that the reader writes, without blank lines. This script needs only Python, so it runs in any environment.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

_STEP = re.compile(r'^```(\w+) title="([\w./-]+\.(?:md|py|toml))"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_HUNK = re.compile(r"((?:^-.*\n)+)((?:^\+.*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A file that the reader writes, or changes.

    Args:
        file: its path in the project.
        code: the content of the block.
        is_diff: whether the block is a change.
        start: position of the block in the page.
    """

    file: str
    code: str
    is_diff: bool
    start: int

    @property
    def own_lines(self) -> int:
        """The number of lines that the reader writes."""
        lines = re.findall(r"^\+(.*)$", self.code, re.MULTILINE) if self.is_diff else self.code.splitlines()
        return sum(1 for line in lines if line.strip())

    def apply(self, folder: Path) -> None:
        """Write the file, or change it.

        Raises:
            ValueError: the file does not contain the lines to change exactly once, or the block does not name them.
        """
        file = folder / self.file
        file.parent.mkdir(parents=True, exist_ok=True)
        text = self.changed(file.read_text(encoding="utf-8")) if self.is_diff else self.code
        file.write_text(text, encoding="utf-8")

    def changed(self, text: str) -> str:
        """A file's text after the change."""
        rest = _HUNK.sub("", self.code).strip()
        if rest:
            raise ValueError(f"{self.file} is to be changed, but these lines stand in the place of no others:\n{rest}")
        for hunk in _HUNK.finditer(self.code):
            old, new = (re.sub(r"^.", "", lines, flags=re.MULTILINE) for lines in hunk.groups())
            places = [match.start() for match in re.finditer("^" + re.escape(old), text, re.MULTILINE)]
            if len(places) != 1:
                raise ValueError(f"{self.file} holds these lines {len(places)} times, not once:\n{old}")
            text = text[: places[0]] + new + text[places[0] + len(old) :]
        return text


def steps(page: str) -> list[Step]:
    """The steps of a page, from top to bottom."""
    return [Step(m[2], m[3], m[1] == "diff", m.start()) for m in _STEP.finditer(page)]


def main() -> None:
    """Apply all steps, and print how many lines they have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--fewer-than", type=int, metavar="LINES", help="fail if the reader writes this many lines or more"
    )
    arguments = parser.parse_args()
    taken = steps(arguments.page.read_text(encoding="utf-8"))
    for step in taken:
        step.apply(arguments.folder)
        print(f"{'changed' if step.is_diff else 'wrote'} {step.file}: {step.own_lines} lines")
    total = sum(step.own_lines for step in taken)
    print(f"{total} lines in total")
    limit = arguments.fewer_than
    if limit is not None and total >= limit:
        raise SystemExit(f"{arguments.page}: its reader writes {total} lines; there have to be fewer than {limit}.")


if __name__ == "__main__":
    main()
