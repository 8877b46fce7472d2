"""A day appended to prepared data of a month, and what preparing all of it again costs: CPU seconds, and megabytes.

python bench/days.py                   # 30 days of 100,000 rows
python bench/days.py days=5 rows=20000
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from common import report

from dlen.data.append import append
from dlen.data.prepare import prepare
from dlen.data.sources.table import Table
from dlen.data.store import Store

SPEC = {
    "files": "logs",
    "fields": {
        "user": {"side": "user"},
        "item": {"side": "item"},
        "price": {"kind": "numeric"},
        "at": {"kind": "time", "unit": "s", "parts": ["hour"]},
        "user_rate": {"rate": {"of": ["click", "like"], "by": "user"}},
        "item_rate": {"rate": {"of": ["click", "like"], "by": "item"}},
        "seen": {"history": {"of": "item", "by": "user", "labels": ["click"], "length": 50}},
    },
    "tasks": {"click": "click", "like": "like"},
    "split": {"by": "time", "column": "day", "validation_from": 2, "test_from": 3},
    "rates": {"time": "at"},
    "user": "user",
}


def write(folder: Path, day: int, rows: int) -> None:
    """The file of one day; items come and go."""
    draw = np.random.default_rng(day)
    columns: dict[str, Any] = {"user": draw.zipf(1.2, rows) % 50_000, "item": draw.zipf(1.2, rows) % 20_000 + 100 * day}
    columns |= {"price": draw.normal(size=rows), "at": 1_700_000_000 + 86_400 * day + draw.integers(0, 86_400, rows)}
    columns |= {"click": draw.integers(0, 2, rows), "like": draw.integers(0, 2, rows)}
    place = folder / "logs" / f"day={day}" / "part.parquet"
    place.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(place)


def measured(name: str, work: Callable[[], Store]) -> dict[str, object]:
    """CPU seconds of some work, and the size of what is in its store and in no other."""
    started, wall = time.process_time(), time.perf_counter()
    store = work()
    seconds = {"CPU s": f"{time.process_time() - started:.1f}", "s": f"{time.perf_counter() - wall:.1f}"}
    own = [p.stat() for p in store.folder.rglob("*") if p.is_file()]
    return {"": name, **seconds, "MB on disk": f"{sum(s.st_size for s in own if s.st_nlink == 1) / 1e6:.1f}"}


def main() -> None:
    """Append one day to a month that was appended day by day, and prepare the same files at once."""
    asked = {"days": 30, "rows": 100_000} | {k: int(v) for k, v in (a.split("=") for a in sys.argv[1:])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
        table = []
        for day in range(asked["days"]):
            write(folder, day, asked["rows"])
            source = Table(str(folder / "spec.yaml"), "log")
            if day == 3:
                prepare(source, folder / "data")
            elif day > 3:
                entry = measured(f"append day {day + 1}", partial(append, source, folder / "data"))
                table += [entry] if day in (4, asked["days"] - 1) else []
        table.append(measured("prepare all days", partial(prepare, source, folder / "other")))
    report("days", table)


if __name__ == "__main__":
    main()
