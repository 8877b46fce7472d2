"""Cost of a trial compared with train.py, speed-up from a second worker, and time saved by Hyperband.

python bench/sweep.py          # about 12 minutes on 2 cores
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from common import DATA, ROOT, report

DATA_SET = ["data=feed", f"data_dir={DATA}"]
LEARNING = [
    "~sweep.space",
    "+sweep.space={optimizer.lr: {low: 0.0001, high: 0.02, log: true}, optimizer.embedding_lr: "
    "{low: 0.0003, high: 0.03, log: true}, model.dropout: {low: 0.0, high: 0.5}, model.head.match: {choices: [0, 8]}}",
    "sweep.start=[]",
]


def study(folder: Path, arguments: Sequence[str], cores: int) -> tuple[pl.DataFrame, float]:
    """Run a study with one worker per core; return its trials and the seconds of the whole command."""
    started = time.perf_counter()
    command = [sys.executable, "sweep.py", *DATA_SET, f"runs_dir={folder}", "sweep.confirm=0", *arguments]
    subprocess.run(
        command,
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]),
    )
    seconds = time.perf_counter() - started
    (path,) = (folder / "sweeps").glob("*/trials.parquet")
    return pl.read_parquet(path), seconds


def train(folder: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], float]:
    """Run train.py on one core."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "train.py", *DATA_SET, *overrides, f"run_dir={folder}"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1]),
    )
    seconds = time.perf_counter() - started
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics, seconds


def cost(trials: int = 3) -> dict[str, Any]:
    """Seconds of a warm worker from the end of one trial to the next, against train.py with the same settings."""
    settings = ["data.rows=600000", "trainer.max_epochs=2", "patience=100"]
    with tempfile.TemporaryDirectory() as folder:
        asked = ["sweep=alpha", *settings, "sweep.pruner=none", f"sweep.trials={trials}"]
        table, _ = study(Path(folder), asked, 1)
        ends = table["ended"].to_list()
        each = [(after - before).total_seconds() for before, after in itertools.pairwise(ends)]
        fits, whole = [], []
        for row in table.iter_rows(named=True):
            fixed = ["model=dlen", "model.head.likelihood=marginal", "model.head.initial_leak=0.9", *settings]
            metrics, seconds = train(Path(folder) / f"run{row['number']}", [*fixed, *row["overrides"].split()])
            assert metrics["fit/steps"] == row["steps"]
            fits.append(metrics["fit/seconds"] + metrics["fit/validation_seconds"])
            whole.append(seconds)
    trial, fit = statistics.median(each), statistics.median(fits)
    return {
        "what": "trial in a warm worker / training and validation alone of train.py",
        "first, s": f"{trial:.1f}",
        "second, s": f"{fit:.1f}",
        "ratio": f"{trial / fit:.3f}; / all of train.py, {statistics.median(whole):.1f} s: "
        f"{trial / statistics.median(whole):.3f}",
    }


def workers(trials: int = 16) -> dict[str, Any]:
    """A study on one core with one worker, and on two cores with two workers."""
    found = {}
    for cores in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            asked = ["sweep=alpha", "data.rows=150000", "trainer.max_epochs=2", "sweep.pruner=none"]
            _, found[cores] = study(Path(folder), [*asked, f"sweep.trials={trials}"], cores)
    return {
        "what": f"{trials} trials, whole command: one worker on one core / two on two",
        "first, s": f"{found[1]:.1f}",
        "second, s": f"{found[2]:.1f}",
        "ratio": f"{found[1] / found[2]:.2f}",
    }


def hyperband(trials: int = 24) -> dict[str, Any]:
    """The same points of a quasi-random sequence with and without pruning."""
    steps, best = {}, {}
    for pruner in ("none", "hyperband"):
        with tempfile.TemporaryDirectory() as folder:
            asked = ["sweep=dlen", *LEARNING, "data.rows=100000", "patience=100", "sweep.sampler=qmc"]
            table, _ = study(Path(folder), [*asked, f"sweep.pruner={pruner}", f"sweep.trials={trials}"], 2)
            steps[pruner] = int(table["steps"].sum())
            complete = table.filter(pl.col("state") == "complete")
            best[pruner] = float(complete["val/auc/mean"].max())  # type: ignore[arg-type]
    return {
        "what": f"{trials} trials, steps: without pruning / with Hyperband",
        "first, s": f"{steps['none']:,} steps, best {best['none']:.4f}",
        "second, s": f"{steps['hyperband']:,} steps, best {best['hyperband']:.4f}",
        "ratio": f"{1 - steps['hyperband'] / steps['none']:.0%} saved, {best['hyperband'] - best['none']:+.4f}",
    }


def main() -> None:
    """Measure and report."""
    chosen = {"cost": cost, "workers": workers, "hyperband": hyperband}
    report("sweep", [chosen[name]() for name in sys.argv[1:] or chosen])


if __name__ == "__main__":
    main()
