"""Metrics of probabilities: logloss, normalised entropy, calibration ratio and calibration error."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from dlen.metrics.functional import BINS, equal_mass_calibration_error, equal_mass_groups, log_odds_bin
from dlen.nn.logspace import log_odds


class LogLoss(Metric):
    """Mean cross entropy of K targets, in nats."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    rows: Tensor

    def __init__(self, num_targets: int) -> None:
        super().__init__()
        for name in ("total", "rows"):
            self.add_state(name, default=torch.zeros(num_targets, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_p: Tensor, log_q: Tensor, labels: Tensor, mask: Tensor) -> None:
        """Add rows: (N, K) log P(y=1), log P(y=0), labels 0 or 1 and mask of rows that count."""
        nll = torch.where(labels.bool(), -log_p, -log_q) * mask
        self.total += nll.detach().double().sum(0)
        self.rows += mask.double().sum(0)

    def compute(self) -> Tensor:
        """Return (K,) float64; nan without rows."""
        return self.total / torch.where(self.rows > 0, self.rows, torch.nan)


class NormalizedEntropy(LogLoss):
    """Logloss of K targets divided by that of always predicting the split's positive rate (He et al. 2014, equation 3).

    1 is as good as the rate alone, 0 is perfect. Unlike logloss, it is comparable across tasks with different rates.
    """

    positives: Tensor

    def __init__(self, num_targets: int) -> None:
        super().__init__(num_targets)
        self.add_state("positives", default=torch.zeros(num_targets, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_p: Tensor, log_q: Tensor, labels: Tensor, mask: Tensor) -> None:
        """Add rows, with the arguments of :class:`LogLoss`."""
        super().update(log_p, log_q, labels, mask)
        self.positives += (labels * mask).double().sum(0)

    def compute(self) -> Tensor:
        """Return (K,) float64; nan if one class is absent."""
        rate = self.positives / self.rows
        entropy = -(torch.xlogy(rate, rate) + torch.xlogy(1 - rate, 1 - rate))
        return super().compute() / torch.where(entropy > 0, entropy, torch.nan)


class CalibrationRatio(Metric):
    """Sum of probabilities over number of positives, for K targets: 1 is calibrated, 2 predicts twice too many."""

    full_state_update = False
    predicted: Tensor
    observed: Tensor

    def __init__(self, num_targets: int) -> None:
        super().__init__()
        for name in ("predicted", "observed"):
            self.add_state(name, default=torch.zeros(num_targets, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_p: Tensor, labels: Tensor, mask: Tensor) -> None:
        """Add rows: (N, K) log P(y=1), labels 0 or 1 and mask of rows that count."""
        self.predicted += (log_p.detach().double().exp() * mask).sum(0)
        self.observed += (labels * mask).double().sum(0)

    def compute(self) -> Tensor:
        """Return (K,) float64; nan without positives."""
        return self.predicted / torch.where(self.observed > 0, self.observed, torch.nan)


class CalibrationError(Metric):
    """Expected calibration error of K targets over groups of equal size. Memory: 6 MiB per target, independent of rows.

    Args:
        groups: number of groups of equal size.
    """

    higher_is_better = False
    full_state_update = False
    counts: Tensor
    predicted: Tensor
    observed: Tensor

    def __init__(self, num_targets: int, groups: int = 20) -> None:
        super().__init__()
        self.num_targets, self.groups = num_targets, groups
        for name in ("counts", "predicted", "observed"):
            zeros = torch.zeros(num_targets, BINS, dtype=torch.float64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(self, log_p: Tensor, labels: Tensor, mask: Tensor) -> None:
        """Add rows: (N, K) log P(y=1), labels 0 or 1 and mask of rows that count."""
        log_p = log_p.detach()
        target = torch.arange(self.num_targets, device=log_p.device)
        where = (target * BINS + log_odds_bin(log_odds(log_p))).flatten()
        weight = mask.double()
        for state, value in (
            (self.counts, weight),
            (self.predicted, log_p.double().exp() * weight),
            (self.observed, labels * weight),
        ):
            state.view(-1).scatter_add_(0, where, value.flatten())

    def compute(self) -> Tensor:
        """Return (K,) float64; nan without rows."""
        columns = zip(self.counts, self.predicted, self.observed, strict=True)
        return torch.stack([equal_mass_calibration_error(*column, self.groups) for column in columns])

    def reliability(self) -> Tensor:
        """(K, 3, groups) float64 sums of rows, probabilities and labels over all processes."""
        with self.sync_context():
            columns = zip(self.counts, self.predicted, self.observed, strict=True)
            return torch.stack([equal_mass_groups(*column, self.groups) for column in columns])
