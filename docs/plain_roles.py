"""Shows the roles of docstrings (``:class:`...``` and the like) as plain code on the site (see mkdocs.yml)."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r':(?:py:)?(?:class|func|meth|mod|attr|data|exc|obj):`~?([^`]+)`')


class PlainRoles(griffe.Extension):
    """Replaces roles in every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes one object's docstring."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r'`\1`', obj.docstring.value)
