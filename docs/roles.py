"""Sphinx roles in docstrings become links: ``:func:`mad` `` is written as a cross reference to what it names."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the roles of every docstring that is loaded; names that aren't documented stay code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda match: _link(obj, *match.groups()), obj.docstring.value)


def _link(obj: griffe.Object, short: str, name: str) -> str:
    try:
        path = name if name.startswith("ptq4vm.") else obj.resolve(name)
    except griffe.NameResolutionError:
        path = name
    title = name.rpartition(".")[2] if short else name
    # A reference that may stay unresolved: metrics and modules name helpers that the pages leave out.
    return f'<autoref identifier="{path}" optional><code>{title}</code></autoref>'
