"""Regression tasks of heads: losses by their formulas, DLEN's densities by slow loops, and heads that have none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dlen.batch import Batch
from dlen.errors import UnmetNeedError
from dlen.label_scale import LabelScale
from dlen.models import AITM, DBMTL, DLEN, ESCM2, ESMM, PAL, LightGBM, Logistic, MMoE, Ranker, SingleTask
from dlen.models.values import PointValues
from dlen.schema import Schema, Task, TaskKind
from dlen.targets import Targets
from dlen.training.module import RankingModule
from tests.helpers import make_batch, make_schema
from tests.models.test_baselines import rows_of

REGRESSION = TaskKind.REGRESSION
TASKS = (
    Task("click", 0.3),
    Task(
        "play", 0.5, observed_where="click", kind=REGRESSION, loss="huber", transform="log1p", mean=2.0, deviation=1.5
    ),
    Task("like", 0.1, dislike=True),
    Task("watch", 0.5, kind=REGRESSION, mean=-3.0, deviation=0.5, weight=2.0),
)
SCHEMA = make_schema(TASKS)
SIZES: dict[str, Any] = {"embedding_dim": 3, "expert": (8, 6), "tower": (4,)}
MODELS: dict[str, Callable[[Schema], Ranker]] = {
    "mmoe": lambda schema: MMoE(schema, **SIZES),
    "dbmtl": lambda schema: DBMTL(schema, **SIZES),
    "single": lambda schema: SingleTask(schema, **SIZES),
    "dlen": lambda schema: DLEN(schema, hidden=(5,), **SIZES),
    "dlen_marginal": lambda schema: DLEN(schema, hidden=(5,), likelihood="marginal", **SIZES),
}
ROWS = 40


def log(seed: int = 0) -> Batch:
    """Rows with standardised labels, some missing."""
    batch, generator = make_batch(SCHEMA, ROWS, seed), torch.Generator().manual_seed(seed)
    batch.labels[:, [1, 3]] = torch.randn(ROWS, 2, generator=generator)
    batch.labels[torch.rand(ROWS, 4, generator=generator) < 0.2] = torch.nan
    return batch


def made(name: str, schema: Schema = SCHEMA) -> Ranker:
    torch.manual_seed(0)
    return MODELS[name](schema).eval()


def losses_of(model: Ranker, batch: Batch) -> Tensor:
    targets = Targets(model.schema)
    labels, mask = targets.training_labels(batch.labels), targets.trained(batch.labels)
    found: Tensor = model.head.task_losses(model(batch), labels, mask)
    return found.detach()


def observed(batch: Batch, task: int) -> np.ndarray:
    """Rows that train a regression task: play where click."""
    labels = batch.labels.numpy()
    return ~np.isnan(labels[:, task]) & ((labels[:, 0] == 1) | (task != 1))


@pytest.mark.parametrize("name", ["mmoe", "single"])
def test_losses_are_those_of_their_formulas(name: str) -> None:
    model, batch = made(name), log()
    values = model(batch).values
    assert values is not None
    found, z = losses_of(model, batch), values.expected.detach().double().numpy()
    labels = batch.labels.double().numpy()
    for column, task in enumerate((1, 3)):
        used = observed(batch, task)
        error = np.abs(z[used, column] - labels[used, task])
        huber = np.where(error < 1, 0.5 * error**2, error - 0.5)
        assert found[task].item() == pytest.approx(np.mean(huber if task == 1 else error**2), rel=1e-5)


def test_the_odds_of_weighted_logistic_regression_are_the_mean() -> None:
    """Of a constant prediction, at the minimum of the loss (Covington et al. 2016, section 4.2)."""
    labels = torch.tensor([[0.0], [0.5], [4.0], [1.5]])
    output = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([output], line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = PointValues(torch.tensor([0]), output.expand(4, 1), ("weighted_logistic",)).nll(labels.double()).mean()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    expected = PointValues(torch.tensor([0]), output.detach(), ("weighted_logistic",)).expected
    assert expected.item() == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_regression_changes_nothing_of_the_binary_tasks(name: str) -> None:
    """With the same weights, and labels of regressions left out."""
    model = made(name)
    batch = log()
    batch.labels[:, [1, 3]] = torch.nan
    labels, mask = Targets(SCHEMA).training_labels(batch.labels), Targets(SCHEMA).trained(batch.labels)
    whole = model(batch)
    binary = torch.tensor([0, 2])
    only = replace(whole.only(binary), values=None)
    found = model.head.loss(whole, labels, mask, torch.ones(4))
    head = made(name, SCHEMA.binary).head
    if hasattr(head, "dislike"):
        head.dislike = torch.tensor([False, True])
    wanted = head.loss(only, labels[:, binary], mask[:, binary], torch.ones(2))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def normal(x: float, mean: float, deviation: float) -> float:
    return float(stats.norm.pdf(x, mean, deviation))


def latent_parts(model: Ranker, batch: Batch) -> Any:
    head: Any = model.head
    with torch.no_grad():
        head.regression.log_deviation.copy_(torch.tensor([0.3, -0.4]))
        return model(batch)


def test_dlens_densities_are_factors_of_the_mixture() -> None:
    model, batch = made("dlen"), log()
    predictions = latent_parts(model, batch)
    latent, values = predictions.latent, predictions.values
    targets = Targets(SCHEMA)
    mask, labels, total = targets.trained(batch.labels), batch.labels, 0.0
    for b in range(ROWS):
        likelihood = 0.0
        for state, given, means in (
            (latent.log_up, latent.log_given_up, values.given_up),
            (latent.log_not_up, latent.log_given_not_up, values.given_not_up),
        ):
            product = math.exp(state[b])
            for t in (0, 2):
                p = math.exp(given[b, t])
                product *= (p if labels[b, t] == 1 else 1 - p) if mask[b, t] else 1.0
            for column, (t, deviation) in enumerate(((1, math.exp(0.3)), (3, math.exp(-0.4)))):
                product *= normal(float(labels[b, t]), float(means[b, column]), deviation) ** (
                    float(mask[b, t]) * (1 + (t == 3))
                )
            likelihood += product
        total -= math.log(likelihood)
    weights = torch.tensor([t.weight for t in TASKS])
    found = model.head.loss(predictions, targets.training_labels(labels), mask, weights)
    assert found.item() == pytest.approx(total / ROWS, rel=1e-5)


def test_dlens_marginal_loss_and_expectation() -> None:
    model, batch = made("dlen_marginal"), log()
    predictions = latent_parts(model, batch)
    up, values = predictions.latent.log_up.exp().double().numpy(), predictions.values
    found = losses_of(model, batch)
    for column, (task, deviation) in enumerate(((1, math.exp(0.3)), (3, math.exp(-0.4)))):
        given_up, given_not = (m[:, column].double().numpy() for m in (values.given_up, values.given_not_up))
        y = batch.labels[:, task].double().numpy()
        density = up * stats.norm.pdf(y, given_up, deviation) + (1 - up) * stats.norm.pdf(y, given_not, deviation)
        assert found[task].item() == pytest.approx(-np.log(density[observed(batch, task)]).mean(), rel=1e-5)
        wanted = up * given_up + (1 - up) * given_not
        np.testing.assert_allclose(values.expected[:, column], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(predictions.log_score[:, task].exp(), 1 / (1 + np.exp(-wanted)), rtol=1e-5)


@pytest.mark.parametrize("name", ["mmoe", "dlen_marginal"])
def test_weights_of_rows_and_labels_are_those_of_a_mean(name: str) -> None:
    model, batch, targets = made(name), log(), Targets(SCHEMA)
    weights = torch.rand(ROWS, 5, generator=torch.Generator().manual_seed(1))
    labels, mask = targets.training_labels(batch.labels), targets.trained(batch.labels)
    predictions = model(batch)
    found = model.head.task_losses(predictions, labels, mask, weights)
    assert predictions.values is not None
    losses = predictions.values.nll(labels[:, [1, 3]]).detach().double().numpy()
    for column, task in enumerate((1, 3)):
        counted = (weights[:, 0] * weights[:, 1 + task] * mask[:, task]).double().numpy()
        assert found[task].item() == pytest.approx(np.average(losses[:, column], weights=counted), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_training_starts_at_the_training_mean(name: str) -> None:
    tasks = (*TASKS, Task("size", 0.5, kind=REGRESSION, loss="weighted_logistic", deviation=7.0))
    model = made(name, make_schema(tasks))
    for key, parameter in model.named_parameters():
        if not key.endswith("bias"):
            parameter.data.zero_()
    with torch.no_grad():
        predictions = model(make_batch(model.schema, 2))
    assert predictions.values.expected.tolist() == [pytest.approx([0, 0, 1], abs=1e-5)] * 2
    assert predictions.log_score[:, [1, 3, 4]].exp().tolist() == [pytest.approx([0.5] * 3, abs=1e-5)] * 2


@pytest.mark.parametrize("name", MODELS)
def test_each_regression_learns(name: str) -> None:
    torch.manual_seed(1)
    module = RankingModule(MODELS[name](SCHEMA)).train()
    loss = module.training_step(log(), 0)
    loss.backward()
    model: Any = module.model
    outputs = model.head.outputs if name == "dbmtl" else model.head.towers.outputs
    for task in (1, 3):
        gradient = outputs[task].bias.grad
        assert gradient.abs().sum() > 0
    assert all(p.grad is None or p.grad.to_dense().isfinite().all() for p in model.parameters())


def test_the_scale_goes_back_and_forth() -> None:
    scale = LabelScale(SCHEMA)
    values = torch.tensor([[0.0, -1.0], [100.0, 5.0], [torch.nan, 2.0], [-7.0, torch.nan]])
    standardised = scale.standardise(values)
    wanted = [math.copysign(math.log1p(abs(v)), v) for v in (0.0, 100.0, -7.0)]
    assert standardised[[0, 1, 3], 0].tolist() == pytest.approx([(w - 2) / 1.5 for w in wanted])
    assert standardised[:3, 1].tolist() == pytest.approx([4.0, 16.0, 10.0])
    torch.testing.assert_close(scale(standardised), values, equal_nan=True, rtol=1e-5, atol=1e-5)


FUNNEL = (Task("click", 0.3), Task("buy", 0.2, observed_where="click"), Task("watch", 0.5, kind=REGRESSION))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("esmm", lambda s: ESMM(s, **SIZES)),
        ("aitm", lambda s: AITM(s, **SIZES)),
        ("escm2", lambda s: ESCM2(s, **SIZES)),
        ("pal", lambda s: PAL(replace(s, position="user"), **SIZES)),
        ("logistic", Logistic),
    ],
)
def test_models_of_events_refuse_numbers(name: str, make: Callable[[Schema], Any]) -> None:
    with pytest.raises(UnmetNeedError, match=f"^{name} predicts tasks of 0 and 1, and watch is a regression"):
        make(make_schema(FUNNEL))


def test_dlen_needs_an_event() -> None:
    with pytest.raises(UnmetNeedError, match="dlen needs a task of 0 and 1"):
        DLEN(make_schema(FUNNEL[2:]), **SIZES)


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (Task("buy", 0.2, observed_where="watch"), "observed_where names a regression"),
        (replace(FUNNEL[2], name="other", dislike=True), "dislike, joint and train_on"),
        (replace(FUNNEL[2], name="other", train_on="all"), "dislike, joint and train_on"),
    ],
)
def test_schemas_that_cannot_be(task: Task, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make_schema((*FUNNEL[::2], task))


def test_a_schema_goes_through_json() -> None:
    assert Schema.from_dict(SCHEMA.to_dict()) == SCHEMA
    assert SCHEMA.regressions == [1, 3]
    assert SCHEMA.binary.task_names == ["click", "like"]


def test_lightgbm_fits_each_regression() -> None:
    schema = make_schema(
        (
            Task("click", 0.5),
            Task("watch", 0.5, kind=REGRESSION),
            Task("play", 0.5, "click", kind=REGRESSION, loss="huber"),
        )
    )
    batches = []
    for seed, n in enumerate((800, 300)):
        batch = make_batch(schema, n, seed)
        batch.labels[:, 1] = 2 * batch.numeric[:, 0] + (batch.ids[:, 0] % 3).float()
        batch.labels[:, 2] = torch.where(batch.labels[:, 0] == 1, -batch.numeric[:, 1], torch.nan)
        batches.append(batch)
    model = LightGBM(schema, rounds=40, min_data_in_leaf=5, learning_rate=0.2)
    model.fit(rows_of(schema, batches[0]), rows_of(schema, batches[1]), 7)
    predictions = model(batches[1])
    assert predictions.values is not None
    errors = predictions.values.expected - batches[1].labels[:, 1:]
    assert errors[:, 0].square().mean() < 0.1 * batches[1].labels[:, 1].var()
    clicked = batches[1].labels[:, 0] == 1
    assert errors[clicked, 1].square().mean() < 0.1 * batches[1].labels[clicked, 2].var()
    torch.testing.assert_close(predictions.log_p[:, 1:].exp(), predictions.values.expected.sigmoid())
