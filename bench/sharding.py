"""A large table in two processes: a copy in each, compared with TorchRec sharding; memory and time of a step.

python bench/sharding.py [rounds=3] [million=20]     # about 5 minutes on 2 cores, and 6 GB
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import compared, in_turn, report
from soak import memory
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from dlen.batch import Batch
from dlen.nn.embedding import EmbeddingTable, deferred_tables
from dlen.nn.processes import exchange_rows
from dlen.nn.sharded import ShardedTable
from dlen.schema import Field, Kind, Schema, Task
from dlen.training.optimizers import RowAdagrad

FIELDS, DIM, ROWS, STEPS, WORLD = 20, 16, 2048, 30, 2
SETTINGS = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.0}


def schema_of(million: float) -> Schema:
    """Single-valued id fields of equal size."""
    size = int(million * 1e6 / FIELDS)
    return Schema(tuple(Field(f"f{k}", Kind.ID, "user", size) for k in range(FIELDS)), (Task("click", 0.1),))


def batches(schema: Schema, rank: int) -> list[Batch]:
    """Ids drawn from Zipf's law, like those of users and items."""
    rng = np.random.default_rng(rank)
    starts = np.array([schema.offsets[f.name] for f in schema.fields])
    size = schema.fields[0].vocab_size
    made = []
    for _ in range(STEPS):
        ids = torch.from_numpy((rng.zipf(1.2, (ROWS, FIELDS)) % size + starts).astype(np.int32))
        none = torch.zeros(ROWS, 0)
        bags = (torch.zeros(0, ROWS, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
        made.append(Batch(ids, none, *bags, torch.zeros(ROWS, 1), none))
    return made


def work(rank: int, folder: str, how: str, million: float) -> None:
    """Work of each process: run the steps, then print seconds per step and MiB of the table."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD)
    schema = schema_of(million)
    feed = batches(schema, rank)
    before = memory(os.getpid())
    step = copied(schema) if how == "copies" else split(schema, how)
    for batch in feed[:5]:
        step(batch)
    started = time.perf_counter()
    for batch in feed[5:]:
        step(batch)
    seconds = (time.perf_counter() - started) / (STEPS - 5)
    (Path(folder) / str(rank)).write_text(f"{seconds} {memory(os.getpid()) - before}")
    distributed.destroy_process_group()


def copied(schema: Schema) -> Callable[[Batch], None]:
    """A step without ``sharding``."""
    table = EmbeddingTable(schema, DIM)
    optimizer = RowAdagrad([table.weight], **SETTINGS)

    def step(batch: Batch) -> None:
        loss(table(batch)).backward()
        exchange_rows(table.weight)
        optimizer.step()
        optimizer.zero_grad()

    return step


def split(schema: Schema, by: str) -> Callable[[Batch], None]:
    """A step with ``sharding``."""
    with deferred_tables():
        table = EmbeddingTable(schema, DIM)
    sharded = ShardedTable(table, schema, by, torch.device("cpu"), SETTINGS)
    return lambda batch: loss(sharded(batch)).backward()


def loss(vectors: Tensor) -> Tensor:
    """An arbitrary differentiable loss."""
    return (vectors**2).mean()


def measured(how: str, million: float) -> tuple[float, float]:
    """Rows per second of both processes together, and MiB of the larger one."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (folder, how, million), nprocs=WORLD)
        told = [[float(v) for v in (Path(folder) / str(rank)).read_text().split()] for rank in range(WORLD)]
    return WORLD * ROWS / max(seconds for seconds, _ in told), max(mib for _, mib in told)


def main() -> None:
    """Measure all variants in turn."""
    asked = dict(a.split("=") for a in sys.argv[1:])
    million = float(asked.get("million", 20))
    held: dict[str, float] = {}

    def part(how: str) -> float:
        rate, held[how] = measured(how, million)
        return rate

    parts = {how: lambda how=how: part(how) for how in ("copies", "rows", "tables")}
    found = in_turn(parts, int(asked.get("rounds", 3)))
    rows = compared(found, "copies", "rows/s", "to copies", {"ids": f"{million:g} M x {DIM}"})
    report("sharding", [row | {"MiB a process": f"{held[row['what']]:,.0f}"} for row in rows])


if __name__ == "__main__":
    main()
