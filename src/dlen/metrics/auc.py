"""AUC, exact or with constant memory, and the gain over a base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from dlen.metrics.functional import (
    BINS,
    exact_auc,
    exact_roc,
    for_each_target,
    histogram_auc,
    histogram_roc,
    log_odds_bin,
)


class ExactAUC(Metric):
    """Exact area under the ROC curve of K targets. Memory: 9 bytes per row and target.

    Example:
        >>> auc = ExactAUC(1)
        >>> auc.update(torch.tensor([[0.1], [0.4], [0.35], [0.8]]), torch.tensor([[0], [0], [1], [1]]))
        >>> auc.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor]

    def __init__(self, num_targets: int) -> None:
        super().__init__()
        self.num_targets = num_targets
        for name in ("scores", "labels", "masks"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> None:
        """Add rows: (N, K) scores on any monotone scale, (N, K) labels 0 or 1, (N, K) mask of rows that count."""
        self.scores.append(scores.detach())
        self.labels.append(labels.bool())
        self.masks.append(torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all processes; a process without rows contributes empty tensors of the right shape."""
        if not self.scores:
            self.update(*(torch.zeros(0, self.num_targets, device=self.device) for _ in range(2)))
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """Return (K,) float64; nan if one class is absent."""
        return torch.stack(self._for_each_target(exact_auc))

    def roc(self, points: int) -> list[Tensor]:
        """The K curves of :func:`~dlen.metrics.functional.exact_roc` over all processes."""
        with self.sync_context():
            return self._for_each_target(lambda scores, labels: exact_roc(scores, labels, points))

    def _for_each_target(self, measure: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        """Call ``measure`` with the scores and labels of each target's rows that count."""
        scores, labels, masks = (dim_zero_cat(x) for x in (self.scores, self.labels, self.masks))
        return for_each_target(measure, masks, scores, labels)


class HistogramAUC(Metric):
    """Area under the ROC curve of K targets from histograms of log-odds. Memory: 4 MiB per target, independent of rows.

    Sums over processes are exact. The only error compared with :class:`ExactAUC` is that scores which differ by less
    than 0.00015 in log-odds may count as ties.

    Example:
        >>> auc = HistogramAUC(1)
        >>> auc.update(torch.tensor([[-2.0], [-0.4], [-0.6], [1.4]]), torch.tensor([[0], [0], [1], [1]]))
        >>> auc.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, num_targets: int) -> None:
        super().__init__()
        self.num_targets = num_targets
        zeros = torch.zeros(num_targets, 2, BINS, dtype=torch.int64)
        self.add_state("counts", default=zeros, dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> None:
        """Add rows: (N, K) log-odds, (N, K) labels 0 or 1, (N, K) mask of rows that count."""
        target = torch.arange(self.num_targets, device=scores.device)
        where = (target * 2 + labels.long()) * BINS + log_odds_bin(scores.detach())
        weight = torch.ones_like(where) if mask is None else mask.long()
        self.counts.view(-1).scatter_add_(0, where.flatten(), weight.flatten())

    def compute(self) -> Tensor:
        """Return (K,) float64; nan if one class is absent."""
        return histogram_auc(self.counts[:, 0], self.counts[:, 1])

    def roc(self, points: int) -> list[Tensor]:
        """The K curves of :func:`~dlen.metrics.functional.histogram_roc` over all processes."""
        with self.sync_context():
            return [histogram_roc(negatives, positives, points) for negatives, positives in self.counts]


class MTLGain(Metric):
    """AUC of each target minus the base model's AUC, and the mean gain, as in the paper's tables.

    Args:
        auc: AUC metric to compare; its state is the state of this metric.
        base: (K,) AUCs of the base model; nan if undefined.
    """

    higher_is_better = True
    full_state_update = False

    def __init__(self, auc: ExactAUC | HistogramAUC, base: Sequence[float]) -> None:
        super().__init__()
        self.auc = auc
        self.register_buffer("base", torch.tensor(base, dtype=torch.float64), persistent=False)
        self.base: Tensor

    def update(self, scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> None:
        """Add rows to the wrapped metric."""
        self.auc.update(scores, labels, mask)

    def compute(self) -> Tensor:
        """Return (K + 1,): K gains, then the mean of the defined gains."""
        gain = self.auc.compute() - self.base
        return torch.cat([gain, gain.nanmean()[None]])

    def reset(self) -> None:
        """Discard all rows."""
        super().reset()
        self.auc.reset()
