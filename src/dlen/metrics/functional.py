"""The formulas behind the metrics, as pure functions over tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

EXACT_ROWS = 1 << 18  # up to here every score is kept: at most 2.3 MiB for each target, and a histogram is no smaller
BINS = 1 << 18
LIMIT = 20.0  # log-odds at which the outermost bins begin: probabilities of 2e-9


def for_each_target(measure: Callable[..., T], mask: Tensor, *columns: Tensor) -> list[T]:
    """Call ``measure`` with the rows of each target that count.

    Args:
        measure: takes one (M,) tensor for each of ``columns``.
        mask: (N, K) rows that count.
        columns: (N, K) each.

    Returns:
        K results.
    """
    found = []
    for k in range(mask.shape[1]):
        rows = mask[:, k]
        found.append(measure(*(c[:, k] if bool(rows.all()) else c[rows, k] for c in columns)))
    return found


def ordered_integers(scores: Tensor) -> Tensor:
    """(N,) scores -> (N,) int64 of 32 bits in the same order, equal where the scores are, to sort with something else.

    Floats of 32 bits become their own bits, as IEEE 754 arranges them; of other types it is the rank that counts.
    """
    if scores.dtype != torch.float32:
        return torch.unique(scores, return_inverse=True)[1]
    bits = (scores.contiguous() + 0.0).view(torch.int32)  # the sum makes -0.0 equal to 0.0
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()


def ends_of_runs(values: Tensor) -> Tensor:
    """Where a value differs from the one after it; the last always does. (N,) -> (M,) int64."""
    last = torch.ones_like(values[:1], dtype=torch.bool)
    return torch.cat([values[1:] != values[:-1], last]).nonzero()[:, 0]


def exact_auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties counting one half.

    One sort of integers that carry the label in their last bit, which costs a third of an argsort and its gathers.

    Args:
        scores: (N,) any monotone score.
        labels: (N,) 0 or 1.

    Returns:
        Scalar float64; nan if one class is absent. Time N log N, memory 32 bytes a row.
    """
    ranked = (ordered_integers(scores) << 1 | labels.long()).sort().values
    ends = ends_of_runs(ranked >> 1)  # of the rows with one score
    positives = (ranked & 1).cumsum(0)[ends]
    negatives = ends + 1 - positives
    zero = ends.new_zeros(1)
    # Each positive is above the negatives before its run and half of those in it: the trapezoids under the curve.
    twice = (positives.diff(prepend=zero) * (negatives + torch.cat([zero, negatives[:-1]]))).sum().double()
    pairs = (positives[-1:] * negatives[-1:]).sum().double()
    return twice / 2 / torch.where(pairs > 0, pairs, torch.nan)


def histogram_auc(negatives: Tensor, positives: Tensor) -> Tensor:
    """AUC from counts of negatives and positives at rising scores; the rows of one bin count as ties.

    Args:
        negatives: (..., bins) counts.
        positives: (..., bins) counts.

    Returns:
        (...) float64; nan where one class is absent.
    """
    negatives, positives = negatives.double(), positives.double()
    below = negatives.cumsum(-1) - negatives / 2
    pairs = negatives.sum(-1) * positives.sum(-1)
    return (positives * below).sum(-1) / torch.where(pairs > 0, pairs, torch.nan)


def auc_weight(positives: float, negatives: float, spread: float = 0.03) -> float:
    """What a task's AUC counts in a mean that has to tell models apart: 1 / (spread^2 + variance of the AUC).

    These are the weights of a random effects mean (DerSimonian and Laird 1986). Tasks whose AUC is known far better
    than ``spread`` count alike, and one that is known worse counts less: with 40 positives, a third. The default is the
    deviation of a task's validation AUC over a training.
    The variance is that of the rank sum test, (P + N + 1) / (12 P N), which does not depend on the AUC.

    Args:
        positives: P.
        negatives: N.
        spread: standard deviation of the differences of AUC that are to be seen.

    Returns:
        A weight up to 1 / spread^2; 0 if one class is absent.
    """
    if positives <= 0 or negatives <= 0:
        return 0.0
    return 1 / (spread**2 + (positives + negatives + 1) / (12 * positives * negatives))


