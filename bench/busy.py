"""A busy machine: train.py with one thread and with all cores, beside programs that keep cores busy.

python bench/busy.py [rounds=3]     # about 5 minutes on 2 cores
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import DATA, in_turn, report, run

CORES = len(os.sched_getaffinity(0))
STEPS = 300  # of 1,024 rows
SETTINGS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "all cores": {"OMP_NUM_THREADS": str(CORES)},
    "all cores, fixed": {"OMP_NUM_THREADS": str(CORES), "OMP_DYNAMIC": "false"},
}


def speed(environment: dict[str, str], neighbours: int) -> float:
    """Training rows per second of the feed, default model sizes."""
    os.environ.pop("OMP_DYNAMIC", None)
    os.environ.update(environment)
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings = ["model=mmoe", "data=feed", "loader.batch_size=1024", f"data_dir={DATA}"]
            steps = STEPS if "OMP_DYNAMIC" not in environment or not neighbours else STEPS // 20
            settings += [f"trainer.max_steps={steps}", "metrics.conflict_every=0", f"run_dir={folder}/run"]
            run(["train.py", *settings])
            return float(json.loads((Path(folder) / "run" / "metrics.json").read_text())["fit/samples_per_second"])
    finally:
        for program in programs:
            program.kill()


def main() -> None:
    """Measure all in turn."""
    rounds = int(dict(a.split("=") for a in sys.argv[1:]).get("rounds", 3))
    rows = []
    for neighbours in (0, 1, CORES):
        parts: dict[str, Callable[[], float]] = {
            name: partial(speed, environment, neighbours) for name, environment in SETTINGS.items()
        }
        found = {name: statistics.median(each) for name, each in in_turn(parts, rounds).items()}
        rates = {f"{name}, rows/s": f"{rate:,.0f}" for name, rate in found.items()}
        rows.append({"busy programs": neighbours} | rates | {"ratio": f"{found['all cores'] / found['1 thread']:.2f}"})
    report("busy", rows)


if __name__ == "__main__":
    main()
