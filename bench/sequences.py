"""Sequences: training with a history of 50 values under each pooling against none, and preparing with a history.

python bench/sequences.py           # about five minutes on 2 cores
python bench/sequences.py rounds=1 rows=200000
"""

from __future__ import annotations

import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from common import DATA, Ran, in_turn, median_and_spread, ratio, report, run
from loops import ours

from dlen.data.store import Store
from dlen.models import MMoE
from dlen.nn.sequences import LastPool, MeanPool, MultiHeadTargetAttention, SequencePool, TargetAttention

BATCH, STEPS, EXPERTS, LENGTH = 4096, 20, 5, 50
SIZES = [2_000, 10_000, 8_000, 98, 14, 8, 4, 5, 6_929, 12_000, 5_888, 51_878, 4, 30, 300, 20, 24, 7]
POOLS: dict[str, type[SequencePool]] = {
    "attention": TargetAttention,
    "multi_head": MultiHeadTargetAttention,
    "mean": MeanPool,
    "last": LastPool,
}


@cache
def spec(rows: int, history: bool) -> Path:
    """A log in order of time with 20 id fields, 100 rows per user, a time and five labels; with a history or not."""
    folder = DATA / f"sequences_{rows}"
    log, path = folder / "log.parquet", folder / ("history.yaml" if history else "plain.yaml")
    fields: dict[str, Any] = {"user": {"side": "user"}, "item": {"side": "item"}}
    fields |= {f"f{i}": {} for i in range(len(SIZES))} | {"at": {"kind": "time", "column": "time", "parts": ["hour"]}}
    if history:
        seen = {"of": "item", "by": "user", "length": LENGTH, "gap": False}
        fields["seen"] = {"history": seen, "side": "user"}
    tasks = {f"t{i}": f"t{i}" for i in range(5)}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"files": "log.parquet", "fields": fields, "tasks": tasks}, sort_keys=False))
    if not log.exists():
        rng = np.random.default_rng(0)
        columns: dict[str, Any] = {"user": rng.integers(0, max(rows // 100, 1), rows)}
        columns |= {"item": np.minimum(rng.zipf(1.2, rows), 50_000)}
        columns |= {f"f{i}": rng.integers(0, size, rows) for i, size in enumerate(SIZES)}
        columns |= {f"t{i}": (rng.random(rows) < 0.2).astype(np.int8) for i in range(5)}
        pl.DataFrame(columns | {"time": 1_700_000_000 + np.arange(rows)}).write_parquet(log)
    return path


def prepared(rows: int, history: bool, where: str) -> Ran:
    """Prepare into a folder; the last line of the output names the store."""
    return run(["prepare.py", "data=table", f"data.spec={spec(rows, history)}", f"data_dir={DATA / where}"])


@cache
def store(rows: int, history: bool) -> Store:
    """The prepared store, written if missing."""
    return Store(Path(prepared(rows, history, "sequences").output.strip().splitlines()[-1].removeprefix("  in ")))


def step(rows: int, pool: type[SequencePool] | None) -> float:
    """Rows per second of training steps, batches included."""
    of = store(rows, pool is not None)
    return ours(of, MMoE(of.schema, num_experts=EXPERTS, sequence=pool or MeanPool), BATCH, STEPS)


def preparing(rows: int, history: bool, peaks: dict[bool, list[float]]) -> float:
    """Seconds of preparing anew."""
    run(["-c", f"import shutil; shutil.rmtree({str(DATA / 'sequences_again')!r}, ignore_errors=True)"])
    ran = prepared(rows, history, "sequences_again")
    peaks[history].append(ran.peak_mb)
    return ran.seconds


def main() -> None:
    """Measure both in turn and report."""
    asked = dict(a.split("=") for a in sys.argv[1:])
    rounds, rows = int(asked.get("rounds", 3)), int(asked.get("rows", 1_000_000))
    found = in_turn({"none": partial(step, rows, None)} | {n: partial(step, rows, p) for n, p in POOLS.items()}, rounds)
    values = float(store(rows, True).split("train").sequences.length.float().mean())  # type: ignore[union-attr]
    table = [
        {
            "what": f"training, {name}" + ("" if name == "none" else f" over {values:.0f} values"),
            "rows/s or s": median_and_spread(rates),
            "against none": ratio(rates, found["none"]),
            "peak MiB": "",
        }
        for name, rates in found.items()
    ]
    peaks: dict[bool, list[float]] = {False: [], True: []}
    seconds = in_turn({f"{h}": partial(preparing, rows, h, peaks) for h in (False, True)}, rounds)
    for history in (False, True):
        table.append(
            {
                "what": f"preparing {rows:,} rows" + (" with a history" if history else ""),
                "rows/s or s": median_and_spread(seconds[f"{history}"]),
                "against none": ratio(seconds[f"{history}"], seconds["False"]),
                "peak MiB": median_and_spread(peaks[history]),
            }
        )
    report("sequences", table)


if __name__ == "__main__":
    main()
