"""compare: what is trained and what is cached, tables that match the runs' metrics, and one-line failures."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.conftest import BRAKE, ROOT, TINY, Command, run_command, run_here, wait_for

SMALL = ["data.rows=4000", "data.users=40", "data.items=30", "loader.batch_size=512", "trainer.max_epochs=1"]
SMALL += ["optimizer.embedding_lr=0.05", "optimizer.lr=0.01"]
TABLE = ["experiment=table1", "models=[MMoE,DLEN]", "workers=2", *SMALL]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    ran = run_here("compare.py", [*TABLE, "seeds=2"], folder)
    assert ran.returncode == 0, ran.stderr
    assert "| DLEN |" in ran.stdout
    return folder


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    found = (folder / "runs" / "compare" / "cache").glob("*/metrics.json")
    return {p.parent.name: json.loads(p.read_text()) for p in found}


@pytest.mark.slow
def test_the_table_repeats_the_runs_figures(compared: Path) -> None:
    out = compared / "runs" / "compare" / "table1-feed"
    table = json.loads((out / "table.json").read_text())
    metrics = runs(compared)
    assert len(metrics) == 4
    for row in table["rows"]:
        for index, seed in enumerate(table["seeds"]):
            run = metrics[table["folders"][f"{row['model']}, seed {seed}"]]
            assert run["model"] == {"MMoE": "mmoe", "DLEN": "dlen"}[row["model"]]
            assert run["seed"] == seed
            for target in [*table["targets"], "mean"]:
                assert row["auc"][target][index] == run[f"test/auc/{target}"]
    base, dlen = table["rows"]
    assert base["differences"] == {}
    for target, difference in dlen["differences"].items():
        gains = np.array(dlen["auc"][target]) - np.array(base["auc"][target])
        assert difference["mean"] == pytest.approx(gains.mean())
        assert difference["seed_error"] == pytest.approx(gains.std(ddof=1) / np.sqrt(2))
        assert difference["row_error"] > 0
        assert difference["low"] < difference["mean"] < difference["high"]
    assert set(dlen["extras"]) >= {
        "auc/up_any",
        "corr/up_truth",
        "share",
        "rows",
        "fit/seconds",
        "model/dense_parameters",
    }
    assert table["oracle"]["click"] == metrics[table["folders"]["MMoE, seed 0"]]["test/oracle/click"]
    with (out / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * 6
    text = (out / "table.md").read_text()
    assert "| oracle |" in text
    assert "| MMoE, published | 0.7516 |" in text
    assert "+.0023), which disagree" in text


@pytest.mark.slow
def test_only_what_is_missing_is_trained(compared: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in compared.rglob("cache/*/metrics.json")}
    again = run_here("compare.py", [*TABLE, "seeds=2"], compared)
    assert again.returncode == 0, again.stderr
    assert "4 of 4 runs are already done" in again.stderr
    more = run_here("compare.py", [*TABLE, "seeds=[0,1,7]", "out=more"], compared)
    assert more.returncode == 0, more.stderr
    assert "4 of 6 runs are already done" in more.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(runs(compared)) == 6
    assert (compared / "more" / "table.md").exists()


@pytest.mark.slow
def test_a_run_that_fails_is_one_line(tmp_path: Path) -> None:
    ran = run_command("compare.py", [*TABLE, "seeds=1", "trainer.precision=17"], tmp_path)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("error: MMoE, seed 0: training failed (config trainer: ") or "DLEN, seed 0" in last
    assert not (tmp_path / "runs" / "compare" / "table1-feed").exists()


@pytest.mark.slow
def test_a_comparison_that_is_ended_ends_its_runs_and_goes_on(tmp_path: Path) -> None:
    """After SIGTERM nothing trains on, and the next call resumes the run from its last checkpoint."""
    arguments = ["experiment=table1", "models=[MMoE]", "seeds=1", "data.rows=15000", "loader.batch_size=64"]
    arguments += ["data.users=40", "data.items=30", "trainer.max_epochs=2", *TINY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "compare.py"), *arguments], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: list(tmp_path.rglob("last.ckpt")))
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    process.terminate()
    assert process.wait(BRAKE) == 143
    _, alive = psutil.wait_procs(started, timeout=BRAKE)
    assert not alive
    again = run_command("compare.py", arguments, tmp_path)
    assert again.returncode == 0, again.stderr
    (metrics,) = runs(tmp_path).values()
    assert metrics["fit/steps"] == 374
    (trained,) = tmp_path.rglob("train.log")
    assert "step 46:" not in trained.read_text()  # the first validation is before the checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["experiment=table9"], "config experiment=table9: there is no such choice; did you mean table"),
        (["experiment=table1", "seeds=0"], "config seeds: 0"),
        (["experiment=table1", "models=[X]", *SMALL], "config models: there is no X"),
        (["experiment=table1", "workers=0", *SMALL], "config workers: 0"),
        (["experiment=table1", "modle=mmoe"], "config modle: there is no such key"),
    ],
)
def test_wrong_settings(arguments: list[str], expected: str, refused: Command) -> None:
    ran = refused("compare.py", *arguments)
    assert ran.returncode == 2
    assert expected in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_a_surface(tmp_path: Path) -> None:
    fewer = ["~experiment.grid.leak", "~experiment.grid.tasks", "experiment.planes=[[rows,rates]]"]
    fewer += [f"~experiment.grid.rows.rows_{n}" for n in ("1M", "2M", "5M")]
    fewer += ["~experiment.grid.rates.sparse", 'experiment.grid.rows.rows_200k=["data.rows=3000"]']
    fewer += ['experiment.grid.rows.rows_500k=["data.rows=4000"]', "data.users=40", "trainer.max_epochs=1"]
    ran = run_here("compare.py", ["experiment=when", *fewer], tmp_path)
    assert ran.returncode == 0, ran.stderr
    out = tmp_path / "runs" / "compare" / "when-feed"
    cells = json.loads((out / "surface.json").read_text())
    assert [c["cell"] for c in cells] == [
        {"rows": rows, "rates": rates} for rows in ("rows_200k", "rows_500k") for rates in ("dense", "medium")
    ]
    with (out / "surface.csv").open() as file:
        lines = list(csv.DictReader(file))
    for line, cell in zip(lines, cells, strict=True):
        base, dlen = cell["rows"]
        assert float(line["gain"]) == pytest.approx(dlen["auc"]["mean"][0] - base["auc"]["mean"][0])
        assert int(line["all_positives"]) == sum(cell["identity"]["training_positives"].values())
    assert "4 cells" in ran.stdout
