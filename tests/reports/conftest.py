"""A folder with small real runs, a comparison and a study, made once for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dlen.comparing.statistics import paired
from dlen.comparing.tables import Comparison, Row, write_comparison
from dlen.overrides import compose_train
from dlen.reports.study import write_study
from dlen.training.fit import train
from tests.conftest import ROOT

SMALL = ["data.rows=4000", "data.users=60", "data.items=40", "model.embedding.dim=4", "loader.batch_size=512"]
SMALL += ["trainer.max_epochs=1", "metrics.conflict_every=2", "trainer.log_every_n_steps=2"]
CACHE = "runs/compare/cache"
RUNS = {
    f"{CACHE}/feed-0": ["model=mmoe", "seed=0"],
    f"{CACHE}/feed-1": ["model=mmoe", "seed=1"],
    f"{CACHE}/feed-2": ["model=dlen", "seed=0"],
    f"{CACHE}/feed-3": ["model=dlen", "seed=1"],
    "runs/feed/dlen/alpha": ["model=dlen", "model.head.alpha=0.5"],
    "runs/aliccp_demo/mran/one": ["model=mran", "data=aliccp_demo", "data.rows=8000"],
}


def composed(folder: Path, *overrides: str) -> DictConfig:
    """The config of ``train.py`` with everything below ``folder``."""
    places = [f"data_dir={folder / 'data'}", f"runs_dir={folder / 'runs'}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose_train([*places, *overrides])


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that contains ``runs``."""
    folder = tmp_path_factory.mktemp("report")
    small = [s for s in SMALL if not s.startswith("data.")]
    for name, settings in RUNS.items():
        own = small if "data=aliccp_demo" in settings else SMALL
        raw = [f"data.raw_dir={folder / 'raw'}"] if "data=aliccp_demo" in settings else []
        train(composed(folder, *settings, *own, *raw, f"run_dir={folder / name}"))
    _write_comparison(folder)
    _write_study(folder)
    (folder / "runs" / "sweeps" / "small-feed" / "trials" / "0000").mkdir(parents=True)
    for name in ("config.yaml", "schema.json"):  # a trial, which does not count as a run
        content = (folder / "runs/feed/dlen/alpha" / name).read_text()
        (folder / "runs/sweeps/small-feed/trials/0000" / name).write_text(content)
    return folder


def _write_comparison(folder: Path) -> None:
    out = folder / "runs" / "compare" / "table1-feed"
    out.mkdir(parents=True)
    base, other = {"click": [0.70, 0.71], "mean": [0.70, 0.71]}, {"click": [0.72, 0.74], "mean": [0.72, 0.74]}
    differences = {target: paired(other[target], base[target], 1e-5) for target in base}
    rows = [Row("MMoE", base, {}, {}), Row("DLEN <b>", other, differences, {})]
    names = [("MMoE", 0), ("MMoE", 1), ("DLEN <b>", 0), ("DLEN <b>", 1)]
    folders = {f"{model}, seed {seed}": f"feed-{i}" for i, (model, seed) in enumerate(names)}
    identity = {"data": "feed", "test_rows": 400, "training_positives": {"click": 100}}
    comparison = Comparison(
        "Two models", "MMoE", ["click"], 1, [0, 1], rows, {"click": 0.8, "mean": 0.8}, {}, identity, folders
    )
    write_comparison(comparison, out)


def _write_study(folder: Path) -> None:
    out = folder / "runs" / "sweeps" / "small-feed"
    out.mkdir(parents=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", study_name="small-feed")

    def objective(trial: optuna.Trial) -> float:
        alpha = trial.suggest_float("model.head.alpha", 0.1, 0.9)
        trial.set_user_attr("auc", {"mean": [alpha]})
        return alpha

    study.optimize(objective, n_trials=4)
    write_study(study, "A small study", study.trials, {"val/auc/mean": "maximize"}, out)


Report = Callable[..., Path]


@pytest.fixture
def compose_report() -> Callable[..., DictConfig]:
    """Compose the config of ``report.py``."""

    def make(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("report", list(overrides))

    return make
