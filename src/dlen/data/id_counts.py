"""Counts the ids of a split that has just been written, including those of its user groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlen.data.columns import Array
from dlen.data.scratch import read_flat
from dlen.schema import Schema

_PIECE = 1 << 22  # values counted at a time


def count_ids(folder: Path, split: str, group: str | None, schema: Schema) -> Array:
    """(num_embeddings,) occurrences of each id in the rows of a split.

    Args:
        folder: folder of the arrays.
        split: name of the split.
        group: table that its rows are joined with; its ids count once for each row of the split.
        schema: schema of the ids.
    """
    totals = np.zeros(schema.num_embeddings, np.int64)
    _add_table(totals, folder, split)
    if group is not None:
        uses = np.zeros(_num_rows(folder, group), np.int64)
        _add(uses, read_flat(folder, split, "group"))
        _add_table(totals, folder, group, uses)
    return totals


def unknown_shares(occurrences: Array, schema: Schema) -> dict[str, float]:
    """For each id field, the share of values that are unknown or absent."""
    by_field = {f.name: occurrences[schema.rows(f.name)] for f in schema.fields if f.vocab_size}
    return {name: float(counts[0] / max(counts.sum(), 1)) for name, counts in by_field.items()}


def _num_rows(folder: Path, table: str) -> int:
    return len(read_flat(folder, table, "bag_start")) - 1


def _add_table(totals: Array, folder: Path, table: str, uses: Array | None = None) -> None:
    """Add the ids of a table's rows to ``totals``, weighting each row by ``uses``."""
    ids, bag_ids = read_flat(folder, table, "ids"), read_flat(folder, table, "bag_ids")
    if uses is None:
        _add(totals, ids)
        _add(totals, bag_ids)
        return
    singles = len(ids) // max(len(uses), 1)
    starts = read_flat(folder, table, "bag_start")
    _add(totals, ids, lambda place: uses[place // singles])
    _add(totals, bag_ids, lambda place: uses[np.searchsorted(starts, place, "right") - 1])


def _add(totals: Array, ids: Array, weight_of: Callable[[Array], Array] | None = None) -> None:
    """Count each id, weighted by ``weight_of`` its position. Runs in pieces because ``ids`` may exceed the memory."""
    step = max(len(totals), _PIECE)
    for start in range(0, len(ids), step):
        piece = ids[start : start + step]
        weights = None if weight_of is None else weight_of(np.arange(start, start + len(piece)))
        totals += np.bincount(piece, weights, len(totals)).astype(np.int64)
