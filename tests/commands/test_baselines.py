"""Baselines through the commands: a normal run folder, and one-line errors for what a fit in one go cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlen.data.loader import BatchLoader
from dlen.ranking.scoring import load_model
from dlen.targets import Targets
from dlen.training.checkpoints import read_checkpoint
from dlen.training.stores import open_run
from tests.commands.test_train import write_log
from tests.conftest import TINY, Command, run_here

FEED = ["data=feed", "data.rows=5000", "data.users=50", "data.items=40"]
SETTINGS = {
    "lightgbm": ["model=lightgbm", "model.rounds=15", "model.min_data_in_leaf=10", "metrics.scores=true"],
    "logistic": ["model=logistic", "model.l2=[30.0,3.0]", "metrics.scores=true"],
}


@pytest.fixture(scope="module", params=list(SETTINGS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A baseline on a table with a funnel, a numeric and a multi-valued field."""
    folder = tmp_path_factory.mktemp(request.param)
    spec = write_log(folder)
    ran = run_here("train.py", [*SETTINGS[request.param], "data=table", f"data.spec={spec}", "run_dir=run"], folder)
    assert ran.returncode == 0, ran.stderr
    assert f"{request.param}: click: done" in ran.stderr
    assert "validation AUC click 0." in ran.stderr
    return request.param, folder


