"""Log loss, calibration ratio and calibration error against scikit-learn and slow computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from dlen.metrics import CalibrationError, CalibrationRatio, LogLoss


def rows(count: int, targets: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct probabilities, labels and a mask, (count, targets) each."""
    rng = np.random.default_rng(seed)
    log_odds = np.linspace(-9, 3, count)
    p = 1 / (1 + np.exp(-np.stack([rng.permutation(log_odds) for _ in range(targets)], 1)))
    labels = (rng.random(p.shape) < np.sqrt(p)).astype(np.int64)
    return p, labels, (rng.random(p.shape) < 0.6).astype(np.int64)


def logs(p: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.tensor(np.log(p)), torch.tensor(np.log1p(-p))


def test_log_loss_equals_sklearn_in_chunks_and_masked() -> None:
    p, labels, mask = rows(400, 3)
    metric = LogLoss(3)
    for part in np.array_split(np.arange(400), 5):
        metric.update(*logs(p[part]), torch.tensor(labels[part]), torch.tensor(mask[part]))
    keep = mask.astype(bool)
    wanted = [log_loss(labels[keep[:, k], k], p[keep[:, k], k], labels=[0, 1]) for k in range(3)]
    assert metric.compute().tolist() == pytest.approx(wanted, rel=1e-10)


def test_calibration_ratio_equals_the_quotient_of_sums() -> None:
    p, labels, mask = rows(400, 3, seed=1)
    metric = CalibrationRatio(3)
    for part in np.array_split(np.arange(400), 3):
        metric.update(logs(p[part])[0], torch.tensor(labels[part]), torch.tensor(mask[part]))
    wanted = (p * mask).sum(0) / (labels * mask).sum(0)
    assert metric.compute().tolist() == pytest.approx(wanted.tolist(), rel=1e-10)


def test_calibration_ratio_of_a_promise_twice_too_large_is_two() -> None:
    metric = CalibrationRatio(1)
    labels = torch.tensor([[1.0]] * 10 + [[0.0]] * 30)
    metric.update(torch.full((40, 1), math.log(0.5)), labels, torch.ones(40, 1))
    assert metric.compute().item() == pytest.approx(2.0)


def slow_calibration_error(p: np.ndarray, labels: np.ndarray, groups: int) -> float:
    """Rows sorted by probability, split into groups of equal size."""
    order = np.argsort(p)
    error = 0.0
    for part in np.split(order, groups):
        error += len(part) / len(p) * abs(p[part].mean() - labels[part].mean())
    return error


@pytest.mark.parametrize("groups", [1, 5, 20])
def test_calibration_error_equals_a_slow_computation(groups: int) -> None:
    p, labels, _ = rows(400, 3, seed=2)
    metric = CalibrationError(3, groups=groups)
    for part in np.array_split(np.arange(400), 3):
        metric.update(logs(p[part])[0], torch.tensor(labels[part]), torch.ones(len(part), 3))
    wanted = [slow_calibration_error(p[:, k], labels[:, k], groups) for k in range(3)]
    assert metric.compute().tolist() == pytest.approx(wanted, rel=1e-9)


def test_calibration_error_leaves_out_masked_rows() -> None:
    p, labels, _ = rows(400, 1, seed=3)
    keep = np.random.default_rng(0).permutation(400)[:200]
    mask = np.zeros((400, 1), dtype=np.int64)
    mask[keep] = 1
    metric = CalibrationError(1, groups=10)
    metric.update(logs(p)[0], torch.tensor(labels), torch.tensor(mask))
    wanted = slow_calibration_error(p[keep, 0], labels[keep, 0], 10)
    assert metric.compute().item() == pytest.approx(wanted, rel=1e-9)
    assert wanted > 0.01


def test_calibration_error_sees_what_one_group_of_a_rare_task_would_hide() -> None:
    """Half of the rows predict 0.0001 with rate 0.0003, the other half the reverse, so the mean is right."""
    p = np.repeat([1e-4, 3e-4], 10_000)[:, None]
    labels = np.zeros((20_000, 1))
    labels[:3], labels[10_000:10_001] = 1, 1
    metric = CalibrationError(1, groups=2)
    metric.update(logs(p)[0], torch.tensor(labels), torch.ones(20_000, 1))
    assert metric.compute().item() == pytest.approx(2e-4, rel=1e-6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_undefined_is_nan() -> None:
    p, labels, _ = rows(50, 2)
    mask, log_p = torch.tensor([[1.0, 0.0]]).expand(50, 2), logs(p)
    loss, ratio, error = LogLoss(2), CalibrationRatio(2), CalibrationError(2)
    loss.update(*log_p, torch.tensor(labels), mask)
    ratio.update(log_p[0], torch.tensor(labels), mask)
    error.update(log_p[0], torch.tensor(labels), mask)
    for metric in (loss, ratio, error):
        assert metric.compute().isnan().tolist() == [False, True]
        metric.reset()
        assert metric.compute().isnan().all()


def test_reliability_equals_groups_of_sorted_rows() -> None:
    rng = np.random.default_rng(3)
    probability = np.sort(rng.random((400, 1)), 0)
    labels = (rng.random((400, 1)) < probability).astype(np.float32)
    order = rng.permutation(400)
    metric = CalibrationError(1, groups=8)
    log_p = torch.tensor(np.log(probability))
    metric.update(log_p[order], torch.tensor(labels)[order], torch.ones(400, 1))
    rows, predicted, observed = metric.reliability()[0].tolist()
    assert rows == [50.0] * 8
    assert predicted == pytest.approx(probability.reshape(8, 50).sum(1))
    assert observed == pytest.approx(labels.reshape(8, 50).sum(1))
    empty = CalibrationError(2)
    assert empty.reliability().tolist() == torch.zeros(2, 3, 20).tolist()
