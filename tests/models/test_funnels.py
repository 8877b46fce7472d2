"""ESMM and AITM against slow loops from their papers, and all heads of funnels on data without one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dlen.models import AITM, ESCM2, ESMM, Ranker
from dlen.schema import Schema, Task
from dlen.targets import Targets
from tests.helpers import make_batch, make_schema

# A branch and a chain of three, not in funnel order.
TASKS = (
    Task("buy", 0.2, observed_where="cart", joint="click_cart_buy"),
    Task("click", 0.3),
    Task("cart", 0.25, observed_where="click", joint="click_cart"),
    Task("share", 0.1, observed_where="click", joint="click_share"),
)
CHAINS = [[0, 2, 1], [1], [2, 1], [3, 1]]
SIZES: dict[str, Any] = {"embedding_dim": 3, "expert": (8, 6), "tower": (4,)}
Kind = type[ESMM] | type[ESCM2] | type[AITM]
MODELS: list[Kind] = [ESMM, ESCM2, AITM]
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 1.0])


def make(kind: Kind, schema: Schema | None = None) -> Ranker:
    torch.manual_seed(1)
    return kind(schema or make_schema(TASKS), **SIZES)


def loss_of(model: Ranker, rows: int = 24) -> tuple[float, list[list[float]], list[list[float]]]:
    """The model's loss, its conditional probabilities, and the labels."""
    batch = make_batch(model.schema, rows)
    targets, predictions = Targets(model.schema), model(batch)
    mask = targets.trained(batch.labels)
    loss = model.head.loss(predictions, targets.training_labels(batch.labels), mask, WEIGHTS)
    return loss.item(), predictions.log_p.exp().tolist(), batch.labels.tolist()


def slow_cross_entropy(joint: list[list[float]], labels: list[list[float]]) -> float:
    total = 0.0
    for task, chain in enumerate(CHAINS):
        for p, y in zip(joint, labels, strict=True):
            happened = all(y[step] == 1 for step in chain)
            total -= float(WEIGHTS[task]) * math.log(p[task] if happened else 1 - p[task]) / len(labels)
    return total


def test_esmm_fits_products_along_the_chain_over_all_rows() -> None:
    loss, p, labels = loss_of(make(ESMM))
    joint = [[math.prod(row[step] for step in chain) for chain in CHAINS] for row in p]
    assert loss == pytest.approx(slow_cross_entropy(joint, labels), rel=1e-5)


def test_aitm_is_the_slow_loop_of_its_paper() -> None:
    model = make(AITM)
    head: Any = model.head
    batch = make_batch(model.schema, 5)
    q = model.backbone(model.features(batch))
    z: dict[int, Any] = {}
    for task, parent in ((1, None), (2, 1), (3, 1), (0, 2)):
        rows = []
        for b in range(5):
            own = q[task, b]
            if parent is None:
                rows.append(own)
                continue
            transfer = head.transfer[str(parent)]
            carried = torch.relu(transfer.weight @ z[parent][b] + transfer.bias)
            value, query, key = head.attention[str(task)].weight.chunk(3)
            scores = [(query @ u) @ (key @ u) / math.sqrt(6) for u in (carried, own)]
            share = torch.stack(scores).softmax(0)
            rows.append(share[0] * (value @ carried) + share[1] * (value @ own))
        z[task] = torch.stack(rows)
    logits = head.towers(torch.stack([z[t] for t in range(4)]))[..., 0]
    torch.testing.assert_close(model(batch).log_joint, torch.nn.functional.logsigmoid(logits))


def test_aitm_adds_the_calibrator_to_the_cross_entropies() -> None:
    model = make(AITM)
    head: Any = model.head
    with torch.no_grad():
        for output, bias in zip(head.towers.outputs, (1.0, -1.0, 0.5, 0.3), strict=True):
            output.bias.fill_(bias)  # later steps more likely than earlier ones
    loss, _, labels = loss_of(model)
    log_joint = model(make_batch(model.schema, 24)).log_joint
    joint = log_joint.exp().tolist()
    excess = [max(row[t] - row[parent], 0.0) for row in joint for t, parent in ((0, 2), (2, 1), (3, 1))]
    assert sum(excess) > 1
    assert loss == pytest.approx(slow_cross_entropy(joint, labels) + 0.6 * sum(excess) / 24, rel=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_what_ranks_the_joint_event_is_its_probability(kind: Kind) -> None:
    model = make(kind)
    batch = make_batch(model.schema, 16)
    predictions = model(batch)
    measured = Targets(model.schema).log_probabilities(predictions.log_score)
    assert predictions.log_joint is not None
    for column, task in ((4, 0), (5, 2), (6, 3)):
        direct, ranked = predictions.log_joint[:, task], measured[:, column]
        assert (ranked <= direct + 1e-5).all()
        close = torch.isclose(ranked, direct, rtol=1e-4)
        assert close.all() if kind is not AITM else close.any()


@pytest.mark.parametrize("kind", MODELS)
def test_rows_without_a_click_train_the_conversion(kind: Kind) -> None:
    model = make(kind)
    batch = make_batch(model.schema, 16)
    batch.labels.zero_()
    targets = Targets(model.schema)
    loss = model.head.loss(model(batch), batch.labels, targets.trained(batch.labels), torch.ones(4))
    loss.backward()
    head: Any = model.head
    assert (head.towers.outputs[0].weight.grad != 0).any()


@pytest.mark.parametrize("kind", MODELS)
def test_a_few_steps_lower_the_loss(kind: Kind) -> None:
    model = make(kind)
    batch, targets = make_batch(model.schema, 64), Targets(model.schema)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p is not model.embedding.weight], lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        model.embedding.weight.grad = None
        loss = model.head.loss(model(batch), batch.labels, targets.trained(batch.labels), torch.ones(4))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("kind", MODELS)
def test_data_without_a_funnel_are_refused(kind: Kind) -> None:
    with pytest.raises(ValueError, match="needs a funnel"):
        make(kind, make_schema())
    everywhere = (Task("ctr", 0.3), Task("cvr", 0.1, observed_where="ctr", train_on="all"))
    with pytest.raises(ValueError, match=r"task cvr must be conditional.*train_on"):
        make(kind, make_schema(everywhere))


def test_a_negative_calibration_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration must be a number from 0"):
        AITM(make_schema(TASKS), calibration=-1.0)
