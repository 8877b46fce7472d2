"""Vocabularies: the known raw ids of a field, from counts over the training rows, and their encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]
PENDING = 1 << 22  # counts held before they are merged


def enough_to_merge(new: int, merged: int) -> bool:
    """Whether there are enough new entries to merge them with those that were merged before.

    There must be as many of them, so that each entry is merged a few times, however many chunks or pieces follow.
    """
    return new > max(PENDING, merged)


class IdCounter:
    """Counts integer ids over any number of chunks, in memory proportional to the number of distinct ids."""

    def __init__(self) -> None:
        self._ids: list[Ints] = []
        self._counts: list[Ints] = []
        self._pending = self._merged = 0

    def add(self, ids: Ints, weights: Ints | None = None) -> None:
        """Count a chunk; ``weights`` (n,) is how often each entry counts. Negative ids mean absent."""
        present = ids >= 0
        ids = ids[present]
        if weights is None:
            distinct, counts = np.unique(ids, return_counts=True)
        else:
            distinct, inverse = np.unique(ids, return_inverse=True)
            counts = np.bincount(inverse, weights[present], len(distinct)).astype(np.int64)
        self._ids.append(distinct)
        self._counts.append(counts)
        self._pending += len(distinct)
        if enough_to_merge(self._pending, self._merged):
            self.result()

    def result(self) -> tuple[Ints, Ints]:
        """Distinct ids in ascending order, and their counts."""
        if not self._ids:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        ids, inverse = np.unique(np.concatenate(self._ids), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate(self._counts), len(ids)).astype(np.int64)
        self._ids, self._counts, self._pending, self._merged = [ids], [counts], 0, len(ids)
        return ids, counts


class IdVocabulary:
    """The known ids of one field. The i-th known id in ascending order is encoded as i + 1, any other id as 0.

    Args:
        ids: the known ids in ascending order.
    """

    def __init__(self, ids: Ints) -> None:
        self.ids = ids

    def __len__(self) -> int:
        """Number of codes, including the one for unknown ids."""
        return len(self.ids) + 1

    def encode(self, raw: Ints) -> Ints:
        """Encode raw ids of any shape."""
        if not len(self.ids):
            return np.zeros(raw.shape, np.int32)
        where = np.searchsorted(self.ids, raw)
        where[where == len(self.ids)] = 0
        return np.where(self.ids[where] == raw, where + 1, 0).astype(np.int32)
