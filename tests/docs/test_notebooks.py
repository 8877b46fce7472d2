"""The notebooks of examples/: each is its script with outputs, and runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
import pytest

from tests.conftest import BRAKE, ROOT

EXAMPLES = ROOT / "examples"


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


PICTURES = {"quickstart": 2, "own_parts": 0}
TASKS = {"quickstart": ["click", "like", "share"], "own_parts": ["click", "like"]}


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_is_its_script(name: str) -> None:
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    assert cells(notebook) == cells(jupytext.read(EXAMPLES / f"{name}.py")), "make notebook"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[name]
    assert not [output for output in outputs if output.output_type == "error"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = jupytext.read(EXAMPLES / f"{name}.py")
    kernel = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, timeout=BRAKE, startup_timeout=BRAKE, kernel_name="python3", resources=kernel
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == PICTURES[name]
    printed = "".join(output.text for output in shown if output.output_type == "stream")
    lines = re.findall(r"│ (click|like|share) *┆ (\d\.\d+) *┆", printed)
    assert [task for task, _ in lines] == TASKS[name]
    for _, auc in lines:
        assert 0.64 < float(auc) < 0.8  # chance is 0.5; the simulated preference explains the rest
