"""Invalid input and settings: one line, exit code 2, no traceback, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Command

CASES = {
    "config typo": (["model=dlne"], "config model=dlne: there is no such choice; did you mean dlen?"),
    "unknown data": (["data=feeed"], "did you mean feed?"),
    "unknown key": (["data.rws=3"], "config data.rws: there is no such key; did you mean rows?"),
    "unknown trainer key": (["trainer.max_epoch=3"], "did you mean max_epochs?"),
    "a group that is null": (["balancing=null"], "a group such as model or data cannot be null"),
    "nobody to rank for": (["metrics.by_user=maybe"], "config metrics.by_user: 'maybe' is not auto, true or false"),
    "broken override": (["model.head.alpha=["], "model.head.alpha=["),
    "alpha out of range": (["model.head.alpha=1.5", "data.rows=2000"], "alpha must be above 0 and at most 1, got 1.5"),
    "alpha not for every task": (["model.head.alpha={click: 0.1}", "data.rows=2000"], "alpha must name every task"),
    "unknown bound": (
        ["model.head.bound=condtional", "data.rows=2000"],
        "bound must be one of conditional, prior, absolute",
    ),
    "batch size": (["loader.batch_size=0"], "config loader.batch_size: 0 is not a whole number from 1"),
    "accelerator": (["trainer.accelerator=tpux", "data.rows=2000"], "config trainer: "),
    "precision": (["trainer.precision=17", "data.rows=2000"], "config trainer: "),
    "learning rate": (["optimizer.lr=abc", "data.rows=2000"], "config optimizer: lr must be a number from 0"),
    "patience": (["patience=-1"], "config patience: -1 is not a whole number from 0"),
    "validation interval": (["trainer.val_check_interval=99", "data.rows=2000"], "an epoch has 2 batches"),
    "embedding size": (["model.embedding.dim=0", "data.rows=2000"], "embedding.dim must be a whole number"),
    "no experts": (["model.backbone.num_experts=0", "data.rows=2000"], "num_experts must be a whole number from 1"),
    "metric": (["metrics.auc=exakt"], "config metrics.auc: 'exakt' is not auto, exact or histogram"),
    "impossible rate": (["data.rates.click=0.9"], "data.rates.click: 0.9 cannot be reached"),
    "missing raw files": (["data=aliccp"], "sample_skeleton_train.csv: no such file. Ali-CCP is published by Alimama"),
    "missing spec": (["data=table"], "config data.spec"),
    "no such spec": (["data=table", "data.spec=none.yaml"], "none.yaml: cannot be read"),
    "nothing to resume": (["run_dir=none", "ckpt=last", "data.rows=2000"], "nothing to resume"),
    "resume without a run": (["ckpt=last"], "`last` needs run_dir=DIR"),
    "no base run": (["base_run=none", "data.rows=2000"], "config base_run: none/metrics.json cannot be read"),
    "data folder is a file": (["data_dir=/dev/null/data"], "/dev/null/data/feed/"),
    "runs folder is a file": (["runs_dir=/dev/null/runs", "data.rows=2000"], "cannot be written"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_wrong_settings_are_one_line(case: str, refused: Command, tmp_path: Path) -> None:
    arguments, expected = CASES[case]
    ran = refused("train.py", *arguments)
    assert ran.returncode == 2, ran.stderr
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert ran.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_evaluate_of_no_run(command: Command) -> None:  # in its own process, as users run it
    ran = command("evaluate.py", "run=nowhere")
    assert ran.returncode == 2
    assert ran.stderr.strip() == "error: nowhere: not a run folder (no config.yaml); set run=DIR"


@pytest.mark.slow
def test_a_run_folder_is_not_overwritten(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("kept: true\n")
    ran = command("train.py", "run_dir=mine", "data.rows=2000")
    assert ran.returncode == 2
    assert "mine already holds a run" in ran.stderr
    assert (tmp_path / "mine" / "config.yaml").read_text() == "kept: true\n"
