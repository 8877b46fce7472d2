"""Paired statistics of two models: Student's t over seeds, with DeLong's variance over the rows of a test split.

Two sources of variance are estimated separately. Another seed trains other weights: this variance is measured over
runs. Another test split has other rows: this variance is estimated from the rows. A difference is clear if zero is
outside the interval that combines both. This needs two seeds: one seed has no information about seed variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

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

    @property
    def starred(self) -> str:
        """The mean, with a star if it is clear of zero."""
        return f"{self.mean:+.4f}{'*' if self.clear else ''}"

    @property
    def interval(self) -> str:
        """The interval in brackets."""
        return f"[{self.low:+.4f}, {self.high:+.4f}]"


def paired(model: Sequence[float], base: Sequence[float], row_variance: float = math.nan) -> Difference:
    """Mean difference of paired metrics, with an interval over seeds and rows.

    With one seed the interval uses only the row variance; without a row variance it uses only the seeds.

    Args:
        model: one value per seed.
        base: values of the base model, in the same order of seeds.
        row_variance: DeLong variance of the mean difference, see :func:`~dlen.comparing.delong.row_variances`.
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


def next_seed(values: Sequence[float]) -> tuple[float, float]:
    """The interval that holds the metric of one more seed with a probability of 95 %, if metrics are normal.

    Args:
        values: one value per seed.

    Returns:
        mean -+ t s sqrt(1 + 1 / n), with s the standard deviation of the n values; nan for one seed.
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = float(np.mean(values))
    half = _quantile(n - 1) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)
    return mean - half, mean + half


@cache
def _quantile(freedom: float) -> float:
    """Upper quantile of Student's t at ``LEVEL`` (two-sided), of the normal distribution for infinite freedom."""
    from scipy import stats  # takes as long to import as everything else that a report needs

    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))
