"""A table prepared in pieces by one process, by several, and by clusters of this machine: seconds, and their ratio.

python bench/pieces.py                     # 8 M rows, three rounds
python bench/pieces.py clusters=yes        # also two tasks of Ray, and two jobs of submitit's local cluster
python bench/pieces.py rows=3000000 rounds=1 processes=1,4,16
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from common import in_turn, median_and_spread, ratio, report, run

SPEC = {
    "files": "log.csv",
    "fields": {
        "user": {"side": "user"},
        "item": {"side": "item"},
        "tags": {"kind": "ids", "separator": "|"},
        "price": {"kind": "numeric"},
    },
    "tasks": {"click": "click", "like": "like"},
    "split": {"validation": 0.1, "test": 0.1},
}
WRITTEN = 1_000_000  # rows that are drawn at once


@contextmanager
def table(rows: int) -> Iterator[Path]:
    """A folder with a CSV of users, items, lists of tags, prices and two labels, and its spec."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
        with (folder / "log.csv").open("wb") as file:
            for first in range(0, rows, WRITTEN):
                draw, n = np.random.default_rng(first), min(WRITTEN, rows - first)
                tags = [draw.integers(0, 500, n).astype(str) for _ in range(3)]
                frame = pl.DataFrame({
                    "user": draw.zipf(1.2, n) % 500_000,
                    "item": draw.zipf(1.2, n) % 200_000,
                    "tags": [f"{a}|{b}|{c}" for a, b, c in zip(*tags, strict=True)],
                    "price": draw.normal(size=n).round(4),
                    "click": draw.integers(0, 2, n),
                    "like": draw.integers(0, 2, n),
                })  # fmt: skip
                frame.write_csv(file, include_header=first == 0)
        yield folder


CLUSTERS = {
    "two tasks of Ray": ["cluster=ray", "prepare_workers=2"],
    "two jobs of submitit": ["cluster=submitit", "cluster.cluster=local", "prepare_workers=2"],
}


def seconds(folder: Path, settings: list[str], cpu: list[float]) -> float:
    """Seconds of ``prepare.py``, its start included; those of CPU go to ``cpu``."""
    with tempfile.TemporaryDirectory() as out:
        spec = f"data.spec={folder / 'spec.yaml'}"
        ran = run(["prepare.py", "data=table", spec, f"data_dir={out}", *settings])
        cpu.append(ran.cpu)
        return ran.seconds


def main() -> None:
    """Prepare the same table in turn with each number of processes."""
    given = dict(argument.split("=") for argument in sys.argv[1:])
    rows = int(given.get("rows", 8_000_000))
    with table(rows) as folder:
        counts = [int(count) for count in given.get("processes", "1,2").split(",")]
        asked = {f"{count} process(es)": [f"prepare_workers={count}"] for count in counts}
        asked |= CLUSTERS if given.get("clusters") == "yes" else {}
        cpu: dict[str, list[float]] = {what: [] for what in asked}
        ways = {what: partial(seconds, folder, settings, cpu[what]) for what, settings in asked.items()}
        found = in_turn(ways, int(given.get("rounds", 3)))
    base = next(iter(found.values()))
    report(
        "pieces",
        [
            {
                "rows": f"{rows:,}",
                "what": what,
                "seconds": median_and_spread(values),
                "CPU, s": f"{statistics.median(cpu[what]):.0f}",
                "times": ratio(base, values),
            }
            for what, values in found.items()
        ],
    )


if __name__ == "__main__":
    main()
