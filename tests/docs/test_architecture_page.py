"""docs/architecture.md shows the folders and levels that there are."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.test_architecture import LEVELS

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_levels_of_the_page_are_those_that_are_tested() -> None:
    shown: dict[int, set[str]] = {}
    for level, folder in re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE, re.MULTILINE):
        shown.setdefault(int(level), set()).add(folder)
    assert shown == dict(enumerate(map(set, LEVELS), 1))


def test_the_folders_of_the_page_are_there() -> None:
    table = PAGE[PAGE.index("## Folders") : PAGE.index("## Levels")]
    shown = {
        name for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`([\w/]+)`", row)
    }
    assert shown == {"conf", "sweeps", "src/dlen", "tests", "bench", "examples", "docs"}
    assert all((ROOT / name).is_dir() for name in shown)
