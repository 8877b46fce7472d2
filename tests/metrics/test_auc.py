"""AUC against scikit-learn, exact and from histograms, and the gain over a base model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from dlen.metrics import ExactAUC, HistogramAUC, MTLGain
from dlen.metrics.functional import auc_weight

METRICS = [ExactAUC, HistogramAUC]


def rows(count: int, targets: int, seed: int = 0, ties: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Log-odds, loosely correlated labels, and a random mask."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(-2, 1.5, (count, targets))
    if ties:
        scores = np.round(scores * 4) / 4
    labels = (rng.random((count, targets)) < 1 / (1 + np.exp(-scores))).astype(np.float32)
    mask = (rng.random((count, targets)) < 0.7).astype(np.float32)
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(labels), torch.tensor(mask)


def by_sklearn(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> list[float]:
    keep = torch.ones_like(labels).bool() if mask is None else mask.bool()
    return [roc_auc_score(y[m], s[m]) for s, y, m in zip(scores.T, labels.T, keep.T, strict=True)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("targets", [1, 4])
def test_many_ties(metric: type[ExactAUC | HistogramAUC], masked: bool, targets: int) -> None:
    scores, labels, mask = rows(500, targets)
    assert len(scores.unique()) < 60
    auc = metric(targets)
    auc.update(scores, labels, mask if masked else None)
    wanted = by_sklearn(scores, labels, mask if masked else None)
    assert auc.compute().reshape(-1).tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("metric", "error"), [(ExactAUC, 1e-12), (HistogramAUC, 1e-4)])
def test_updates_in_chunks(metric: type[ExactAUC | HistogramAUC], error: float) -> None:
    scores, labels, mask = rows(1000, 3, seed=1, ties=False)
    auc = metric(3)
    for part in torch.arange(1000).split(137):
        auc.update(scores[part], labels[part], mask[part])
    assert auc.compute().tolist() == pytest.approx(by_sklearn(scores, labels, mask), abs=error)


@pytest.mark.parametrize("metric", METRICS)
def test_all_scores_equal_is_one_half(metric: type[ExactAUC | HistogramAUC]) -> None:
    auc = metric(1)
    auc.update(torch.full((6, 1), -3.0), torch.tensor([[0.0], [1.0], [0.0], [1.0], [1.0], [0.0]]))
    assert auc.compute().item() == 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_one_class_is_nan_and_leaves_the_others_alone(metric: type[ExactAUC | HistogramAUC]) -> None:
    scores, labels, mask = rows(200, 4)
    labels[:, 1], labels[:, 2], mask[:, 3] = 0, 1, 0
    auc = metric(4)
    auc.update(scores, labels, mask)
    got = auc.compute().tolist()
    assert got[0] == pytest.approx(by_sklearn(scores[:, :1], labels[:, :1], mask[:, :1])[0], abs=1e-12)
    assert all(math.isnan(value) for value in got[1:])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("metric", METRICS)
def test_no_rows_at_all_is_nan(metric: type[ExactAUC | HistogramAUC]) -> None:
    assert metric(2).compute().isnan().tolist() == [True, True]


@pytest.mark.parametrize("metric", METRICS)
def test_reset_forgets(metric: type[ExactAUC | HistogramAUC]) -> None:
    first, second = rows(300, 2, seed=2), rows(300, 2, seed=3)
    auc = metric(2)
    auc.update(*first)
    auc.compute()
    auc.reset()
    auc.update(*second)
    assert auc.compute().tolist() == pytest.approx(by_sklearn(*second), abs=1e-12)


def test_histogram_resolves_scores_crowded_near_one_in_five_thousand() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(-8.5, 0.05, 1_000_000).astype(np.float32)
    labels = rng.random(1_000_000) < 1 / (1 + np.exp(-30 * (scores + 8.6)))
    auc = HistogramAUC(1)
    auc.update(torch.tensor(scores)[:, None], torch.tensor(labels)[:, None])
    wanted = roc_auc_score(labels, scores)
    assert 0.6 < wanted < 0.95
    assert auc.compute().item() == pytest.approx(wanted, abs=1e-4)


def test_histogram_takes_scores_beyond_its_limits_as_ties() -> None:
    scores = torch.tensor([[-math.inf], [-90.0], [-30.0], [0.0], [25.0], [math.inf]])
    labels = torch.tensor([[0.0], [1.0], [0.0], [1.0], [0.0], [1.0]])
    auc = HistogramAUC(1)
    auc.update(scores, labels)
    assert auc.compute().item() == pytest.approx(roc_auc_score(labels, scores.clamp(-20, 20)), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_gain_is_the_difference(metric: type[ExactAUC | HistogramAUC]) -> None:
    scores, labels, mask = rows(400, 3, seed=5)
    base = [0.6, math.nan, 0.75]
    gain = MTLGain(metric(3), base)
    for half in (slice(0, 150), slice(150, 400)):
        gain.update(scores[half], labels[half], mask[half])
    aucs = by_sklearn(scores, labels, mask)
    got = gain.compute().tolist()
    assert got[0] == pytest.approx(aucs[0] - 0.6, abs=1e-12)
    assert math.isnan(got[1])
    assert got[2] == pytest.approx(aucs[2] - 0.75, abs=1e-12)
    assert got[3] == pytest.approx((got[0] + got[2]) / 2, abs=1e-12)


def test_gain_after_reset_holds_the_new_rows_alone() -> None:
    first, second = rows(300, 1, seed=6), rows(300, 1, seed=7)
    gain = MTLGain(ExactAUC(1), [0.5])
    gain.update(*first)
    gain.compute()
    gain.reset()
    gain.update(*second)
    assert gain.compute()[0].item() == pytest.approx(by_sklearn(*second)[0] - 0.5, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("masked", [False, True])
def test_roc_goes_through_the_corners_of_sklearns(metric: type[ExactAUC | HistogramAUC], masked: bool) -> None:
    scores, labels, mask = rows(500, 3)
    auc = metric(3)
    auc.update(scores, labels, mask if masked else None)
    keep = mask.bool() if masked else torch.ones_like(mask).bool()
    for k, curve in enumerate(auc.roc(1000)):
        false, true, _ = roc_curve(labels[keep[:, k], k], scores[keep[:, k], k], drop_intermediate=False)
        assert curve.T.tolist() == pytest.approx(np.stack([false, true], 1), abs=1e-12)  # few enough to keep them all


@pytest.mark.parametrize("metric", METRICS)
def test_a_thinned_roc_keeps_its_ends_and_its_area(metric: type[ExactAUC | HistogramAUC]) -> None:
    scores, labels, _ = rows(5000, 1, ties=False)
    auc = metric(1)
    auc.update(scores, labels)
    (curve,) = auc.roc(101)
    assert curve.shape[1] <= 101
    assert curve[:, 0].tolist() == [0, 0]
    assert curve[:, -1].tolist() == [1, 1]
    assert (curve.diff(dim=1) >= 0).all()
    assert np.trapezoid(curve[1], curve[0]) == pytest.approx(by_sklearn(scores, labels)[0], abs=0.005)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("label", [0.0, 1.0, None])
def test_there_is_no_roc_of_one_class(metric: type[ExactAUC | HistogramAUC], label: float | None) -> None:
    auc = metric(1)
    if label is not None:
        auc.update(torch.tensor([[0.3], [0.1]]), torch.full((2, 1), label))
    assert auc.roc(10)[0].shape == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("positives", "negatives"), [(40, 5000), (300, 900)])
def test_the_variance_in_a_tasks_weight_is_that_of_scores_that_tell_nothing(positives: int, negatives: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(positives + negatives) < positives
    found = [roc_auc_score(labels, rng.random(len(labels))) for _ in range(800)]
    variance = 1 / auc_weight(positives, negatives, spread=0.0)
    assert variance == pytest.approx(np.var(found), rel=0.15)
    assert 1 / auc_weight(positives, negatives, spread=0.02) == pytest.approx(variance + 0.0004)


@pytest.mark.parametrize(("positives", "negatives"), [(0, 10), (10, 0)])
def test_a_task_of_one_class_has_no_weight(positives: int, negatives: int) -> None:
    assert auc_weight(positives, negatives) == 0
