"""train: every model on every kind of data, the files of a run, and interrupted runs."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import log_loss, roc_auc_score

from dlen.data.loader import BatchLoader
from dlen.errors import UserError
from dlen.models.ranker import Ranker
from dlen.schema import Schema
from dlen.training.configs import build
from dlen.training.evaluate import evaluate
from dlen.training.fit import train
from dlen.training.run_folder import only_training
from dlen.training.stores import open_store
from tests.conftest import ROOT, Compose, run_here, wait_for

FEED = ["data.rows=6000", "data.users=50", "data.items=40", "loader.batch_size=512", "trainer.max_epochs=1"]
SMALL = ["model.embedding.dim=4", "model.head.tower=[8]"]
EXPERT, BACKBONE = ["model.backbone.expert=[16,8]"], ["model.head.hidden=[16,8]", "model.backbone.expert=[16,8]"]
SIZES = {
    "dlen": [*SMALL, *BACKBONE],
    "mmoe": [*SMALL, *EXPERT],
    "cgc": [*SMALL, *EXPERT],
    "ple": [*SMALL, *EXPERT],
    "cross_stitch": [*SMALL, *EXPERT],
    "adatt": [*SMALL, *EXPERT],
    "pepnet": [*SMALL, *EXPERT],
    "home": [*SMALL, *EXPERT],
    "shared_bottom": [*SMALL, *EXPERT],
    "dbmtl": [*SMALL, *EXPERT],
    "single_task": [*SMALL, *EXPERT],
    "stem": [*SMALL, *EXPERT],
    "moe": [*SMALL, *EXPERT],
    "mran": [*SMALL, *EXPERT],
    "esmm": [*SMALL, *EXPERT],
    "aitm": [*SMALL, *EXPERT],
    "escm2": [*SMALL, *EXPERT],
    "pal": [*SMALL, *EXPERT],
}
REFUSED = {  # requirements of a model that a data set does not meet
    ("esmm", "feed"): "config model: esmm needs a funnel",
    ("aitm", "feed"): "config model: aitm needs a funnel",
    ("escm2", "feed"): "config model: escm2 needs a funnel",
    ("pal", "feed"): "config model: pal needs a position",
    ("pal", "table"): "config model: pal needs a position",
}


def write_log(folder: Path) -> Path:
    """Write a small table with two tasks, one observed where the other is positive, and its YAML."""
    rng = np.random.default_rng(0)
    n = 1200
    item = rng.integers(20, size=n)
    click = rng.random(n) < 0.3 + 0.02 * item
    buy = click & (rng.random(n) < 0.5)
    frame = {"user": rng.integers(30, size=n), "item": item, "price": rng.normal(size=n)}
    tags = [f"a{i % 3}|b{i % 5}" for i in range(n)]
    pl.DataFrame({**frame, "tags": tags, "click": click * 1, "buy": buy * 1}).write_csv(folder / "log.csv")
    spec = {
        "files": "log.csv",
        "fields": {"user": {"side": "user"}, "item": {}, "tags": {"kind": "ids"}, "price": {"kind": "numeric"}},
        "tasks": {"click": "click", "buy": {"label": "buy", "observed_where": "click", "joint": "click_buy"}},
        "user": "user",
    }
    OmegaConf.save(OmegaConf.create(spec), folder / "log.yaml")
    return folder / "log.yaml"


def data_settings(data: str, folder: Path) -> list[str]:
    if data == "feed":
        return FEED
    if data == "table":
        return ["data=table", f"data.spec={write_log(folder)}", "trainer.max_epochs=1"]
    return ["data=aliccp_demo", "data.rows=3000", "data.min_count=2", "loader.batch_size=512"]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["feed", "aliccp_demo", "table"])
@pytest.mark.parametrize("model", list(SIZES))
def test_every_model_trains_on_every_data(model: str, data: str, composed: Compose, tmp_path: Path) -> None:
    config = composed(f"model={model}", *SIZES[model], *data_settings(data, tmp_path))
    if (model, data) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[model, data]):
            train(config)
        assert not (tmp_path / "runs").exists()
        return
    metrics = train(config)
    assert metrics["fit/steps"] > 1
    assert 0 < metrics["test/auc/mean"] < 1
    assert metrics["model"] == model
    assert metrics["data"] == ("log" if data == "table" else data)
    joint = {"feed": None, "aliccp_demo": "ctcvr", "table": "click_buy"}[data]
    if joint:
        assert 0 < metrics[f"test/auc/{joint}"] < 1
    (diagnostics,) = (tmp_path / "runs").rglob("diagnostics_test.json")
    assert ("attention" in json.loads(diagnostics.read_text())) == (model == "mran")


@pytest.mark.slow
def test_pal_takes_the_planted_position_bias_out(composed: Compose, tmp_path: Path) -> None:
    """Compared with MMoE, which has the position as a field, PAL's scores follow the true relevance more closely."""
    data = ["data.rows=40000", "data.users=300", "data.items=150", "data.positions=8", "data.position_bias=1.5"]
    settings = [*data, "loader.batch_size=512", "trainer.max_epochs=3", "metrics.scores=true", *SMALL, *EXPERT]
    correlations = {}
    for model in ("mmoe", "pal"):  # both without first-order terms, which PAL lacks
        own = ["model.embedding.first_order=false"] if model == "mmoe" else []
        config = composed(f"model={model}", f"run_dir={tmp_path / model}", *settings, *own)
        train(config)
        split = open_store(config).split("test")
        scores = np.load(tmp_path / model / "scores_test.npy")[:, 0]
        truth = split.truth[:, split.truth.shape[1] - 5].numpy()  # relevance/click
        correlations[model] = np.corrcoef(scores, np.log(truth / (1 - truth)))[0, 1]
    assert correlations["pal"] > correlations["mmoe"] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mmoe", "cgc", "ple", "shared_bottom"])
