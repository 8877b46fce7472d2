"""Heads: from task representations to probabilities and their loss. The latent head is what makes DLEN."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.models.predictions import Latent, Predictions, joint_loss, task_losses
from dlen.nn.logspace import at_least_float32, log1mexp
from dlen.nn.match import Match
from dlen.nn.mlp import MLP
from dlen.schema import Kind, Schema

TOWER = (64, 32)
E = TypeVar("E", bound=StrEnum)
_MOST_SHARE = 0.9  # of its bound, of P(t | not UP) at the first step
_MOST_UP = 0.98  # P(UP) starts unsaturated
_RATE_LIMITS = (1e-6, 1 - 1e-6)


class Bound(StrEnum):
    """What alpha multiplies in the upper bound of P(t | not UP), which the paper leaves open."""

    CONDITIONAL = "conditional"  # P(t | UP) of the same row
    PRIOR = "prior"  # the training rate of the task
    ABSOLUTE = "absolute"  # 1


class Ranking(StrEnum):
    """Which probability ranks and is measured by AUC."""

    JOINT = "joint"  # P(t, UP), equation (4); of a dislike P(t, not UP)
    TOTAL = "total"  # P(t), equation (1)


class Likelihood(StrEnum):
    """What training fits."""

    MARGINAL = "marginal"  # each label by itself: the sum of cross entropies of equation (1), the paper's
    FULL = "full"  # all labels of an impression together, the hidden state summed out


def logit(p: float) -> float:
    """log(p / (1 - p))."""
    return math.log(p) - math.log1p(-p)


def initial_logits(schema: Schema, *, joint: bool = False) -> Tensor:
    """(T, 1) logits of the tasks' training rates; ``joint``: of a task together with those it is observed under."""
    rates = _rates(schema)
    if joint:
        rates = [math.prod(rates[i] for i in schema.chain(name)) for name in schema.task_names]
    return torch.tensor([[logit(max(rate, _RATE_LIMITS[0]))] for rate in rates])


class Head(nn.Module, ABC):
    """(T, B, H) task representations and the (B, D) input -> Predictions."""

    @abstractmethod
    def forward(self, representations: Tensor, x: Tensor) -> Predictions:
        """Probabilities of B rows. Under an embedding with first-order terms, (B, T), they are a third argument."""

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
        in_dim: D, the input.
        tower: hidden layers of each tower.
        match: factors of a dot product of user and item that joins each logit, as it does that of P(UP) in
            :class:`LatentHead`; 0 for none. It tells what DLEN owes to the hidden state and what to the product.
        dropout: in the towers.
    """

    def __init__(
        self,
        schema: Schema,
        rep_dim: int,
        in_dim: int,
        *,
        tower: Sequence[int] = TOWER,
        match: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.towers = Towers(initial_logits(schema), rep_dim, tower, dropout)
        self.match = _match(schema, in_dim, match, len(schema.tasks))

    def forward(self, representations: Tensor, x: Tensor, first_order: Tensor | None = None) -> Predictions:
        """Sigmoid of each tower's logit."""
        logits = self.towers(representations)[..., 0]
        if first_order is not None:
            logits = logits + at_least_float32(first_order)
        if self.match is not None:
            logits = logits + at_least_float32(self.match(x))
        log_p = F.logsigmoid(logits)
        return Predictions(log_p, F.logsigmoid(-logits), log_p)


