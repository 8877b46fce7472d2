"""ESCM2: ESMM with a counterfactual estimate of the conversion's risk over all impressions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional as F

from dlen.checks import choice, from_zero, positive
from dlen.models.features import Features, FeatureSpec
from dlen.models.funnels import ESMMHead
from dlen.models.heads import TOWER, Towers, training_rates
from dlen.models.predictions import Predictions
from dlen.schema import Schema


class Estimator(StrEnum):
    """Estimator of the risk of a task over rows on which its parent may not have happened."""

    IPS = "ips"  # inverse propensity score
    DR = "dr"  # doubly robust: right if the propensities or the imputed errors are


class ESCM2Head(ESMMHead):
    """Entire space counterfactual multi-task head (Wang et al. 2022): ESMM with a counterfactual risk.

        L = L_ctr + counterfactual_weight R_cvr + global_weight L_ctcvr
        ips: R = mean of o e / p
        dr:  R = mean of g + o (e - g) / p + o (e - g)^2 / p

    o tells whether the parent happened, e is the cross entropy of the task given its parent, and g the error that an
    imputation tower predicts for the row. The propensity p is the predicted probability that the parent happens: the
    product of the conditional probabilities of all parents, without a gradient. ESMM fits the joint probability
    alone; R fits the conditional one as if every row had been clicked.

    Differs from the paper: g is a softplus, as cross entropies are positive and have no upper limit, and the imputation
    tower has no network of its own below it, but takes the representation of its task.

    Args:
        rep_dim: size H of the task representations.
        tower: hidden layer sizes of each tower, imputation towers included.
        estimator: ``ips``, or ``dr``, which adds the imputation towers.
        counterfactual_weight: weight of R.
        global_weight: weight of the cross entropy of a task jointly with its parents.
        min_propensity: lower limit of p, which bounds the weight of a row.
        dropout: dropout probability in the towers.

    Raises:
        ValueError: the schema has no funnel, or a setting is out of range.
    """

    NAME = "escm2"

    factors: Tensor

    def __init__(
        self,
        schema: Schema,
        rep_dim: int,
        spec: FeatureSpec,
        *,
        tower: Sequence[int] = TOWER,
        estimator: Estimator | str = Estimator.DR,
        counterfactual_weight: float = 0.1,
        global_weight: float = 1.0,
        min_propensity: float = 0.01,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(schema, rep_dim, spec, tower=tower, dropout=dropout)
        from_zero(counterfactual_weight=counterfactual_weight, global_weight=global_weight)
        self.estimator = choice("estimator", estimator, Estimator)
        self.counterfactual_weight = counterfactual_weight
        self.min_propensity = positive("min_propensity", min_propensity, 1)
        self.steps = [task for task, chain in enumerate(self.chains) if len(chain) > 1]
        factors = [1.0 if len(chain) == 1 else float(global_weight) for chain in self.chains]
        self.register_buffer("factors", torch.tensor(factors), persistent=False)
        self.imputation: Towers | None = None
        if self.estimator is Estimator.DR:
            rates = training_rates(schema)
            biases = torch.tensor([[_inverse_softplus(_entropy(rates[task]))] for task in self.steps])
            self.imputation = Towers(biases, rep_dim, tower, dropout)

    def forward(self, representations: Tensor, features: Features) -> Predictions:
        """Predict as :class:`ESMMHead`, and impute the errors of the tasks with a parent."""
        predictions = super().forward(representations, features)
        if self.imputation is None:
            return predictions
        of_steps = torch.stack([representations[task] for task in self.steps])
        return replace(predictions, imputed=F.softplus(self.imputation(of_steps)[..., 0]))

    def task_losses(
        self, predictions: Predictions, labels: Tensor, mask: Tensor, row_weights: Tensor | None = None
    ) -> Tensor:
        """(T,) the cross entropy of a first step; of each later one, the weighted sum of global and counterfactual
        risk."""
        of_joint = super().task_losses(predictions, labels, mask, row_weights)
        risks = self.mean(self._risks(predictions, labels, mask), row_weights)
        return of_joint * self.factors + risks * self.counterfactual_weight

    def _risks(self, predictions: Predictions, labels: Tensor, mask: Tensor) -> Tensor:
        """(B, T) terms of R; 0 for a first step, and where the labels leave it open."""
        assert predictions.log_joint is not None
        happened = self.joint_labels(labels)
        errors = -torch.where(labels.bool(), predictions.log_p, predictions.log_q)
        propensities = predictions.log_joint.detach().exp().clamp(min=self.min_propensity)
        columns = [torch.zeros_like(errors[:, 0]) for _ in self.chains]
        for step, task in enumerate(self.steps):
            parent = self.chains[task][1]
            weight = happened[:, parent] * mask[:, task] / propensities[:, parent]
            if self.imputation is None:
                columns[task] = weight * errors[:, task]
            else:
                assert predictions.imputed is not None
                guess = predictions.imputed[:, step]
                off = errors[:, task] - guess
                columns[task] = guess + weight * (off + off.square())
        return torch.stack(columns, 1) * self.decided(happened, mask)


def _entropy(p: float) -> float:
    """Cross entropy of a constant prediction p of events at rate p."""
    return -p * math.log(p) - (1 - p) * math.log1p(-p)


def _inverse_softplus(y: float) -> float:
    """x with log(1 + exp(x)) = y > 0."""
    return math.log(math.expm1(y))
