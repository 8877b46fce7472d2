"""The formulas behind the metrics, as pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

EXACT_ROWS = 1 << 18  # up to this size all scores are kept: at most 2.3 MiB per target, no more than a histogram
BINS = 1 << 18
LIMIT = 20.0  # largest absolute log-odds of the bins: a probability of 2e-9


def for_each_target(measure: Callable[..., T], mask: Tensor, *columns: Tensor) -> list[T]:
    """Call ``measure`` for each target with the rows that count.

    Args:
        measure: function of one (M,) tensor per column.
        mask: (N, K) True for rows that count.
        columns: (N, K) tensors.

    Returns:
        The K results.
    """
    results = []
    for target in range(mask.shape[1]):
        rows = mask[:, target]
        results.append(measure(*(c[:, target] if bool(rows.all()) else c[rows, target] for c in columns)))
    return results


def ordered_integers(scores: Tensor) -> Tensor:
    """Map (N,) scores to (N,) int64 of 32 bits with the same order and ties, to be packed into sort keys.

    float32 scores map to their IEEE 754 bits. Other types map to their ranks.
    """
    if scores.dtype != torch.float32:
        return torch.unique(scores, return_inverse=True)[1]
    bits = (scores.contiguous() + 0.0).view(torch.int32)  # adding 0.0 turns -0.0 into 0.0
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()


def ends_of_runs(values: Tensor) -> Tensor:
    """Indices at which a value differs from the next one, including the last index. (N,) -> (M,) int64."""
    last = torch.ones_like(values[:1], dtype=torch.bool)
    return torch.cat([values[1:] != values[:-1], last]).nonzero()[:, 0]


def exact_auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve: P(score of a positive > score of a negative), with ties counting one half.

    Sorts integers that carry the label in their last bit, at a third of the cost of argsort and gathers.

    Args:
        scores: (N,) scores on any monotone scale.
        labels: (N,) 0 or 1.

    Returns:
        Scalar float64; nan if one class is absent. Time N log N, memory 32 bytes per row.
    """
    ranked = (ordered_integers(scores) << 1 | labels.long()).sort().values
    ends = ends_of_runs(ranked >> 1)  # ends of runs of equal scores
    positives = (ranked & 1).cumsum(0)[ends]
    negatives = ends + 1 - positives
    zero = ends.new_zeros(1)
    # A positive is above the negatives before its run and half of those within it: trapezoids under the curve.
    twice = (positives.diff(prepend=zero) * (negatives + torch.cat([zero, negatives[:-1]]))).sum().double()
    pairs = (positives[-1:] * negatives[-1:]).sum().double()
    return twice / 2 / torch.where(pairs > 0, pairs, torch.nan)


def histogram_auc(negatives: Tensor, positives: Tensor) -> Tensor:
    """AUC from counts of negatives and positives in bins of rising score; rows of one bin count as ties.

    Args:
        negatives: (..., bins) counts.
        positives: (..., bins) counts.

    Returns:
        (...) float64; nan if one class is absent.
    """
    negatives, positives = negatives.double(), positives.double()
    below = negatives.cumsum(-1) - negatives / 2
    pairs = negatives.sum(-1) * positives.sum(-1)
    return (positives * below).sum(-1) / torch.where(pairs > 0, pairs, torch.nan)


def auc_weight(positives: float, negatives: float, spread: float = 0.03) -> float:
    """Weight of a task's AUC in a mean that compares models: 1 / (spread^2 + variance of the AUC).

    These are the weights of a random effects mean (DerSimonian and Laird 1986). Tasks whose AUC is much more precise
    than ``spread`` count equally; a less precise task counts less, with 40 positives a third. The default is the
    standard deviation of a task's validation AUC over a training run. The variance is that of the rank sum test,
    (P + N + 1) / (12 P N), which does not depend on the AUC.

    Args:
        positives: number of positives P.
        negatives: number of negatives N.
        spread: standard deviation of the AUC differences of interest.

    Returns:
        A weight up to 1 / spread^2; 0 if one class is absent.
    """
    if positives <= 0 or negatives <= 0:
        return 0.0
    return 1 / (spread**2 + (positives + negatives + 1) / (12 * positives * negatives))


def mean_of_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not nan; nan without any."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def log_odds_bin(log_odds: Tensor) -> Tensor:
    """Assign log-odds to bins 0..BINS-1 of equal width; values beyond ±LIMIT fall into the outermost bins.

    Equal width in log-odds resolves scores near 0.0002 as finely as scores near one half: to 0.00015, far below the
    noise of any estimate. nan falls into the lowest bin.
    """
    scaled = (log_odds.float() + LIMIT) * (BINS / (2 * LIMIT))
    return scaled.nan_to_num(0.0).clamp(0, BINS - 1).long()


def equal_mass_groups(counts: Tensor, predicted: Tensor, observed: Tensor, groups: int) -> Tensor:
    """Aggregate fine bins of rising score into groups of equal size.

    Groups of equal width would put every row of a rare task into one group.

    Args:
        counts: (bins,) numbers of rows.
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
    """Expected calibration error over groups of equal size. Takes the arguments of :func:`equal_mass_groups`.

    Returns:
        A scalar, the mean over rows of |mean probability - positive rate| of their group; nan without rows.
    """
    rows, probabilities, labels = equal_mass_groups(counts, predicted, observed, groups)
    total = rows.sum()
    return (probabilities - labels).abs().sum() / torch.where(total > 0, total, torch.nan)


def exact_roc(scores: Tensor, labels: Tensor, points: int) -> Tensor:
    """The exact ROC curve, thinned.

    Args:
        scores: (N,) scores on any monotone scale.
        labels: (N,) 0 or 1.
        points: maximum number of points, at least 2.

    Returns:
        (2, P) float64 false positive and true positive rates at falling thresholds, from (0, 0) to (1, 1); (2, 0) if
        one class is absent.
    """
    ranked = (ordered_integers(scores) << 1 | labels.long()).sort().values.flip(0)
    ends = ends_of_runs(ranked >> 1)
    positives = (ranked & 1).cumsum(0)[ends]
    return _thinned(torch.stack([ends + 1 - positives, positives]), points)


def histogram_roc(negatives: Tensor, positives: Tensor, points: int) -> Tensor:
    """Like :func:`exact_roc`, from (bins,) counts of negatives and positives in bins of rising score."""
    cumulated = torch.stack([negatives, positives]).flip(1).cumsum(1)
    changes = ends_of_runs(cumulated.sum(0))
    return _thinned(cumulated[:, changes], points)


def _thinned(cumulated: Tensor, points: int) -> Tensor:
    """(2, M) cumulative counts of negatives and positives -> curve points at about equal steps along the curve."""
    if not cumulated.shape[1] or bool((cumulated[:, -1] == 0).any()):
        return cumulated.new_zeros(2, 0, dtype=torch.float64)
    zero = cumulated.new_zeros(2, 1)
    shares = torch.cat([zero, cumulated], 1).double()
    shares = shares / shares[:, -1:]
    steps = torch.linspace(0, 2, points, dtype=torch.float64, device=shares.device)
    along = shares.sum(0)
    chosen = torch.searchsorted(along, steps).clamp(max=len(along) - 1)
    return shares[:, torch.unique(chosen)]
