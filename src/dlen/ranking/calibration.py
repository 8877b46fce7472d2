"""Per-task calibration: map predicted probabilities to the scale of observed rates."""

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
    """Per-task Platt scaling (Platt 1999): a line through the log-odds. The order within a task does not change.

    Attributes:
        slope: (T,) float32.
        offset: (T,) float32.
    """

    slope: Tensor
    offset: Tensor

    def __call__(self, log_p: Tensor) -> Tensor:
        """Map (B, T) log-probabilities to calibrated (B, T) log-probabilities."""
        return logsigmoid(self.slope * log_odds(log_p) + self.offset)


def fit_calibration(log_p: Tensor, labels: Tensor, measured: Tensor) -> Calibration:
    """Fit the maximum-likelihood line of each task.

    Uses Platt's smoothed targets instead of 0 and 1, so that no line degenerates to a step.

    Args:
        log_p: (N, T) predicted log-probabilities of held-out rows.
        labels: (N, T) 0 or 1.
        measured: (N, T) 1 where a row measures the task. A task without such rows is not changed.

    Returns:
        The calibration of every task.

    Raises:
        ValueError: for a task, higher predictions go with fewer positives, so no rescaling helps.
    """
    lines = []
    for task in range(log_p.shape[1]):
        rows = measured[:, task] > 0
        x, y = log_odds(log_p[rows, task].double()).numpy(), labels[rows, task].double().numpy()
        lines.append(_line(x, y) if len(y) else (1.0, 0.0))
        if lines[-1][0] <= 0:
            raise ValueError(f"task {task}: higher predictions go with fewer positives (slope {lines[-1][0]:.3g})")
    slope, offset = torch.tensor(lines, dtype=torch.float32).T.contiguous()
    return Calibration(slope, offset)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Fit the slope and offset of one task."""
    positives, rows = y.sum(), len(y)
    target = np.where(y > 0, (positives + 1) / (positives + 2), 1 / (rows - positives + 2))
    inputs = np.stack([x, np.ones_like(x)])

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        z = line @ inputs
        return float(np.mean(np.logaddexp(0, z) - target * z)), inputs @ (expit(z) - target) / rows

    def curvature(line: np.ndarray) -> np.ndarray:
        p = expit(line @ inputs)
        return (inputs * (p * (1 - p))) @ inputs.T / rows

    fit = minimize(loss, np.array([1.0, 0.0]), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9})
    return float(fit.x[0]), float(fit.x[1])
