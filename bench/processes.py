"""Several processes: rows per second of 2 processes with one thread each, compared with one process with two threads.

python bench/processes.py [rounds=3]     # about 4 minutes on 2 cores
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import DATA, in_turn, report, run

SHAPES = {"feed": ["data=feed"], "aliccp": ["data=aliccp_demo", "data.rows=300000", "data.min_count=1"]}
BATCH = 4096  # of all processes together


def speed(shape: str, processes: int, threads: int) -> float:
    """Training rows per second from ``metrics.json``."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = [*SHAPES[shape], "model=dlen", f"loader.batch_size={BATCH // processes}", f"data_dir={DATA}"]
        settings += [f"trainer.devices={processes}", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
        run(["train.py", *settings, f"run_dir={folder}/run", "metrics.conflict_every=0"])
        return float(json.loads((Path(folder) / "run" / "metrics.json").read_text())["fit/samples_per_second"])


def main() -> None:
    """Measure both in turn."""
    rounds = int(dict(a.split("=") for a in sys.argv[1:]).get("rounds", 3))
    rows = []
    for shape in SHAPES:
        parts: dict[str, Callable[[], float]] = {
            "1 x 2": lambda shape=shape: speed(shape, 1, 2),  # type: ignore[misc]
            "2 x 1": lambda shape=shape: speed(shape, 2, 1),  # type: ignore[misc]
        }
        found = {name: statistics.median(each) for name, each in in_turn(parts, rounds).items()}
        rows.append(
            {
                "data": shape,
                "1 process, 2 threads, rows/s": f"{found['1 x 2']:,.0f}",
                "2 processes, 1 thread, rows/s": f"{found['2 x 1']:,.0f}",
                "ratio": f"{found['2 x 1'] / found['1 x 2']:.2f}",
            }
        )
    report("processes", rows)


if __name__ == "__main__":
    main()
