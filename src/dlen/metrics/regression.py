"""Metrics of regression tasks: errors in the unit of the label, and how well predictions order the rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from dlen.metrics.functional import EXACT_ROWS, for_each_target


class RegressionErrors(Metric):
    """RMSE, MAE, XAUC and Spearman's rank correlation of R regression tasks.

    XAUC is the share of pairs of rows with different labels that the predictions order rightly; a pair with equal
    predictions counts one half (Zhan et al. 2022). It is .5 by chance and 1 at best, like the AUC.

    RMSE and MAE are of all rows. XAUC and Spearman's correlation are exact up to ``most`` rows in each process. Beyond,
    every 2^k-th row is kept, at least half of ``most``, which bounds the memory to 9 bytes per kept row and task.

    Args:
        num_tasks: number of tasks R.
        most: number of rows to keep in each process; None for all.
    """

    full_state_update = False
    squares: Tensor
    absolutes: Tensor
    rows: Tensor
    predicted: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor]

    def __init__(self, num_tasks: int, most: int | None = EXACT_ROWS) -> None:
        super().__init__()
        self.num_tasks, self.most = num_tasks, most
        self._step, self._seen, self._kept = 1, 0, 0
        for name in ("squares", "absolutes", "rows"):
            self.add_state(name, default=torch.zeros(num_tasks, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("predicted", "labels", "masks"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, labels: Tensor, mask: Tensor) -> None:
        """Add rows: (N, R) predictions and labels in the unit of the label, (N, R) mask of rows that count."""
        counted = mask.bool()
        error = torch.where(counted, predicted.detach().double() - labels.double(), 0.0)
        self.squares += error.square().sum(0)
        self.absolutes += error.abs().sum(0)
        self.rows += counted.double().sum(0)
        first = -self._seen % self._step
        self._seen += len(labels)
        self.predicted.append(predicted.detach()[first :: self._step])
        self.labels.append(labels[first :: self._step])
        self.masks.append(counted[first :: self._step])
        self._kept += len(self.masks[-1])
        while self.most is not None and self._kept > self.most:
            for name in ("predicted", "labels", "masks"):
                setattr(self, name, [torch.cat(getattr(self, name))[::2]])
            self._step, self._kept = 2 * self._step, len(self.masks[0])

    def reset(self) -> None:
        """Discard all rows."""
        super().reset()
        self._step, self._seen, self._kept = 1, 0, 0

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all processes; a process without rows contributes empty tensors of the right shape."""
        if not self.masks:
            self.update(*(torch.zeros(0, self.num_tasks, device=self.device) for _ in range(3)))
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """Return (R, 4) float64 in the order of :data:`~dlen.metric_names.MEASURES`; nan if undefined."""
        rows = torch.where(self.rows > 0, self.rows, torch.nan)
        predicted, labels, masks = (dim_zero_cat(part) for part in (self.predicted, self.labels, self.masks))
        found = for_each_target(lambda p, y: torch.stack([xauc(p, y), spearman(p, y)]), masks, predicted, labels)
        ranks = torch.stack(found).to(rows.device)
        return torch.cat([torch.stack([(self.squares / rows).sqrt(), self.absolutes / rows], 1), ranks], 1)


def xauc(predicted: Tensor, labels: Tensor) -> Tensor:
    """Share of pairs with different labels that the predictions order rightly, equal predictions counting one half.

    Args:
        predicted: (N,) predictions on any monotone scale.
        labels: (N,) labels.

    Returns:
        Scalar float64; nan if all labels are equal. Time N (log N)^2, memory of a few (N,) int64.
    """
    p, y = (torch.unique(values, return_inverse=True)[1] for values in (predicted, labels))
    if not len(y):
        return torch.tensor(torch.nan, dtype=torch.float64)
    most = int(p.max()) + 1
    # By rising label; with equal labels by falling prediction, so that none of their pairs rises.
    order = torch.argsort(y * most + (most - 1 - p))
    rising = _rising_pairs(p[order], most)
    equal_labels, equal_both = _equal_pairs(y), _equal_pairs(y * most + p)
    only_predictions = _equal_pairs(p) - equal_both
    pairs = len(y) * (len(y) - 1) // 2 - equal_labels
    share = (rising + only_predictions / 2) / pairs if pairs else math.nan
    return torch.tensor(share, dtype=torch.float64)


def _equal_pairs(codes: Tensor) -> int:
    """Number of pairs of equal integers."""
    counts = torch.unique(codes, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _rising_pairs(codes: Tensor, most: int) -> int:
    """Number of pairs i < j with codes[i] < codes[j], for integers from 0 to most - 1.

    Two integers differ first in one bit. Sorted stably by the bits above it, a pair is within one block, and rises if
    its earlier element has a 0 there and its later one a 1.
    """
    count = 0
    for bit in reversed(range(max(most - 1, 1).bit_length())):
        block, one = codes >> (bit + 1), (codes >> bit) & 1
        zeros = torch.cat([one.new_zeros(1), (1 - one).cumsum(0)])  # before each place
        start = torch.searchsorted(block, block)
        count += int((one * (zeros[:-1] - zeros[start])).sum())
        codes = codes[torch.argsort(codes >> bit, stable=True)]
    return count


def spearman(predicted: Tensor, labels: Tensor) -> Tensor:
    """Spearman's rank correlation of (N,) predictions and labels; equal values share their mean rank.

    Returns:
        Scalar float64; nan if either is constant.
    """
    ranks = torch.stack([_ranks(predicted), _ranks(labels)])
    centred = ranks - ranks.mean(1, keepdim=True)
    norms = centred.square().sum(1).sqrt().prod()
    return (centred.prod(0).sum() / torch.where(norms > 0, norms, torch.nan)).cpu()


def _ranks(values: Tensor) -> Tensor:
    """(N,) float64 mean rank of each value."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts.double() - 1) / 2)[place]
