"""A store of many shards against one shard with the same rows: seconds to open it, and batches of its rows.

python bench/shards.py
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import compared, in_turn, report
from loops import repeated, timed

from dlen.data.columns import Columns
from dlen.data.store import Store
from dlen.data.writer import StoreWriter
from dlen.schema import Field, Kind, Schema, Task

ROWS = 1_000_000
SHARDS = 1000
SINGLES, BAGS, VALUES = 20, 2, 3  # fields, multi-valued fields, and values in each of these
STEPS = 200
COUNTS = {Kind.ID: SINGLES, Kind.IDS: BAGS, Kind.NUMERIC: 0}


def written(folder: Path, shards: int) -> Store:
    """A store with the same rows, whatever the number of shards."""
    rng, writer, n = np.random.default_rng(0), StoreWriter(folder), ROWS // SHARDS
    for part in range(SHARDS):
        if part * shards % SHARDS == 0:
            split = writer.shard().split("train", COUNTS, 2)
        ids, values = rng.integers(0, 1000, (n, SINGLES)), rng.integers(0, 1000, n * BAGS * VALUES)
        columns = Columns(ids, np.zeros((n, 0)), np.full((n, BAGS), VALUES), values, np.ones(len(values)))
        split.append(columns, rng.integers(0, 2, (n, 2)))
    fields = [Field(f"id{i}", Kind.ID, vocab_size=1000) for i in range(SINGLES)]
    fields += [Field(f"ids{i}", Kind.IDS, vocab_size=1000) for i in range(BAGS)]
    tasks = (Task("click", 0.5), Task("like", 0.5))
    writer.finish(Schema(tuple(fields), tasks), {"fingerprint": "", "name": "shards"})
    return Store(folder)


def opened(store: Store) -> float:
    """Seconds to open a store and its split."""
    started = time.perf_counter()
    Store(store.folder).split("train")
    return time.perf_counter() - started


def loaded(store: Store, batch_size: int) -> float:
    """Samples per second of shuffled batches."""
    return timed(lambda batch: None, repeated(store.split("train"), batch_size), STEPS)


def measure(stores: dict[str, Store], batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Batches of the stores in turn."""
    found = in_turn({name: partial(loaded, store, batch_size) for name, store in stores.items()}, rounds)
    return compared(found, "1 shard", "samples/s", "against 1 shard", {"batch": batch_size})


def main() -> None:
    """Measure opening, and batches of two sizes."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with TemporaryDirectory() as temporary:
        numbers = {"1 shard": 1, f"{SHARDS} shards": SHARDS}
        stores = {name: written(Path(temporary) / name, number) for name, number in numbers.items()}
        found = in_turn({name: partial(opened, store) for name, store in stores.items()}, rounds)
        report("open", compared(found, "1 shard", "seconds to open", "against 1 shard", {"rows": f"{ROWS:,}"}))
        report("shards", [row for batch in (1024, 4096) for row in measure(stores, batch, rounds)])


if __name__ == "__main__":
    main()
