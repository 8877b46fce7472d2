"""Heads: map task representations to probabilities, and compute the loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.errors import UnmetNeedError
from dlen.models.features import Features, FeatureSpec
from dlen.models.predictions import Predictions, task_losses
from dlen.models.values import PointValues
from dlen.nn.logspace import at_least_float32
from dlen.nn.match import Match
from dlen.nn.mlp import MLP, each_linear, each_mlp
from dlen.schema import Schema

TOWER = (64, 32)
_RATE_LIMITS = (1e-6, 1 - 1e-6)


class Ranking(StrEnum):
    """Probability used for ranking and AUC, for heads with P(UP)."""

    JOINT = "joint"  # P(t, UP), equation (4); P(t, not UP) for a dislike task
    TOTAL = "total"  # P(t), equation (1)


def logit(p: float) -> float:
    """log(p / (1 - p))."""
    return math.log(p) - math.log1p(-p)


def initial_logits(schema: Schema, *, joint: bool = False) -> Tensor:
    """(T, 1) logits of the training rates; with ``joint``, of the rates of a task jointly with its parents."""
    rates = training_rates(schema)
    if joint:
        rates = [math.prod(rates[i] for i in schema.chain(name)) for name in schema.task_names]
    return torch.tensor([[logit(max(rate, _RATE_LIMITS[0]))] for rate in rates])


class Head(nn.Module, ABC):
    """Maps (T, B, H) task representations and features to predictions.

    Construct with ``Head(schema, rep_dim, spec, **settings)``: the tasks, the size H of the representations and the
    layout of the input features.

    Attributes:
        ranking: the probability used for ranking, for heads with P(UP); None for all others.
        view_names: names of the tasks of each view, for heads with P(UP); None for all others.
        state_names: names of the hidden states, ``up`` first; empty for heads without any.
        second_tasks: names of the tasks that hang on a second hidden state; empty without one.
        of_labels: names of the submodules whose parameters describe the training labels and enter no prediction. A
            model that starts from another run's weights keeps its own.
    """

    ranking: Ranking | None = None
    view_names: list[list[str]] | None = None
    state_names: tuple[str, ...] = ()
    second_tasks: tuple[str, ...] = ()
    of_labels: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, representations: Tensor, features: Features) -> Predictions:
        """Predict all tasks for B rows."""

    def loss(
        self,
        predictions: Predictions,
        labels: Tensor,
        mask: Tensor,
        weights: Tensor,
        row_weights: Tensor | None = None,
        bins: Tensor | None = None,
    ) -> Tensor:
        """The training loss: the weighted sum of the tasks' cross entropies, plus :meth:`extra_loss`.

        Args:
            predictions: predictions for B rows and T tasks.
            labels: (B, T) 0 or 1; standardised for a regression task.
            mask: (B, T) 1 where a row trains a task.
            weights: (T,) task weights.
            row_weights: (B, 1 + T) weights of rows and of their labels, :attr:`Batch.weights`; None if all are 1.
            bins: (B, V) bins of what is known only afterwards, :attr:`Batch.views`, for heads that take them as
                evidence; None without any.
        """
        losses = self.task_losses(predictions, labels, mask, row_weights)
        return (losses * weights).sum() + self.extra_loss(predictions, row_weights)

    def task_losses(
        self, predictions: Predictions, labels: Tensor, mask: Tensor, row_weights: Tensor | None = None
    ) -> Tensor:
        """(T,) unweighted losses of the tasks. Takes the arguments of :meth:`loss` except ``weights``.

        Raises:
            ValueError: the head has a single loss for all tasks.
        """
        return task_losses(predictions, labels, mask, row_weights)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of the head that all tasks train; empty for most heads."""
        return []

    def extra_loss(self, predictions: Predictions, row_weights: Tensor | None = None) -> Tensor:
        """Loss term that belongs to no single task; 0 for most heads."""
        return predictions.log_p.new_zeros(())


