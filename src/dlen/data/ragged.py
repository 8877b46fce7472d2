"""Converts (row, field, id, value) entries, as raw logs list them, to the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dlen.data.columns import Array, Columns


class Keep(StrEnum):
    """Which values to keep if a list is truncated."""

    HEAVIEST = "heaviest"  # ties keep the first
    FIRST = "first"
    LAST = "last"


ABSENT = -1  # marks a missing single-valued field before encoding


@dataclass(slots=True)
class Entries:
    """L values of a chunk of n rows.

    Attributes:
        rows: n, the number of rows.
        row: (L,) row of each value, non-decreasing within a field.
        field: (L,) field index.
        ids: (L,) raw id.
        values: (L,) weight.
    """

    rows: int
    row: Array
    field: Array
    ids: Array
    values: Array


def heaviest(row: Array, values: Array, lengths: Array, cap: int) -> Array:
    """Indices of the ``cap`` heaviest values of each row, heaviest first if a row is truncated; ties keep their order.

    Args:
        row: (L,) row of each value, non-decreasing.
        values: (L,) weights.
        lengths: (n,) number of values in each row.
        cap: number of values to keep.
    """
    if lengths.max(initial=0) <= cap:
        return np.arange(len(row))
    cut = lengths[row] > cap
    order = np.arange(len(row))
    long = order[cut]
    # The bits of a positive float increase with it, and those of a negative float decrease, so one stable integer sort
    # by row and descending weight suffices. It runs in numpy because torch's threads would compete with the parser
    # threads. Rows stay contiguous, so the sorted values fit back into the same positions.
    bits = (values[long].astype(np.float32) + 0.0).view(np.int32).astype(np.int64)
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order[cut] = long[((row[long].astype(np.int64) << 32) - rising).argsort(kind="stable")]
    return order[_rank(row, lengths) < cap]


def _rank(row: Array, lengths: Array) -> Array:
    """(L,) number of values before each value in its row."""
    rank: Array = np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row]
    return rank


def kept_values(row: Array, values: Array, lengths: Array, cap: int, keep: Keep) -> Array:
    """Indices of the values to keep in each row. Arguments as for :func:`heaviest`."""
    if keep is Keep.HEAVIEST or lengths.max(initial=0) <= cap:
        return heaviest(row, values, lengths, cap)
    rank = _rank(row, lengths)
    return np.flatnonzero(rank < cap if keep is Keep.FIRST else rank >= lengths[row] - cap)


def to_columns(
    entries: Entries,
    single: Sequence[int],
    bags: Sequence[int],
    caps: Sequence[int],
    keep: Sequence[Keep] | None = None,
) -> Columns:
    """Split entries by field and truncate the multi-valued ones.

    Args:
        entries: entries of n rows.
        single: indices of the S single-valued fields. If a value is repeated, the first one is used.
        bags: indices of the M multi-valued fields.
        caps: (M,) maximum number of values per row for each multi-valued field.
        keep: (M,) which values to keep. Default: the heaviest.

    Returns:
        Columns with raw ids, and :data:`ABSENT` for missing single-valued fields.
    """
    n = entries.rows
    ids = np.full((n, len(single)), ABSENT, np.int32)
    for column, field in enumerate(single):
        where = np.flatnonzero(entries.field == field)[::-1]  # reversed, so the first value is written last
        ids[entries.row[where], column] = entries.ids[where]
    lengths = np.zeros((n, len(bags)), np.int64)
    kept = []
    for column, (field, cap, which) in enumerate(zip(bags, caps, keep or [Keep.HEAVIEST] * len(caps), strict=True)):
        where = np.flatnonzero(entries.field == field)
        row = entries.row[where]
        full = np.bincount(row, minlength=n)
        kept.append(where[kept_values(row, entries.values[where], full, cap, which)])
        lengths[:, column] = np.minimum(full, cap)
    starts = (np.cumsum(lengths) - lengths.ravel()).reshape(lengths.shape)
    total = int(lengths.sum())
    bag_ids, weights = np.empty(total, np.int32), np.empty(total, np.float32)
    for column, where in enumerate(kept):
        to = places_of(starts[:, column], lengths[:, column])
        bag_ids[to], weights[to] = entries.ids[where], entries.values[where]
    return Columns(ids, np.zeros((n, 0), np.float32), lengths.astype(np.int16), bag_ids, weights)


def places_of(start: Array, length: Array) -> Array:
    """(L,) places of n ranges, one after the other, from the (n,) start and length of each."""
    length = length.astype(np.int64)
    places: Array = np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())
    return places


def field_of_values(lengths: Array) -> Array:
    """(n, M) bag lengths -> (L,) index of the field of each value."""
    n, m = lengths.shape
    return np.repeat(np.tile(np.arange(m, dtype=np.int16), n), lengths.ravel())


def rows_of_values(lengths: Array) -> Array:
    """(n, M) bag lengths -> (L,) index of the row of each value."""
    return np.repeat(np.arange(len(lengths)), lengths.sum(axis=1, dtype=np.int64))


def select_rows(columns: Columns, mask: Array) -> Columns:
    """The rows for which ``mask`` (n,) is true."""
    values = np.repeat(mask, columns.values_per_row())
    return Columns(
        columns.ids[mask],
        columns.numeric[mask],
        columns.bag_lengths[mask],
        columns.bag_ids[values],
        columns.bag_weights[values],
        None if columns.places is None else columns.places.select(mask),
        None if columns.vectors is None else columns.vectors[mask],
    )
