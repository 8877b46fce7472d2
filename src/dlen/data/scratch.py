"""Reads tables that a :class:`TableWriter` has closed, before their folder has a ``store.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlen.data.columns import PLACE_ARRAYS, SEQUENCE_ARRAYS, SPLIT_ARRAYS, TABLE_ARRAYS, Array, Columns
from dlen.schema import Kind

_DTYPES = {part: dtype for part, (dtype, _) in TABLE_ARRAYS.items()} | SPLIT_ARRAYS | PLACE_ARRAYS | SEQUENCE_ARRAYS


@dataclass(slots=True)
class ScratchTable:
    """A memory-mapped table as numpy arrays."""

    columns: Columns
    bag_start: Array

    def rows(self, first: int, last: int) -> Columns:
        """Rows ``first`` to ``last`` - 1."""
        start, end = self.bag_start[first], self.bag_start[last]
        c = self.columns
        return Columns(
            c.ids[first:last],
            c.numeric[first:last],
            c.bag_lengths[first:last],
            c.bag_ids[start:end],
            c.bag_weights[start:end],
        )


def read_flat(folder: Path, table: str, part: str) -> Array:
    """One array as a flat vector, memory-mapped; empty if nothing was written."""
    path, dtype = folder / table / f"{part}.bin", _DTYPES[part]
    return np.memmap(path, dtype, "c") if path.exists() else np.zeros(0, dtype)


def read_scratch(folder: Path, table: str, counts: Mapping[Kind, int]) -> ScratchTable:
    """Open a table or split; ``counts`` is the number of its fields by kind."""
    arrays = {part: read_flat(folder, table, part) for part in TABLE_ARRAYS}
    bag_start = arrays.pop("bag_start")
    for part, values in arrays.items():
        kind = TABLE_ARRAYS[part][1]
        if kind is not None:
            arrays[part] = values.reshape(len(bag_start) - 1, counts[kind])
    ids, numeric, bag_lengths, bag_ids, bag_weights = arrays.values()
    return ScratchTable(Columns(ids, numeric, bag_lengths, bag_ids, bag_weights), bag_start)
