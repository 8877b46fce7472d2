"""Buckets of roughly equal size for numbers, robust to repeated values."""

from __future__ import annotations

import numpy as np

from dlen.data.columns import Array


def bucket_edges(values: Array, buckets: int) -> Array:
    """Compute bucket edges so that buckets have roughly equal size even if values repeat.

    A value more frequent than the size of a bucket gets its own bucket. The other buckets share the remaining rows, as
    in the compressed histograms of Poosala et al. (1996). With plain quantiles, several edges would coincide on such a
    value and leave a single bucket for everything else.

    Args:
        values: (n,) sorted in ascending order, n > 0.
        buckets: maximum number of buckets, at least 1.

    Returns:
        (m - 1,) ascending edges of m buckets, where m is ``buckets``, or the number of distinct values if that is
        smaller. A number x is in bucket ``searchsorted(edges, x, side="right")``.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= buckets:
        return distinct[1:]
    heavy = np.zeros(len(distinct), bool)
    while True:
        left = buckets - heavy.sum()
        more = ~heavy & (counts * max(left, 1) > counts[~heavy].sum())
        if not more.any() or left <= 1:
            break
        heavy |= more
    return _edges_between(distinct, counts, heavy, buckets)


def _edges_between(distinct: Array, counts: Array, heavy: Array, buckets: int) -> Array:
    """Edges with one bucket for each heavy value and equal shares of each run of values between them."""
    begins = np.flatnonzero(np.append(True, heavy[1:] | heavy[:-1]))  # starts of heavy values and runs
    while len(begins) > buckets:  # more runs than buckets: merge the lightest into the previous bucket
        rows = np.add.reduceat(counts, begins)
        begins = np.delete(begins, 1 + np.argmin(rows[1:]))
    ends = np.append(begins[1:], len(distinct))
    rows, sizes, parts = np.add.reduceat(counts, begins), ends - begins, np.ones(len(begins), np.int64)
    for _ in range(buckets - len(begins)):  # assign each further bucket to the fullest run (D'Hondt)
        parts[np.argmax(np.where(parts < sizes, rows / parts, -1))] += 1
    cuts = [begin + _cuts(counts[begin:end], int(n)) for begin, end, n in zip(begins, ends, parts, strict=True)]
    return distinct[np.concatenate(cuts)[1:]]


def _cuts(counts: Array, parts: int) -> Array:
    """(parts,) start positions that split ``counts`` into parts of about equal sum."""
    total, cuts = np.cumsum(counts), [0]
    for left in range(parts, 1, -1):
        done = total[cuts[-1] - 1] if cuts[-1] else 0
        wanted = done + (total[-1] - done) / left
        place = int(np.searchsorted(total, wanted)) + 1  # first position at which the part is full
        short = place > 1 and wanted - total[place - 2] < total[place - 1] - wanted
        cuts.append(min(max(place - short, cuts[-1] + 1), len(counts) - left + 1))
    return np.array(cuts)
