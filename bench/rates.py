"""Rates computed from a log: rows per second, and memory with few and many rows.

python bench/rates.py                   # 1 and 8 million rows, about two minutes on 2 cores
python bench/rates.py rows=1000000
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from common import report

from dlen.data.rates import RateTable, Settings

CHUNK, KEYS, LABELS = 1 << 17, 500_000, 4


def work(rows: int) -> None:
    """Work of the process for one size: prints a line with the seconds of both stages and peak MiB."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        table = RateTable(Settings(LABELS, True, 20.0, False), Path(folder) / "scratch")
        shown = 0.0
        for first in range(0, rows, CHUNK):
            n = min(CHUNK, rows - first)
            keys, labels = pl.Series(rng.zipf(1.3, n) % KEYS).cast(pl.String), rng.integers(0, 2, (n, LABELS))
            row, started = np.arange(first, first + n), time.perf_counter()
            table.add(row, keys, row.astype(float), np.ones(n, bool), labels, np.ones((n, LABELS), bool))
            shown += time.perf_counter() - started
        started = time.perf_counter()
        table.finish(rows, Path(folder) / "history.parquet")
        print(shown, time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Run each size in its own process."""
    asked = dict(a.split("=") for a in sys.argv[1:])
    if "work" in asked:
        return work(int(asked["work"]))
    table = []
    for rows in [int(asked["rows"])] if "rows" in asked else [1_000_000, 8_000_000]:
        ran = subprocess.run([sys.executable, __file__, f"work={rows}"], check=True, capture_output=True, text=True)
        shown, counted, memory = map(float, ran.stdout.split()[-3:])
        figures = {"rows": f"{rows:,}", "rows/s": f"{rows / (shown + counted):,.0f}", "peak memory, MiB": round(memory)}
        table.append(figures | {"parting, s": round(shown, 1), "counting, s": round(counted, 1)})
    return report("rates", table)


if __name__ == "__main__":
    main()
