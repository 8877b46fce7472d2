"""Heads for funnels (click, then conversion) that train on all impressions: ESMM and AITM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.checks import from_zero
from dlen.errors import UnmetNeedError
from dlen.models.features import Features, FeatureSpec
from dlen.models.heads import TOWER, Head, Towers, add_first_order, initial_logits, refuse_regression
from dlen.models.predictions import Predictions, label_weights, weighted_mean
from dlen.nn.embedding import columns
from dlen.nn.logspace import log1mexp
from dlen.schema import Schema

_SURE = -1e-6  # upper limit of the log-probability of a step given the previous one


def check_funnel(schema: Schema, model: str) -> None:
    """Raise UnmetNeedError without a funnel, with a regression, or with a funnel task that trains on all rows."""
    refuse_regression(schema, model)
    steps = [t for t in schema.tasks if t.observed_where]
    if not steps:
        raise UnmetNeedError(f"{model} needs a funnel: a task with observed_where, such as cvr where ctr")
    for task in steps:
        if task.train_on == "all":
            raise UnmetNeedError(
                f"{model} already trains on all rows, so task {task.name} must be conditional on its parent; set its "
                "train_on to observed (on Ali-CCP, data.cvr_rows=clicks)"
            )


class FunnelHead(Head):
    """Base of ESMM, AITM and ESCM2: the loss over all rows of each task jointly with its parents.

    Raises:
        ValueError: the schema has no funnel.
    """

    def __init__(self, schema: Schema, model: str) -> None:
        super().__init__()
        check_funnel(schema, model)
        self.chains = [list(schema.chain(name)) for name in schema.task_names]

    def joint_labels(self, labels: Tensor) -> Tensor:
        """(B, T) labels -> (B, T) 1 where a task and all of its parents are positive."""
        return torch.stack([columns(labels, chain).prod(1) for chain in self.chains], 1)

    def task_losses(
        self, predictions: Predictions, labels: Tensor, mask: Tensor, row_weights: Tensor | None = None
    ) -> Tensor:
        """(T,) cross entropies of the joint events over all rows; a row counts 0 where its labels leave it open."""
        assert predictions.log_joint is not None
        log_p = predictions.log_joint
        happened = self.joint_labels(labels)
        nll = -torch.where(happened.bool(), log_p, log1mexp(log_p))
        nll = nll * self.decided(happened, mask)
        return self.mean(nll, row_weights)

    def decided(self, happened: Tensor, mask: Tensor) -> Tensor:
        """(B, T) 1 where the labels decide a joint event: all of them are known, or a known one is negative."""
        decisions = []
        for chain in self.chains:
            decided = mask[:, chain[-1]]
            for parent, task in zip(reversed(chain[1:]), reversed(chain[:-1]), strict=True):
                decided = decided * torch.maximum(1 - happened[:, parent], mask[:, task])
            decisions.append(decided)
        return torch.stack(decisions, 1)

    @staticmethod
    def mean(values: Tensor, row_weights: Tensor | None) -> Tensor:
        """(B, T) -> (T,) means over all rows, with the weights of rows and labels."""
        return values.mean(0) if row_weights is None else weighted_mean(values, label_weights(row_weights))


class ESMMHead(FunnelHead):
    """Entire space multi-task head (Ma et al. 2018, equations 1 and 3): pCTCVR = pCTR * pCVR, for chains of any length.

    Args:
        rep_dim: size H of the task representations.
        tower: hidden layer sizes of each tower.
        dropout: dropout probability in the towers.
    """

    NAME: ClassVar[str] = "esmm"

    def __init__(
        self,
        schema: Schema,
        rep_dim: int,
        spec: FeatureSpec,
        *,
        tower: Sequence[int] = TOWER,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(schema, self.NAME)
        self.towers = Towers(initial_logits(schema), rep_dim, tower, dropout)

    def forward(self, representations: Tensor, features: Features) -> Predictions:
        """Predict each task conditional on its parent, and multiply the probabilities along the chain."""
        logits = add_first_order(self.towers(representations)[..., 0], features)
        log_p = F.logsigmoid(logits)
        log_joint = torch.stack([columns(log_p, chain).sum(1) for chain in self.chains], 1)
        return Predictions(log_p, F.logsigmoid(-logits), log_p, log_joint=log_joint)


class AITMHead(FunnelHead):
    """Adaptive information transfer along the funnel, with calibrator (Xi et al. 2021, equations 4 to 9).

    Attention combines a task's representation q with the information p from its parent:

        z = sum over u in {p, q} of w(u) h1(u),    w = softmax of <h2(u), h3(u)> / sqrt(H)

    The towers predict the joint events, so P(t given its parent) is the ratio of two joint probabilities.

    Args:
        rep_dim: size H of the task representations.
        tower: hidden layer sizes of each tower.
        calibration: weight of the penalty for predicting a later step as more likely than the previous one; .6 in
            the paper.
        dropout: dropout probability in the towers.
    """

    def __init__(
        self,
        schema: Schema,
        rep_dim: int,
        spec: FeatureSpec,
        *,
        tower: Sequence[int] = TOWER,
        calibration: float = 0.6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(schema, "aitm")
        from_zero(calibration=calibration)
        self.calibration = calibration
        self.parents = [chain[1] if len(chain) > 1 else None for chain in self.chains]
        self.order = sorted(range(len(self.chains)), key=lambda t: len(self.chains[t]))  # parents first
        steps = [(str(task), str(parent)) for task, parent in enumerate(self.parents) if parent is not None]
        self.transfer = nn.ModuleDict({parent: nn.Linear(rep_dim, rep_dim) for _, parent in steps})
        self.attention = nn.ModuleDict({task: nn.Linear(rep_dim, 3 * rep_dim, bias=False) for task, _ in steps})
        self.towers = Towers(initial_logits(schema, joint=True), rep_dim, tower, dropout)

    def forward(self, representations: Tensor, features: Features) -> Predictions:
        """Transfer information along each chain, parents first, then apply the towers."""
        z: list[Tensor] = list(representations)
        for task in self.order:
            parent = self.parents[task]
            if parent is not None:
                z[task] = self._transferred(task, F.relu(self.transfer[str(parent)](z[parent])), representations[task])
        logits = add_first_order(self.towers(torch.stack(z))[..., 0], features)
        log_joint = F.logsigmoid(logits)
        columns = [
            log_joint[:, t] if parent is None else (log_joint[:, t] - log_joint[:, parent]).clamp(max=_SURE)
            for t, parent in enumerate(self.parents)
        ]
        log_p = torch.stack(columns, 1)
        return Predictions(log_p, log1mexp(log_p), log_p, log_joint=log_joint)

    def _transferred(self, task: int, p: Tensor, q: Tensor) -> Tensor:
        """Combine p from the parent and q of the task, (B, H) each, into (B, H)."""
        value, query, key = self.attention[str(task)](torch.stack([p, q], 1)).chunk(3, 2)  # (B, 2, H) each
        weight = ((query * key).sum(2) / math.sqrt(key.shape[2])).softmax(1)
        return (weight[..., None] * value).sum(1)

    def extra_loss(self, predictions: Predictions, row_weights: Tensor | None = None) -> Tensor:
        """The calibrator loss (equation 9)."""
        assert predictions.log_joint is not None
        p = predictions.log_joint.exp()
        steps = [(t, parent) for t, parent in enumerate(self.parents) if parent is not None]
        excess = [(p[:, t] - p[:, parent]).clamp(min=0) for t, parent in steps]
        means = [e.mean() if row_weights is None else weighted_mean(e, row_weights[:, 0]) for e in excess]
        return self.calibration * torch.stack(means).sum()
