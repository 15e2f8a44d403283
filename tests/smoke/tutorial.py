"""Write the plugin that the documentation teaches into a folder: python tutorial.py PAGE FOLDER."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def main(page: Path, folder: Path) -> None:
    """Write every block of the page that is titled with the name of a file."""
    text = page.read_text(encoding="utf-8")
    for name, code in re.findall(r'^```\w+ title="([\w./]+\.(?:py|toml))"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
