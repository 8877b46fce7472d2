"""The commands of the documentation: every one composes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_here

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
_PAST = ("log.md",)  # commands of the day when an entry was written
_OWN = ("--config-dir", "hydra.searchpath", "+best=")  # need files of the reader's
_COMMAND = r"(?:\w+=\S+ )*(?:python|torchrun .*) ((?:train|prepare|sweep|compare|benchmark|progressive|evaluate)\.py.*)"


def commands(page: Path) -> list[str]:
    """Scripts and arguments of the commands in a page's blocks of shell, and in its indented blocks."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.M | re.S) + re.findall(r"^    (.*\n)", text, re.M)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [match[1] for line in lines if (match := re.match(_COMMAND, line.strip()))]
    return [line for line in found if not any(text in line for text in ("...", *_OWN))]


FOUND = dict.fromkeys((page.name, line) for page in PAGES if page.name not in _PAST for line in commands(page))


def test_there_are_commands() -> None:
    assert len(FOUND) > 80


@pytest.mark.parametrize(("page", "line"), FOUND)
def test_it_composes(page: str, line: str, tmp_path: Path) -> None:
    script, *arguments = shlex.split(line.partition(" | ")[0].partition(" > ")[0].partition(" && ")[0], comments=True)
    ran = run_here(script, [*arguments, "--cfg", "job"], tmp_path)
    assert ran.returncode == 0, ran.stderr
