"""Paired statistics against scipy, a slow direct DeLong, scikit-learn and repeated sampling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from dlen.comparing import delong
from dlen.comparing.delong import Placements, row_variances
from dlen.comparing.statistics import next_seed, paired

Array = NDArray[Any]


def drawn(rows: int, targets: int, seed: int, ties: bool = False) -> tuple[Array, Array, Array]:
    """Log-odds (rows, targets) of two models, and labels; the second model is better."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(rows, targets))
    labels = (rng.random((rows, targets)) < 1 / (1 + np.exp(1 - truth))).astype(np.uint8)
    scores = [(truth + noise * rng.normal(size=truth.shape)).astype(np.float32) for noise in (2.0, 1.0)]
    if ties:
        scores = [np.round(s, 1) for s in scores]
    return scores[0], scores[1], labels


def direct_delong(a: Array, b: Array, labels: Array) -> float:
    """Variance of AUC(b) - AUC(a), by comparing every positive with every negative (DeLong et al. 1988)."""
    positive, negative = labels == 1, labels == 0
    v10, v01 = [], []
    for scores in (a, b):
        wins = np.sign(scores[positive][:, None].astype(np.float64) - scores[negative][None]) / 2 + 0.5
        v10.append(wins.mean(1))
        v01.append(wins.mean(0))
    s10, s01 = np.cov(np.stack(v10)), np.cov(np.stack(v01))
    s = s10 / positive.sum() + s01 / negative.sum()
    return float(s[0, 0] + s[1, 1] - 2 * s[0, 1])


@pytest.mark.parametrize("ties", [False, True])
def test_row_variance_is_delongs(ties: bool) -> None:
    a, b, labels = drawn(400, 3, 0, ties)
    found = row_variances([b], [a], labels, np.ones_like(labels), 3)
    for k in range(3):
        assert found[k] == pytest.approx(direct_delong(a[:, k], b[:, k], labels[:, k]), rel=1e-9)


def test_masked_rows_do_not_count() -> None:
    a, b, labels = drawn(500, 2, 1)
    mask = (np.random.default_rng(2).random(labels.shape) < 0.6).astype(np.uint8)
    found = row_variances([b], [a], labels, mask, 2)
    for k in range(2):
        kept = mask[:, k] == 1
        assert found[k] == pytest.approx(direct_delong(a[kept, k], b[kept, k], labels[kept, k]), rel=1e-9)


def test_auc_and_histogram_placements(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, labels = drawn(3000, 1, 3)
    every = np.ones_like(labels)
    for exact, error in ((True, 1e-12), (False, 1e-5)):
        placements = Placements(a[:, 0], labels[:, 0], every[:, 0], exact=exact)
        assert placements.auc == pytest.approx(roc_auc_score(labels[:, 0], a[:, 0]), abs=error)
    exact_variance = row_variances([b], [a], labels, every, 1)
    monkeypatch.setattr(delong, "EXACT_ROWS", 10)
    monkeypatch.setattr(delong, "_CHUNK", 700)
    assert row_variances([b], [a], labels, every, 1) == pytest.approx(exact_variance, rel=1e-3)


@pytest.mark.slow
def test_variance_of_means_over_seeds_and_tasks_matches_repeated_sampling() -> None:
    """The estimate from one split matches the spread over many resampled test splits."""
    figures, estimates = [], []
    for seed in range(300):
        a, b, labels = drawn(600, 2, seed)
        noise = np.random.default_rng(1000 + seed).normal(size=a.shape).astype(np.float32)
        runs = [b, b + noise]
        gains = [
            [roc_auc_score(labels[:, k], r[:, k]) - roc_auc_score(labels[:, k], a[:, k]) for k in (0, 1)] for r in runs
        ]
        figures.append(np.mean(gains))
        estimates.append(row_variances(runs, [a, a], labels, np.ones_like(labels), 2)[-1])
    assert np.mean(estimates) == pytest.approx(np.var(figures), rel=0.25)


def test_a_target_without_positives_is_undefined_and_left_out_of_the_mean() -> None:
    a, b, labels = drawn(300, 2, 4)
    alone = row_variances([b[:, :1]], [a[:, :1]], labels[:, :1], np.ones((300, 1)), 1)
    labels[:, 1] = 0
    found = row_variances([b], [a], labels, np.ones_like(labels), 2)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(alone[1])


def test_interval_over_seeds_is_scipys() -> None:
    rng = np.random.default_rng(5)
    model, base = rng.normal(0.8, 0.01, 5), rng.normal(0.79, 0.01, 5)
    found = paired(list(model), list(base))
    low, high = stats.ttest_rel(model, base).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx((model - base).mean())
    assert math.isnan(found.row_error)


def test_interval_over_rows_of_one_seed_is_normal() -> None:
    found = paired([0.8], [0.79], 0.004**2)
    assert (found.low, found.high) == pytest.approx((0.01 - 1.959964 * 0.004, 0.01 + 1.959964 * 0.004), rel=1e-5)
    assert math.isnan(found.seed_error)
    assert not found.clear  # no information about another seed


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 1, 2, 3, 5, 10])
def test_interval_of_equal_models_holds_zero_as_often_as_it_says(seeds: int, ratio: float) -> None:
    """For any ratio of seed variance to row variance."""
    random, row, draws = np.random.default_rng([seeds, int(4 * ratio)]), 0.001, 3000
    held = 0
    for _ in range(draws):
        differences = random.normal(0, row) + random.normal(0, ratio * row * math.sqrt(seeds), seeds)
        found = paired(differences.tolist(), [0.0] * seeds, row**2)
        held += found.low <= 0 <= found.high
    chance = 3.5 * math.sqrt(0.05 * 0.95 / draws)
    assert 0.94 - chance < held / draws < 0.97 + chance


def test_interval_meets_those_of_one_source_alone() -> None:
    """Without row variance it becomes Student's interval, without seed variance the normal one."""
    model, base = [0.80, 0.81, 0.805], [0.79, 0.795, 0.80]
    assert paired(model, base, 1e-16).high == pytest.approx(paired(model, base).high)
    same = paired([0.81, 0.81], [0.8, 0.8], 0.002**2)
    assert same.high - same.mean == pytest.approx(1.959964 * 0.002, rel=1e-5)


def test_one_seed_without_rows_has_no_interval() -> None:
    found = paired([0.8], [0.7])
    assert math.isnan(found.low)
    assert not found.clear
    assert paired([0.8, 0.8], [0.7, 0.7]).clear


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_one_more_seed_is_in_its_interval_95_times_of_100(seeds: int) -> None:
    rng, drawings = np.random.default_rng(0), 4000
    draws = rng.normal(0.7, 0.01, size=(drawings, seeds + 1))
    inside = [low <= new <= high for *known, new in draws for low, high in [next_seed(known)]]
    assert np.mean(inside) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / drawings))


def test_the_interval_of_one_more_seed_is_the_textbooks() -> None:
    low, high = next_seed([0.0, 1.0])  # t of one degree of freedom is 12.706
    assert (low, high) == (pytest.approx(0.5 - 12.706 * math.sqrt(0.75), abs=1e-3), pytest.approx(1 - low))
    assert np.isnan(next_seed([0.7])).all()
