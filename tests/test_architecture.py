"""Imports between subpackages only point down, and no files import each other in a cycle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dlen

ROOT = Path(dlen.__file__).parent
# From the bottom up. Subpackages of one level do not import each other; files outside subpackages are below all.
LEVELS = (
    {"nn"},
    {"metrics"},
    {"data", "models"},
    {"training"},
    {"ranking"},
    {"serving", "comparing"},
    {"sweeping"},
    {"benchmarking", "reports"},
    {"commands"},
)
HEIGHT = {room: height for height, rooms in enumerate(LEVELS, 1) for room in rooms}


def imports(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports, anywhere in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dlen":
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                is_module = (ROOT.parent / inner.replace(".", "/")).with_suffix(".py").exists()
                yield inner if is_module else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "dlen")


def modules() -> dict[str, set[str]]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = set(imports(path))
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[1]).is_dir() else ""


def test_every_room_has_its_level() -> None:
    assert {p.parent.name for p in ROOT.glob("*/__init__.py")} == set(HEIGHT)


def test_no_arrow_points_up() -> None:
    up = [
        f"{module} -> {target}"
        for module, targets in modules().items()
        for target in targets
        if room(module) != room(target) and HEIGHT.get(room(module), 0) <= HEIGHT.get(room(target), 0)
    ]
    assert not up


def test_no_circle_of_files() -> None:
    found = modules()
    try:
        list(TopologicalSorter(found).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")
