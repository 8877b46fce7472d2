"""Counts the ids of a split that has just been written, including those of its user groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dlen.data.columns import Array
from dlen.data.ragged import field_of_values, places_of
from dlen.data.scratch import read_flat
from dlen.schema import Field, Kind, Schema

_PIECE = 1 << 22  # values counted at a time
_ROWS = 1 << 16  # rows whose lists are counted at a time
_SAMPLE = 1 << 20  # rows whose sequences are looked at, evenly spaced


def count_ids(folder: Path, split: str, group: str | None, schema: Schema) -> dict[str, Array]:
    """(vocab_size,) occurrences of each id of a field in the rows of a split, by field; without sequences.

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
    borrowed = {f.name: _of_field(folder, split, f, schema) for f in schema.fields if f.share and not f.sequence}
    for name, counts in borrowed.items():
        totals[schema.rows(name)] -= counts
    return {f.name: totals[schema.rows(f.name)] for f in schema.owners if not f.sequence} | borrowed


def unknown_shares(occurrences: Mapping[str, Array]) -> dict[str, float]:
    """For each id field, the share of values that are unknown or absent."""
    return {name: float(counts[0] / max(counts.sum(), 1)) for name, counts in occurrences.items()}


def unknown_in_sequences(folder: Path, split: str, schema: Schema, widths: Mapping[str, int]) -> dict[str, float]:
    """For each stored list of a sequence, the share of values that are unknown, over up to 2^20 rows of a split.

    Args:
        widths: number of stored lists by sequence; the list of gaps is not stored, and never unknown.
    """
    shares: dict[str, float] = {}
    for place, (name, lists) in enumerate(schema.sequences.items()):
        start, length = (
            read_flat(folder, split, part).reshape(-1, len(schema.sequences))[:, place]
            for part in ("sequence_start", "sequence_length")
        )
        codes = read_flat(folder, f"sequences/{name}", "values").reshape(-1, widths[name])
        unknown, total = np.zeros(widths[name], np.int64), 0
        rows = np.unique(np.linspace(0, max(len(start) - 1, 0), min(len(start), _SAMPLE)).astype(np.int64))
        for first in range(0, len(rows), _ROWS):
            seen = codes[places_of(*(part[rows[first : first + _ROWS]] for part in (start, length)))]
            unknown, total = unknown + (seen == 0).sum(0), total + len(seen)
        of_lists = zip(lists, unknown.tolist(), strict=False)
        shares |= {field.name: count / max(total, 1) for field, count in of_lists}
    return shares


def _of_field(folder: Path, split: str, field: Field, schema: Schema) -> Array:
    """(vocab_size,) occurrences of the ids of one field that shares those of another."""
    place = schema.of_kind(field.kind).index(field)
    counts = np.zeros(field.vocab_size, np.int64)
    if field.kind is Kind.ID:
        ids = read_flat(folder, split, "ids").reshape(-1, len(schema.of_kind(Kind.ID)))[:, place]
        _add(counts, ids, first=schema.offsets[field.name])
        return counts
    lengths = read_flat(folder, split, "bag_lengths").reshape(-1, len(schema.of_kind(Kind.IDS)))
    starts, bag_ids = read_flat(folder, split, "bag_start"), read_flat(folder, split, "bag_ids")
    for first in range(0, len(lengths), _ROWS):
        of_rows = lengths[first : first + _ROWS]
        values = bag_ids[starts[first] : starts[first + len(of_rows)]]
        _add(counts, values[field_of_values(of_rows) == place], first=schema.offsets[field.name])
    return counts


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


def _add(totals: Array, ids: Array, weight_of: Callable[[Array], Array] | None = None, *, first: int = 0) -> None:
    """Count ids from ``first``, weighted by ``weight_of`` their position, in pieces: ``ids`` may exceed the memory."""
    step = max(len(totals), _PIECE)
    for start in range(0, len(ids), step):
        piece = ids[start : start + step]
        weights = None if weight_of is None else weight_of(np.arange(start, start + len(piece)))
        totals += np.bincount(piece - first, weights, len(totals)).astype(np.int64)
