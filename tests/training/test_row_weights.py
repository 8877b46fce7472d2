"""Weights of rows and labels: weight 2 is the row twice, weight 0 the row left out, for every head and balancer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from dlen.batch import Batch
from dlen.models import AITM, DLEN, ESCM2, ESMM, PAL, MMoE, Ranker
from dlen.schema import Field, Kind, Task
from dlen.training.balancing import Balancer, DynamicWeightAverage, Surgery, Uncertainty
from dlen.training.conflict import task_gradients
from dlen.training.module import RankingModule
from tests.helpers import make_batch, make_schema

FIELDS = (
    Field("user", Kind.ID, "user", 7),
    Field("place", Kind.ID, "context", 5),
    Field("item", Kind.ID, "item", 11),
    Field("price", Kind.NUMERIC, "item"),
)
TASKS = (Task("click", 0.4, weight=2.0), Task("buy", 0.3, observed_where="click", joint="both"), Task("like", 0.2))
SCHEMA = replace(make_schema(TASKS, FIELDS), position="place")
SIZES: dict[str, Any] = {"embedding_dim": 3, "expert": (8, 6), "tower": (4,)}
MODELS: dict[str, Callable[[], Ranker]] = {
    "mmoe": lambda: MMoE(SCHEMA, **SIZES),
    "dlen": lambda: DLEN(SCHEMA, hidden=(5,), **SIZES),
    "dlen_marginal": lambda: DLEN(SCHEMA, hidden=(5,), likelihood="marginal", **SIZES),
    "esmm": lambda: ESMM(SCHEMA, **SIZES),
    "aitm": lambda: AITM(SCHEMA, **SIZES),
    "escm2": lambda: ESCM2(SCHEMA, **SIZES),
    "pal": lambda: PAL(SCHEMA, **SIZES),
}
BALANCERS: dict[str, Callable[[], Balancer]] = {
    "uncertainty": Uncertainty,
    "dwa": DynamicWeightAverage,
    "surgery": lambda: Surgery("UPGrad"),
}
ROWS = 24


def rows_of(batch: Batch, index: Sequence[int]) -> Batch:
    """Some rows of a batch without lists, in any order and number."""
    chosen = torch.tensor(index)
    parts = {name: getattr(batch, name)[chosen] for name in ("ids", "numeric", "labels", "truth")}
    return replace(batch, **parts, bag_lengths=batch.bag_lengths[:, chosen])


def log() -> Batch:
    """Rows of which some labels are missing."""
    batch = make_batch(SCHEMA, ROWS)
    batch.labels[torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(4)) < 0.2] = torch.nan
    return batch


def weighted(batch: Batch, rows: Tensor | float, labels: Tensor | float = 1.0) -> Batch:
    weights = torch.ones(len(batch), 1 + len(TASKS))
    weights[:, 0], weights[:, 1:] = rows, labels
    return replace(batch, weights=weights)


def module(name: str, balancer: Balancer | None = None) -> RankingModule:
    torch.manual_seed(0)
    made = RankingModule(MODELS[name](), balancer=balancer)
    if name == "aitm":  # a later step more likely than the previous one, so that the calibrator has a gradient
        head: Any = made.model.head
        head.towers.outputs[1].bias.data.fill_(2.0)
    return made.train()


def step(made: RankingModule, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one training step."""
    loss = made.training_step(batch, 0)
    made.zero_grad()
    made.backward(loss)
    found = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    return loss.item(), {n: g.to_dense() if g.is_sparse else g for n, g in found.items()}


def assert_same(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    for key, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][key], rtol=1e-4, atol=1e-6, msg=key)


CASES = [(name, None) for name in MODELS] + [("mmoe", name) for name in BALANCERS]


