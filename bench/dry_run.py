"""A dry run against the preparing that it tells of: rows, ids, disk, time and memory; and its estimates of ids alone.

python bench/dry_run.py              # a table of 3 M rows as CSV and Parquet, and Ali-CCP files of 0.75 M rows
python bench/dry_run.py 10000000     # another number of rows of the table
python bench/dry_run.py ids          # ids of drawn logs of 4 M rows, from a tenth and a fortieth of them
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import report, run
from numpy.typing import NDArray

from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.data.unseen import IdEstimate

SPEC = """
fields:
  user: {side: user}
  item: {side: item}
  city: {side: user}
  tags: {kind: ids, side: item}
  price: {kind: numeric, side: item}
  time: {kind: time}
tasks:
  click: {label: click}
  buy: {label: buy, observed_where: click}
split: {by: time, column: time}
rates: {ids: none}
user: user
"""
BLOCKS, ROWS = 64, 4_000_000


def main() -> None:
    """Write the logs, then run both commands on each, in processes of their own."""
    if "ids" in sys.argv[1:]:
        report("dry_run_ids", [row for name, ids in drawn() for row in of_ids(name, ids)])
        return
    if "write" in sys.argv[1:]:
        write_table(Path(sys.argv[2]), int(sys.argv[3]))
        AliCCPDemo(f"{sys.argv[2]}/raw", rows=600_000).files()
        return
    rows = next(iter(sys.argv[1:]), "3000000")
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        run([__file__, "write", folder, rows])  # the peak of a process would count as that of those it starts
        logs = {f"table as {kind}": [f"data.spec={folder}/{kind}.yaml", "data=table"] for kind in ("csv", "parquet")}
        logs["Ali-CCP"] = ["data=aliccp", f"data.raw_dir={folder}/raw"]
        for number, (name, chosen) in enumerate(logs.items()):
            told = run(["prepare.py", *chosen, f"data_dir={folder}/none", "dry_run=true"])
            done = run(["prepare.py", *chosen, f"data_dir={folder}/store-{number}"])
            lines = told.output.splitlines()
            store = sum(path.stat().st_size for path in Path(folder, f"store-{number}").rglob("*") if path.is_file())
            row = {"log": name, "dry run, s": f"{told.seconds:.1f}", "told": " ".join(lines[0].split()[4:])}
            row |= {"there were": " ".join(done.output.splitlines()[0].split()[1:])}
            row |= {"store, told": lines[2].split(";")[0].split("about ")[1], "is": f"{store / 1e6:.0f} MB"}
            row |= {"preparing, told": lines[3].split("about ")[1]}
            seconds = done.output.split("prepare seconds: ")[1].split()[0]
            found.append(row | {"took": f"{seconds} s, {done.peak_mb * 1.048576:.0f} MB"})
    report("dry_run", found)


def write_table(folder: Path, rows: int) -> None:
    """A log of users, items of a power law, tags, prices and times."""
    rng = np.random.default_rng(0)
    click = rng.random(rows) < 0.2
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, max(rows // 20, 1), rows),
            "item": power_law(rng, 1.0, 300_000, rows),
            "city": rng.integers(0, 300, rows),
            "price": rng.gamma(2.0, 10.0, rows).round(2),
            "time": 1_700_000_000 + 3 * np.arange(rows),
            "click": click.astype(int),
            "buy": (click & (rng.random(rows) < 0.1)).astype(int),
            "first": rng.integers(0, 5000, rows),
            "second": rng.integers(0, 5000, rows),
        }
    )
    frame = frame.with_columns(tags=pl.format("{}|{}", "first", "second")).drop("first", "second")
    frame.write_csv(folder / "log.csv")
    frame.write_parquet(folder / "log.parquet")
    for kind in ("csv", "parquet"):
        (folder / f"{kind}.yaml").write_text(f"files: log.{kind}\n{SPEC}")


def power_law(rng: np.random.Generator, power: float, ids: int, rows: int) -> NDArray[np.int64]:
    """Ids whose frequency falls with a power of their rank."""
    shares = np.arange(1.0, ids + 1) ** -power
    return np.searchsorted(np.cumsum(shares / shares.sum()), rng.random(rows) * (1 - 1e-9))


def drawn() -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Logs of one field."""
    rng = np.random.default_rng(0)
    yield "uniform, 100 k", rng.integers(0, 100_000, ROWS)
    yield "uniform, 2 M", rng.integers(0, 2_000_000, ROWS)
    for power in (0.8, 1.0, 1.2):
        yield f"power {power}, 2 M", power_law(rng, power, 2_000_000, ROWS)
    yield "power 1.0, 20 k", power_law(rng, 1.0, 20_000, ROWS)
    yield "sorted by user, 58 rows each", np.arange(ROWS) // 58
    yield "sorted by day, 40 days", np.arange(ROWS) // (ROWS // 40)
    counts = np.minimum(rng.zipf(1.8, ROWS), 5000)
    of_user = np.repeat(np.arange(ROWS), counts)[:ROWS]
    yield "sorted by user, rows by a power law", of_user
    yield "the same, shuffled", rng.permutation(of_user)
    yield "sessions of 10 rows, 80 k users", np.repeat(rng.integers(0, 80_000, ROWS // 10), 10)
    yield "new items every day", (rng.random(ROWS) ** 3 * 20_000 + np.arange(ROWS) / 20).astype(np.int64)


def of_ids(name: str, ids: NDArray[np.int64]) -> Iterator[dict[str, str]]:
    """Estimates from shares of a log, against all of it."""
    _, times = np.unique(ids, return_counts=True)
    for share in (10, 40):
        size = len(ids) // share // BLOCKS
        starts = np.linspace(0, len(ids) - size, BLOCKS).astype(int)
        value = np.concatenate([ids[start : start + size] for start in starts])
        sample = pl.DataFrame({"value": value, "block": np.repeat(np.arange(BLOCKS), size)})
        counts = sample.group_by("value", "block").agg(pl.len().alias("count"))
        estimate = IdEstimate(counts, len(ids) / len(value))
        once, twice = (int((np.unique(value, return_counts=True)[1] == n).sum()) for n in (1, 2))
        chao1 = estimate.seen + once * (once - 1) / (2 * (twice + 1))
        row = {"log": name, "read": f"1/{share}", "ids seen": f"{estimate.seen:,}", "Chao1": f"{chao1:,.0f}"}
        for least in (1, 2, 5, 10):
            told, is_ = estimate.left(least), int((times >= least).sum())
            row[f"at least {least}: told / is"] = f"{told:,} / {is_:,} = {told / max(is_, 1):.2f}"
        yield row


if __name__ == "__main__":
    main()
