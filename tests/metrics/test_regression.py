"""Metrics of regression tasks against slow loops, numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dlen.metrics import RegressionErrors
from dlen.metrics.regression import spearman, xauc


def slow_xauc(predicted: list[float], labels: list[float]) -> float:
    right = pairs = 0.0
    for p, y in zip(predicted, labels, strict=True):
        for q, z in zip(predicted, labels, strict=True):
            if y > z:
                pairs += 1
                right += 1.0 if p > q else 0.5 if p == q else 0.0
    return right / pairs


@pytest.mark.parametrize("rows", [2, 3, 17, 128, 129])
@pytest.mark.parametrize(("levels", "labels"), [(1000, 1000), (4, 1000), (1000, 3), (3, 4), (1, 5)])
def test_xauc_is_the_share_of_pairs_in_a_loop(rows: int, levels: int, labels: int) -> None:
    rng = np.random.default_rng(rows + levels)
    y = rng.integers(0, labels, rows) / 8
    y[:2] = 0, 1  # two labels at least
    p = np.round(y * levels / 10 + rng.integers(0, levels, rows)) - 5
    assert float(xauc(torch.tensor(p), torch.tensor(y))) == pytest.approx(slow_xauc(p.tolist(), y.tolist()), abs=1e-12)


def test_it_is_the_auc_of_two_labels_and_kendalls_tau_without_ties() -> None:
    rng = np.random.default_rng(1)
    p, y = rng.normal(size=500), rng.normal(size=500)
    found = float(xauc(torch.tensor(p), torch.tensor(y)))
    assert found == pytest.approx((stats.kendalltau(p, y).statistic + 1) / 2, abs=1e-12)
    event = (y > 0.5).astype(float)
    wanted = stats.mannwhitneyu(p[event == 1], p[event == 0]).statistic / (event.sum() * (1 - event).sum())
    assert float(xauc(torch.tensor(p), torch.tensor(event))) == pytest.approx(wanted, abs=1e-12)


def test_spearman_is_scipys_with_ties() -> None:
    rng = np.random.default_rng(2)
    for levels in (3, 50, 10**6):
        p, y = rng.integers(0, levels, 200) / 7, rng.integers(0, 20, 200) / 3
        wanted = stats.spearmanr(p, y).statistic
        assert float(spearman(torch.tensor(p), torch.tensor(y))) == pytest.approx(wanted, abs=1e-12)


def rows_of(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = 10 * torch.rand(rows, 2, generator=generator)
    predicted = labels + 4 * torch.randn(rows, 2, generator=generator)
    mask = (torch.rand(rows, 2, generator=generator) < 0.7).float()
    return predicted, torch.where(mask > 0, labels, torch.nan), mask


def test_errors_are_numpys_on_the_rows_that_count() -> None:
    predicted, labels, mask = rows_of(300)
    metric = RegressionErrors(2)
    for part in (slice(0, 7), slice(7, 200), slice(200, 300)):
        metric.update(predicted[part], labels[part], mask[part])
    for task, found in enumerate(metric.compute().tolist()):
        used = mask[:, task].bool()
        p, y = predicted[used, task].double().numpy(), labels[used, task].double().numpy()
        errors = (np.sqrt(np.mean((p - y) ** 2)), np.mean(np.abs(p - y)))
        wanted = (*errors, slow_xauc(p.tolist(), y.tolist()), stats.spearmanr(p, y).statistic)
        assert found == pytest.approx(wanted, rel=1e-6)


def test_beyond_its_rows_every_second_row_orders_and_all_rows_err() -> None:
    predicted, labels, mask = rows_of(1000)
    sampled, every, all_rows = RegressionErrors(2, most=300), RegressionErrors(2), RegressionErrors(2)
    for first in range(0, 1000, 90):
        part = slice(first, first + 90)
        sampled.update(predicted[part], labels[part], mask[part])
    every.update(predicted[::4], labels[::4], mask[::4])
    all_rows.update(predicted, labels, mask)
    assert sum(len(part) for part in sampled.masks) == 250
    torch.testing.assert_close(sampled.compute()[:, :2], all_rows.compute()[:, :2])
    assert torch.equal(sampled.compute()[:, 2:], every.compute()[:, 2:])
    sampled.reset()
    sampled.update(predicted[:250], labels[:250], mask[:250])
    all_rows.reset()
    all_rows.update(predicted[:250], labels[:250], mask[:250])
    assert torch.equal(sampled.compute(), all_rows.compute())


@pytest.mark.parametrize("size", [1e-30, 1e12, 1e37])
def test_labels_of_any_size_have_finite_metrics(size: float) -> None:
    """Squares of the largest do not fit in 32 bits; the orders are those without the factor."""
    predicted, labels, mask = (part.double() for part in rows_of(200))
    metric, plain = RegressionErrors(2), RegressionErrors(2)
    metric.update((predicted * size).float(), (labels * size).float(), mask)
    plain.update(predicted, labels, mask)
    scale = torch.tensor([size, size, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(metric.compute(), plain.compute() * scale, rtol=1e-5, atol=0)


def test_what_is_not_defined() -> None:
    metric = RegressionErrors(2)
    assert metric.compute().isnan().all()
    metric.update(torch.ones(3, 2), torch.tensor([[2.0, 1.0]] * 3), torch.tensor([[1.0, 0.0]] * 3))
    (rmse, mae, *orders), nothing = metric.compute().tolist()
    assert (rmse, mae) == (1.0, 1.0)
    assert all(math.isnan(value) for value in (*orders, *nothing))