class LatentHead(Head):
    """DLEN's head: a hidden state UP shared by all tasks, and two conditional probabilities for each task.

    A tower ends in two logits, c and n. With s the sigmoid of n and a hidden state network for P(UP):

        P(t | UP) = sigmoid(c)                              equation (8)
        P(t | not UP) = alpha * s * base                    equations (9), (10)
        P(t) = P(t | UP) P(UP) + P(t | not UP) P(not UP)    equation (1)

    where ``base`` is P(t | UP), the training rate of t, or 1, by ``bound``. All in log space. For a task that shows
    dislike, UP and not UP change places.

    The hidden state network is an MLP on the input. With ``match`` > 0 a dot product of user and item joins its logit:
    preference is mostly a match of the two, a product that an MLP is slow to learn.

    Args:
        schema: gives the tasks and their training rates.
        rep_dim: H.
        in_dim: D, the input of the hidden state network.
        alpha: the bound's multiplier in (0, 1]: one number, or one for each task by name.
        bound: what alpha multiplies.
        prediction: the probability that ranks.
        likelihood: what training fits.
        tower: hidden layers of each tower.
        hidden: layers of the hidden state network; None for one P(UP) for all rows, to see what the network is worth.
        match: factors of the dot product of user and item in P(UP); 0 for none, as in the paper.
        detach_bound: with the conditional bound, let P(t | not UP) send no gradient into P(t | UP).
        initial_up: P(UP) of the first step, raised where the training rates ask for more.
        initial_leak: P(t | not UP) over P(t | UP) of the first step, lowered where the bound asks for less. It says
            which of the two states is to mean preference, and where learning starts.
        dropout: in the towers and the hidden state network.

    Raises:
        ValueError: alpha is outside (0, 1] or does not name every task, or a first step is impossible.
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
        likelihood: Likelihood | str = Likelihood.MARGINAL,
        tower: Sequence[int] = TOWER,
        hidden: Sequence[int] | None = (256, 128, 64),
        match: int = 0,
        detach_bound: bool = False,
        initial_up: float = 0.5,
        initial_leak: float = 0.05,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.detach_bound = detach_bound
        self.bound = _choice(Bound, bound, "bound")
        self.prediction = _choice(Ranking, prediction, "prediction")
        self.likelihood = _choice(Likelihood, likelihood, "likelihood")
        if not 0 < initial_up <= _MOST_UP:
            raise ValueError(f"initial_up must be above 0 and at most {_MOST_UP}, got {initial_up}")
        if not 0 < initial_leak < 1:
            raise ValueError(f"initial_leak must be above 0 and below 1, got {initial_leak}")
        rates = _rates(schema)
        alphas = _alphas(alpha, schema.task_names)
        base = rates if self.bound is Bound.PRIOR else [1.0] * len(rates)
        ceiling = [a * b for a, b in zip(alphas, base, strict=True)]
        self.register_buffer("log_ceiling", torch.tensor(ceiling, dtype=torch.float64).log().float())
        self.log_ceiling: Tensor
        dislikes = [t.dislike for t in schema.tasks]
        self.register_buffer("dislike", torch.tensor(dislikes), persistent=False)
        self.dislike: Tensor
        up = _initial_up(initial_up, rates, dislikes)
        pairs = [
            _initial_pair(rate, 1 - up if dislike else up, limit, self.bound, initial_leak)
            for rate, limit, dislike in zip(rates, ceiling, dislikes, strict=True)
        ]
        self.towers = Towers(torch.tensor(pairs), rep_dim, tower, dropout)
        self.hidden = None if hidden is None else MLP(in_dim, hidden, dropout)
        self.hidden_output = nn.Linear(self.hidden.out_dim if self.hidden else 0, 1)
        nn.init.constant_(self.hidden_output.bias, logit(up))
        self.match = _match(schema, in_dim, match, 1)

    def forward(self, representations: Tensor, x: Tensor, first_order: Tensor | None = None) -> Predictions:
        """(T, B, H) representations and the (B, D) input -> Predictions with the hidden state."""
        c, n = self.towers(representations).unbind(2)  # (B, T) each
        if first_order is not None:
            c = c + at_least_float32(first_order)
        up = self.hidden_output(x[:, :0] if self.hidden is None else self.hidden(x))[:, 0]
        if self.match is not None:
            up = up + self.match(x)[:, 0]
        return self.mixture(c, n, at_least_float32(up))

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
            log_n = log_n + (log_c.detach() if self.detach_bound else log_c)
        given_up, given_not_up = self._turn(log_c, log_n)
        not_given_up, not_given_not_up = self._turn(log_not_c, log1mexp(log_n))
        log_up, log_not_up = F.logsigmoid(up)[:, None], F.logsigmoid(-up)[:, None]
        with_up, without = given_up + log_up, given_not_up + log_not_up
        log_p = torch.logaddexp(with_up, without)
        log_q = torch.logaddexp(not_given_up + log_up, not_given_not_up + log_not_up)
        joint = torch.where(self.dislike, without, with_up)
        conditionals = (given_up, given_not_up, not_given_up, not_given_not_up)
        latent = Latent(log_up[:, 0], log_not_up[:, 0], *conditionals, joint)
        return Predictions(log_p, log_q, joint if self.prediction is Ranking.JOINT else log_p, latent)

    def shared_parameters(self) -> list[nn.Parameter]:
        """The hidden state network and the match."""
        modules = [m for m in (self.hidden, self.hidden_output, self.match) if m is not None]
        return [p for module in modules for p in module.parameters()]

    def _turn(self, strong: Tensor, bounded: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) of the state in which a task happens and of the other one -> of UP and of not UP."""
        return torch.where(self.dislike, bounded, strong), torch.where(self.dislike, strong, bounded)

    def loss(self, predictions: Predictions, labels: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        """Cross entropies of equation (1), or the likelihood of all labels together, by ``likelihood``."""
        if self.likelihood is Likelihood.MARGINAL:
            return super().loss(predictions, labels, mask, weights)
        assert predictions.latent is not None
        return joint_loss(predictions.latent, labels, mask * weights)

    def task_losses(self, predictions: Predictions, labels: Tensor, mask: Tensor) -> Tensor:
        """Cross entropies of equation (1)."""
        if self.likelihood is Likelihood.FULL:
            raise ValueError(
                "dlen's full likelihood is one loss for all tasks, which cannot be balanced; set "
                "model.likelihood=marginal"
            )
        return super().task_losses(predictions, labels, mask)


def _match(schema: Schema, in_dim: int, factors: int, outputs: int) -> Match | None:
    """A match of user and item over the id fields, which stand first in the input; None where a side is missing."""
    fields = [*schema.of_kind(Kind.ID), *schema.of_kind(Kind.IDS)]
    users = [i for i, f in enumerate(fields) if f.side == "user"]
    items = [i for i, f in enumerate(fields) if f.side != "user"]
    if not factors or not users or not items:
        return None
    dim = (in_dim - len(schema.of_kind(Kind.NUMERIC))) // len(fields)
    return Match(users, items, dim, factors, outputs)


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


def _initial_up(asked: float, rates: Sequence[float], dislikes: Sequence[bool]) -> float:
    """P(UP) at which every interaction's rate can be reached, and if possible every dislike's."""
    least = max([r / 0.9 for r, dislike in zip(rates, dislikes, strict=True) if not dislike], default=0.0)
    most = 1 - max([r / 0.9 for r, dislike in zip(rates, dislikes, strict=True) if dislike], default=0.0)
    return min(max(min(asked, most), least, 1 - _MOST_UP), _MOST_UP)


def _initial_pair(rate: float, up: float, ceiling: float, bound: Bound, leak: float) -> tuple[float, float]:
    """Logits (c, n) at which P(t) is the training rate and P(t | not UP) is ``leak`` times P(t | UP).

    Where the bound asks for less than ``leak`` it begins at 0.9 of the bound, so that the sigmoid is not saturated.
    """
    if bound is Bound.CONDITIONAL:
        share = min(_MOST_SHARE, leak / ceiling)
        return logit(min(rate / (up + ceiling * share * (1 - up)), 0.99)), logit(share)
    share = min(_MOST_SHARE, leak * rate / (up + leak * (1 - up)) / ceiling)
    c = (rate - ceiling * share * (1 - up)) / up
    return logit(min(c, 0.99)), logit(share)
