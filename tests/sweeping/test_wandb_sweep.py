"""A study as a W&B sweep: its ranges, its command, and what W&B cannot do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import load_sweep_config

from tests.conftest import run_here

SMALL = ("data=feed", "data.rows=1500", "data.users=50", "data.items=30", "loader.batch_size=256")
SPACE = {
    "optimizer.lr": {"low": 0.001, "high": 0.01, "log": True},
    "model.dropout": {"low": 0.0, "high": 0.4, "step": 0.2},
    "model.backbone.num_experts": {"low": 2, "high": 4},
    "model.head.tower": {"choices": ["[8]", "[4]"]},
}


def wandb_sweep(folder: Path, space: dict[str, object], *overrides: str) -> subprocess.CompletedProcess[str]:
    """Write the W&B sweep of a user's own study."""
    path = folder / "conf/sweep/mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump({"defaults": ["base", "_self_"], "settings": ["model=mmoe"], "space": space}))
    asked = ("--config-dir", "conf", "sweep=mine", "sweep.launcher=wandb", "sweep.name=study")
    return run_here("sweep.py", [*asked, *SMALL, *overrides], folder)


def test_ranges_and_command(tmp_path: Path) -> None:
    done = wandb_sweep(tmp_path, SPACE)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "runs/sweeps/study/wandb.yaml"
    assert load_sweep_config(str(path)) is not None
    content = yaml.safe_load(path.read_text())
    assert content["method"] == "bayes"
    assert content["metric"] == {"name": "val/auc/mean", "goal": "maximize"}
    assert content["parameters"] == {
        "optimizer.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.01},
        "model.dropout": {"values": [0.0, 0.2, 0.4]},
        "model.backbone.num_experts": {"distribution": "int_uniform", "min": 2, "max": 4},
        "model.head.tower": {"values": ["[8]", "[4]"]},
    }
    # As an agent would run it, with one value of each range.
    arguments = ["optimizer.lr=0.002", "model.dropout=0.2", "model.backbone.num_experts=2", "model.head.tower=[8]"]
    command = [part for part in content["command"] if part != "${env}"]
    place = command.index("${args_no_hyphens}")
    command[place : place + 1] = [*arguments, "--cfg", "job"]
    trained = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stderr
    config = yaml.safe_load(trained.stdout)
    assert command[0] == sys.executable
    assert (config["optimizer"]["lr"], config["model"]["head"]["tower"]) == (0.002, [8])
    assert config["logger"]["wandb"]["project"]


@pytest.mark.parametrize(
    ("space", "overrides", "key"),
    [
        ({}, ("sweep.sampler=qmc",), "sweep.sampler"),
        ({}, ("sweep.seeds=2",), "sweep.launcher"),
        ({}, ("sweep.maximize=[val/auc/*]", "sweep.pruner=none"), "sweep.launcher"),
        ({"model.dropout": {"choices": [0.1], "when": {"optimizer.lr": [0.1]}}}, (), "sweep.space"),
    ],
)
def test_what_wandb_cannot_do(tmp_path: Path, space: dict[str, object], overrides: tuple[str, ...], key: str) -> None:
    done = wandb_sweep(tmp_path, {"optimizer.lr": {"choices": [0.1, 0.2]}, **space}, *overrides)
    assert done.returncode == 2
    assert f"config {key}" in done.stderr
    assert not list(tmp_path.glob("runs/sweeps/*/wandb.yaml"))
