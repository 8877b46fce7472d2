"""train.py rerun=RUN and ckpt=last: start a run from its own folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dlen.training.checkpoints import CheckpointFiles, read_checkpoint
from tests.conftest import Command, run_here

SETTINGS = [
    "model=mmoe",
    "model.embedding.dim=4",
    "model.head.tower=[8]",
    "model.backbone.expert=[8]",
    "loader.batch_size=256",
]
SETTINGS += ["data=feed", "data.rows=6000", "data.users=60", "data.items=40", "trainer.max_epochs=1", "seed=5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("again")
    ran = run_here("train.py", [*SETTINGS, "run_dir=run"], path)
    assert ran.returncode == 0, ran.stderr
    return path


@pytest.mark.slow
def test_a_rerun_is_bit_for_bit_the_run(folder: Path) -> None:
    ran = run_here("train.py", ["rerun=run"], folder)
    assert ran.returncode == 0, ran.stderr
    assert "rerun: all metrics and weights are identical to those of run" in ran.stdout
    was, now = (json.loads((folder / name / "metrics.json").read_text()) for name in ("run", "run-rerun"))
    differ = {key for key in {**was, **now} if was.get(key) != now.get(key)}
    assert all(key.startswith("fit/") and key not in ("fit/steps", "fit/precision") for key in differ), differ
    for key in ("code", "config_hash", "data_fingerprint", "library/torch", "library/python", "machine/cpu"):
        assert isinstance(was[key], str)
        assert was[key]
    assert was["library/torch"] == torch.__version__
    assert was["machine/processes"] == 1


@pytest.mark.slow
def test_what_differs_is_told_with_what_may_be_why(folder: Path) -> None:
    path, checkpoint = folder / "run" / "metrics.json", folder / "run" / "checkpoints" / "best.ckpt"
    kept, weights = path.read_text(), read_checkpoint(checkpoint)
    content = json.loads(kept)
    path.write_text(json.dumps(content | {"test/auc/click": 0.123, "library/torch": "1.0"}))
    name = next(iter(weights["state_dict"]))
    changed = {**weights, "state_dict": {**weights["state_dict"], name: weights["state_dict"][name] + 1}}
    CheckpointFiles().save_checkpoint(changed, checkpoint)
    ran = run_here("train.py", ["rerun=run", "run_dir=second"], folder)
    CheckpointFiles().save_checkpoint(weights, checkpoint)
    path.write_text(kept)
    assert ran.returncode == 1
    assert f"test/auc/click: was 0.123, is {content['test/auc/click']}" in ran.stderr
    assert f"1 weight tensors, such as {name}" in ran.stderr
    assert f"possible causes: library/torch was 1.0 and is {torch.__version__}" in ran.stderr
    assert (folder / "second" / "metrics.json").exists()


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_settings(folder: Path) -> None:
    ran = run_here("train.py", ["run_dir=run", "ckpt=last", "trainer.max_epochs=2", "model=mmoe"], folder)
    assert ran.returncode == 0, ran.stderr
    config = OmegaConf.load(folder / "run" / "config.yaml")
    assert config.trainer.max_epochs == 2
    assert config.model.embedding.dim == 4
    assert (config.seed, config.data.rows, config.data_name) == (5, 6000, "feed")
    steps = json.loads((folder / "run" / "metrics.json").read_text())["fit/steps"]
    alone = run_here("train.py", [*SETTINGS, "run_dir=alone", "trainer.max_epochs=2"], folder)
    assert alone.returncode == 0, alone.stderr
    assert steps == json.loads((folder / "alone" / "metrics.json").read_text())["fit/steps"]
    found, wanted = (read_checkpoint(folder / n / "checkpoints" / "last.ckpt")["state_dict"] for n in ("run", "alone"))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rerun=run", "seed=3"], "config seed: a rerun uses the settings of its run"),
        (["rerun=nowhere"], "nowhere: not a run folder"),
        (["run_dir=run", "ckpt=last", "model=dlen"], "cannot resume: model was mmoe and is dlen now"),
        (["run_dir=run", "ckpt=last", "data=aliccp_demo"], "cannot resume: data was feed and is aliccp_demo now"),
        (
            ["run_dir=run", "ckpt=last", "model.head.tower=[9]"],
            "cannot resume: model.head.tower was [8] and is [9] now",
        ),
        (["run_dir=run", "ckpt=last", "loader.batch_size=100"], "loader.batch_size was 256 and is 100 now"),
    ],
)
def test_what_is_refused(arguments: list[str], expected: str, folder: Path) -> None:
    before = (folder / "run" / "config.yaml").read_bytes()
    ran = run_here("train.py", arguments, folder)
    assert ran.returncode == 2, ran.stderr
    assert expected in ran.stderr.splitlines()[-1]
    assert (folder / "run" / "config.yaml").read_bytes() == before


def test_an_unfinished_run_cannot_be_repeated(folder: Path, tmp_path: Path, refused: Command) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(folder / "run" / "config.yaml", tmp_path / "run")
    ran = refused("train.py", "rerun=run")
    assert ran.returncode == 2
    assert "metrics.json, so the run is not finished" in ran.stderr.splitlines()[-1]
