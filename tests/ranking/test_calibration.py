"""Calibration against scikit-learn's logistic regression, and its effect on a score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from dlen.nn.logspace import log_odds
from dlen.ranking.calibration import Calibration, fit_calibration
from dlen.ranking.fusion import Fusion, Score


def _rows(n: int = 20_000) -> tuple[Tensor, Tensor]:
    """(n, 2) overconfident and too high log-probabilities, and labels."""
    torch.manual_seed(0)
    logits = torch.randn(n, 2, dtype=torch.float64) - torch.tensor([1.0, 3.0])
    labels = (torch.rand(n, 2) < logits.sigmoid()).double()
    return torch.nn.functional.logsigmoid(2 * logits + 1), labels


def test_lines_are_those_of_a_logistic_regression() -> None:
    log_p, labels = _rows()
    found = fit_calibration(log_p, labels, torch.ones_like(labels))
    for task in range(2):
        x = log_odds(log_p[:, task]).numpy()[:, None]
        wanted = LogisticRegression(C=np.inf, tol=1e-9).fit(x, labels[:, task].numpy())
        # Platt's targets differ slightly from 0 and 1.
        assert found.slope[task].item() == pytest.approx(wanted.coef_[0, 0], abs=2e-3)
        assert found.offset[task].item() == pytest.approx(wanted.intercept_[0], abs=4e-3)
    assert found.slope.tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    calibrated = found(log_p.float())
    assert calibrated.exp().mean(0).tolist() == pytest.approx(labels.mean(0).tolist(), abs=1e-3)
    assert calibrated[log_p[:, 0].argsort(), 0].diff().min() > -1e-6


def test_only_measured_rows_count() -> None:
    log_p, labels = _rows(4000)
    measured = (torch.rand(4000, 2) < 0.5).double()
    spoilt = torch.where(measured > 0, labels, 1 - labels)
    found = fit_calibration(log_p, spoilt, measured)
    assert found.slope.tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    measured[:, 1] = 0
    left = fit_calibration(log_p, spoilt, measured)
    assert [left.slope[1].item(), left.offset[1].item()] == [1.0, 0.0]


def test_perfect_predictions_stay_finite_and_wrong_ones_are_refused() -> None:
    log_p = torch.linspace(-4, 4, 200).double().sigmoid().log()[:, None]
    labels = (torch.arange(200) >= 100).double()[:, None]
    found = fit_calibration(log_p, labels, torch.ones_like(labels))
    assert 1 < found.slope.item() < 100
    with pytest.raises(ValueError, match=r"task 0: .*fewer positives \(slope -"):
        fit_calibration(log_p, 1 - labels, torch.ones_like(labels))


def test_a_score_of_calibrated_probabilities() -> None:
    log_p, log_up = _rows(50)[0].float(), torch.rand(50, 1).log()
    calibration = Calibration(torch.tensor([0.5, 2.0]), torch.tensor([0.1, -0.3]))
    fusion = Fusion(weights={"a": 1.0, "b": 2.0}, up=0.5, calibrate=True)
    found = Score(fusion, torch.tensor([1.0, 2.0]), calibration)(log_p, log_up)
    odds = torch.log(log_p.exp() / (1 - log_p.exp())) * torch.tensor([0.5, 2.0]) + torch.tensor([0.1, -0.3])
    p = 1 / (1 + torch.exp(-odds))
    wanted = log_up[:, 0].exp().sqrt() * p[:, 0] * p[:, 1] ** 2
    assert found.exp().tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    with pytest.raises(ValueError, match="calibrate must be true or false, got 1"):
        Fusion(calibrate=1)  # type: ignore[arg-type]
