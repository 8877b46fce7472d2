"""Heads: from task representations to probabilities and their loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.models.features import Features, FeatureSpec
from dlen.models.predictions import Predictions, task_losses
from dlen.nn.logspace import at_least_float32
from dlen.nn.match import Match
from dlen.nn.mlp import MLP
from dlen.schema import Schema

TOWER = (64, 32)
_RATE_LIMITS = (1e-6, 1 - 1e-6)


class Ranking(StrEnum):
    """Which probability ranks and is measured by AUC, of a head that has P(UP)."""

    JOINT = "joint"  # P(t, UP), equation (4); of a dislike P(t, not UP)
    TOTAL = "total"  # P(t), equation (1)


def logit(p: float) -> float:
    """log(p / (1 - p))."""
    return math.log(p) - math.log1p(-p)


def initial_logits(schema: Schema, *, joint: bool = False) -> Tensor:
    """(T, 1) logits of the tasks' training rates; ``joint``: of a task together with those it is observed under."""
    rates = training_rates(schema)
    if joint:
        rates = [math.prod(rates[i] for i in schema.chain(name)) for name in schema.task_names]
    return torch.tensor([[logit(max(rate, _RATE_LIMITS[0]))] for rate in rates])


class Head(nn.Module, ABC):
    """(T, B, H) task representations and the features -> Predictions.

    A head is built by ``Head(schema, rep_dim, spec, **settings)``.
    """

    @abstractmethod
    def forward(self, representations: Tensor, features: Features) -> Predictions:
        """Probabilities of B rows."""

    @property
    def ranking(self) -> Ranking | None:
        """Which of its probabilities ranks, of a head that has P(UP); None for others."""
        return None

    def loss(self, predictions: Predictions, labels: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        """What training minimises: the weighted sum of the tasks' cross entropies.

        Args:
            predictions: of B rows and T tasks.
            labels: (B, T) 0 or 1.
            mask: (B, T) 1 where a row trains a task.
            weights: (T,) of the tasks.
        """
        return (self.task_losses(predictions, labels, mask) * weights).sum() + self.extra_loss(predictions)

    def task_losses(self, predictions: Predictions, labels: Tensor, mask: Tensor) -> Tensor:
        """(T,) loss of each task, before it is weighted. Arguments as :meth:`loss`.

        Raises:
            ValueError: the head has one loss for all tasks.
        """
        return task_losses(predictions, labels, mask)

    def shared_parameters(self) -> list[nn.Parameter]:
        """What all tasks train in the head; nothing in most."""
        return []

    def extra_loss(self, predictions: Predictions) -> Tensor:
        """What is trained beside the tasks' losses; 0 for most heads."""
        return predictions.log_p.new_zeros(())


class Towers(nn.Module):
    """An MLP for each task, ending in ``outputs`` logits whose initial biases are given.

    Args:
        biases: (T, outputs) logits of the first step.
        in_dim: H.
        sizes: hidden layers of each tower.
        dropout: after each hidden layer.
    """

    def __init__(self, biases: Tensor, in_dim: int, sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.towers = nn.ModuleList(MLP(in_dim, sizes, dropout) for _ in biases)
        self.outputs = nn.ModuleList(nn.Linear(sizes[-1] if sizes else in_dim, biases.shape[1]) for _ in biases)
        for output, bias in zip(self.outputs, biases, strict=True):
            output.bias.data.copy_(bias)  # type: ignore[operator]

    def forward(self, representations: Tensor) -> Tensor:
        """(T, B, H) -> (B, T, outputs), at least float32."""
        logits = [output(tower(r)) for r, tower, output in zip(representations, self.towers, self.outputs, strict=True)]
        return at_least_float32(torch.stack(logits, 1))


class IndependentHead(Head):
    """A tower and a sigmoid for each task, as in every multi-task model before DLEN.

    Args:
        schema: gives the tasks and their training rates.
        rep_dim: H.
        spec: of the features.
        tower: hidden layers of each tower.
        match: factors of a dot product of user and item that is added to each logit, as it is to that of P(UP) in
            DLEN's head; 0 for none. It tells what DLEN owes to the hidden state and what to the product.
        dropout: in the towers.
    """

    def __init__(
        self,
        schema: Schema,
        rep_dim: int,
        spec: FeatureSpec,
        *,
        tower: Sequence[int] = TOWER,
        match: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.towers = Towers(initial_logits(schema), rep_dim, tower, dropout)
        self.match = make_match(spec, match, len(schema.tasks))

    def forward(self, representations: Tensor, features: Features) -> Predictions:
        """Sigmoid of each tower's logit."""
        logits = add_first_order(self.towers(representations)[..., 0], features)
        if self.match is not None:
            logits = logits + at_least_float32(self.match(features.fields))
        log_p = F.logsigmoid(logits)
        return Predictions(log_p, F.logsigmoid(-logits), log_p)


def add_first_order(logits: Tensor, features: Features) -> Tensor:
    """(B, T) logits with the table's first-order terms, where it has them."""
    first_order = features.first_order
    return logits if first_order is None else logits + at_least_float32(first_order)


def make_match(spec: FeatureSpec, factors: int, outputs: int) -> Match | None:
    """A match of user and item; None for 0 factors, or where one side has no field."""
    users = [i for i, side in enumerate(spec.sides) if side == "user"]
    items = [i for i, side in enumerate(spec.sides) if side != "user"]
    if not factors or not users or not items:
        return None
    return Match(users, items, spec.dim, factors, outputs)


def training_rates(schema: Schema) -> list[float]:
    """The tasks' training rates, away from 0 and 1."""
    low, high = _RATE_LIMITS
    return [min(max(t.rate, low), high) for t in schema.tasks]