@pytest.mark.parametrize(("name", "balancer"), CASES)
def test_a_row_of_weight_2_is_there_twice_and_of_weight_0_not_at_all(name: str, balancer: str | None) -> None:
    def made() -> RankingModule:
        return module(name, BALANCERS[balancer]() if balancer else None)

    counts = torch.arange(ROWS) % 4
    repeated = torch.arange(ROWS).repeat_interleave(counts).tolist()
    found = step(made(), weighted(log(), counts.float()))
    assert_same(found, step(made(), rows_of(log(), repeated)))
    assert found[0] != pytest.approx(step(made(), log())[0], rel=1e-4)
    assert_same(step(made(), weighted(log(), 0.25 * counts)), found)  # a mean: the scale of the weights is no matter


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_1_and_no_weights_are_the_same(name: str) -> None:
    assert_same(step(module(name), weighted(log(), 1.0)), step(module(name), log()))


def test_a_batch_without_weight_has_no_gradient() -> None:
    for name in MODELS:
        loss, gradients = step(module(name), weighted(log(), 0.0))
        assert loss == 0
        assert all((g == 0).all() for g in gradients.values())


def random_weights() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(5)
    rows, labels = rng.integers(0, 3, ROWS) / 4, rng.integers(0, 3, (ROWS, 3)) / 2
    return torch.tensor(rows).float(), torch.tensor(labels).float()


def test_weights_of_labels_are_scikit_learns() -> None:
    rows, labels = random_weights()
    made, batch = module("mmoe"), weighted(log(), rows, labels)
    mask = made.targets.trained(batch.labels)
    assert isinstance(made.model, Ranker)
    predictions = made.model(batch)
    happened = made.targets.training_labels(batch.labels)
    found = made.model.head.task_losses(predictions, happened, mask, batch.row_weights)
    for task in range(3):
        counts = (mask[:, task] * rows * labels[:, task]).numpy()
        p = predictions.log_p[:, task].exp().detach().double().numpy()
        wanted = log_loss(happened[:, task].numpy(), p, sample_weight=counts, labels=[0, 1])
        assert found[task].item() == pytest.approx(wanted, rel=1e-5)


def test_in_the_full_likelihood_a_row_weighs_outside_and_a_label_inside_of_the_logarithm() -> None:
    rows, labels = random_weights()
    made, batch = module("dlen"), weighted(log(), rows, labels)
    with torch.no_grad():
        latent = made.model(batch).latent
    mask = made.targets.trained(batch.labels)
    total = 0.0
    for b in range(ROWS):
        likelihood = 0.0
        for state, given in ((latent.log_up, latent.log_given_up), (latent.log_not_up, latent.log_given_not_up)):
            product = math.exp(state[b])
            for t, task in enumerate(TASKS):
                if mask[b, t]:
                    p = math.exp(given[b, t])
                    product *= (p if batch.labels[b, t] == 1 else 1 - p) ** (task.weight * float(labels[b, t]))
            likelihood += product
        total -= float(rows[b]) * math.log(likelihood)
    assert step(made, batch)[0] == pytest.approx(total / float(rows.sum()), rel=1e-5)


def test_esmm_weighs_each_task_over_all_rows() -> None:
    rows, labels = random_weights()
    made, batch = module("esmm"), weighted(log(), rows, labels)
    p, wanted = made.model(batch).log_joint.exp().tolist(), 0.0
    for t, chain in enumerate(([0], [1, 0], [2])):
        total = 0.0
        for b in range(ROWS):
            seen = [batch.labels[b, step].item() for step in reversed(chain)]
            weight = float(rows[b] * labels[b, t])
            if seen[0] == 0 or seen == [1, 0]:
                total -= weight * math.log(1 - p[b][t])
            elif all(y == 1 for y in seen):
                total -= weight * math.log(p[b][t])
        wanted += TASKS[t].weight * total / float((rows * labels[:, t]).sum())
    assert step(made, batch)[0] == pytest.approx(wanted, rel=1e-5)


def test_conflict_is_measured_between_weighted_gradients() -> None:
    counts = torch.arange(ROWS) % 3
    made = module("mmoe")
    assert isinstance(made.model, Ranker)
    repeated = rows_of(log(), torch.arange(ROWS).repeat_interleave(counts).tolist())
    found, _ = task_gradients(made.model, weighted(log(), counts.float()), made.targets)
    wanted, _ = task_gradients(made.model, repeated, made.targets)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