@pytest.mark.slow
def test_it_leaves_an_ordinary_run_folder(run: tuple[str, Path]) -> None:
    name, folder = run[0], run[1] / "run"
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert left == {
        "config.yaml",
        "metrics.json",
        "schema.json",
        "checkpoints/best.ckpt",
        "checkpoints/.lock",
        "logs/metrics.csv",
        "scores_test.npy",
        "diagnostics_test.json",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["model"] == name
    assert metrics["fit/seconds"] > 0
    assert metrics["model/dense_parameters"] > 0
    assert 0.5 < metrics["val/auc/mean"] < 1
    assert 0.5 < metrics["test/auc/click"] < 1
    assert 0 < metrics["test/auc/click_buy"] < 1
    assert "val/auc/mean" in (folder / "logs" / "metrics.csv").read_text()
    assert all(key.startswith("model.") or key == "task_weights" for key in _state(folder)), _state(folder).keys()


def _state(folder: Path) -> dict[str, object]:
    state: dict[str, object] = read_checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"]
    return {key: value for key, value in state.items() if not key.startswith("measures.")}


def test_the_checkpoint_gives_the_scores_of_the_test(run: tuple[str, Path]) -> None:
    folder = run[1] / "run"
    config, store = open_run(folder)
    model, targets = load_model(folder, config, store), Targets(store.schema)
    (batch,) = BatchLoader(store.split("test"), 10_000, shuffle=False)
    p = targets.log_probabilities(model(batch).log_p).exp().double().numpy()
    np.testing.assert_allclose(np.load(folder / "scores_test.npy"), np.log(p / (1 - p)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_evaluate_and_report_take_it(run: tuple[str, Path]) -> None:
    name, folder = run
    assert run_here("evaluate.py", ["run=run"], folder).returncode == 0
    trained, again = (json.loads((folder / "run" / f).read_text()) for f in ("metrics.json", "metrics_test.json"))
    figures = {key: value for key, value in again.items() if key.startswith("test/")}
    assert len(figures) > 10
    assert figures == {key: trained[key] for key in figures}
    ran = run_here("report.py", ["runs=.", "out=report.html"], folder)
    assert ran.returncode == 0, ran.stderr
    assert name in (folder / "report.html").read_text()


def test_predict_takes_new_rows(run: tuple[str, Path]) -> None:
    folder = run[1]
    rows = pl.read_csv(folder / "log.csv").head(100).with_columns(user=pl.lit(10**6))
    rows.write_csv(folder / "new.csv")
    ran = run_here("predict.py", ["run=run", "input=new.csv", "output=new.parquet"], folder)
    assert ran.returncode == 0, ran.stderr
    assert "user: 100 of 100 rows" in ran.stderr
    found = pl.read_parquet(folder / "new.parquet")
    assert found.columns == ["p_click", "p_buy", "p_click_buy", "score"]
    assert found["p_click"].is_between(0, 1).all()


@pytest.mark.slow
def test_a_rerun_is_bit_for_bit_the_run(run: tuple[str, Path]) -> None:
    ran = run_here("train.py", ["rerun=run"], run[1])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "rerun: all metrics and weights are identical to those of run" in ran.stdout


def test_export_says_that_it_is_no_network(run: tuple[str, Path]) -> None:
    name, folder = run
    ran = run_here("export.py", ["run=run"], folder)
    assert ran.returncode == 2
    assert ran.stderr == f"error: run: only networks can be exported, and {name} is not one; use predict.py\n"
    assert not (folder / "run" / "export").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["balancing=dwa"], "config balancing: the model fits each task separately"),
        (["trainer.devices=2"], "config trainer.devices: lightgbm is fitted in one process; set trainer.devices=1"),
        (["ckpt=FILE"], "config ckpt: lightgbm is fitted in one go, so there is nothing to resume"),
        (["trainer.limit_train_batches=5"], "config trainer.limit_train_batches: lightgbm is fitted to all"),
        (["trainer.limit_train_batches=1"], "config trainer.limit_train_batches: lightgbm is fitted to all"),
        (["model.num_leaves=1"], "config model: num_leaves must be a whole number from 2 to 131072, got 1"),
        (["model.rounds=1e9"], "config model: rounds must be a whole number from 1 to 100000, got 1000000000.0"),
    ],
)
def test_wrong_settings(settings: list[str], expected: str, refused: Command, tmp_path: Path) -> None:
    (tmp_path / "some.ckpt").touch()
    settings = [s.replace("FILE", str(tmp_path / "some.ckpt")) for s in settings]
    ran = refused("train.py", *SETTINGS["lightgbm"][:1], *FEED, *settings)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith(f"error: {expected}")
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_compare_pairs_baselines_with_networks(tmp_path: Path) -> None:
    models = {"LightGBM": SETTINGS["lightgbm"][:3], "logistic": SETTINGS["logistic"][:2]}
    models["MMoE"] = ["model=mmoe", *TINY]
    settings = [f"experiment.models.{name}=[{','.join(map(repr, own))}]" for name, own in models.items()]
    settings += [f"models=[{','.join(models)}]", "seeds=2", "workers=1", "trainer.max_epochs=1"]
    ran = run_here("compare.py", ["experiment=baselines", *FEED, *settings], tmp_path)
    assert ran.returncode == 0, ran.stderr
    table = json.loads((tmp_path / "runs" / "compare" / "baselines-feed" / "table.json").read_text())
    assert [row["model"] for row in table["rows"]] == list(models)
    assert all("mean" in row["differences"] for row in table["rows"][1:])


def test_a_size_is_matched_between_networks_alone(refused: Command) -> None:
    ran = refused("compare.py", "experiment=baselines", *FEED, "+experiment.match=parameters", "seeds=1")
    assert ran.returncode == 2
    error = ran.stderr.splitlines()[-1]
    assert error.startswith("error: config experiment.match: ")
    assert "LightGBM is not a network" in error


@pytest.mark.slow
def test_a_sweep_searches_its_settings(tmp_path: Path) -> None:
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    sweep = "defaults: [base, _self_]\nspace: {model.num_leaves: {choices: [3, 15]}}\nsampler: random\nworkers: 1\n"
    (tmp_path / "conf" / "sweep" / "leaves.yaml").write_text(sweep)
    settings = ["sweep=leaves", "sweep.trials=3", "sweep.confirm=1", f"hydra.searchpath=[file://{tmp_path / 'conf'}]"]
    ran = run_here("sweep.py", [*settings, *SETTINGS["lightgbm"][:3], *FEED], tmp_path)
    assert ran.returncode == 0, ran.stderr
    trials = [json.loads(p.read_text()) for p in tmp_path.rglob("trials/*/metrics.json")]
    assert [t["state"] for t in trials] == ["complete"] * 3
