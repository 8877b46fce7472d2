"""Missing labels are left out of losses, metrics, conflict and the hidden state, only for that task and row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from dlen.batch import Batch
from dlen.metrics.by_user import rank_by_user
from dlen.models import DLEN, ESMM, MMoE
from dlen.models.ranker import Ranker
from dlen.schema import Schema, Task
from dlen.targets import Targets
from dlen.training.conflict import task_gradients
from dlen.training.measures import Measures
from tests.helpers import make_batch, make_schema

NAN = float("nan")
ROWS = 200


def funnel(train_on: str = "observed") -> Schema:
    cvr = Task("cvr", 0.2, observed_where="ctr", train_on=train_on, joint="ctcvr")
    return make_schema((Task("ctr", 0.4), cvr, Task("like", 0.3)))


def some_missing(schema: Schema, seed: int = 0) -> Batch:
    batch = make_batch(schema, ROWS, seed)
    gone = torch.rand(batch.labels.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    batch.labels = torch.where(gone, NAN, batch.labels)
    return batch


@pytest.mark.parametrize("train_on", ["observed", "all"])
@pytest.mark.parametrize(("ctr", "cvr"), list(product((0.0, 1.0, NAN), repeat=2)))
def test_what_a_row_tells_of_a_funnel(train_on: str, ctr: float, cvr: float) -> None:
    """By hand: without a click the joint event did not happen either, whatever is missing."""
    targets, labels = Targets(funnel(train_on)), torch.tensor([[ctr, cvr, 1.0]])
    both = {0.0: 0.0, 1.0: 1.0}.get(cvr) if ctr == 1 else 0.0 if ctr == 0 or cvr == 0 else None
    seen = ctr == 1 and cvr in (0.0, 1.0)
    wanted, mask = targets.labels(labels)
    assert mask.tolist() == [[float(ctr in (0.0, 1.0)), float(seen), 1.0, float(both is not None)]]
    assert both is None or wanted[0, 3] == both
    trained, learned = targets.trained(labels), targets.training_labels(labels)
    assert trained[0, 1] == (seen if train_on == "observed" else both is not None)
    if trained[0, 1]:
        assert learned[0, 1] == (cvr if train_on == "observed" else both)
    assert not learned.isnan().any()


@pytest.mark.parametrize("model", [MMoE, DLEN, ESMM])
def test_a_missing_label_moves_no_gradient(model: Callable[..., Ranker]) -> None:
    """Compared with either value of the label; the row's other labels still count."""
    schema = funnel()
    torch.manual_seed(0)
    ranker, targets = model(schema, embedding_dim=4).eval(), Targets(schema)
    batch = some_missing(schema)
    gone = batch.labels.isnan()

    def gradient(labels: Tensor, mask: Tensor) -> Tensor:
        ranker.zero_grad()
        ranker.head.loss(ranker(batch), labels, mask, torch.ones(3)).backward()
        dense = [p.grad.to_dense().flatten() for p in ranker.parameters() if p.grad is not None]
        return torch.cat(dense)

    labels, mask = targets.training_labels(batch.labels), targets.trained(batch.labels)
    found = gradient(labels, mask)
    assert found.isfinite().all()
    assert found.abs().sum() > 0
    if model is not ESMM:  # its labels are joint events
        assert torch.equal(found, gradient(torch.where(gone, 1 - labels, labels), mask))
    row = int((gone[:, 2] & ~gone[:, 0]).nonzero()[0])
    other = batch.labels.clone()
    other[row, 0] = 1 - other[row, 0]
    assert not torch.equal(found, gradient(targets.training_labels(other), targets.trained(other)))


def test_losses_are_those_of_the_rows_that_tell() -> None:
    schema = funnel()
    ranker, targets, batch = MMoE(schema, embedding_dim=4).eval(), Targets(schema), some_missing(schema)
    predictions = ranker(batch)
    losses = ranker.head.task_losses(predictions, targets.training_labels(batch.labels), targets.trained(batch.labels))
    labels, p = batch.labels.numpy(), predictions.log_p.exp().detach().numpy()
    for task in range(3):
        told = ~np.isnan(labels[:, task]) & ((labels[:, 0] == 1) | (task != 1))
        assert float(losses[task]) == pytest.approx(log_loss(labels[told, task], p[told, task]), rel=1e-5)


