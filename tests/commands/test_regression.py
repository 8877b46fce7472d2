"""Regression tasks through the commands: train, predict, export, compare and report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest

from tests.conftest import run_here

SMALL = ["trainer.accelerator=cpu", "trainer.precision=32-true", "loader.batch_size=128", "trainer.max_epochs=3"]
SMALL += ["model.embedding.dim=4", "model.backbone.expert=[16,8]", "optimizer.embedding_lr=0.05"]
TASKS: dict[str, Any] = {
    "click": "click",
    "play": {"label": "play", "kind": "regression", "observed_where": "click", "transform": "log1p", "loss": "huber"},
    "watch": {"label": "watch", "kind": "regression", "loss": "weighted_logistic"},
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, and a run of DLEN on it."""
    folder = tmp_path_factory.mktemp("regression")
    rng = np.random.default_rng(0)
    user, video = rng.integers(0, 9, 1500), rng.integers(0, 8, 1500)
    worth = rng.normal(size=9)[user] + rng.normal(size=8)[video]
    click = rng.random(1500) < 1 / (1 + np.exp(-worth))
    play = [float(v) if c else None for v, c in zip(1000 * np.exp(worth), click, strict=True)]
    watch = np.maximum(0, 5 + 2 * worth + rng.normal(size=1500))
    log = pl.DataFrame({"user": user, "video": video, "click": click.astype(int), "play": play, "watch": watch})
    log.write_csv(folder / "log.csv")
    fields = {"user": {"side": "user"}, "video": {"side": "item"}}
    for name, tasks in (("log", TASKS), ("only", {"watch": TASKS["watch"]})):
        spec = {"files": "log.csv", "fields": fields, "tasks": tasks, "user": "user", "ignore": "rest"}
        (folder / f"{name}.yaml").write_text(json.dumps(spec))
    ran = run_here("train.py", ["model=dlen", "data=table", "data.spec=log.yaml", "run_dir=run", *SMALL], folder)
    assert ran.returncode == 0, ran.stderr
    assert "XAUC watch" in ran.stderr
    assert "RMSE" in ran.stdout
    return folder


def predicted(work: Path, run: str) -> pl.DataFrame:
    ran = run_here("predict.py", [f"run={run}", "input=log.csv", "output=scores.parquet"], work)
    assert ran.returncode == 0, ran.stderr
    return pl.read_parquet(work / "scores.parquet")


