"""Docstrings name things as Sphinx does; the pages show the names."""

import re
from typing import Any

_ROLE = re.compile(r":(?:class|data|func|meth|mod):<code>~?(?:[\w.]*\.)?(\w+)</code>")


def on_page_content(html: str, **kwargs: Any) -> str:
    """Show ``:class:`~package.Name` `` as ``Name``."""
    return _ROLE.sub(r"<code>\1</code>", html)
