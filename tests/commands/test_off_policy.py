"""evaluate.py off_policy.log=FILE: estimates from a random log against the policy's rates in the simulator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir

from dlen.data.sources.feed import Feed
from dlen.overrides import compose_train
from dlen.ranking.scoring import load_model, make_scores, read_fusion, score_pairs
from dlen.training.configs import build
from dlen.training.fit import train
from dlen.training.run_folder import load_run_config
from dlen.training.stores import open_run
from tests.conftest import ROOT, Command, run_here

WORLD = ["data=feed", "data.exposure=uniform", "data.rows=40000", "data.users=60", "data.items=40", "data.test=0.5"]
MODEL = ["model=dlen", "model.embedding.dim=4", "model.head.tower=[8]", "model.head.hidden=[16,8]"]
MODEL += ["model.backbone.expert=[16,8]", "loader.batch_size=256", "trainer.max_epochs=3"]
ITEMS, CANDIDATES = 40, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its test rows as a random log of raw values."""
    path = tmp_path_factory.mktemp("random")
    places = [f"data_dir={path / 'data'}", f"run_dir={path / 'run'}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        train(compose_train([*places, *WORLD, *MODEL]))
    _, store = open_run(path / "run")
    split, schema = store.split("test"), store.schema
    batch = split.batch(torch.arange(len(split)))
    columns = {name: batch.ids[:, i] - offset - 1 for i, (name, offset) in enumerate(schema.offsets.items())}
    columns |= {task: batch.labels[:, i].int() for i, task in enumerate(schema.task_names)}
    pl.DataFrame({name: values.numpy() for name, values in columns.items()}).write_csv(path / "random.csv")
    return path


def check(folder: Path, *overrides: str) -> tuple[str, dict[str, Any]]:
    asked = [f"run={folder / 'run'}", f"off_policy.log={folder / 'random.csv'}", f"off_policy.candidates={CANDIDATES}"]
    ran = run_here("evaluate.py", [*asked, *overrides], folder)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, json.loads((folder / "run" / "off_policy.json").read_text())["policies"]


def true_rates(folder: Path, overrides: Sequence[str]) -> np.ndarray:
    """(T,) rates of the policy for every logged user and hour, from the simulator's probabilities."""
    config, store = open_run(folder / "run")
    feed, model = build(config.data, "data"), load_model(folder / "run", load_run_config(folder / "run"), store)
    assert isinstance(feed, Feed)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        (score,) = make_scores([read_fusion(compose("evaluate", ["run=.", *overrides]).fusion)], model, store)
    log, users = pl.read_csv(folder / "random.csv"), np.arange(feed.users)
    rates = np.zeros((24, feed.users, len(feed.tasks)))
    for hour in range(24):
        log_p, log_up = score_pairs(model, feed, users, hour)
        place = score(log_p, log_up).view(len(users), ITEMS).argsort(1).argsort(1).numpy() + 1
        shown = (place / ITEMS) ** CANDIDATES - ((place - 1) / ITEMS) ** CANDIDATES
        rates[hour] = (feed.truth(users, hour).probabilities() * shown[..., None]).sum(1)
    found: np.ndarray = rates[log["hour"].to_numpy(), log["user"].to_numpy()].mean(0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("fusion.up=1", "fusion.calibrate=true"), ("fusion.form=sum",)])
def test_estimates_hold_the_true_rates(folder: Path, overrides: tuple[str, ...]) -> None:
    said, policies = check(folder, *overrides)
    wanted = true_rates(folder, overrides)
    log = pl.read_csv(folder / "random.csv")
    for (task, figures), value in zip(policies["score"]["tasks"].items(), wanted, strict=True):
        for method in ("ips", "snips"):
            found = figures[method]
            half = found["value"] - found["low"]
            assert abs(found["value"] - value) < 1.5 * half, (task, method)
            assert half < 0.1
        assert policies["random"]["tasks"][task]["snips"]["value"] == pytest.approx(log[task].mean())
    gain = policies["score"]["tasks"]["click"]["gain over random"]
    assert gain["low"] > 0
    assert policies["random"]["effective_rows"] == len(log)
    assert ("score without P(UP)" in policies) == ("fusion.up=1" in overrides)
    assert "effective rows" in said
    assert "click" in said


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["off_policy.candidates=1"], "config off_policy.candidates: 1 is not a whole number from 2"),
        (["off_policy.draws=3"], "config off_policy.draws: must be at least 9"),
        (["off_policy.log=nowhere.csv"], "config off_policy.log: nowhere.csv: no such file"),
        (["fusion.weights={clik: 1}"], "config fusion: weights name an unknown task clik"),
    ],
)
def test_what_is_refused(folder: Path, overrides: list[str], expected: str, refused: Command) -> None:
    log = f"off_policy.log={folder / 'random.csv'}"
    ran = refused("evaluate.py", f"run={folder / 'run'}", *([] if "log=" in overrides[0] else [log]), *overrides)
    assert ran.returncode == 2
    assert expected in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_log_without_labels(folder: Path, refused: Command) -> None:
    path = folder / "unlabelled.csv"
    pl.read_csv(folder / "random.csv").drop("like").write_csv(path)
    ran = refused("evaluate.py", f"run={folder / 'run'}", f"off_policy.log={path}")
    assert ran.returncode == 2
    assert f"{path}: no column 'like', which task like needs" in ran.stderr
