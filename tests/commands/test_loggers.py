"""Loggers: the content that W&B, TensorBoard, MLflow and the CSV file have of a run, read back from their files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dlen.training.fit import train
from dlen.training.loggers import ContinuedCSVLogger, make_loggers, run_id, wandb_logger
from tests.conftest import Compose, run_command
from tests.wandb_files import WandbRun, read_wandb

FEED = ["data.rows=6000", "data.users=50", "data.items=40", "loader.batch_size=512", "trainer.max_epochs=1"]
MODEL = ["model.embedding.dim=4", "model.head.tower=[8]", "model.head.hidden=[16,8]", "model.backbone.expert=[16,8]"]
VALIDATIONS = 5  # in an epoch of 10 batches
KEY = "0123456789abcdef" * 2 + "deadbeef"  # has the format of a W&B key
SETTINGS = [*FEED, *MODEL, "metrics.conflict_every=3"]


def offline_runs(folder: Path) -> list[WandbRun]:
    return [read_wandb(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with W&B, and its output."""
    folder = tmp_path_factory.mktemp("wandb")
    extra = ["logger=wandb", "logger.wandb.checkpoint=true", "run_dir=run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        ran = run_command("train.py", [*SETTINGS, *extra], folder)
    assert ran.returncode == 0, ran.stderr
    assert KEY not in ran.stdout + ran.stderr
    return folder / "run", ran.stdout


@pytest.mark.slow
def test_the_key_of_wandb_reaches_no_file(logged: tuple[Path, str]) -> None:
    files = [p for p in logged[0].rglob("*") if p.is_file()]
    assert {".wandb", ".ckpt", ".yaml", ".json", ".csv"} <= {p.suffix for p in files}
    assert [p for p in files if KEY.encode() in p.read_bytes()] == []


@pytest.mark.slow
def test_every_key_of_metrics_json_is_in_the_offline_file(logged: tuple[Path, str]) -> None:
    folder, printed = logged
    (run,) = offline_runs(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(metrics) > 80
    assert {key: run.summary.get(key, "missing") for key in metrics} == metrics
    assert run.exit_code == 0
    assert printed.rstrip().endswith("W&B, offline: wandb sync run/wandb/offline-run-*")


@pytest.mark.slow
def test_curves_histograms_tables_plots_and_the_config_are_logged(logged: tuple[Path, str]) -> None:
    folder, _ = logged
    (run,) = offline_runs(folder)
    keys = {key for line in run.history for key in line}
    csv_keys = set(next(csv.reader((folder / "logs" / "metrics.csv").open()))) - {"step", "epoch"}
    assert csv_keys <= keys
    histograms = [line["val/hidden/up"] for line in run.history if "val/hidden/up" in line]
    assert len(histograms) == VALIDATIONS  # one per validation
    assert all(h["_type"] == "histogram" and len(h["bins"]) == len(h["values"]) + 1 for h in histograms)
    last = {key: value for line in run.history for key, value in line.items() if isinstance(value, dict)}
    plots = {
        "P(UP) by what happened",
        "What a negative means",
        "Gates, level 1",
        "Gradient conflict",
        "ROC",
        "Reliability",
    }
    assert {f"plots/{title}" for title in plots} <= last.keys()
    for key, value in last.items():
        if key.startswith("plots/"):
            (media,) = folder.glob(f"wandb/offline-run-*/files/{value['path']}")
            assert json.loads(media.read_text())["data"]
    (table,) = folder.glob(f"wandb/offline-run-*/files/{last['test/figures']['path']}")
    content = json.loads(table.read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    by_target = {row[0]: dict(zip(content["columns"], row, strict=True)) for row in content["data"]}
    assert by_target["click"]["auc"] == metrics["test/auc/click"]
    assert "test/negatives" in last
    assert run.config["model"]["head"]["alpha"] == 1.0
    assert run.config["data_fingerprint"] == metrics["data_fingerprint"]
    assert (run.group, run.name, run.job_type) == ("feed", "dlen-seed0", "train")
    ((name, kind, aliases, files),) = [a for a in run.artifacts if a[1] == "model"]
    assert (name, kind) == (f"model-{run.run_id}", "model")
    assert "best" in aliases
    assert set(files) == {"best.ckpt", "config.yaml", "schema.json", "metrics.json"}


@pytest.mark.slow
def test_a_resume_continues_its_run_and_its_csv(logged: tuple[Path, str]) -> None:
    folder, _ = logged
    before = list(csv.DictReader((folder / "logs" / "metrics.csv").open()))
    settings = [s for s in SETTINGS if "max_epochs" not in s]
    arguments = [*settings, "trainer.max_epochs=2", "logger=wandb", "run_dir=run", "ckpt=last"]
    ran = run_command("train.py", arguments, folder.parent)
    assert ran.returncode == 0, ran.stderr
    first, second = offline_runs(folder)
    assert first.run_id == second.run_id
    after = list(csv.DictReader((folder / "logs" / "metrics.csv").open()))
    kept = [(row["step"], row["val/auc/mean"]) for row in before if row["val/auc/mean"]]
    assert [(row["step"], row["val/auc/mean"]) for row in after if row["val/auc/mean"]][: len(kept)] == kept
    steps = [int(row["step"]) for row in after if row["val/auc/mean"]]
    assert len(steps) == 2 * VALIDATIONS
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_a_run_that_fails_is_finished_as_failed(tmp_path: Path) -> None:
    extra = ["logger=wandb", "run_dir=run", "optimizer.lr=1e30"]
    ran = run_command("train.py", [*SETTINGS, *extra], tmp_path)
    assert ran.returncode == 2
    assert "training has diverged" in ran.stderr
    (run,) = offline_runs(tmp_path / "run")
    assert run.exit_code == 1
    assert "wandb sync run/wandb/offline-run-*" in ran.stdout


def test_a_run_has_an_id_of_its_own(composed: Compose, tmp_path: Path) -> None:
    config = composed(*SETTINGS)
    ids = [
        run_id(config, tmp_path / "a", "data"),
        run_id(config, tmp_path / "b", "data"),
        run_id(config, tmp_path / "a", "other data"),
        run_id(composed(*SETTINGS, "seed=1"), tmp_path / "a", "data"),
        run_id(composed(*SETTINGS, "model.head.alpha=0.3"), tmp_path / "a", "data"),
    ]
    assert len(set(ids)) == len(ids)
    same = run_id(composed(*SETTINGS, "patience=9", "trainer.accelerator=cpu"), tmp_path / "a", "data")
    assert same == ids[0]


@pytest.mark.slow
def test_tensorboard_holds_the_curves_and_the_settings(composed: Compose, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = train(composed(*SETTINGS, "logger=tensorboard", f"run_dir={tmp_path / 'run'}"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("val/auc/mean")) == VALIDATIONS
    assert events.Scalars("test/auc/mean")[0].value == pytest.approx(metrics["test/auc/mean"])
    assert events.Scalars("fit/samples_per_second")[0].value == pytest.approx(metrics["fit/samples_per_second"])
    hparams: Any = OmegaConf.load(tmp_path / "run" / "tensorboard" / "hparams.yaml")
    assert hparams["model.head.alpha"] == 1.0


@pytest.mark.slow
def test_mlflow_holds_the_curves_and_the_settings(composed: Compose, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    metrics = train(composed(*SETTINGS, "logger=mlflow", f"run_dir={tmp_path / 'run'}"))
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("feed").experiment_id])  # type: ignore[union-attr]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "dlen-seed0"
    assert run.data.metrics["test/auc/mean"] == pytest.approx(metrics["test/auc/mean"])
    assert run.data.metrics["fit/samples_per_second"] == metrics["fit/samples_per_second"]
    assert run.data.params["model.head.alpha"] == "1.0"
    assert len(client.get_metric_history(run.info.run_id, "val/auc/mean")) == VALIDATIONS


def test_wandb_as_its_own_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, key, offline in (
        (None, None, True),
        (None, "k", False),
        ("offline", "k", True),
        ("disabled", None, False),
    ):
        for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        assert wandb_logger(str(tmp_path), project="p")._offline is offline


@pytest.mark.slow
def test_a_run_of_somebody_else_is_left_open(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    mine = wandb.init(project="p", dir=str(tmp_path))
    try:
        train(composed(*SETTINGS, f"run_dir={tmp_path / 'run'}"))
        assert wandb.run is mine
    finally:
        wandb.finish()


def rows(path: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(path.open()))


def test_the_csv_of_an_interrupted_run_is_gone_on_with_from_its_checkpoint(tmp_path: Path) -> None:
    first = ContinuedCSVLogger(str(tmp_path), name="logs", version="")
    for step in (10, 20, 30):
        first.log_metrics({"val/a": step / 100}, step)
    first.save()
    path = tmp_path / "logs" / "metrics.csv"
    with path.open("a") as file:
        file.write("0.4")  # truncated by a kill
    second = ContinuedCSVLogger(str(tmp_path), name="logs", version="")  # the checkpoint is from step 20
    second.finalize("success")  # a run that is refused or interrupted immediately loses nothing
    assert [row["step"] for row in rows(path)][:3] == ["10", "20", "30"]
    second.log_metrics({"val/a": 0.2}, 20)  # values logged at the step of the checkpoint do not appear twice
    for step in (25, 35):
        second.log_metrics({"val/a": step / 100, "val/b": 1.0}, step)
    second.save()
    second.log_metrics({"val/a": 0.45}, 45)
    second.save()
    found = [(int(row["step"]), row["val/a"], row["val/b"]) for row in rows(tmp_path / "logs" / "metrics.csv")]
    assert found == [(10, "0.1", ""), (20, "0.2", ""), (25, "0.25", "1.0"), (35, "0.35", "1.0"), (45, "0.45", "")]


@pytest.mark.parametrize("name", ["csv", "other"])
def test_a_config_does_not_choose_where_our_loggers_write(name: str, tmp_path: Path) -> None:
    """By no name: the config of a resumed run may come from a stranger."""
    target = "dlen.training.loggers.ContinuedCSVLogger"
    config = OmegaConf.create({"logger": {name: {"_target_": target, "save_dir": str(tmp_path / "elsewhere")}}})
    (logger,) = make_loggers(config, tmp_path / "run", "data")
    assert logger.save_dir == str(tmp_path / "run")
