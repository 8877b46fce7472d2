"""docs/extending.md as written: its file and its YAML make a model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_program

PAGE = (ROOT / "docs" / "extending.md").read_text()


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def train(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The page's command, with its two files in ``folder``, made small by settings that follow it."""
    assert block("bash").strip() == "PYTHONPATH=. python train.py model=my_model 'hydra.searchpath=[file://conf]'"
    (folder / "my_models.py").write_text(block("python"))
    (folder / "conf" / "model").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "model" / "my_model.yaml").write_text(block("yaml"))
    arguments = ["model=my_model", "hydra.searchpath=[file://conf]", "data.rows=6000", "loader.batch_size=512", *more]
    return run_program([sys.executable, str(ROOT / "train.py"), *arguments], folder, {"PYTHONPATH": "."})


@pytest.mark.slow
def test_a_model_takes_one_file_and_one_yaml(tmp_path: Path) -> None:
    ran = train(tmp_path, "trainer.max_epochs=1", "run_dir=run")
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["model"] == "my_model"
    assert 0.4 < metrics["test/auc/mean"] < 1
    assert 0 <= metrics["train/conflict/share"] <= 1
    again = re.search(r"`PYTHONPATH=\. python evaluate\.py run=DIR '(trust=.*?)'`", PAGE)
    assert again
    command = [sys.executable, str(ROOT / "evaluate.py"), "run=run", again[1]]
    ran = run_program(command, tmp_path, {"PYTHONPATH": "."})
    assert ran.returncode == 0, ran.stderr
    wrong = train(tmp_path, "model.wdith=8")
    assert wrong.returncode == 2
    assert "wdith" in wrong.stderr
    assert "Traceback" not in wrong.stderr
