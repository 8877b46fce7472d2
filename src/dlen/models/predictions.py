"""Predictions: what a head says of each impression, in log space, and the loss made from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Latent:
    """The hidden state of DLEN, as log-probabilities.

    Attributes:
        log_up: (B,) log P(UP).
        log_not_up: (B,) log P(not UP), equation (2).
        log_given_up: (B, T) log P(t | UP).
        log_given_not_up: (B, T) log P(t | not UP), below its bound.
    """

    log_up: Tensor
    log_not_up: Tensor
    log_given_up: Tensor
    log_given_not_up: Tensor

    @property
    def log_joint(self) -> Tensor:
        """(B, T) log P(t, UP), equation (4)."""
        return self.log_up[:, None] + self.log_given_up


@dataclass(slots=True)
class Predictions:
    """What a model says of B impressions and T tasks.

    Attributes:
        log_p: (B, T) log P(y_t = 1); for DLEN the total probability, equation (1).
        log_q: (B, T) log P(y_t = 0).
        log_score: (B, T) the log-probability that ranks: ``log_p``, or equation (4).
        latent: DLEN's hidden state; None for other models.
    """

    log_p: Tensor
    log_q: Tensor
    log_score: Tensor
    latent: Latent | None = None


def task_losses(predictions: Predictions, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean cross entropy of each task over the rows that train it.

    Args:
        predictions: of B rows and T tasks.
        labels: (B, T) 0 or 1.
        mask: (B, T) 1 where a row trains a task.

    Returns:
        (T,) losses in nats; 0 for a task without rows in this batch.
    """
    nll = -(labels * predictions.log_p + (1 - labels) * predictions.log_q)
    return (nll * mask).sum(0) / mask.sum(0).clamp(min=1)
