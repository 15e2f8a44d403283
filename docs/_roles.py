"""A Griffe extension that rewrites docstrings for the documentation site: Sphinx roles to names, examples to code.

Griffe recognises doctests only in a section ``Examples:``, and does not know Sphinx roles.
"""

import re

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|data|func|meth|mod):`~?(?:[\w.]*\.)?(\w+)`")
_EXAMPLE = re.compile(r"^( *)Example:\n(?: *::\n\n?)?", re.MULTILINE)
_LITERAL = re.compile(r"(?<=\w)::$", re.MULTILINE)


def shown(text: str) -> str:
    """Rewrite a docstring: ``:class:`~package.Name` `` becomes ``Name``, and ``Example:`` becomes ``Examples:``."""
    return _LITERAL.sub(":", _EXAMPLE.sub(r"\1Examples:\n", _ROLE.sub(r"`\1`", text)))


class Roles(Extension):
    """Rewrites every docstring."""

    def on_instance(self, *, obj: Object, **kwargs: object) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)