def refuse_regression(schema: Schema, model: str) -> None:
    """Raise UnmetNeedError if the schema has a regression task, for models of tasks of 0 and 1."""
    if schema.regressions:
        name = schema.tasks[schema.regressions[0]].name
        raise UnmetNeedError(f"{model} predicts tasks of 0 and 1, and {name} is a regression; use another model")


class PointRegression(nn.Module):
    """The regression tasks of a head with one output for each task.

    Args:
        schema: schema with at least one regression task.
    """

    columns: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.losses = tuple(schema.tasks[index].loss for index in schema.regressions)
        self.register_buffer("columns", torch.tensor(schema.regressions), persistent=False)

    def forward(self, outputs: Tensor) -> PointValues:
        """Select from the (B, T) outputs of all tasks."""
        return PointValues(self.columns, outputs.index_select(1, self.columns), self.losses)


class Towers(nn.Module):
    """One MLP per task with ``outputs`` logits and given initial biases.

    Args:
        biases: (T, outputs) initial biases of the logits.
        in_dim: input size H.
        sizes: hidden layer sizes of each tower.
        dropout: dropout probability after each hidden layer.
    """

    def __init__(self, biases: Tensor, in_dim: int, sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.towers = nn.ModuleList(MLP(in_dim, sizes, dropout) for _ in biases)
        self.outputs = nn.ModuleList(nn.Linear(sizes[-1] if sizes else in_dim, biases.shape[1]) for _ in biases)
        for output, bias in zip(self.outputs, biases, strict=True):
            output.bias.data.copy_(bias)  # type: ignore[operator]

    def forward(self, representations: Tensor) -> Tensor:
        """(T, B, H) -> (B, T, outputs), at least float32."""
        logits = each_linear(self.outputs, each_mlp(self.towers, representations))  # type: ignore[arg-type]
        return at_least_float32(logits).transpose(0, 1).contiguous()


class IndependentHead(Head):
    """A tower and a sigmoid per task, as in the multi-task models before DLEN. A regression task has no sigmoid.

    Args:
        rep_dim: size H of the task representations.
        tower: hidden layer sizes of each tower.
        match: number of factors of a user-item dot product that is added to each logit; 0 for none. DLEN's head adds
            it to the logit of P(UP), so this ablation separates the effect of the product from that of the hidden
            state.
        dropout: dropout probability in the towers.
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
        self.regression = PointRegression(schema) if schema.regressions else None

    def forward(self, representations: Tensor, features: Features) -> Predictions:
        """Apply a sigmoid to each tower's logit."""
        logits = add_first_order(self.towers(representations)[..., 0], features)
        if self.match is not None:
            logits = logits + at_least_float32(self.match(features.fields))
        return sigmoids(logits, self.regression)


def sigmoids(logits: Tensor, regression: PointRegression | None) -> Predictions:
    """Predict each task from its own logit: (B, T) logits, those of regression tasks without a sigmoid."""
    log_p = F.logsigmoid(logits)
    values = None if regression is None else regression(logits)
    return Predictions(log_p, F.logsigmoid(-logits), log_p, values=values)


def add_first_order(logits: Tensor, features: Features) -> Tensor:
    """Add the table's first-order terms, if any, to (B, T) logits."""
    first_order = features.first_order
    return logits if first_order is None else logits + at_least_float32(first_order[:, : logits.shape[1]])


def make_match(spec: FeatureSpec, factors: int, outputs: int) -> Match | None:
    """Build a match of user and item; None for 0 factors, or if one side has no field."""
    users = [i for i, side in enumerate(spec.sides) if side == "user"]
    items = [i for i, side in enumerate(spec.sides) if side != "user"]
    if not factors or not users or not items:
        return None
    return Match(users, items, spec.dim, factors, outputs)


def training_rates(schema: Schema) -> list[float]:
    """Training positive rates of the tasks, clamped away from 0 and 1."""
    low, high = _RATE_LIMITS
    return [min(max(t.rate, low), high) for t in schema.tasks]
