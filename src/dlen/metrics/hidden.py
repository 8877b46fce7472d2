"""Metrics of DLEN's hidden state: its distribution, and its interpretation of negative labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 50  # bins in the histogram of P(UP)
PATTERNS = ("no interaction", "interaction", "dislike")
NEGATIVES = ("other", "silent", "detest")
_SATURATED = 0.01


def negative_kinds(negative: Tensor, other: Tensor, up: Tensor) -> Tensor:
    """Split the negatives of each task into the paper's three kinds (its section on conflicts between tasks).

    A negative in a row where another task is positive follows from the labels. Each remaining negative counts as
    silent liking with probability ``up``, and as detest otherwise.

    Args:
        negative: (B, T) 1 where a row is a negative of a task.
        other: (B, T) 1 where another task of the row is positive.
        up: (B,) P(UP | all labels, x), or the hidden state itself if it is known.

    Returns:
        (T, 3) expected numbers of rows, in the order of :data:`NEGATIVES`.
    """
    quiet = (negative * (1 - other)).double()
    return torch.stack([(negative * other).double().sum(0), up.double() @ quiet, (1 - up.double()) @ quiet], 1)


class Together(Metric):
    """How often both tasks of a pair happen, beside how often the model expects it, in constant memory.

    Args:
        pairs: number of pairs P.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.add_state("sums", default=torch.zeros(3, pairs, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, happened: Tensor, probability: Tensor, known: Tensor) -> None:
        """Add rows.

        Args:
            happened: (B, P) 1 where both tasks happened.
            probability: (B, P) the model's probability of it.
            known: (B, P) 1 where the labels tell it.
        """
        p, weight = probability.double(), known.double()
        self.sums += torch.stack([(happened * weight).sum(0), (p * weight).sum(0), (p * (1 - p) * weight).sum(0)])

    def compute(self) -> Tensor:
        """(3, P) observed number of rows, expected number, and the standard deviation of the observed one."""
        observed, expected, variance = self.sums
        return torch.stack([observed, expected, variance.sqrt()])


class HiddenState(Metric):
    """Distribution of P(UP), leak of each task, and the three kinds of negatives, in constant memory.

    Args:
        relations: (T, T) 1 where a positive of the column's task explains a negative of the row's task.
    """

    full_state_update = False
    counts: Tensor
    moments: Tensor
    given: Tensor
    kinds: Tensor
    true_kinds: Tensor

    def __init__(self, relations: Tensor) -> None:
        super().__init__()
        self.register_buffer("relations", relations.float(), persistent=False)
        self.relations: Tensor
        tasks = len(relations)
        for name, shape in (
            ("counts", (len(PATTERNS), BINS)),
            ("moments", (4,)),
            ("given", (tasks, 2)),
            ("kinds", (tasks, len(NEGATIVES))),
            ("true_kinds", (tasks, len(NEGATIVES))),
        ):
            self.add_state(name, default=torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        up: Tensor,
        posterior: Tensor,
        given: Tensor,
        labels: Tensor,
        mask: Tensor,
        pattern: Tensor,
        prefers: Tensor | None = None,
    ) -> None:
        """Add rows.

        Args:
            up: (B,) P(UP).
            posterior: (B,) P(UP | all labels, x).
            given: (B, T, 2) P(t | UP) and P(t | not UP).
            labels: (B, T) 0 or 1.
            mask: (B, T) 1 where a row counts for a task.
            pattern: (B,) index into :data:`PATTERNS`.
            prefers: (B,) true hidden state; None if there is no simulator.
        """
        bin_ = (up * BINS).long().clamp(0, BINS - 1)
        ones = torch.ones_like(up, dtype=torch.float64)
        self.counts.view(-1).scatter_add_(0, pattern * BINS + bin_, ones)
        exact = up.double()
        saturated = ((exact < _SATURATED) | (exact > 1 - _SATURATED)).double()
        self.moments += torch.stack([ones.sum(), exact.sum(), exact.square().sum(), saturated.sum()])
        self.given += given.double().sum(0)
        negative, other = (1 - labels) * mask, (labels @ self.relations.T).clamp(max=1)
        self.kinds += negative_kinds(negative, other, posterior)
        if prefers is not None:
            self.true_kinds += negative_kinds(negative, other, prefers)

    def compute(self) -> dict[str, Tensor]:
        """Return all metrics by name.

        ``mean``, ``std``, ``saturated``, ``p10``, ``p50`` and ``p90`` describe P(UP). ``ratio`` (T,) is mean
        P(t | not UP) over mean P(t | UP). ``kinds`` and ``true_kinds`` (T, 3) are shares of the negatives, and
        ``counts`` (3, bins) is the histogram of P(UP).
        """
        _, mean, mean_square, saturated = self.moments / self.moments[0].clamp(min=1)
        figures = {
            "mean": mean,
            "std": (mean_square - mean.square()).clamp(min=0).sqrt(),
            "saturated": saturated,
            "ratio": self.given[:, 1] / self.given[:, 0],
            "kinds": self.kinds / self.kinds.sum(1, keepdim=True),
            "true_kinds": self.true_kinds / self.true_kinds.sum(1, keepdim=True),
            "counts": self.counts.clone(),
        }
        return figures | {f"p{q}": self._quantile(q / 100) for q in (10, 50, 90)}

    def _quantile(self, share: float) -> Tensor:
        """Quantile of P(UP), by linear interpolation within the histogram's bins."""
        counts = self.counts.sum(0)
        reached = counts.cumsum(0)
        wanted = share * reached[-1]
        where = int(torch.searchsorted(reached, wanted).clamp(max=BINS - 1))
        below = reached[where] - counts[where]
        return (where + (wanted - below) / counts[where].clamp(min=1)) / BINS
