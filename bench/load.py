"""Batches read from the prepared store, with warm and cold files, compared with training on them.

python bench/load.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from common import compared, in_turn, median_and_spread, ratio, report
from loops import make_model, ours, repeated, timed
from shapes import Shape, aliccp_raw, aliccp_table, feed

from dlen.data.store import Store

ROWS = 1_000_000
STEPS = 150


def drop_from_cache(store: Store) -> None:
    """Ask the system to drop the store's pages from its cache. Pages mapped by other processes stay."""
    for path in store.folder.rglob("*.bin"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def load(shape: Shape, batch_size: int, cold: bool) -> float:
    """Samples per second of shuffled batches."""
    store = shape.store()
    if cold:
        drop_from_cache(store)
    return timed(lambda batch: None, repeated(store.split("train"), batch_size), STEPS)


def measure(shape: Shape, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Measure loading and training in turn."""
    store = shape.store()
    parts: dict[str, Callable[[], float]] = {
        "training MMoE": lambda: ours(store, make_model("mmoe", store.schema, shape), batch_size, STEPS // 3),
        "loading, warm": partial(load, shape, batch_size, cold=False),
        "loading, cold files": partial(load, shape, batch_size, cold=True),
    }
    found = in_turn(parts, rounds)
    where = {"shape": shape.name, "batch": batch_size}
    return compared(found, "training MMoE", "samples/s", "against training", where)


def multivalued(single: Shape, multi: Shape, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Train on Ali-CCP's 23 fields with one id each, and with up to 20 in the multi-valued ones."""

    def train(shape: Shape) -> float:
        store = shape.store()
        return ours(store, make_model("mmoe", store.schema, shape), batch_size, STEPS // 3)

    found = in_turn({shape.name: partial(train, shape) for shape in (single, multi)}, rounds)
    return [
        {
            "shape": shape.name,
            "batch": batch_size,
            "ids": f"{shape.store().schema.num_embeddings:,}",
            "training, samples/s": median_and_spread(found[shape.name]),
            "against one id in each field": ratio(found[shape.name], found[single.name]),
        }
        for shape in (single, multi)
    ]


def main() -> None:
    """Measure every shape at both batch sizes."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    single, multi = aliccp_table(ROWS), aliccp_raw(ROWS // 2)
    shapes = [single, feed(ROWS), multi]
    report("load", [row for shape in shapes for batch in (1024, 4096) for row in measure(shape, batch, rounds)])
    report("multivalued", [row for batch in (1024, 4096) for row in multivalued(single, multi, batch, rounds)])


if __name__ == "__main__":
    main()
