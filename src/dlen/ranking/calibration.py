"""Calibration: predicted probabilities on the scale of what really happened, for each task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import logsigmoid

from dlen.nn.logspace import log_odds


@dataclass(frozen=True, slots=True)
class Calibration:
    """For each of T tasks a line through the log-odds (Platt 1999). The order within a task stays.

    Attributes:
        slope: (T,) float32.
        offset: (T,) float32.
    """

    slope: Tensor
    offset: Tensor

    def __call__(self, log_p: Tensor) -> Tensor:
        """(B, T) log-probabilities -> (B, T) calibrated ones."""
        return logsigmoid(self.slope * log_odds(log_p) + self.offset)


def fit_calibration(log_p: Tensor, labels: Tensor, measured: Tensor) -> Calibration:
    """The lines of greatest likelihood, with Platt's targets instead of 0 and 1 so that no line becomes a step.

    Args:
        log_p: (N, T) predicted log-probabilities of held-out rows.
        labels: (N, T) 0 or 1.
        measured: (N, T) 1 where a row measures the task; a task without such rows stays as it is.

    Returns:
        The calibration of each task.

    Raises:
        ValueError: the held-out rows say that a task's predictions are in the wrong order, so no scale helps.
    """
    lines = []
    for task in range(log_p.shape[1]):
        rows = measured[:, task] > 0
        x, y = log_odds(log_p[rows, task].double()).numpy(), labels[rows, task].double().numpy()
        lines.append(_line(x, y) if len(y) else (1.0, 0.0))
        if lines[-1][0] <= 0:
            raise ValueError(f"task {task}: greater predictions went with fewer positives (slope {lines[-1][0]:.3g})")
    slope, offset = torch.tensor(lines, dtype=torch.float32).T.contiguous()
    return Calibration(slope, offset)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and offset."""
    positives, rows = y.sum(), len(y)
    target = np.where(y > 0, (positives + 1) / (positives + 2), 1 / (rows - positives + 2))
    inputs = np.stack([x, np.ones_like(x)])

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        z = line @ inputs
        return float(np.mean(np.logaddexp(0, z) - target * z)), inputs @ (expit(z) - target) / rows

    def curvature(line: np.ndarray) -> np.ndarray:
        p = expit(line @ inputs)
        return (inputs * (p * (1 - p))) @ inputs.T / rows

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9})
    return float(found.x[0]), float(found.x[1])
