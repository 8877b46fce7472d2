"""The formulas behind the metrics, as pure functions over tensors."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_ROWS = 1_000_000  # up to here every score is kept: at most 9 MB for each target
BINS = 1 << 18
LIMIT = 20.0  # log-odds at which the outermost bins begin: probabilities of 2e-9


def exact_auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties counting one half.

    Args:
        scores: (N,) any monotone score.
        labels: (N,) 0 or 1.

    Returns:
        Scalar float64; nan if one class is absent. Time N log N, memory 24 bytes a row.
    """
    order = scores.argsort()
    ranked, positive = scores[order], labels[order].double()
    _, group = torch.unique_consecutive(ranked, return_inverse=True)
    size = int(group[-1]) + 1 if len(group) else 0
    positives = positive.new_zeros(size).index_add_(0, group, positive)
    negatives = positive.new_zeros(size).index_add_(0, group, 1 - positive)
    return histogram_auc(negatives, positives)


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


def log_odds_bin(log_odds: Tensor) -> Tensor:
    """Bins of equal width in log-odds, 0..BINS-1; what lies beyond ±LIMIT joins the outermost bins.

    Equal widths in log-odds give scores crowded near 0.0002 the same resolution as scores near one half: 0.00015,
    far finer than the noise of any estimate. What is not a number joins the lowest bin.
    """
    scaled = (log_odds.float() + LIMIT) * (BINS / (2 * LIMIT))
    return scaled.nan_to_num(0.0).clamp(0, BINS - 1).long()


def equal_mass_calibration_error(counts: Tensor, predicted: Tensor, observed: Tensor, groups: int) -> Tensor:
    """Expected calibration error over groups of equal size, from sums in fine bins of rising score.

    Fixed-width groups put every row of a rare task into one group; equal mass does not.

    Args:
        counts: (bins,) rows.
        predicted: (bins,) sums of probabilities.
        observed: (bins,) sums of labels.
        groups: number of groups.

    Returns:
        Scalar: mean over rows of |mean probability - share of positives| of their group; nan without rows.
    """
    total = counts.sum()
    if total == 0:
        return torch.full((), torch.nan, dtype=torch.float64, device=counts.device)
    middle = counts.cumsum(0).double() - counts / 2
    group = (middle * groups / total).long().clamp(0, groups - 1)
    gap = predicted.new_zeros(groups).index_add_(0, group, predicted - observed)
    return gap.abs().sum() / total
