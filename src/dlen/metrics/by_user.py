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
BY_USER_ROWS = 1_000_000  # of a split that is ranked within users unless asked otherwise


@dataclass(slots=True)
class UserFigures:
    """Figures of one target.

    Attributes:
        gauc: mean AUC of the users, weighted by their rows; users with one class are left out.
        ndcg: mean NDCG@k of the users with a positive.
        users: number of users.
        left_out: users without both classes, who have no AUC.
    """

    gauc: float
    ndcg: float
    users: int
    left_out: int


def rank_by_user(scores: Tensor, labels: Tensor, users: Tensor, k: int = NDCG_AT) -> UserFigures:
    """GAUC (Zhou et al. 2018, DIN, equation 6) and NDCG@k (Järvelin and Kekäläinen 2002), without a loop over users.

    Ties count one half in the AUC, and share the mean of their gains in the NDCG, as in scikit-learn.

    Args:
        scores: (N,) any monotone score.
        labels: (N,) 0 or 1.
        users: (N,) integers of 31 bits.
        k: places of a list that count.

    Returns:
        Figures, nan where no user has one. Time N log N.
    """
    # One sort of integers: by user, then by falling score, with the label in the last bit.
    falling = 0x7FFFFFFF - ordered_integers(scores)  # from 0 on
    ranked = (users.long() << 33 | falling << 1 | labels.long()).sort().values
    ends = ends_of_runs(ranked >> 1)  # of the blocks: rows of one user with one score
    zero = ends.new_zeros(1)
    size = (ends + 1).diff(prepend=zero)
    good = (ranked & 1).cumsum(0)[ends].diff(prepend=zero)
    last_blocks = ends_of_runs(ranked[ends] >> 33)  # of the users
    blocks = (last_blocks + 1).diff(prepend=zero)

    def by_user(values: Tensor) -> Tensor:
        return values.cumsum(0)[last_blocks].diff(prepend=values.new_zeros(1))

    def within(values: Tensor, totals: Tensor) -> Tensor:
        """Cumulative sums that begin anew with each user."""
        return values.cumsum(0) - (totals.cumsum(0) - totals).repeat_interleave(blocks)

    bad = size - good
    rows, goods, bads = by_user(size), by_user(good), by_user(bad)
    below = 2 * (bads.repeat_interleave(blocks) - within(bad, bads)) + bad  # twice the negatives a positive is above
    pairs = goods * bads
    both = pairs > 0
    auc = by_user(good * below)[both].double() / (2 * pairs[both])
    gauc = (auc * rows[both]).sum() / rows[both].sum()
    last = within(size, rows)  # place of the block's last row in its list
    gained = _discounts(k, scores.device)

    def upto(places: Tensor) -> Tensor:
        return gained[places.clamp(max=k)]

    dcg = by_user(good / size.double() * (upto(last) - upto(last - size)))
    liked = goods > 0
    ndcg = (dcg[liked] / upto(goods[liked])).mean()
    return UserFigures(float(gauc), float(ndcg), len(rows), int((~both).sum()))


def _discounts(k: int, device: torch.device) -> Tensor:
    """(k + 1,) what n rows of gain 1 have gained together on the first n places."""
    each = 1 / torch.arange(2, k + 2, dtype=torch.float64, device=device).log2()
    return torch.cat([each.new_zeros(1), each.cumsum(0)])


def graded_ndcg(scores: Tensor, gains: Tensor, users: Tensor, k: int = NDCG_AT) -> Tensor:
    """NDCG@k of each user's list, for gains of any size. Ties share the mean of their gains, as in scikit-learn.

    Args:
        scores: (N,) any monotone score.
        gains: (N,) from 0.
        users: (N,) integers of 31 bits.
        k: places of a list that count.

    Returns:
        (U,) float64 in rising order of the users; nan for a user without any gain. Time N log N.
    """
    found, best = _dcg(scores, gains, users, k), _dcg(gains, gains, users, k)
    return found / torch.where(best > 0, best, torch.nan)


def _dcg(scores: Tensor, gains: Tensor, users: Tensor, k: int) -> Tensor:
    """(U,) discounted gains of the users' lists."""
    key, order = (users.long() << 32 | 0x7FFFFFFF - ordered_integers(scores)).sort()
    ends = ends_of_runs(key)  # of the blocks: rows of one user with one score
    zero = ends.new_zeros(1)
    size = (ends + 1).diff(prepend=zero)
    gain = gains[order].double().cumsum(0)[ends].diff(prepend=torch.zeros(1, dtype=torch.float64, device=key.device))
    last_blocks = ends_of_runs(key[ends] >> 32)  # of the users
    lists = (ends + 1)[last_blocks].diff(prepend=zero)  # rows of each user
    blocks = (last_blocks + 1).diff(prepend=zero)
    last = ends + 1 - (lists.cumsum(0) - lists).repeat_interleave(blocks)  # place of the block's last row in its list
    gained = _discounts(k, scores.device)
    each = gain / size * (gained[last.clamp(max=k)] - gained[(last - size).clamp(max=k)])
    return each.cumsum(0)[last_blocks].diff(prepend=each.new_zeros(1))


class ByUser(Metric):
    """GAUC and NDCG@k of K targets. Memory: 5 K + 8 bytes for each row.

    Args:
        num_targets: K.
    """

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
        """Add rows: (N, K) scores, labels 0 or 1 and mask of rows that count, and the (N,) users, 32-bit integers."""
        self.scores.append(scores.detach().float())
        self.labels.append(labels.bool())
        self.masks.append(mask.bool())
        self.users.append(users.int())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather all processes' rows; one without rows still takes part, with none of the right shape."""
        if not self.scores:
            empty = torch.zeros(0, self.num_targets, device=self.device)
            self.update(empty, empty, empty, torch.zeros(0, dtype=torch.int32, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> list[UserFigures]:
        """Figures of each target."""
        if not len(self.scores):
            return [UserFigures(float("nan"), float("nan"), 0, 0)] * self.num_targets
        scores, labels, masks = (dim_zero_cat(x) for x in (self.scores, self.labels, self.masks))
        users = dim_zero_cat(self.users)[:, None].expand(-1, self.num_targets)
        return for_each_target(rank_by_user, masks, scores, labels, users)
