"""Label patterns: which labels of a row occur together, counted over the training rows when a log is prepared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from heapq import nlargest

import numpy as np
from numpy.typing import NDArray

MISSING_MARK = "-"  # of a label that is missing from the log, and of every regression task
_KEPT = 1024  # patterns; the most frequent ones
_DIGITS = 40  # tasks whose patterns fit a 64-bit code in base 3

Patterns = tuple[tuple[str, float], ...]


class PatternCounter:
    """Counts label patterns chunk by chunk. Its memory depends on the number of different patterns alone.

    Args:
        num_tasks: number of tasks T. Patterns of more than 40 tasks are not counted.

    Attributes:
        counts: weight of the rows with a pattern, by its number.
    """

    def __init__(self, num_tasks: int) -> None:
        self._factors = 3 ** np.arange(num_tasks, dtype=np.int64) if num_tasks <= _DIGITS else None
        self.counts: dict[int, float] = defaultdict(float)

    def add(self, labels: NDArray[np.uint8], weights: NDArray[np.float32] | None) -> None:
        """Count rows.

        Args:
            labels: (n, T) 0, 1, or any larger number for a missing label.
            weights: (n,) weights of the rows; None if all are 1.
        """
        if self._factors is None:
            return
        codes = np.minimum(labels, 2).astype(np.int64) @ self._factors
        found, place = np.unique(codes, return_inverse=True)
        for code, weight in zip(found.tolist(), np.bincount(place, weights).tolist(), strict=True):
            self.counts[code] += weight

    def merge(self, counts: Mapping[int, float]) -> None:
        """Add the counts of another counter of the same tasks. Sums of up to half a million weights are exact."""
        for code, weight in counts.items():
            self.counts[code] += weight

    def patterns(self, regressions: Iterable[int] = ()) -> Patterns:
        """The most frequent patterns, one character per task: 0, 1, or ``-`` if missing; with their weight.

        Args:
            regressions: indices of the regression tasks, whose labels are numbers and count as missing.
        """
        if self._factors is None:
            return ()
        merged: dict[str, float] = defaultdict(float)
        for code, weight in self.counts.items():
            marks = ["01-"[code // factor % 3] for factor in self._factors.tolist()]
            for index in regressions:
                marks[index] = MISSING_MARK
            merged["".join(marks)] += weight
        return tuple(
            (pattern, float(weight))
            for pattern, weight in sorted(nlargest(_KEPT, merged.items(), key=lambda found: found[1]))
            if weight > 0
        )
