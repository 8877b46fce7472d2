"""Predictions of regression tasks, on the standardised scale of their labels, and their losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from dlen.schema import Schema


def _weighted_logistic(outputs: Tensor, labels: Tensor) -> Tensor:
    return labels * F.softplus(-outputs) + F.softplus(outputs)


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "mse": partial(F.mse_loss, reduction="none"),
        "huber": partial(F.huber_loss, reduction="none"),
        "weighted_logistic": _weighted_logistic,
    }
)


def centres(schema: Schema) -> list[float]:
    """The standardised training mean of each regression task: labels of ``weighted_logistic`` keep their zero."""
    return [1.0 if schema.tasks[index].loss == "weighted_logistic" else 0.0 for index in schema.regressions]


@dataclass(slots=True)
class PointValues:
    """One number for each of the R regression tasks.

    - ``mse``: squared error.
    - ``huber``: half the squared error up to one deviation, linear beyond.
    - ``weighted_logistic``: a row counts as a positive with its label as weight, and as a negative with weight 1, so
      that the odds are the expected label (Covington et al. 2016, section 4.2).

    Attributes:
        columns: (R,) int64 indices of the regression tasks among the T tasks.
        outputs: (B, R) predictions; their logarithm for ``weighted_logistic``.
        losses: loss of each of the R tasks.
    """

    columns: Tensor
    outputs: Tensor
    losses: Sequence[str]

    @property
    def expected(self) -> Tensor:
        """(B, R) standardised predictions."""
        columns = zip(self.outputs.unbind(1), self.losses, strict=True)
        return torch.stack([z.exp() if loss == "weighted_logistic" else z for z, loss in columns], 1)

    def nll(self, labels: Tensor) -> Tensor:
        """(B, R) standardised labels -> (B, R) losses."""
        columns = zip(self.outputs.unbind(1), labels.unbind(1), self.losses, strict=True)
        return torch.stack([LOSSES[loss](z, y) for z, y, loss in columns], 1)


@dataclass(slots=True)
class MixtureValues:
    """DLEN's regression tasks: a normal distribution of the standardised label in each state.

    P(y | UP) and P(y | not UP) have a mean each and share a deviation, whatever the ``loss`` of the task.

    Attributes:
        columns: (R,) int64 indices of the regression tasks among the T tasks.
        log_up: (B,) log P(UP).
        log_not_up: (B,) log P(not UP).
        given_up: (B, R) mean given UP.
        given_not_up: (B, R) mean given not UP.
        log_deviation: (R,) logarithm of the deviation.
    """

    columns: Tensor
    log_up: Tensor
    log_not_up: Tensor
    given_up: Tensor
    given_not_up: Tensor
    log_deviation: Tensor

    @property
    def expected(self) -> Tensor:
        """(B, R) expectation over both states."""
        return self.log_up.exp()[:, None] * self.given_up + self.log_not_up.exp()[:, None] * self.given_not_up

    def log_given(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R) standardised labels -> (B, R) log densities given UP and given not UP."""
        up, not_up = (self._log_density(labels - mean) for mean in (self.given_up, self.given_not_up))
        return up, not_up

    def _log_density(self, error: Tensor) -> Tensor:
        return -0.5 * (error / self.log_deviation.exp()) ** 2 - self.log_deviation - 0.5 * math.log(2 * math.pi)

    def nll(self, labels: Tensor) -> Tensor:
        """(B, R) standardised labels -> (B, R) negative log-likelihoods of each label alone."""
        up, not_up = self.log_given(labels)
        return -torch.logaddexp(self.log_up[:, None] + up, self.log_not_up[:, None] + not_up)


Values = PointValues | MixtureValues
