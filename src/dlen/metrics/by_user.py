"""Ranking within each user's impressions: GAUC and NDCG@k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

NDCG_AT = 10


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
        users: (N,) integers.
        k: places of a list that count.

    Returns:
        Figures, nan where no user has one. Time N log N.
    """
    order = scores.argsort(descending=True)
    order = order[users[order].argsort(stable=True)]
    user, score, positive = users[order], scores[order], labels[order].double()
    new_user = _changes(user)
    new_block = new_user | _changes(score)  # rows of one user with one score
    of_row, block = new_user.cumsum(0) - 1, new_block.cumsum(0) - 1
    owner = of_row[new_block]  # user of each block
    number, blocks = int(new_user.sum()), int(new_block.sum())

    def by_user(values: Tensor, index: Tensor) -> Tensor:
        return values.new_zeros(number).index_add_(0, index, values)

    size = positive.new_zeros(blocks).index_add_(0, block, torch.ones_like(positive))
    good = positive.new_zeros(blocks).index_add_(0, block, positive)
    bad = size - good
    rows, goods, bads = by_user(size, owner), by_user(good, owner), by_user(bad, owner)
    below = bads[owner] - _within(bad, owner, bads) + bad / 2  # negatives that a positive of the block is above
    pairs = goods * bads
    auc = by_user(good * below, owner) / pairs
    both = pairs > 0
    gauc = (auc[both] * rows[both]).sum() / rows[both].sum()
    last = _within(size, owner, rows)  # place of the block's last row in its list
    discounts = 1 / torch.arange(2, k + 2, dtype=torch.float64, device=scores.device).log2()
    gained = torch.cat([discounts.new_zeros(1), discounts.cumsum(0)])  # by the first n places

    def upto(places: Tensor) -> Tensor:
        return gained[places.long().clamp(max=k)]

    dcg = by_user(good / size * (upto(last) - upto(last - size)), owner)
    liked = goods > 0
    ndcg = (dcg[liked] / upto(goods[liked])).mean()
    return UserFigures(float(gauc), float(ndcg), number, int((~both).sum()))


def _changes(values: Tensor) -> Tensor:
    """(N,) where a value differs from the one before; the first always does."""
    first = torch.ones_like(values[:1], dtype=torch.bool)
    return torch.cat([first, values[1:] != values[:-1]])


def _within(values: Tensor, owner: Tensor, totals: Tensor) -> Tensor:
    """Cumulative sums that begin anew with each owner."""
    return values.cumsum(0) - (totals.cumsum(0) - totals)[owner]


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
        users = dim_zero_cat(self.users)
        columns = zip(scores.T, labels.T, masks.T, strict=True)
        return [rank_by_user(s[m], y[m], users[m]) for s, y, m in columns]