def test_esmms_loss_is_of_the_rows_whose_joint_event_is_told() -> None:
    schema = funnel()
    ranker, targets, batch = ESMM(schema, embedding_dim=4).eval(), Targets(schema), some_missing(schema)
    predictions = ranker(batch)
    losses = ranker.head.task_losses(predictions, targets.training_labels(batch.labels), targets.trained(batch.labels))
    assert predictions.log_joint is not None
    p, total = predictions.log_joint.exp().detach().double()[:, 1], 0.0
    for (ctr, cvr, _), both in zip(batch.labels.tolist(), p.tolist(), strict=True):
        if ctr == 0 or (ctr == 1 and cvr == 0):
            total -= np.log1p(-both)
        elif ctr == 1 and cvr == 1:
            total -= np.log(both)
    assert float(losses[1]) == pytest.approx(total / ROWS, rel=1e-4)


@pytest.mark.parametrize("auc", ["exact", "histogram"])
def test_figures_are_scikit_learns_of_the_rows_that_tell(auc: str) -> None:
    schema = replace(funnel(), user=funnel().fields[0].name)
    ranker, batch = MMoE(schema, embedding_dim=4).eval(), some_missing(schema)
    batch.users = torch.randint(0, 9, (ROWS,), generator=torch.Generator().manual_seed(3)).int()
    with torch.no_grad():
        predictions = ranker(batch)
    measures = Measures(schema, auc=auc, by_user=True)
    measures.update(predictions, batch)
    values = measures.compute().values
    labels, p = batch.labels.numpy(), predictions.log_p.exp().numpy()
    for task, name in ((0, "ctr"), (2, "like")):
        told = ~np.isnan(labels[:, task])
        assert values[f"auc/{name}"] == pytest.approx(roc_auc_score(labels[told, task], p[told, task]), abs=1e-3)
        assert values[f"logloss/{name}"] == pytest.approx(log_loss(labels[told, task], p[told, task]), rel=1e-4)
        mine = torch.tensor(told) & (batch.users != 0)  # rows without a user are in no user's list
        wanted = rank_by_user(predictions.log_p[mine, task], batch.labels[mine, task], batch.users[mine])
        assert values[f"gauc/{name}"] == pytest.approx(wanted.gauc)
        assert wanted.users == 8
    assert all(np.isfinite(v) for v in values.values())


def test_the_hidden_state_is_measured_where_labels_tell() -> None:
    schema = make_schema((Task("click", 0.3), Task("like", 0.2), Task("hate", 0.1, dislike=True)))
    torch.manual_seed(1)
    ranker, batch = DLEN(schema, embedding_dim=4).eval(), some_missing(schema)
    with torch.no_grad():
        predictions = ranker(batch)
    measures = Measures(schema, auc="exact", ranking=ranker.ranking)
    measures.update(predictions, batch)
    values = measures.compute().values
    assert predictions.latent is not None
    up, labels = predictions.latent.log_up.numpy(), batch.labels.numpy()
    happened = (labels[:, :2] == 1).any(1)
    told = happened | ~np.isnan(labels[:, :2]).any(1)
    assert values["auc/up_any"] == pytest.approx(roc_auc_score(happened[told], up[told]), abs=1e-5)
    known = ~np.isnan(labels[:, 2])
    assert values["auc/up_hate"] == pytest.approx(roc_auc_score(labels[known, 2], -up[known]), abs=1e-5)
    assert all(np.isfinite(v) for k, v in values.items() if not k.startswith("negatives"))


def test_conflict_is_of_the_rows_that_tell() -> None:
    schema = funnel()
    torch.manual_seed(2)
    ranker, batch = MMoE(schema, embedding_dim=4), some_missing(schema)
    by_task, by_row = task_gradients(ranker, batch, Targets(schema))
    assert by_task.isfinite().all()
    gone = batch.labels[:, 2].isnan()
    assert (by_row[gone, 2] == 0).all()
    assert (by_row[~gone, 2] != 0).any()
