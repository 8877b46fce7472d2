"""Ranking within each user's impressions: GAUC and NDCG@k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from dlen.metrics.functional import ends_of_runs, for_each_target, ordered_integers

NDCG_AT = 10
BY_USER_ROWS = 1_000_000  # largest split that is ranked within users by default


@dataclass(slots=True)
class UserFigures:
    """Per-user ranking metrics of one target.

    Attributes:
        gauc: mean AUC over users, weighted by their rows; users with only one class are excluded.
        ndcg: mean NDCG@k over users with a positive.
        users: number of users.
        left_out: number of users with only one class, who have no AUC.
    """

    gauc: float
    ndcg: float
    users: int
    left_out: int


def rank_by_user(scores: Tensor, labels: Tensor, users: Tensor, k: int = NDCG_AT) -> UserFigures:
    """GAUC (Zhou et al. 2018, DIN, equation 6) and NDCG@k (Järvelin and Kekäläinen 2002), without a loop over users.

    Ties count one half in the AUC and share their mean gain in the NDCG, as in scikit-learn.

    Args:
        scores: (N,) scores on any monotone scale.
        labels: (N,) 0 or 1.
        users: (N,) 31-bit integers.
        k: number of top positions in NDCG@k.

    Returns:
        The metrics; nan if undefined for all users. Time N log N.
    """
    # One integer sort: by user, then by falling score, with the label in the last bit.
    falling = 0x7FFFFFFF - ordered_integers(scores)  # starts at 0
    ranked = (users.long() << 33 | falling << 1 | labels.long()).sort().values
    ends = ends_of_runs(ranked >> 1)  # ends of blocks: rows of one user with equal scores
    zero = ends.new_zeros(1)
    size = (ends + 1).diff(prepend=zero)
    good = (ranked & 1).cumsum(0)[ends].diff(prepend=zero)
    last_blocks = ends_of_runs(ranked[ends] >> 33)  # last block of each user
    blocks = (last_blocks + 1).diff(prepend=zero)

    def by_user(values: Tensor) -> Tensor:
        return values.cumsum(0)[last_blocks].diff(prepend=values.new_zeros(1))

    def within(values: Tensor, totals: Tensor) -> Tensor:
        """Cumulative sums that restart with each user."""
        return values.cumsum(0) - (totals.cumsum(0) - totals).repeat_interleave(blocks)

    bad = size - good
    rows, goods, bads = by_user(size), by_user(good), by_user(bad)
    below = 2 * (bads.repeat_interleave(blocks) - within(bad, bads)) + bad  # twice the negatives below a positive
    pairs = goods * bads
    has_auc = pairs > 0
    auc = by_user(good * below)[has_auc].double() / (2 * pairs[has_auc])
    gauc = (auc * rows[has_auc]).sum() / rows[has_auc].sum()
    last = within(size, rows)  # position of the block's last row in the user's list
    discounts = _discounts(k, scores.device)

    def upto(places: Tensor) -> Tensor:
        return discounts[places.clamp(max=k)]

    dcg = by_user(good / size.double() * (upto(last) - upto(last - size)))
    liked = goods > 0
    ndcg = (dcg[liked] / upto(goods[liked])).mean()
    return UserFigures(float(gauc), float(ndcg), len(rows), int((~has_auc).sum()))


def _discounts(k: int, device: torch.device) -> Tensor:
    """(k + 1,) cumulative discounts: the DCG of n rows with gain 1 at the first n positions."""
    each = 1 / torch.arange(2, k + 2, dtype=torch.float64, device=device).log2()
    return torch.cat([each.new_zeros(1), each.cumsum(0)])


def graded_ndcg(scores: Tensor, gains: Tensor, users: Tensor, k: int = NDCG_AT) -> Tensor:
    """NDCG@k of each user, for graded gains. Ties share their mean gain, as in scikit-learn.

    Args:
        scores: (N,) scores on any monotone scale.
        gains: (N,) non-negative gains.
        users: (N,) 31-bit integers.
        k: number of top positions that count.

    Returns:
        (U,) float64 in ascending order of users; nan for users without any gain. Time N log N.
    """
    dcg, ideal = _dcg(scores, gains, users, k), _dcg(gains, gains, users, k)
    return dcg / torch.where(ideal > 0, ideal, torch.nan)


def _dcg(scores: Tensor, gains: Tensor, users: Tensor, k: int) -> Tensor:
    """(U,) DCG@k of each user."""
    key, order = (users.long() << 32 | 0x7FFFFFFF - ordered_integers(scores)).sort()
    ends = ends_of_runs(key)  # ends of blocks: rows of one user with equal scores
    zero = ends.new_zeros(1)
    size = (ends + 1).diff(prepend=zero)
    gain = gains[order].double().cumsum(0)[ends].diff(prepend=torch.zeros(1, dtype=torch.float64, device=key.device))
    last_blocks = ends_of_runs(key[ends] >> 32)  # last block of each user
    lists = (ends + 1)[last_blocks].diff(prepend=zero)  # number of rows of each user
    blocks = (last_blocks + 1).diff(prepend=zero)
    last = ends + 1 - (lists.cumsum(0) - lists).repeat_interleave(blocks)  # position of the block's last row
    discounts = _discounts(k, scores.device)
    each = gain / size * (discounts[last.clamp(max=k)] - discounts[(last - size).clamp(max=k)])
    return each.cumsum(0)[last_blocks].diff(prepend=each.new_zeros(1))


class ByUser(Metric):
    """GAUC and NDCG@k of K targets. Memory: 5 K + 8 bytes per row."""

    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor]
    users: list[Tensor]

    def __init__(self, num_targets: int) -> None:
        super().__init__()
        self.num_targets = num_targets
        for name in ("scores", "labels", "masks", "users"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor, mask: Tensor, users: Tensor) -> None:
        """Add rows: (N, K) scores, labels 0 or 1 and mask of rows that count, and (N,) users as 32-bit integers."""
        self.scores.append(scores.detach().float())
        self.labels.append(labels.bool())
        self.masks.append(mask.bool())
        self.users.append(users.int())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all processes; a process without rows contributes empty tensors of the right shape."""
        if not self.scores:
            empty = torch.zeros(0, self.num_targets, device=self.device)
            self.update(empty, empty, empty, torch.zeros(0, dtype=torch.int32, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> list[UserFigures]:
        """Return the metrics of each target."""
        scores, labels, masks = (dim_zero_cat(x) for x in (self.scores, self.labels, self.masks))
        users = dim_zero_cat(self.users)[:, None].expand(-1, self.num_targets)
        return for_each_target(rank_by_user, masks, scores, labels, users)
