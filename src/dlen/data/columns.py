"""Rows of a table in memory, and the arrays that hold them on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlen.schema import Kind

Array = NDArray[Any]
FORMAT = 8  # of a store; 5: sequences, vectors, weights; 6: label patterns; 7: rates without counts; 8: shards
Part = dict[str, Any]  # an entry of "shards" in store.json, or one like it for what lies beside them
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
SPLIT_ARRAYS = {
    "labels": "u1",
    "group": "<i4",
    "truth": "<f4",
    "users": "<i4",
    "weights": "<f4",
    "values": "<f4",
    "views": "u1",
}
# Where the sequences of a split's rows lie among the values of the sequence, and the time of each row.
PLACE_ARRAYS = {"sequence_start": "<i8", "sequence_length": "<i2", "sequence_when": "<f8"}
SEQUENCE_ARRAYS = {"values": "<i4", "when": "<f8"}  # of a sequence: codes of its lists, times
GAP_BUCKETS = 32  # ids of the time between a value of a sequence and its row, without the one for unknown
VECTOR_ARRAYS = {"vectors": "<i4"}  # of a split: which of the stored vectors of each field a row has


@dataclass(slots=True)
class Places:
    """Where the Q sequences of n rows lie: each is a range of the values of its sequence.

    Attributes:
        start: (n, Q) int64 first value.
        length: (n, Q) int16 number of values.
        when: (n, Q) float64 time of the row, for the time between a value and the row; 0 without one.
    """

    start: Array
    length: Array
    when: Array

    @classmethod
    def stack(cls, parts: list[Places]) -> Places:
        """Put sequences of the same rows next to each other; at least one."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts], 1) for name in ("start", "length", "when")))

    def select(self, mask: Array) -> Places:
        """The rows for which ``mask`` (n,) is true."""
        return Places(self.start[mask], self.length[mask], self.when[mask])


@dataclass(slots=True)
class Columns:
    """Some rows of one table in memory, row-major: all bags of row 0, then all bags of row 1.

    Attributes:
        ids: (n, S) int32 row indices into the embedding table.
        numeric: (n, K) float32 numeric features.
        bag_lengths: (n, M) int16 number of values in each bag.
        bag_ids: (L,) int32 row indices into the embedding table.
        bag_weights: (L,) float32 weights.
        places: where the rows' sequences lie; None without sequences.
        vectors: (n, X) int32 row of each vector field's vector among those stored, 0 for a missing one; None without
            vector fields.
    """

    ids: Array
    numeric: Array
    bag_lengths: Array
    bag_ids: Array
    bag_weights: Array
    places: Places | None = None
    vectors: Array | None = None

    @classmethod
    def of_ids(cls, ids: Array) -> Columns:
        """Rows that have single-valued ids (n, S) only."""
        nothing = np.zeros((len(ids), 0))
        return cls(ids, nothing, nothing.astype(np.int16), nothing.ravel(), nothing.ravel())

    def values_per_row(self) -> Array:
        """(n,) int64 number of ragged values in each row."""
        lengths: Array = self.bag_lengths.sum(axis=1, dtype=np.int64)
        return lengths
