"""docs/extending.md as written: its Python file and its YAML make a model."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_program

PAGE = (ROOT / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``train.py`` next to the page's files in ``folder``, with small settings."""
    (folder / "my_models.py").write_text(blocks("python")[0])
    backbone, preset = blocks("yaml")
    (folder / "conf/model/backbone").mkdir(parents=True, exist_ok=True)
    (folder / "conf/model/backbone/two_roads.yaml").write_text(backbone)
    (folder / "conf/model/my_model.yaml").write_text(preset)
    small = ["data.rows=6000", "loader.batch_size=512", "trainer.max_epochs=1"]
    return run_program([sys.executable, str(ROOT / "train.py"), *arguments, *small], folder, {"PYTHONPATH": "."})


@pytest.mark.slow
def test_a_backbone_takes_one_class_and_one_yaml(tmp_path: Path) -> None:
    said = blocks("bash")[0].strip().removeprefix("PYTHONPATH=. python train.py ")
    ran = train(tmp_path, *shlex.split(said), "model.head.tower=[8]", "run_dir=run")
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0.4 < metrics["test/auc/mean"] < 1
    assert 0 <= metrics["train/conflict/share"] <= 1
    again = re.search(r"`PYTHONPATH=\. python evaluate\.py run=DIR '(trust=.*?)'`", PAGE)
    assert again
    command = [sys.executable, str(ROOT / "evaluate.py"), "run=run", again[1]]
    ran = run_program(command, tmp_path, {"PYTHONPATH": "."})
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_a_preset_names_the_parts(tmp_path: Path) -> None:
    searched = "hydra.searchpath=[file://conf]"
    ran = train(tmp_path, "model=my_model", "model/head=latent", "model.head.hidden=[8]", searched, "run_dir=run")
    assert ran.returncode == 0, ran.stderr
    assert "test/auc/up_any" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    wrong = train(tmp_path, "model=my_model", searched, "model.backbone.out_dmi=8")
    assert wrong.returncode == 2
    assert "out_dmi" in wrong.stderr
    assert "Traceback" not in wrong.stderr