def test_dlen_stands_on_every_backbone(backbone: str, composed: Compose) -> None:
    metrics = train(composed("model=dlen", f"model/backbone={backbone}", *SIZES["dlen"], *FEED))
    assert 0 < metrics["test/auc/up_any"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("balancing", ["uncertainty", "dwa", "surgery"])
def test_every_balancing_trains_and_is_evaluated(balancing: str, composed: Compose, tmp_path: Path) -> None:
    settings = [f"balancing={balancing}", f"run_dir={tmp_path / 'run'}", *SIZES["mmoe"], *FEED]
    metrics = train(composed("model=mmoe", *settings))
    with (tmp_path / "run" / "logs" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("train/weight/click")]
    assert bool(logged) == (balancing != "surgery")
    again = evaluate(composed(f"run={tmp_path / 'run'}", command="evaluate"))
    assert again["test/auc/mean"] == metrics["test/auc/mean"]


def test_a_run_goes_on_with_what_it_began_with(composed: Compose, tmp_path: Path) -> None:
    run = f"run_dir={tmp_path / 'run'}"
    settings = [run, *SIZES["mmoe"], *FEED]
    first = train(composed("model=mmoe", "balancing=dwa", *settings))
    config = (tmp_path / "run" / "config.yaml").read_bytes()
    for change, message in (
        (
            ["balancing=uncertainty"],
            r"cannot resume: balancing\._target_ was .*DynamicWeightAverage and is .*Uncertainty",
        ),
        (
            ["balancing=dwa", "model.backbone.num_experts=2"],
            r"cannot resume: model\.backbone\.num_experts was 5 and is 2 now",
        ),
    ):
        with pytest.raises(UserError, match=message):
            train(composed("model=mmoe", *change, *settings, "ckpt=last", "trainer.max_epochs=2"))
        assert (tmp_path / "run" / "config.yaml").read_bytes() == config
    other = [f"run_dir={tmp_path / 'other'}", f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"]
    with pytest.raises(UserError, match=r"config ckpt: .*does not fit the model or balancing"):
        train(composed("model=mmoe", "balancing=uncertainty", *settings[1:], *other, "trainer.max_epochs=2"))
    again = train(composed("model=mmoe", "balancing=dwa", *settings, "ckpt=last"))  # nothing is left to train
    assert {k for k in first if k.startswith("gates/")} == {k for k in again if k.startswith("gates/")}
    assert again["test/auc/mean"] == first["test/auc/mean"]
    assert again["fit/seconds"] == first["fit/seconds"]


def test_what_cannot_be_balanced_is_one_line(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config balancing: .*set model\.head\.likelihood=marginal"):
        train(composed("model=dlen", "balancing=surgery", *SIZES["dlen"], *FEED))
    with pytest.raises(UserError, match=r"config balancing: gradient surgery needs trainer\.accumulate_grad_batches=1"):
        train(composed("model=mmoe", "balancing=surgery", "trainer.accumulate_grad_batches=2", *SIZES["mmoe"], *FEED))
    with pytest.raises(UserError, match=r"config balancing: gradient surgery needs trainer\.precision=auto or 32-true"):
        train(composed("model=mmoe", "balancing=surgery", "trainer.precision=16-mixed", *SIZES["mmoe"], *FEED))
    with pytest.raises(UserError, match=r"config balancing: aggregator .*got 'x'"):
        train(composed("model=mmoe", "balancing=surgery", "balancing.aggregator=x", *SIZES["mmoe"], *FEED))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["conditional", "prior", "absolute"])
@pytest.mark.parametrize("prediction", ["joint", "total"])
def test_dlen_bounds_and_predictions(bound: str, prediction: str, composed: Compose) -> None:
    alpha = "model.head.alpha={click: 0.1, like: 0.2, share: 0.3, follow: 0.4, comment: 0.5}"
    settings = [f"model.head.bound={bound}", f"model.head.prediction={prediction}", alpha]
    metrics = train(composed(*settings, *SIZES["dlen"], *FEED))
    other = "auc_total" if prediction == "joint" else "auc_joint"
    assert 0 < metrics[f"test/{other}/click"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("data", ["feed", "aliccp_demo"])
def test_the_papers_variant_and_ours(data: str, composed: Compose, tmp_path: Path) -> None:
    paper = composed("model=dlen", "model/head=latent_paper").model.head
    assert (paper.prediction, paper.likelihood, paper.match) == ("joint", "marginal", 0)
    ours = composed("model=dlen").model.head
    assert (ours.prediction, ours.likelihood, ours.match) == ("total", "full", 0)
    match = composed("model=dlen", "model/head=latent_match").model.head
    assert (match.prediction, match.likelihood, match.match) == ("total", "full", 8)
    assert (paper.alpha, ours.alpha, match.alpha) == (0.1, 1.0, 1.0)
    settings = [*SIZES["dlen"], *data_settings(data, tmp_path)]
    for extra in (
        ["model/head=latent_paper"],
        ["model/head=latent_match"],
        ["model.head.hidden=null", "model.head.match=0"],
        ["model.head.detach_bound=true"],
    ):
        metrics = train(composed("model=dlen", *settings, *extra))
        assert 0 < metrics["test/auc/mean"] < 1


@pytest.mark.slow
def test_hidden_state_and_conflict_are_measured(composed: Compose, tmp_path: Path) -> None:
    metrics = train(composed(*SIZES["dlen"], *FEED, "data.hate=0.03", "metrics.conflict_every=3"))
    for key in ("hidden/std", "leak/click", "negatives/silent/like", "negatives_true/silent/like", "auc/up_hate"):
        assert 0 <= metrics[f"test/{key}"] <= 1
    assert 0 <= metrics["train/conflict/rows"] <= 1
    assert -1 <= metrics["train/conflict/cosine/click-like"] <= 1
    (folder,) = (tmp_path / "runs" / "feed" / "dlen").iterdir()
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row["val/hidden/std"] for row in rows)
    assert any(row["train/conflict/share"] for row in rows)
    none = train(composed("model=mmoe", *SIZES["mmoe"], *FEED, "metrics.conflict_every=0"))
    assert not [key for key in none if "conflict" in key or "hidden" in key]


@pytest.mark.slow
def test_a_constant_hidden_state_is_warned_of(composed: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    train(composed(*SIZES["dlen"], *FEED, "model.head.hidden=null", "model.head.match=0"))
    assert "warning: P(UP) is nearly constant" in capsys.readouterr().err


@pytest.mark.slow
def test_sampling_conflict_changes_nothing(composed: Compose) -> None:
    """Also with dropout: sampling must not consume its random numbers."""
    runs = [train(composed(*SIZES["dlen"], *FEED, "model.dropout=0.2", f"metrics.conflict_every={n}")) for n in (0, 2)]
    figures = [{k: v for k, v in run.items() if k.startswith(("test/", "val/"))} for run in runs]
    assert figures[0] == figures[1]


def test_scores_are_those_of_the_test_split(composed: Compose, tmp_path: Path) -> None:
    config = composed("model=dlen", *SIZES["dlen"], *FEED, "metrics.scores=true", "loader.eval_batch_size=100")
    metrics = train(config)
    (folder,) = (tmp_path / "runs" / "feed" / "dlen").iterdir()
    scores, split = np.load(folder / "scores_test.npy"), open_store(config).split("test")
    assert scores.shape == (len(split), 5)
    for column, task in enumerate(open_store(config).schema.task_names):
        labels = split.labels[:, column].numpy()
        assert metrics[f"test/auc/{task}"] == pytest.approx(roc_auc_score(labels, scores[:, column]), abs=1e-6)


def test_a_world_without_hidden_state_trains(composed: Compose) -> None:
    metrics = train(composed(*SIZES["dlen"], "data=feed_violated", *FEED))
    assert metrics["test/oracle/click"] > 0.6
    assert not [key for key in metrics if "truth" in key]


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["clicks", "impressions"])
def test_rows_that_train_the_conversion_head(rows: str, composed: Compose, tmp_path: Path) -> None:
    metrics = train(composed(*SIZES["dlen"], *data_settings("aliccp_demo", tmp_path), f"data.cvr_rows={rows}"))
    assert metrics["test/auc/cvr"] is not None
    assert metrics["test/auc/ctcvr"] is not None
    assert (metrics["test/logloss/cvr"] is None) == (rows == "impressions")
    assert ("undefined/test/logloss/cvr" in metrics) == (rows == "impressions")


def test_paper_sizes_follow_the_data(composed: Compose) -> None:
    assert composed("model=mmoe").model.backbone.num_experts == 5
    assert composed("model=mmoe", "data=aliccp_demo").model.backbone.num_experts == 2
    assert composed("model=ple", "data=aliccp_demo").model.backbone.shared_experts == 2
    assert composed("model=dlen", "paper.setting=funnel").model.backbone.num_experts == 2


def test_run_folder_holds_what_it_promises(composed: Compose, tmp_path: Path) -> None:
    config = composed(*SIZES["dlen"], *FEED)
    metrics = train(config)
    (folder,) = (tmp_path / "runs" / "feed" / "dlen").iterdir()
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "config.yaml",
        "metrics.json",
        "schema.json",
        "diagnostics_test.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/.lock",
        "logs/metrics.csv",
    }
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert "${" not in (folder / "config.yaml").read_text()
    for name in ("best", "last"):
        torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    schema = json.loads((folder / "schema.json").read_text())
    assert [t["name"] for t in schema["tasks"]] == ["click", "like", "share", "follow", "comment"]
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    validations = [row for row in rows if row["val/auc/mean"]]
    assert len(validations) == 5  # 10 batches, a validation every 25 %, rounded down to 2 batches
    assert max(float(row["val/auc/mean"]) for row in validations) == pytest.approx(metrics["val/auc/mean"], abs=1e-6)


def test_metrics_equal_scikit_learns_on_the_best_checkpoint(composed: Compose, tmp_path: Path) -> None:
    config = composed("model=mmoe", *SIZES["mmoe"], *FEED)
    metrics = train(config)
    store = open_store(config)
    model: Ranker = build(config.model, "model", store.schema)
    (folder,) = (tmp_path / "runs" / "feed" / "mmoe").iterdir()
    state = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    (batch,) = BatchLoader(store.split("test"), 10_000, shuffle=False)
    with torch.no_grad():
        probability = model(batch).log_p.exp().double().numpy()
    for column, task in enumerate(store.schema.task_names):
        labels = batch.labels[:, column].numpy()
        assert metrics[f"test/auc/{task}"] == pytest.approx(roc_auc_score(labels, probability[:, column]), abs=1e-4)
        assert metrics[f"test/logloss/{task}"] == pytest.approx(log_loss(labels, probability[:, column]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("auc", ["histogram", "exact"])
def test_evaluate_gives_the_runs_own_test_figures(auc: str, composed: Compose, tmp_path: Path) -> None:
    metrics = train(composed(*SIZES["dlen"], *FEED, f"metrics.auc={auc}"))
    (folder,) = (tmp_path / "runs" / "feed" / "dlen").iterdir()
    again = evaluate(composed(f"run={folder}", command="evaluate"))
    keys = [k for k in metrics if k.startswith("test/")]
    assert len(keys) > 30
    for key in keys:
        assert again[key] == pytest.approx(metrics[key], abs=1e-6)
    assert json.loads((folder / "metrics_test.json").read_text()) == again
    other = evaluate(composed(f"run={folder}", "split=validation", command="evaluate"))
    assert other["validation/auc/mean"] == pytest.approx(metrics["val/auc/mean"], abs=1e-6)


@pytest.mark.slow
def test_gain_over_a_base_run(composed: Compose, tmp_path: Path) -> None:
    base = train(composed("model=mmoe", *SIZES["mmoe"], *FEED))
    (folder,) = (tmp_path / "runs" / "feed" / "mmoe").iterdir()
    metrics = train(composed(*SIZES["dlen"], *FEED, f"base_run={folder}"))
    gains = []
    for task in ("click", "like", "share", "follow", "comment"):
        gains.append(metrics[f"test/auc/{task}"] - base[f"test/auc/{task}"])
        assert metrics[f"test/gain/{task}"] == pytest.approx(gains[-1])
    assert metrics["test/gain/mean"] == pytest.approx(sum(gains) / 5)


@pytest.mark.slow
def test_same_seed_same_run_other_seed_other_run(composed: Compose) -> None:
    runs = [train(composed(*SIZES["dlen"], *FEED, f"seed={seed}")) for seed in (3, 3, 4)]
    figures = [{k: v for k, v in run.items() if k.startswith(("test/", "val/"))} for run in runs]
    assert figures[0] == figures[1]
    assert figures[0] != figures[2]


@pytest.mark.slow
def test_undefined_figures_are_null_with_a_reason(composed: Compose, tmp_path: Path) -> None:
    n = 400
    rng = np.random.default_rng(1)
    split = np.where(np.arange(n) < 300, "a", np.where(np.arange(n) < 350, "b", "c"))
    rare = (rng.random(n) < 0.3) & (split != "c")
    columns = {"item": rng.integers(9, size=n), "click": rng.integers(2, size=n), "rare": rare * 1, "split": split}
    pl.DataFrame(columns).write_csv(tmp_path / "log.csv")
    spec: dict[str, Any] = {"files": "log.csv", "fields": {"item": {}}, "tasks": {"click": "click", "rare": "rare"}}
    spec["split"] = {"by": "column", "column": "split", "validation": ["b"], "test": ["c"], "allow_one_class": True}
    OmegaConf.save(OmegaConf.create(spec), tmp_path / "log.yaml")
    metrics = train(composed("data=table", f"data.spec={tmp_path / 'log.yaml'}", *SIZES["dlen"]))
    assert metrics["test/auc/rare"] is None
    assert metrics["undefined/test/auc/rare"] == "no positives among 50 observed rows"
    assert metrics["test/auc/mean"] == metrics["test/auc/click"]


@pytest.mark.slow
def test_memory_of_the_schema_survives_the_run_folder(composed: Compose, tmp_path: Path) -> None:
    config = composed(*SIZES["dlen"], *data_settings("table", tmp_path))
    train(config)
    (folder,) = (tmp_path / "runs" / "log" / "dlen").iterdir()
    content = json.loads((folder / "schema.json").read_text())
    assert Schema.from_dict(content) == open_store(config).schema


@pytest.mark.slow
def test_resume_after_a_kill_is_bit_equal(tmp_path: Path) -> None:
    settings = [*SIZES["dlen"], *FEED, "data.rows=15000", "loader.batch_size=64", "trainer.max_epochs=2"]
    settings += [
        "model.dropout=0.2",
        "metrics.conflict_every=7",
    ]  # random numbers of the steps are unchanged
    whole = run_here("train.py", [*settings, "run_dir=whole"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(ROOT / "train.py"), *settings, "run_dir=killed"]
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    wait_for(last.exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    resumed = run_here("train.py", ["run_dir=killed", "ckpt=last"], tmp_path)  # with its own settings
    assert resumed.returncode == 0, resumed.stderr
    logs = [pl.read_csv(tmp_path / name / "logs" / "metrics.csv") for name in ("whole", "killed")]
    curves = [log.select("step", "val/auc/mean").drop_nulls().unique().sort("step") for log in logs]
    assert curves[0].equals(curves[1])  # also contains what was logged before the kill
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed")]
    trained = [metrics["fit/samples_per_second"] * metrics["fit/seconds"] for metrics in figures]
    assert trained[0] == pytest.approx(trained[1], rel=0.02)  # both are rounded; a resumed run continues counting
    for metrics in figures:
        for key in [k for k in metrics if k.startswith("fit/") and k != "fit/steps"]:
            del metrics[key]
    assert figures[0] == figures[1]
    weights = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "killed")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.slow
def test_feed_default_learns(composed: Compose) -> None:
    settings = ["data.rows=40000", "data.users=200", "data.items=100", "trainer.max_epochs=2", "loader.batch_size=256"]
    metrics = train(composed("model=dlen", *settings))
    assert metrics["test/auc/mean"] > 0.65  # chance is 0.5; the oracle is near 0.8
    assert metrics["test/corr/up_truth"] > 0.2
    for task in ("click", "like", "share", "follow", "comment"):
        assert metrics[f"test/auc/{task}"] < metrics[f"test/oracle/{task}"]
        assert math.isclose(metrics[f"test/calibration/{task}"], 1, abs_tol=0.35)


@pytest.mark.slow
def test_one_training_at_a_time_in_a_folder(composed: Compose, tmp_path: Path) -> None:
    """A resume beside the process that was thought dead: its checkpoints would not be those of metrics.json."""
    folder = tmp_path / "run"
    settings = [*SIZES["dlen"], *FEED, f"run_dir={folder}"]
    new, longer = composed(*settings), composed(*settings, "ckpt=last", "trainer.max_epochs=2")
    busy = "config run_dir: another process is training in"
    with only_training(folder):
        with pytest.raises(UserError, match=busy):
            train(new)
        assert not (folder / "config.yaml").exists()
    steps = train(new)["fit/steps"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with only_training(folder), pytest.raises(UserError, match=busy):
        train(longer)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert train(longer)["fit/steps"] == 2 * steps


def test_a_refused_resume_leaves_the_run_as_it_was(composed: Compose, tmp_path: Path) -> None:
    settings = [*SIZES["dlen"], *FEED, f"run_dir={tmp_path / 'run'}"]
    train(composed(*settings))
    config = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"cannot resume: loader\.batch_size was 512 and is 256 now"):
        train(composed(*settings, "ckpt=last", "trainer.max_epochs=2", "loader.batch_size=256"))
    assert (tmp_path / "run" / "config.yaml").read_text() == config


@pytest.mark.slow
def test_id_dropout_of_a_field_and_another_monitor(composed: Compose) -> None:
    settings = ["model=mmoe", *SIZES["mmoe"], *FEED]
    plain = train(composed(*settings))
    own = train(composed(*settings, "id_dropout.fields={user: 1000, item: 0}", "monitor=val/logloss/labels"))
    assert own["test/auc/mean"] != plain["test/auc/mean"]
    assert {"val/logloss/labels", "val/auc/mean", "val/auc/weighted"} <= own.keys()
    for change, message in (
        ("id_dropout.fields={nobody: 10}", "config id_dropout: fields: 'nobody' is not a field"),
        (
            "id_dropout.fields=3",
            "config id_dropout.fields: 3 is not a mapping of names to finite numbers",
        ),
        ("id_dropout.k=-1", "config id_dropout.k: -1 is not a finite number from 0"),
        ("monitor=val/auc/likes", "config monitor: 'val/auc/likes' cannot be monitored"),
    ):
        with pytest.raises(UserError, match=message):
            train(composed(*settings, change))


def test_joined_views_are_told(composed: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    world = ["data=feed_implied", "data.rows=6000", "data.users=40", "data.items=30", "trainer.max_steps=2"]
    metrics = train(composed(*SIZES["dlen"], *world))
    out, said = capsys.readouterr()
    assert "click and long_view hang on a second hidden state, watching; model.head.states=1 has P(UP) alone" in said
    assert "P(watching): mean 0." in out
    assert "P(mean)" not in out
    assert {"test/lift/click/long_view", "test/hidden/watching/auc/like", "test/hidden/watching/mean"} <= metrics.keys()
    train(composed(*SIZES["dlen"], *world, "model.head.states=1"))
    said = capsys.readouterr().err
    assert "click and long_view are one sign of P(UP); model.head.views=none parts them" in said
    train(composed(*SIZES["dlen"], *world, "model.head.views={watch:[click,like]}"))
    assert "click and like are one sign" in capsys.readouterr().err
