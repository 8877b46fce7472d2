"""Shared by tests of models: a small schema with fields of every kind, random batches, several processes."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from dlen.batch import Batch, Sequence
from dlen.schema import Field, Kind, Pooling, Schema, Task

needs_torchrec = pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason="TorchRec is not installed")


def join_processes(rank: int, world: int, init: Path) -> None:
    """Join the process group of a test, through the file ``init``, with one thread."""
    torch.set_num_threads(1)
    limit = timedelta(minutes=10)
    distributed.init_process_group("gloo", init_method=f"file://{init}", rank=rank, world_size=world, timeout=limit)


FIELDS = (
    Field("user", Kind.ID, "user", 7),
    Field("tags", Kind.IDS, "item", 13),
    Field("age", Kind.NUMERIC, "user"),
    Field("item", Kind.ID, "item", 11),
    Field("matches", Kind.IDS, "cross", 5, Pooling.SUM),
    Field("price", Kind.NUMERIC, "item"),
)

# Lists that share the item's ids, with a parallel list, and a sequence without a candidate
WITH_SEQUENCES = (
    *FIELDS,
    Field("watched", Kind.SEQUENCE, "user", 11, share="item", sequence="watched"),
    Field("watched_how", Kind.SEQUENCE, "user", 3, sequence="watched"),
    Field("searches", Kind.SEQUENCE, "user", 5, sequence="searches"),
)


# Fields of every kind with vectors of their own length; two share a table, and one shares the ids of another field
WITH_DIMS = tuple(
    replace(field, dim={"user": 2, "tags": 1, "item": 2, "searches": 2}.get(field.name, 0)) for field in WITH_SEQUENCES
)

# Pretrained vectors beside everything else
WITH_VECTORS = (
    *WITH_SEQUENCES,
    Field("caption", Kind.VECTOR, "item", size=3),
    Field("profile", Kind.VECTOR, "user", size=5),
)


def tasks_with_rates(*rates: float) -> tuple[Task, ...]:
    """Independent tasks t0, t1, ... with these training rates."""
    return tuple(Task(f"t{number}", rate) for number, rate in enumerate(rates))


def make_schema(
    tasks: tuple[Task, ...] = tasks_with_rates(0.3, 0.1, 0.02),
    fields: tuple[Field, ...] = FIELDS,
    truth: tuple[str, ...] = (),
) -> Schema:
    """A schema with two fields of each kind and three tasks, unless specified otherwise."""
    return Schema(fields, tasks, truth)


def make_batch(schema: Schema, rows: int, seed: int = 0, longest_bag: int = 4) -> Batch:
    """Random rows; about one bag in ``longest_bag + 1`` is empty, and half of the labels are positive."""
    rng = np.random.default_rng(seed)
    offsets = schema.offsets

    def draw(field: Field, shape: int) -> np.ndarray:
        return offsets[field.name] + rng.integers(0, field.vocab_size, shape)

    def draw_sequence(lists: list[Field]) -> Sequence:
        of_rows = rng.integers(0, longest_bag + 1, rows)
        ids = np.stack([draw(field, int(of_rows.sum())) for field in lists], 1)
        return Sequence(torch.tensor(of_rows), torch.tensor(ids, dtype=torch.int32))

    single = [draw(field, rows) for field in schema.of_kind(Kind.ID)]
    bags = schema.of_kind(Kind.IDS)
    lengths = rng.integers(0, longest_bag + 1, (len(bags), rows))
    values = [draw(field, int(total)) for field, total in zip(bags, lengths.sum(1), strict=True)]
    bag_ids = np.concatenate(values) if values else np.zeros(0)
    numeric = rng.normal(size=(rows, len(schema.of_kind(Kind.NUMERIC))))
    return Batch(
        ids=torch.tensor(np.stack(single, 1) if single else np.zeros((rows, 0)), dtype=torch.int32),
        numeric=torch.tensor(numeric, dtype=torch.float32),
        bag_lengths=torch.tensor(lengths, dtype=torch.int64),
        bag_ids=torch.tensor(bag_ids, dtype=torch.int32),
        bag_weights=torch.tensor(rng.uniform(0.5, 2.0, len(bag_ids)), dtype=torch.float32),
        labels=torch.tensor(rng.integers(0, 2, (rows, len(schema.tasks))), dtype=torch.float32),
        truth=torch.tensor(rng.uniform(0.01, 0.99, (rows, len(schema.truth))), dtype=torch.float32),
        sequences=tuple(draw_sequence(lists) for lists in schema.sequences.values()),
        vectors=tuple(
            torch.tensor(rng.normal(size=(rows, field.size)) * (rng.random((rows, 1)) > 0.2), dtype=torch.float32)
            for field in schema.of_kind(Kind.VECTOR)
        ),
    )


def wave(seed: int, *shape: int) -> torch.Tensor:
    """float64 numbers that any library can make again: sin(seed + 1.7 i), row by row."""
    return torch.sin(seed + 1.7 * torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)
