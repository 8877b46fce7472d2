"""DeLong's variance of AUC differences over the rows of a test split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlen.metrics.functional import BINS, EXACT_ROWS, log_odds_bin

Floats = NDArray[np.float64]
Array = NDArray[Any]
_CHUNK = 1 << 18


class Placements:
    """Rank of each score within the other class, the building block of DeLong's variance.

    Args:
        scores: (N,) log-odds.
        labels: (N,) 0 or 1.
        mask: (N,) non-zero for rows that count.
        exact: distinguish all scores (memory N) instead of using histogram bins.
    """

    def __init__(self, scores: Array, labels: Array, mask: Array, *, exact: bool) -> None:
        self.edges = np.unique(scores[mask != 0]) if exact else None
        bins = len(self.edges) if self.edges is not None else BINS
        counts = np.zeros((2, bins))
        for part in _chunks(len(scores)):
            code, kept = self._code(np.asarray(scores[part])), np.asarray(mask[part]) != 0
            for label in (0, 1):
                counts[label] += np.bincount(code[kept & (np.asarray(labels[part]) == label)], minlength=bins)
        self.negatives, self.positives = counts.sum(1)
        self.auc = math.nan
        if not self.defined:
            return
        below = (counts.cumsum(1) - counts / 2) / np.maximum(counts.sum(1, keepdims=True), 1)
        self.auc = float((counts[1] * below[0]).sum() / self.positives)
        # Centred, and scaled so that the sum of squares over the rows is DeLong's variance of the AUC.
        self.of_positive = (below[0] - self.auc) / math.sqrt(self.positives * (self.positives - 1))
        self.of_negative = ((1 - below[1]) - self.auc) / math.sqrt(self.negatives * (self.negatives - 1))

    @property
    def defined(self) -> bool:
        """Whether each class has at least two rows."""
        return min(self.negatives, self.positives) > 1

    def _code(self, scores: Array) -> NDArray[np.int64]:
        if self.edges is None:
            return log_odds_bin(torch.from_numpy(np.ascontiguousarray(scores))).numpy()
        return np.minimum(np.searchsorted(self.edges, scores), max(len(self.edges) - 1, 0))

    def influence(self, scores: Array, labels: Array, mask: Array) -> Floats:
        """(n,) influence of each row on the AUC; the squares over all rows add up to its variance."""
        code = self._code(scores)
        pull = np.where(labels != 0, self.of_positive[code], self.of_negative[code])
        return np.where(mask != 0, pull, 0.0)


def row_variances(model: Sequence[Array], base: Sequence[Array], labels: Array, mask: Array, tasks: int) -> Floats:
    """Variance over test rows of the mean AUC difference between two models that scored the same rows.

    Uses DeLong's estimate for correlated ROC curves (DeLong et al. 1988; Sun and Xu 2014), for the difference averaged
    over seeds. Exact up to 2^18 rows; beyond that with histogram bins and constant memory.

    Args:
        model: (N, K) log-odds of each seed, memory-mapped or not.
        base: the same for the base model.
        labels: (N, K) 0 or 1.
        mask: (N, K) non-zero for rows that count.
        tasks: number of leading targets that are tasks and enter the mean.

    Returns:
        (K + 1,) variances, the last one for the mean over tasks; nan where a target is undefined.
    """
    rows, targets = labels.shape
    exact = rows <= EXACT_ROWS
    sides = [(1.0 / len(model), model), (-1.0 / len(base), base)]
    total = np.zeros(targets + 1)
    tables: list[list[tuple[float, Array, Placements]]] = []
    for k in range(targets):
        tables.append(
            [
                (weight, scores[:, k], Placements(scores[:, k], labels[:, k], mask[:, k], exact=exact))
                for weight, group in sides
                for scores in group
            ]
        )
    defined = np.array([all(p.defined for *_, p in column) for column in tables])
    counted = defined[:tasks]
    for part in _chunks(rows):
        pulls = np.zeros((part.stop - part.start, targets))
        for k in np.flatnonzero(defined).tolist():
            for weight, scores, placements in tables[k]:
                pulls[:, k] += weight * placements.influence(scores[part], labels[part, k], mask[part, k])
        total[:-1] += (pulls**2).sum(0)
        total[-1] += (pulls[:, :tasks].sum(1) ** 2).sum() / max(counted.sum(), 1) ** 2
    total[:-1][~defined] = np.nan
    if not counted.any():
        total[-1] = np.nan
    return total


def _chunks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _CHUNK):
        yield slice(start, min(start + _CHUNK, rows))
