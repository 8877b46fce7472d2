"""Estimates how many ids a whole log has, and how often the rare ones occur, from a sample of blocks of its rows.

The number of blocks in which a rare id occurs is taken as Poisson distributed, with means that are gamma distributed
over the ids (Efron and Thisted 1976, "Estimating the number of unseen species"). A shape below 0 gives vocabularies
that grow like a power of the rows without end, one above 0 those that are exhausted. Blocks rather than rows are
counted, because rows next to each other share ids: in a log sorted by user, rows of a sample would suggest that nearly
all users have been seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from scipy.optimize import minimize
from scipy.special import gammaln

from dlen.data.columns import Array

_RARE = 10  # an id in more blocks than this is not rare: it counts as seen, and does not shape the estimate
_MOST = 100  # above this min_count, the counts of the sample are scaled instead


@dataclass(frozen=True, slots=True)
class _Fit:
    """The fitted distribution of the rare ids over the blocks of the sample.

    Attributes:
        shape: r of the gamma distribution, above -1.
        scale: mean number of blocks for each unit of it.
        once: fitted number of ids that occur in one block.
    """

    shape: float
    scale: float
    once: float

    def unseen(self, factor: float) -> float:
        """How many ids that are not in the sample a log has that is ``factor`` times as long."""
        growth = np.log((1 + factor * self.scale) / (1 + self.scale))
        exhausted = growth if abs(self.shape * growth) < 1e-9 else -np.expm1(-self.shape * growth) / self.shape
        return float(self.once * exhausted * (1 + self.scale) / self.scale)

    def in_blocks(self, most: int, factor: float) -> Array:
        """(most,) number of ids in 1, 2, ... blocks of that log."""
        blocks, r, scale = np.arange(1, most + 1), self.shape, self.scale
        logs = gammaln(blocks + r) - gammaln(1 + r) - gammaln(blocks + 1) + blocks * np.log(factor)
        logs += (blocks + r) * np.log(scale / (1 + factor * scale)) - (1 + r) * np.log(scale / (1 + scale))
        return self.once * np.exp(logs)


class IdEstimate:
    """The ids of one field in a log, from those in a sample of it.

    Args:
        counts: (value, block, count) for each id and block of the sample that has it.
        factor: how many times as many training rows the log has; 1 if the sample is all of it, and all is exact.
    """

    def __init__(self, counts: pl.DataFrame, factor: float) -> None:
        by_id = counts.group_by("value").agg(pl.len().alias("blocks"), pl.col("count").sum())
        self.factor, self.seen = max(factor, 1.0), len(by_id)
        # Ids that fill whole blocks, such as days of a log by time, follow each other: the log has no more of them than
        # changes from one to the next, of which a block has at least one less than it has ids
        self._most_unseen = self.factor * (len(counts) - counts["block"].n_unique())
        self._counts, self._blocks = by_id["count"].to_numpy(), by_id["blocks"].to_numpy()
        single = by_id.filter(pl.col("blocks") == 1)["count"].to_numpy()
        # Of the ids that are in one block, which are the rarest, how often each occurs there
        self._within = single if len(single) else np.ones(1, np.int64)

    @cached_property
    def total(self) -> int:
        """Ids in the training rows of the log."""
        return self.seen + round(min(self._fit.unseen(self.factor), self._most_unseen) if self._fit else 0)

    def left(self, min_count: int) -> int:
        """Ids that occur at least ``min_count`` times in the training rows of the log."""
        if self.factor == 1 or self._fit is None or min_count > _MOST:
            enough = int((self._counts * self.factor >= min_count).sum())
            return self.total if min_count == 1 else enough
        rarer = self._occurring(min_count - 1).sum()
        bound = min(self._most_unseen / max(self._fit.unseen(self.factor), 1.0), 1.0)
        return max(round(self.total - bound * rarer), 0)

    def _occurring(self, most: int) -> Array:
        """(most,) number of ids that occur 1, 2, ... times in the log."""
        assert self._fit is not None
        once = np.bincount(np.minimum(self._within, most + 1), minlength=most + 2)[: most + 1] / len(self._within)
        times, found = once, np.zeros(most + 1)  # share of ids in j blocks that occur 0, 1, ... times
        for number in self._fit.in_blocks(most, self.factor):
            found += number * times
            times = np.convolve(times, once)[: most + 1]
        return found[1:]

    @cached_property
    def _fit(self) -> _Fit | None:
        """Maximum likelihood over the rare ids, given that they are in 1 to 10 blocks; None if there is nothing new."""
        rare = np.bincount(self._blocks[self._blocks <= _RARE], minlength=_RARE + 1)[1:].astype(np.float64)
        if self.factor == 1 or not rare[0]:
            return None
        blocks = np.arange(1, _RARE + 1)

        def log_shares(parameters: Array) -> Array:
            r, odds = np.expm1(parameters[0]), parameters[1]
            logs = gammaln(blocks + r) - gammaln(1 + r) - gammaln(blocks + 1) - blocks * np.logaddexp(0, -odds)
            return np.asarray(logs - np.logaddexp.reduce(logs))

        limits = [(-5.0, 4.0), (-12.0, 12.0)]  # of log(1 + shape) and of the log of the scale
        starts = [np.array([first, second]) for first in (-1.0, 1.0) for second in (-3.0, 1.0)]
        found = [minimize(lambda p: -(rare @ log_shares(p)), start, bounds=limits) for start in starts]
        best = min(found, key=lambda result: float(result.fun)).x
        return _Fit(float(np.expm1(best[0])), float(np.exp(best[1])), float(rare.sum() * np.exp(log_shares(best)[0])))
