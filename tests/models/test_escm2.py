"""ESCM2 against a slow loop from its paper, and what its estimators promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dlen.models import ESCM2, Predictions
from dlen.schema import Task
from dlen.targets import Targets
from tests.helpers import make_batch, make_schema
from tests.models.test_funnels import CHAINS, SIZES, TASKS, WEIGHTS

CTR, CVR = Task("ctr", 0.3), Task("cvr", 0.1, observed_where="ctr", joint="ctcvr")


def entropy(p: float, label: float) -> float:
    return -math.log(p if label else 1 - p)


def risk(estimator: str, p: float, clicked: bool, error: float, guess: float) -> float:
    """A row's term of the counterfactual risk."""
    if estimator == "ips":
        return error / p if clicked else 0.0
    off = error - guess
    return guess + (off / p + off**2 / p if clicked else 0.0)


def decided(steps: list[float]) -> bool:
    """Whether the labels of a chain, the first step first, tell how far it went: none is missing before a 0."""
    for label in steps:
        if label != 1:
            return label == 0
    return True


@pytest.mark.parametrize("estimator", ["ips", "dr"])
@pytest.mark.parametrize("min_propensity", [0.01, 0.25])
def test_the_loss_is_the_slow_loop_of_the_paper(estimator: str, min_propensity: float) -> None:
    """Clicks, what follows them and what follows that, with labels missing anywhere."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {"estimator": estimator, "min_propensity": min_propensity}
    model = ESCM2(make_schema(TASKS), counterfactual_weight=0.3, global_weight=0.7, **settings, **SIZES)
    batch, targets = make_batch(model.schema, 24), Targets(model.schema)
    batch.labels[torch.rand(24, 4, generator=torch.Generator().manual_seed(2)) < 0.1] = torch.nan
    predictions, known = model(batch), targets.trained(batch.labels)
    found = model.head.loss(predictions, targets.training_labels(batch.labels), known, WEIGHTS)
    guesses = iter([]) if predictions.imputed is None else iter(predictions.imputed.T.tolist())
    total, p = 0.0, predictions.log_p.exp().tolist()
    for task, chain in enumerate(CHAINS):
        guess = next(guesses, [0.0] * 24) if len(chain) > 1 else []
        for row, labels in enumerate(batch.labels.tolist()):
            steps = [labels[step] for step in reversed(chain)]  # from the first to the task
            if not decided(steps):
                continue
            reached = all(label == 1 for label in steps[:-1])
            joint = math.prod(p[row][step] for step in chain)
            of_joint = entropy(joint, reached and steps[-1] == 1)
            if len(chain) == 1:
                total += float(WEIGHTS[task]) * of_joint / 24
                continue
            propensity = max(math.prod(p[row][step] for step in chain[1:]), min_propensity)
            error = entropy(p[row][task], steps[-1]) if reached else 0.0
            counterfactual = risk(estimator, propensity, reached, error, guess[row])
            total += float(WEIGHTS[task]) * (0.7 * of_joint + 0.3 * counterfactual) / 24
    assert found.item() == pytest.approx(total, rel=1e-5)


def log_probabilities(p: Tensor) -> dict[str, Any]:
    """Predictions of (B, 2) clicks, and conversions given a click."""
    log_p = p.log()
    return {"log_p": log_p, "log_q": (-p).log1p(), "log_score": log_p, "log_joint": log_p.cumsum(1)}


def of_a_log(estimator: str, ctr: Tensor, guess: Tensor) -> float:
    """The counterfactual risk over all clicks that may happen, each as often as it does, less that of all rows.

    There are 50 impressions that convert if clicked or not, half of them, and are clicked at rate .1 to .9.
    """
    generator = torch.Generator().manual_seed(0)
    converts, cvr = (torch.rand(50, generator=generator) < 0.5).float(), 0.1 + 0.8 * torch.rand(50, generator=generator)
    error = -torch.where(converts.bool(), cvr.log(), (1 - cvr).log())
    rate = torch.linspace(0.1, 0.9, 50)
    head: Any = ESCM2(
        make_schema((CTR, CVR)), estimator=estimator, counterfactual_weight=1, global_weight=0, **SIZES
    ).head
    imputed = (error + guess)[:, None].repeat(2, 1) if estimator == "dr" else None
    predictions = Predictions(**log_probabilities(torch.stack([ctr, cvr], 1).repeat(2, 1)), imputed=imputed)
    clicked = torch.cat([torch.ones(50), torch.zeros(50)])
    weights = torch.stack([torch.cat([rate, 1 - rate]), *torch.ones(2, 100)], 1)
    labels = torch.stack([clicked, converts.repeat(2) * clicked], 1)
    mask = torch.stack([torch.ones(100), clicked], 1)
    risks = head.task_losses(predictions, labels, mask, weights)[1]
    if imputed is not None:  # without the square that fits the imputation
        risks = risks - (rate * guess**2 / ctr).mean()
    return float(risks - error.mean())


RATES, ZERO = torch.linspace(0.1, 0.9, 50), torch.zeros(50)


def test_the_estimators_are_unbiased_where_they_promise_to_be() -> None:
    off = torch.linspace(0.2, 0.6, 50)
    assert of_a_log("ips", RATES, ZERO) == pytest.approx(0, abs=1e-5)
    assert abs(of_a_log("ips", RATES.sqrt(), ZERO)) > 0.05
    assert of_a_log("dr", RATES, off) == pytest.approx(0, abs=1e-5)
    assert of_a_log("dr", RATES.sqrt(), ZERO) == pytest.approx(0, abs=1e-5)
    assert abs(of_a_log("dr", RATES.sqrt(), off)) > 0.05


@pytest.mark.parametrize("estimator", ["ips", "dr"])
def test_the_counterfactual_risk_does_not_train_the_propensity(estimator: str) -> None:
    torch.manual_seed(0)
    model = ESCM2(make_schema((CTR, CVR)), estimator=estimator, counterfactual_weight=1, global_weight=0, **SIZES)
    batch = make_batch(model.schema, 16)
    batch.labels[:, 0] = 1
    model.head.loss(model(batch), batch.labels, torch.ones(16, 2), torch.tensor([0.0, 1.0])).backward()
    head: Any = model.head
    of_ctr, of_cvr = (sum(float(p.grad.abs().sum()) for p in tower.parameters()) for tower in head.towers.towers)
    assert of_ctr == 0
    assert of_cvr > 0
    assert (head.imputation is None) is (estimator == "ips")
    if head.imputation is not None:
        assert all((p.grad != 0).any() for p in head.imputation.outputs.parameters())


def test_imputed_errors_start_at_the_entropy_of_the_training_rate() -> None:
    model = ESCM2(make_schema((CTR, CVR)), **SIZES)
    head: Any = model.head
    torch.nn.init.zeros_(head.imputation.outputs[0].weight)
    imputed = model(make_batch(model.schema, 3)).imputed
    assert imputed is not None
    torch.testing.assert_close(imputed, torch.full((3, 1), entropy(0.1, 1) * 0.1 + entropy(0.1, 0) * 0.9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "ipw"}, "estimator must be one of ips, dr, got 'ipw'"),
        ({"counterfactual_weight": -1}, "counterfactual_weight must be a number from 0"),
        ({"global_weight": "x"}, "global_weight must be a number from 0"),
        ({"min_propensity": 0}, "min_propensity must be a number above 0 and at most 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ESCM2(make_schema((CTR, CVR)), **settings)