def test_predictions_are_in_the_unit_of_the_labels(work: Path) -> None:
    scores, log = predicted(work, "run"), pl.read_csv(work / "log.csv")
    assert scores.columns == ["p_click", "value_play", "value_watch", "up", "score"]
    metrics = json.loads((work / "run" / "metrics.json").read_text())
    assert metrics["test/xauc/watch"] > 0.7
    assert metrics["test/xauc/mean"] == pytest.approx((metrics["test/xauc/watch"] + metrics["test/xauc/play"]) / 2)
    assert "test/auc/watch" not in metrics
    assert scores["value_watch"].mean() == pytest.approx(log["watch"].mean(), rel=0.2)
    schema = json.loads((work / "run" / "schema.json").read_text())
    _, play, watch = schema["tasks"]
    # The score is the product of P(click) and the logistic function of the two standardised predictions.
    z = (np.log1p(scores["value_play"].to_numpy()) - play["mean"]) / play["deviation"]
    w = scores["value_watch"].to_numpy() / watch["deviation"] - 1
    wanted = np.log(scores["p_click"].to_numpy()) - np.logaddexp(0, -z) - np.logaddexp(0, -w)
    np.testing.assert_allclose(scores["score"], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_export_predicts_the_same(work: Path) -> None:
    ran = run_here("export.py", ["run=run", "check_rows=50"], work)
    assert ran.returncode == 0, ran.stderr
    schema = json.loads((work / "run" / "export" / "schema.json").read_text())
    assert schema["outputs"]["p"] == ["click"]
    assert schema["outputs"]["values"] == ["play", "watch"]
    session = onnxruntime.InferenceSession(str(work / "run" / "export" / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == ["p", "score", "up", "values"]


def test_lightgbm_and_a_report(work: Path) -> None:
    settings = ["model=lightgbm", "model.rounds=30", "data=table", "data.spec=log.yaml", "run_dir=trees"]
    ran = run_here("train.py", [*settings, "trainer.accelerator=cpu"], work)
    assert ran.returncode == 0, ran.stderr
    scores = predicted(work, "trees")
    assert scores.columns == ["p_click", "value_play", "value_watch", "score"]
    assert np.corrcoef(scores["value_watch"], pl.read_csv(work / "log.csv")["watch"])[0, 1] > 0.8
    ran = run_here("report.py", ["runs=[run,trees]", "out=report.html"], work)
    assert ran.returncode == 0, ran.stderr
    assert "warning" not in ran.stderr
    page = (work / "report.html").read_text()
    assert "XAUC watch" in page
    assert "RMSE play" in page


def test_regressions_alone(work: Path) -> None:
    settings = ["data=table", "data.spec=only.yaml", "run_dir=only", *SMALL]
    ran = run_here("train.py", ["model=mmoe", *settings], work)
    assert ran.returncode == 0, ran.stderr
    assert "monitor: val/xauc/mean" in (work / "only" / "config.yaml").read_text()
    assert predicted(work, "only").columns == ["value_watch", "score"]
    ran = run_here("train.py", ["model=mmoe", *settings, "ckpt=last", "trainer.max_epochs=4"], work)
    assert ran.returncode == 0, ran.stderr
    ran = run_here("train.py", ["model=dlen", *settings, "run_dir=other"], work)
    assert ran.returncode == 2
    assert "dlen needs a task of 0 and 1" in ran.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_comparison_pairs_the_xaucs(work: Path) -> None:
    (work / "conf" / "experiment").mkdir(parents=True, exist_ok=True)
    models = {"trees": ["model=lightgbm", "model.rounds=9"], "net": ["model=shared_bottom", "model.embedding.dim=4"]}
    plan = {
        "experiment": {"title": "Numbers", "base": "trees", "seeds": [0, 1], "common": ["data=table"], "models": models}
    }
    (work / "conf" / "experiment" / "numbers.yaml").write_text("# @package _global_\n" + json.dumps(plan))
    arguments = ["--config-dir", "conf", "experiment=numbers", "data=table", "data.spec=log.yaml", "out=out"]
    ran = run_here("compare.py", [*arguments, "trainer.max_epochs=1", "trainer.accelerator=cpu"], work)
    assert ran.returncode == 0, ran.stderr
    content = json.loads((work / "out" / "table.json").read_text())
    assert content["targets"] == ["click", "xauc/play", "xauc/watch"]
    assert content["tasks"] == 1
    (net,) = [row for row in content["rows"] if row["model"] == "net"]
    assert len(net["auc"]["xauc/watch"]) == 2
    assert math.isfinite(net["differences"]["xauc/watch"]["mean"])
    assert len(net["extras"]["rmse/play"]) == 2
    assert "xauc is the share of pairs" in (work / "out" / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dlen", "mmoe"])
def test_labels_as_large_as_allowed_have_finite_metrics_and_larger_ones_are_refused(model: str, work: Path) -> None:
    """XAUC is that of the scores and the labels of the file, pair by pair."""
    log = pl.read_csv(work / "log.csv").drop("play")
    log = log.with_columns(watch=pl.col("watch") / log["watch"].max() * 1e12, part=pl.int_range(len(log)) % 5)
    split = {"by": "column", "column": "part", "validation": [3], "test": [4]}
    spec = {"files": "large.csv", "fields": {"user": {"side": "user"}, "video": {"side": "item"}}, "split": split}
    for loss in ("mse", "weighted_logistic"):
        tasks = {"click": "click", "watch": {"label": "watch", "kind": "regression", "loss": loss}}
        (work / f"{loss}.yaml").write_text(json.dumps(spec | {"tasks": tasks}))
    log.write_csv(work / "large.csv")
    data = [f"model={model}", "data=table", *SMALL]
    for loss in ("mse", "weighted_logistic"):
        run = f"large_{model}_{loss}"
        ran = run_here("train.py", [*data, f"data.spec={loss}.yaml", f"run_dir={run}"], work)
        assert ran.returncode == 0, ran.stderr
        figures = json.loads((work / run / "metrics.json").read_text())
        found = {m: figures[f"test/{m}/watch"] for m in ("rmse", "mae", "xauc", "spearman")}
        assert all(math.isfinite(value) for value in found.values()), found
        log.filter(pl.col("part") == 4).write_csv(work / "large_test.csv")
        ran = run_here("predict.py", [f"run={run}", "input=large_test.csv", "output=large.parquet"], work)
        assert ran.returncode == 0, ran.stderr
        p = pl.read_parquet(work / "large.parquet")["value_watch"].to_numpy()
        y = log.filter(pl.col("part") == 4)["watch"].to_numpy()
        above = y[:, None] > y
        right = (p[:, None] > p) + (p[:, None] == p) / 2
        assert found["xauc"] == pytest.approx(right[above].mean(), abs=2e-3)
        assert found["rmse"] == pytest.approx(np.sqrt(np.mean((p - y) ** 2)), rel=1e-4)
    log.with_columns(watch=log["watch"].scatter(10, 1e38)).write_csv(work / "large.csv")
    ran = run_here("train.py", [*data, "data.spec=mse.yaml", "run_dir=refused"], work)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: large.csv, row 12: column watch: '1e+38' is beyond 1e+12, the most for tasks.watch")
