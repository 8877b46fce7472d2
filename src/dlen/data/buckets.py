"""Buckets of about equal size over numbers, whatever values repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def bucket_edges(values: Array, buckets: int) -> Array:
    """Where buckets of about equal size begin, though values repeat.

    A value that occurs more often than a bucket's share has a bucket of its own, and the others share out the remaining
    rows, as in the compressed histograms of Poosala et al. (1996). Plain quantiles fall together on such a value and
    leave a single bucket to all others.

    Args:
        values: (n,) in rising order, n > 0.
        buckets: how many, from 1.

    Returns:
        (m - 1,) rising edges of m buckets, where m is ``buckets``, or the number of distinct values if that is smaller.
        A number x lies in bucket ``searchsorted(edges, x, side="right")``.
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
    """Edges of a bucket for each heavy value, and of equal shares of each run of other values between them."""
    begins = np.flatnonzero(np.append(True, heavy[1:] | heavy[:-1]))  # of each heavy value and of each run
    while len(begins) > buckets:  # more runs than buckets are left: the lightest joins the bucket before it
        rows = np.add.reduceat(counts, begins)
        begins = np.delete(begins, 1 + np.argmin(rows[1:]))
    ends = np.append(begins[1:], len(distinct))
    rows, sizes, parts = np.add.reduceat(counts, begins), ends - begins, np.ones(len(begins), np.int64)
    for _ in range(buckets - len(begins)):  # each further bucket where they are fullest (D'Hondt)
        parts[np.argmax(np.where(parts < sizes, rows / parts, -1))] += 1
    cuts = [begin + _cuts(counts[begin:end], int(n)) for begin, end, n in zip(begins, ends, parts, strict=True)]
    return distinct[np.concatenate(cuts)[1:]]


def _cuts(counts: Array, parts: int) -> Array:
    """(parts,) where each of some parts begins that have about the same sum."""
    total, cuts = np.cumsum(counts), [0]
    for left in range(parts, 1, -1):
        done = total[cuts[-1] - 1] if cuts[-1] else 0
        wanted = done + (total[-1] - done) / left
        place = int(np.searchsorted(total, wanted)) + 1  # the first place at which the part is whole
        short = place > 1 and wanted - total[place - 2] < total[place - 1] - wanted
        cuts.append(min(max(place - short, cuts[-1] + 1), len(counts) - left + 1))
    return np.array(cuts)
