"""Rows of a table in memory, and the arrays that hold them on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlen.schema import Kind

Array = NDArray[Any]
MISSING = 255  # a label that is not in the log
# Arrays of a table: type on disk, and the kind of the fields that are its columns; None for one value per element.
TABLE_ARRAYS: dict[str, tuple[str, Kind | None]] = {
    "ids": ("<i4", Kind.ID),
    "numeric": ("<f4", Kind.NUMERIC),
    "bag_lengths": ("<i2", Kind.IDS),
    "bag_start": ("<i8", None),
    "bag_ids": ("<i4", None),
    "bag_weights": ("<f4", None),
}
# Further arrays of a split, with their type on disk.
SPLIT_ARRAYS = {"labels": "u1", "group": "<i4", "truth": "<f4", "users": "<i4", "weights": "<f4", "values": "<f4"}


@dataclass(slots=True)
class Columns:
    """Some rows of one table in memory, row-major: all bags of row 0, then all bags of row 1.

    Attributes:
        ids: (n, S) int32 row indices into the embedding table.
        numeric: (n, K) float32 numeric features.
        bag_lengths: (n, M) int16 number of values in each bag.
        bag_ids: (L,) int32 row indices into the embedding table.
        bag_weights: (L,) float32 weights.
    """

    ids: Array
    numeric: Array
    bag_lengths: Array
    bag_ids: Array
    bag_weights: Array

    @classmethod
    def of_ids(cls, ids: Array) -> Columns:
        """Rows that have single-valued ids (n, S) only."""
        nothing = np.zeros((len(ids), 0))
        return cls(ids, nothing, nothing.astype(np.int16), nothing.ravel(), nothing.ravel())

    def values_per_row(self) -> Array:
        """(n,) int64 number of ragged values in each row."""
        lengths: Array = self.bag_lengths.sum(axis=1, dtype=np.int64)
        return lengths
