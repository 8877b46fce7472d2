"""Docstrings of dlen as Markdown, for mkdocstrings: links for roles, code for examples, docstrings for enum members."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":\w+:`(~?)([\w.]+)`")
_CODE = re.compile(r"``(.+?)``", re.DOTALL)


class Roles(griffe.Extension):
    """Turns ``:class:`Schema``` into a link to the page that has it, or into code where none does."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite every docstring of the package."""
        self._places: dict[str, list[str]] = {}
        objects = list(_objects(pkg))
        for item in objects:
            self._places.setdefault(item.name, []).append(item.path)
        for item in objects:
            if isinstance(item, griffe.Attribute) and not item.docstring and _is_of_enum(item):
                comment = re.search(r"#\s*(.+)", item.source)
                item.docstring = griffe.Docstring(comment[1], parent=item) if comment else None
                item.labels = set()  # of course it is an attribute of the class
            if item.docstring:
                item.docstring.value = self.markdown(item.docstring.value, item)

    def markdown(self, text: str, item: griffe.Object) -> str:
        """A docstring's text with links for roles."""
        text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
        text = _CODE.sub(r"`\1`", text)

        def link(found: re.Match[str]) -> str:
            name = found[2].rpartition(".")[2] if found[1] else found[2]
            return f'<autoref identifier="{self.path(found[2], item)}" optional><code>{name}</code></autoref>'

        return _ROLE.sub(link, text)

    def path(self, name: str, item: griffe.Object) -> str:
        """Where a name is, seen from an object: in its class, in its module, or the only one in the package."""
        if name.startswith("dlen."):
            return name
        first, _, rest = name.partition(".")
        places = self._places.get(first, [])
        scope = item.path
        while scope:
            if f"{scope}.{first}" in places:
                return f"{scope}.{name}"
            scope = scope.rpartition(".")[0]
        return ".".join(filter(None, (places[0], rest))) if len(places) == 1 else name


def _is_of_enum(item: griffe.Attribute) -> bool:
    return isinstance(item.parent, griffe.Class) and any(str(base).endswith("Enum") for base in item.parent.bases)


def _objects(item: griffe.Object) -> list[griffe.Object]:
    """An object and all that it defines."""
    own = [member for member in item.members.values() if isinstance(member, griffe.Object)]
    return [item, *(inner for member in own for inner in _objects(member))]
