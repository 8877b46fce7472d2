"""train with two processes: the training of one process with the joint batch, and what several cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Command

SMALL = ["model.embedding_dim=4", "model.tower=[8]", "model.backbone.expert=[8]", "trainer.accelerator=cpu"]
SMALL += ["trainer.max_epochs=4", "trainer.limit_train_batches=2", "trainer.val_check_interval=1.0", "patience=100"]
SMALL += ["trainer.precision=32-true", "optimizer.embedding_lr=0.01"]
FEED = ["data.rows=3001", "data.users=40", "data.items=30"]
CASES = {
    "feed": ["model=dlen", "model.match=4", *FEED],
    "funnel": ["model=dlen", "model.likelihood=marginal", "data=aliccp_demo", "data.rows=6000", "data.min_count=2"],
    "reweighted": ["model=mmoe", "balancing=dwa", *FEED],
}


def weights(folder: Path) -> dict[str, Any]:
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, Any] = content["state_dict"]
    return state


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_train_as_one_with_the_joint_batch(case: str, command: Command, tmp_path: Path) -> None:
    settings = [*CASES[case], *(s for s in SMALL if case != "reweighted" or not s.startswith("model.backbone"))]
    if case == "reweighted":
        settings += ["model.expert=[8]"]
    for processes, batch in ((2, 128), (1, 256)):
        place = [f"trainer.devices={processes}", f"loader.batch_size={batch}", f"run_dir=run{processes}"]
        ran = command("train.py", *settings, *place)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("test split") == 1  # one of them speaks
    one, two = weights(tmp_path / "run1"), weights(tmp_path / "run2")
    assert one.keys() == two.keys()
    for name, value in one.items():
        # Few steps, as Adam makes steps of gradients that are rounding errors: 1e-9 here, 1e-5 after a dozen.
        assert (two[name] - value).abs().double().mean() < 1e-6, name
    alone, both = (json.loads((tmp_path / f"run{n}" / "metrics.json").read_text()) for n in (1, 2))
    assert both["fit/steps"] == alone["fit/steps"]
    for key, value in alone.items():
        if key.startswith(("test/auc/", "test/logloss/", "test/calibration/", "test/gauc/")):
            assert both[key] == pytest.approx(value, abs=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["metrics.scores=true"], "config metrics.scores: is for one process"),
        (["balancing=surgery", "model.likelihood=marginal"], "config balancing: gradient surgery is for one process"),
    ],
)
def test_what_several_processes_cannot_do(settings: list[str], expected: str, command: Command, tmp_path: Path) -> None:
    ran = command("train.py", *FEED, *SMALL, "trainer.devices=2", *settings)
    assert ran.returncode == 2
    assert expected in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
