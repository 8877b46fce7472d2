"""Paired statistics of two models: over seeds by Student's t, over the rows of a test split by DeLong's method.

Two sources of chance are kept apart. Another seed trains other weights: that spread is seen over runs. Another test
split has other rows: that spread is estimated from the rows themselves. A difference counts as clear when zero lies
outside the interval that joins both, which takes two seeds: one says nothing of what another would give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from dlen.metrics.functional import BINS, EXACT_ROWS, log_odds_bin

Floats = NDArray[np.float64]
Array = NDArray[Any]
_CHUNK = 1 << 18
LEVEL = 0.95
_TURN = 0.06  # where the few seeds take over from the rows, see `half_width`


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of a model from the base model.

    Attributes:
        mean: over seeds.
        seeds: number of pairs.
        seed_error: standard error over seeds; nan for one seed.
        row_error: standard error over test rows, of the seeds' mean difference; nan where no scores were kept.
        low: lower end of the 95 % interval that joins both.
        high: its upper end.
    """

    mean: float
    seeds: int
    seed_error: float
    row_error: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Zero lies outside the interval, and there was more than one seed to see their spread."""
        return self.seeds > 1 and (self.low > 0 or self.high < 0)


def paired(model: Sequence[float], base: Sequence[float], row_variance: float = math.nan) -> Difference:
    """Mean difference of paired figures with an interval over seeds and rows.

    With one seed only the rows speak; without row variance only the seeds.

    Args:
        model: a figure for each seed.
        base: the base model's, in the same order of seeds.
        row_variance: DeLong variance of the mean difference, see :func:`row_variances`.
    """
    differences = np.asarray(model, np.float64) - np.asarray(base, np.float64)
    n = len(differences)
    mean = float(differences.mean())
    seed_variance = float(differences.var(ddof=1)) / n if n > 1 else math.nan
    half = half_width(seed_variance, n, row_variance)
    return Difference(mean, n, math.sqrt(seed_variance), math.sqrt(row_variance), mean - half, mean + half)


def half_width(seed_variance: float, seeds: int, row_variance: float) -> float:
    """Half of a 95 % interval for a sum of two normal sources: one with an estimated variance, one with a known one.

    With s the variance from the seeds, r that from the rows, z and t the two quantiles and q = s / r, its square is

        z^2 (r + s) + (t^2 - z^2) s q^2 / (q^2 + .06),

    which is the normal interval where the rows decide, Student's where the seeds do, and between them covers 94.2 to
    96.7 % at 2 seeds and 94.9 to 96.5 % from 3 seeds on, whatever the ratio (``bench/intervals.py``). Welch's and
    Satterthwaite's degrees of freedom, which are meant for more than a few seeds, cover 87 % at 2.

    Args:
        seed_variance: of the mean over seeds, estimated from them; nan for one seed.
        seeds: how many there are.
        row_variance: of the rows; nan where it is not known.

    Returns:
        nan where neither is known.
    """
    normal = _quantile(math.inf)
    if math.isnan(seed_variance):
        return normal * math.sqrt(row_variance)
    student = _quantile(seeds - 1)
    if math.isnan(row_variance) or row_variance == 0:
        return student * math.sqrt(seed_variance)
    ratio = (seed_variance / row_variance) ** 2
    share = 1.0 if math.isinf(ratio) else ratio / (ratio + _TURN)
    return math.sqrt(normal**2 * (row_variance + seed_variance) + (student**2 - normal**2) * seed_variance * share)


@cache
def _quantile(freedom: float) -> float:
    """Student's, of half the chance that the interval leaves on each side; the normal one for infinite freedom."""
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


class Placements:
    """Where a score stands among the other class: the building block of DeLong's variance.

    Args:
        scores: (N,) log-odds.
        labels: (N,) 0 or 1.
        mask: (N,) rows that count.
        exact: tell all scores apart (memory N) instead of sorting them into histogram bins.
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
        """At least two rows of each class."""
        return min(self.negatives, self.positives) > 1

    def _code(self, scores: Array) -> NDArray[np.int64]:
        if self.edges is None:
            return log_odds_bin(torch.from_numpy(np.ascontiguousarray(scores))).numpy()
        return np.minimum(np.searchsorted(self.edges, scores), max(len(self.edges) - 1, 0))

    def influence(self, scores: Array, labels: Array, mask: Array) -> Floats:
        """(n,) how far each row pulls the AUC; the squares over all rows add up to its variance."""
        code = self._code(scores)
        pull = np.where(labels != 0, self.of_positive[code], self.of_negative[code])
        return np.where(mask != 0, pull, 0.0)


def row_variances(model: Sequence[Array], base: Sequence[Array], labels: Array, mask: Array, tasks: int) -> Floats:
    """Variance over test rows of the mean difference in AUC between two models that scored the same rows.

    DeLong's estimate for correlated curves (DeLong et al. 1988; Sun and Xu 2014), of the difference averaged over
    seeds. Up to 2^18 rows exactly, beyond with histogram bins and in constant memory.

    Args:
        model: for each seed (N, K) log-odds, memory-mapped or not.
        base: the base model's.
        labels: (N, K) 0 or 1.
        mask: (N, K) rows that count.
        tasks: the first so many targets are tasks and enter the mean.

    Returns:
        (K + 1,) variances, the last of the mean over tasks; nan where a target is undefined.
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