def log_odds_bin(log_odds: Tensor) -> Tensor:
    """Bins of equal width in log-odds, 0..BINS-1; what lies beyond ±LIMIT joins the outermost bins.

    Equal widths in log-odds give scores crowded near 0.0002 the same resolution as scores near one half: 0.00015,
    far finer than the noise of any estimate. What is not a number joins the lowest bin.
    """
    scaled = (log_odds.float() + LIMIT) * (BINS / (2 * LIMIT))
    return scaled.nan_to_num(0.0).clamp(0, BINS - 1).long()


def equal_mass_groups(counts: Tensor, predicted: Tensor, observed: Tensor, groups: int) -> Tensor:
    """Sums over groups of equal size, from sums in fine bins of rising score.

    Fixed-width groups put every row of a rare task into one group; equal mass does not.

    Args:
        counts: (bins,) rows.
        predicted: (bins,) sums of probabilities.
        observed: (bins,) sums of labels.
        groups: number of groups G.

    Returns:
        (3, G) float64 sums of rows, probabilities and labels; zero without rows.
    """
    middle = counts.cumsum(0).double() - counts / 2
    group = (middle * groups / counts.sum().clamp(min=1)).long().clamp(0, groups - 1)
    sums = torch.stack([counts, predicted, observed]).double()
    return sums.new_zeros(3, groups).index_add_(1, group, sums)


def equal_mass_calibration_error(counts: Tensor, predicted: Tensor, observed: Tensor, groups: int) -> Tensor:
    """Expected calibration error over the groups of :func:`equal_mass_groups`, whose arguments it has.

    Returns:
        Scalar: mean over rows of |mean probability - share of positives| of their group; nan without rows.
    """
    rows, probabilities, labels = equal_mass_groups(counts, predicted, observed, groups)
    total = rows.sum()
    return (probabilities - labels).abs().sum() / torch.where(total > 0, total, torch.nan)


def exact_roc(scores: Tensor, labels: Tensor, points: int) -> Tensor:
    """The ROC curve from every score, thinned.

    Args:
        scores: (N,) any monotone score.
        labels: (N,) 0 or 1.
        points: at most this many, from 2.

    Returns:
        (2, P) float64 shares of the negatives and of the positives at or above falling thresholds, from (0, 0) to
        (1, 1); (2, 0) if one class is absent.
    """
    ranked = (ordered_integers(scores) << 1 | labels.long()).sort().values.flip(0)
    ends = ends_of_runs(ranked >> 1)
    positives = (ranked & 1).cumsum(0)[ends]
    return _thinned(torch.stack([ends + 1 - positives, positives]), points)


def histogram_roc(negatives: Tensor, positives: Tensor, points: int) -> Tensor:
    """As :func:`exact_roc`, from (bins,) counts of negatives and positives at rising scores."""
    cumulated = torch.stack([negatives, positives]).flip(1).cumsum(1)
    changes = ends_of_runs(cumulated.sum(0))
    return _thinned(cumulated[:, changes], points)


def _thinned(cumulated: Tensor, points: int) -> Tensor:
    """(2, M) rising counts of negatives and positives -> the corners nearest to equal steps along the curve."""
    if not cumulated.shape[1] or bool((cumulated[:, -1] == 0).any()):
        return cumulated.new_zeros(2, 0, dtype=torch.float64)
    zero = cumulated.new_zeros(2, 1)
    shares = torch.cat([zero, cumulated], 1).double()
    shares = shares / shares[:, -1:]
    steps = torch.linspace(0, 2, points, dtype=torch.float64, device=shares.device)
    along = shares.sum(0)
    chosen = torch.searchsorted(along, steps).clamp(max=len(along) - 1)
    return shares[:, torch.unique(chosen)]
