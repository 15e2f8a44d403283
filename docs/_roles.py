"""What pages show of docstrings: names for Sphinx's roles, and examples as code. A hook of Griffe, which reads them.

It keeps to a section ``Examples:`` for doctests, and would take a role's colon for the end of a name.
"""

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|data|func|meth|mod):`~?(?:[\w.]*\.)?(\w+)`")
_EXAMPLE = re.compile(r"^( *)Example:\n(?: *::\n\n?)?", re.MULTILINE)
_LITERAL = re.compile(r"(?<=\w)::$", re.MULTILINE)


def shown(text: str) -> str:
    """A docstring with ``:class:`~package.Name` `` as ``Name``, and its example where Griffe looks for one."""
    return _LITERAL.sub(":", _EXAMPLE.sub(r"\1Examples:\n", _ROLE.sub(r"`\1`", text)))


class Roles(Extension):
    """Rewrites every docstring."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """One that was found."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)
