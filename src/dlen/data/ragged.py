"""From (row, field, id, value) entries, as raw logs list them, to the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlen.data.store import Columns

Array = NDArray[Any]


class Keep(StrEnum):
    """Which values stay of a list that is cut."""

    HEAVIEST = "heaviest"  # of equal weights the first
    FIRST = "first"
    LAST = "last"


ABSENT = -1  # a single-valued field without an entry, before encoding


@dataclass(slots=True)
class Entries:
    """L values of a chunk of n rows.

    Attributes:
        rows: n.
        row: (L,) row of each value, never falling within a field.
        field: (L,) number of its field.
        ids: (L,) raw id.
        values: (L,) weight.
    """

    rows: int
    row: Array
    field: Array
    ids: Array
    values: Array


def heaviest(row: Array, values: Array, lengths: Array, cap: int) -> Array:
    """Where the ``cap`` heaviest values of each row stand, heaviest first where a row is cut; ties keep their order.

    Args:
        row: (L,) row of each value, never falling.
        values: (L,) weights.
        lengths: (n,) values of each row.
        cap: how many to keep.
    """
    if lengths.max(initial=0) <= cap:
        return np.arange(len(row))
    cut = lengths[row] > cap
    order = np.arange(len(row))
    long = order[cut]
    # The bits of a positive float rise with it, and those of a negative one fall: one stable sort of integers, by row
    # and falling weight. In numpy, as torch's own threads would get in the way of those that parse. Rows stay together,
    # so the sorted values fall back into the same places.
    bits = (values[long].astype(np.float32) + 0.0).view(np.int32).astype(np.int64)
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order[cut] = long[((row[long].astype(np.int64) << 32) - rising).argsort(kind="stable")]
    return order[_rank(row, lengths) < cap]


def _rank(row: Array, lengths: Array) -> Array:
    """(L,) how many values of its row each value has before it."""
    rank: Array = np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row]
    return rank


def kept_values(row: Array, values: Array, lengths: Array, cap: int, keep: Keep) -> Array:
    """Where the values stand that stay of each row; arguments as :func:`heaviest`."""
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
    """Split entries by field and cap the multi-valued ones.

    Args:
        entries: of n rows.
        single: numbers of the S single-valued fields; of a repeated value the first counts.
        bags: numbers of the M multi-valued fields.
        caps: (M,) most values of each multi-valued field in one row.
        keep: (M,) which ones stay; by default the heaviest.

    Returns:
        Columns with raw ids, :data:`ABSENT` where a single-valued field has none.
    """
    n = entries.rows
    ids = np.full((n, len(single)), ABSENT, np.int32)
    for column, field in enumerate(single):
        where = np.flatnonzero(entries.field == field)[::-1]  # reversed, so that the first value is written last
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
        count = lengths[:, column]
        shift = starts[:, column] - (np.cumsum(count) - count)
        to = np.arange(len(where)) + np.repeat(shift, count)
        bag_ids[to], weights[to] = entries.ids[where], entries.values[where]
    return Columns(ids, np.zeros((n, 0), np.float32), lengths.astype(np.int16), bag_ids, weights)


def field_of_values(lengths: Array) -> Array:
    """(n, M) bag lengths -> (L,) which of the M fields each value belongs to."""
    n, m = lengths.shape
    return np.repeat(np.tile(np.arange(m, dtype=np.int16), n), lengths.ravel())


def rows_of_values(lengths: Array) -> Array:
    """(n, M) bag lengths -> (L,) which of the n rows each value belongs to."""
    return np.repeat(np.arange(len(lengths)), lengths.sum(axis=1, dtype=np.int64))


def select_rows(columns: Columns, mask: Array) -> Columns:
    """The rows where ``mask`` (n,) is true."""
    values = np.repeat(mask, columns.bag_lengths.sum(axis=1, dtype=np.int64))
    return Columns(
        columns.ids[mask],
        columns.numeric[mask],
        columns.bag_lengths[mask],
        columns.bag_ids[values],
        columns.bag_weights[values],
    )
