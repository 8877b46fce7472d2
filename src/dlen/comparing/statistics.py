"""Paired statistics of two models: Student's t over seeds, DeLong's method over the rows of a test split.

Two sources of variance are estimated separately. Another seed trains other weights: this variance is measured over
runs. Another test split has other rows: this variance is estimated from the rows. A difference is clear if zero is
outside the interval that combines both. This needs two seeds: one seed has no information about seed variance.
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
_TURN = 0.06  # where the weight shifts from the rows to the few seeds, see `half_width`


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference between a model and the base model.

    Attributes:
        mean: mean over seeds.
        seeds: number of pairs.
        seed_error: standard error over seeds; nan for one seed.
        row_error: standard error over test rows of the mean difference; nan if no scores were kept.
        low: lower end of the 95 % interval that combines both errors.
        high: upper end of the 95 % interval.
    """

    mean: float
    seeds: int
    seed_error: float
    row_error: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero is outside the interval and there is more than one seed."""
        return self.seeds > 1 and (self.low > 0 or self.high < 0)


def paired(model: Sequence[float], base: Sequence[float], row_variance: float = math.nan) -> Difference:
    """Mean difference of paired metrics, with an interval over seeds and rows.

    With one seed the interval uses only the row variance; without a row variance it uses only the seeds.

    Args:
        model: one value per seed.
        base: values of the base model, in the same order of seeds.
        row_variance: DeLong variance of the mean difference, see :func:`row_variances`.
    """
    differences = np.asarray(model, np.float64) - np.asarray(base, np.float64)
    n = len(differences)
    mean = float(differences.mean())
    seed_variance = float(differences.var(ddof=1)) / n if n > 1 else math.nan
    half = half_width(seed_variance, n, row_variance)
    return Difference(mean, n, math.sqrt(seed_variance), math.sqrt(row_variance), mean - half, mean + half)


def half_width(seed_variance: float, seeds: int, row_variance: float) -> float:
    """Half-width of a 95 % interval for the sum of two normal sources, one with estimated and one with known variance.

    With s the variance from the seeds, r that from the rows, z and t the two quantiles and q = s / r, its square is

        z^2 (r + s) + (t^2 - z^2) s q^2 / (q^2 + .06).

    This is the normal interval where the rows dominate and Student's interval where the seeds do. In between it covers
    94.2 to 96.7 % at 2 seeds and 94.9 to 96.5 % from 3 seeds on, whatever the ratio (``bench/intervals.py``). Welch's
    and Satterthwaite's degrees of freedom, meant for more than a few seeds, cover 87 % at 2.

    Args:
        seed_variance: variance of the mean over seeds, estimated from them; nan for one seed.
        seeds: number of seeds.
        row_variance: variance from the rows; nan if unknown.

    Returns:
        The half-width; nan if neither variance is known.
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
    """Upper quantile of Student's t at ``LEVEL`` (two-sided), of the normal distribution for infinite freedom."""
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


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
