"""Heads: from task representations to probabilities. The latent head is what makes DLEN."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.models.predictions import Latent, Predictions
from dlen.nn.logspace import at_least_float32, log1mexp
from dlen.nn.mlp import MLP
from dlen.schema import Schema

TOWER = (64, 32)
E = TypeVar("E", bound=StrEnum)
_MOST_UP = 0.98  # P(UP) starts unsaturated
_RATE_LIMITS = (1e-6, 1 - 1e-6)


class Bound(StrEnum):
    """What alpha multiplies in the upper bound of P(t | not UP), which the paper leaves open."""

    CONDITIONAL = "conditional"  # P(t | UP) of the same row
    PRIOR = "prior"  # the training rate of the task
    ABSOLUTE = "absolute"  # 1


class Ranking(StrEnum):
    """Which probability ranks and is measured by AUC."""

    JOINT = "joint"  # P(t, UP), equation (4)
    TOTAL = "total"  # P(t), equation (1)


def logit(p: float) -> float:
    """log(p / (1 - p))."""
    return math.log(p) - math.log1p(-p)


class Head(nn.Module, ABC):
    """(T, B, H) task representations and the (B, D) input -> Predictions."""

    @abstractmethod
    def forward(self, representations: Tensor, x: Tensor) -> Predictions:
        """Probabilities of B rows."""


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
        tower: hidden layers of each tower.
        dropout: in the towers.
    """

    def __init__(self, schema: Schema, rep_dim: int, *, tower: Sequence[int] = TOWER, dropout: float = 0.0) -> None:
        super().__init__()
        biases = torch.tensor([[logit(r)] for r in _rates(schema)])
        self.towers = Towers(biases, rep_dim, tower, dropout)

    def forward(self, representations: Tensor, x: Tensor) -> Predictions:
        """Sigmoid of each tower's logit; the input ``x`` is not used."""
        logits = self.towers(representations)[..., 0]
        log_p = F.logsigmoid(logits)
        return Predictions(log_p, F.logsigmoid(-logits), log_p)


class LatentHead(Head):
    """DLEN's head: a hidden state UP shared by all tasks, and two conditional probabilities for each task.

    A tower ends in two logits, c and n. With s the sigmoid of n and a hidden state network for P(UP):

        P(t | UP) = sigmoid(c)                              equation (8)
        P(t | not UP) = alpha * s * base                    equations (9), (10)
        P(t) = P(t | UP) P(UP) + P(t | not UP) P(not UP)    equation (1)

    where ``base`` is P(t | UP), the training rate of t, or 1, by ``bound``. All in log space.

    Args:
        schema: gives the tasks and their training rates.
        rep_dim: H.
        in_dim: D, the input of the hidden state network.
        alpha: the bound's multiplier in (0, 1]: one number, or one for each task by name.
        bound: what alpha multiplies.
        prediction: the probability that ranks.
        tower: hidden layers of each tower.
        hidden: layers of the hidden state network.
        initial_up: P(UP) of the first step, raised where the training rates ask for more.
        dropout: in the towers and the hidden state network.

    Raises:
        ValueError: alpha is outside (0, 1] or does not name every task.
    """

    def __init__(
        self,
        schema: Schema,
        rep_dim: int,
        in_dim: int,
        *,
        alpha: float | Mapping[str, float] = 0.1,
        bound: Bound | str = Bound.CONDITIONAL,
        prediction: Ranking | str = Ranking.JOINT,
        tower: Sequence[int] = TOWER,
        hidden: Sequence[int] = (256, 128, 64),
        initial_up: float = 0.5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.bound, self.prediction = (
            _choice(Bound, bound, "bound"),
            _choice(Ranking, prediction, "prediction"),
        )
        if not 0 < initial_up <= _MOST_UP:
            raise ValueError(f"initial_up must be above 0 and at most {_MOST_UP}, got {initial_up}")
        rates = _rates(schema)
        alphas = _alphas(alpha, schema.task_names)
        base = rates if self.bound is Bound.PRIOR else [1.0] * len(rates)
        ceiling = [a * b for a, b in zip(alphas, base, strict=True)]
        self.register_buffer("log_ceiling", torch.tensor(ceiling, dtype=torch.float64).log().float())
        self.log_ceiling: Tensor
        up = min(max(initial_up, max(rates) / 0.9), _MOST_UP)
        pairs = [_initial_pair(rate, up, limit, self.bound) for rate, limit in zip(rates, ceiling, strict=True)]
        self.towers = Towers(torch.tensor(pairs), rep_dim, tower, dropout)
        self.hidden = MLP(in_dim, hidden, dropout)
        self.hidden_output = nn.Linear(self.hidden.out_dim, 1)
        nn.init.constant_(self.hidden_output.bias, logit(up))

    def forward(self, representations: Tensor, x: Tensor) -> Predictions:
        """(T, B, H) representations and the (B, D) input -> Predictions with the hidden state."""
        c, n = self.towers(representations).unbind(2)  # (B, T) each
        up = at_least_float32(self.hidden_output(self.hidden(x)))[:, 0]
        return self.mixture(c, n, up)

    def mixture(self, c: Tensor, n: Tensor, up: Tensor) -> Predictions:
        """The formulas alone.

        Args:
            c: (B, T) logits of P(t | UP).
            n: (B, T) logits of P(t | not UP) within its bound.
            up: (B,) logits of P(UP).
        """
        log_c, log_not_c = F.logsigmoid(c), F.logsigmoid(-c)
        log_n = self.log_ceiling.to(n.dtype) + F.logsigmoid(n)
        if self.bound is Bound.CONDITIONAL:
            log_n = log_n + log_c
        latent = Latent(F.logsigmoid(up), F.logsigmoid(-up), log_c, log_n)
        log_up, log_not_up = latent.log_up[:, None], latent.log_not_up[:, None]
        log_p = torch.logaddexp(log_c + log_up, log_n + log_not_up)
        log_q = torch.logaddexp(log_not_c + log_up, log1mexp(log_n) + log_not_up)
        score = latent.log_joint if self.prediction is Ranking.JOINT else log_p
        return Predictions(log_p, log_q, score, latent)


def _rates(schema: Schema) -> list[float]:
    low, high = _RATE_LIMITS
    return [min(max(t.rate, low), high) for t in schema.tasks]


def _choice(kind: type[E], value: str, key: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{key} must be one of {', '.join(kind)}, got {value!r}") from None


def _alphas(alpha: float | Mapping[str, float], tasks: Sequence[str]) -> list[float]:
    if isinstance(alpha, Mapping):
        if set(alpha) != set(tasks):
            raise ValueError(f"alpha must name every task ({', '.join(tasks)}), got {', '.join(alpha)}")
        values = [float(alpha[t]) for t in tasks]
    else:
        values = [float(alpha)] * len(tasks)
    for value in values:
        if not 0 < value <= 1:
            raise ValueError(f"alpha must be above 0 and at most 1, got {value}")
    return values


def _initial_pair(rate: float, up: float, ceiling: float, bound: Bound) -> tuple[float, float]:
    """Logits (c, n) at which P(t) is the training rate, with n in the middle of its range where that is possible."""
    if bound is Bound.CONDITIONAL:
        c = rate / (up + ceiling * 0.5 * (1 - up))
        return logit(min(c, 0.99)), 0.0
    share = min(0.5, 0.5 * rate / ceiling)  # leaves at least half of the rate to P(t | UP)
    c = (rate - ceiling * share * (1 - up)) / up
    return logit(min(c, 0.99)), logit(share)
