"""Every named model runs forward and backward on fields of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dlen.models import (
    CGC,
    DLEN,
    MRAN,
    PLE,
    STEM,
    AdaTT,
    CrossStitch,
    HoME,
    MMoE,
    MoE,
    PEPNet,
    Ranker,
    SharedBottom,
    SingleTask,
)
from dlen.models.backbones import CGCBackbone, MMoEBackbone, PLEBackbone, SharedBottomBackbone
from dlen.models.predictions import Predictions, task_losses
from dlen.models.ranker import MakeBackbone
from dlen.schema import Schema
from tests.helpers import make_batch, make_schema, tasks_with_rates

SIZES: dict[str, Any] = {"embedding_dim": 3, "tower": (4,)}
EXPERT = (8, 6)
BACKBONES: dict[str, MakeBackbone] = {
    "mmoe": partial(MMoEBackbone, num_experts=2, expert=EXPERT),
    "cgc": partial(CGCBackbone, shared_experts=2, task_experts=1, expert=EXPERT),
    "ple": partial(PLEBackbone, levels=2, shared_experts=2, task_experts=1, expert=EXPERT),
    "shared_bottom": partial(SharedBottomBackbone, expert=EXPERT),
}
MODELS: dict[str, Callable[[Schema], Ranker]] = {
    "mmoe": partial(MMoE, num_experts=2, expert=EXPERT, **SIZES),
    "cgc": partial(CGC, shared_experts=2, task_experts=1, expert=EXPERT, **SIZES),
    "ple": partial(PLE, levels=2, shared_experts=2, task_experts=1, expert=EXPERT, **SIZES),
    "shared_bottom": partial(SharedBottom, expert=EXPERT, **SIZES),
    "cross_stitch": partial(CrossStitch, expert=EXPERT, **SIZES),
    "adatt": partial(AdaTT, task_experts=1, shared_experts=2, expert=EXPERT, **SIZES),
    "pepnet": partial(PEPNet, hidden=(5,), expert=EXPERT, **SIZES),
    "home": partial(HoME, shared_experts=2, group_experts=1, task_experts=1, rank=2, expert=EXPERT, **SIZES),
    "single_task": partial(SingleTask, expert=EXPERT, **SIZES),
    "stem": partial(STEM, shared_experts=2, task_experts=1, expert=EXPERT, **SIZES),
    "moe": partial(MoE, num_experts=2, expert=EXPERT, **SIZES),
    "mran": partial(MRAN, heads=2, head_dim=4, expert=EXPERT, **SIZES),
    **{f"dlen_{name}": partial(DLEN, backbone=make, hidden=(5,), **SIZES) for name, make in BACKBONES.items()},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_forward_and_backward(name: str, num_tasks: int) -> None:
    torch.manual_seed(0)
    schema = make_schema(tasks_with_rates(*(0.3, 0.1, 0.02)[:num_tasks]))
    batch = make_batch(schema, 64)
    model = MODELS[name](schema)
    predictions = model(batch)
    for values in (predictions.log_p, predictions.log_q, predictions.log_score):
        assert values.shape == (64, num_tasks)
        assert values.isfinite().all()
        assert (values <= 0).all()
    assert (predictions.latent is not None) == name.startswith("dlen")
    task_losses(predictions, batch.labels, torch.ones_like(batch.labels)).sum().backward()
    for key, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None, key
        values = grad.coalesce().values() if grad.is_sparse else grad
        assert values.isfinite().all(), key
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad.is_sparse


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    torch.manual_seed(0)
    schema = make_schema()
    batch = make_batch(schema, 64)
    model = MODELS[name](schema)
    dense = [p for p in model.parameters() if p is not model.embedding.weight]
    optimizer = torch.optim.Adam(dense, lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        model.embedding.weight.grad = None
        loss = task_losses(model(batch), batch.labels, torch.ones_like(batch.labels)).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", MODELS)
def test_rows_do_not_influence_each_other(name: str) -> None:
    schema = make_schema()
    batch, model = make_batch(schema, 8), MODELS[name](schema)
    changed = make_batch(schema, 8)
    changed.ids[0, 0] = (changed.ids[0, 0] + 1) % 7
    changed.numeric[0] += 1
    before, after = model(batch).log_p, model(changed).log_p
    torch.testing.assert_close(after[1:], before[1:])
    assert (after[0] != before[0]).any()


def test_the_paper_model_takes_its_alpha_for_each_task() -> None:
    schema = make_schema()
    alpha = {"t0": 0.1, "t1": 0.3, "t2": 0.5}
    model = DLEN(schema, alpha=alpha, bound="absolute", hidden=(5,), **SIZES)
    latent = model(make_batch(schema, 16)).latent
    assert latent is not None
    largest = latent.log_given_not_up.exp().amax(0)
    assert all(value <= limit * (1 + 1e-6) for value, limit in zip(largest.tolist(), alpha.values(), strict=True))


@pytest.mark.parametrize("name", ["mmoe", "ple", "shared_bottom", "dlen_mmoe"])
def test_a_tasks_first_order_numbers_move_its_own_logit_and_no_other(name: str) -> None:
    """A rare task thus has table parameters that no other task updates."""
    torch.manual_seed(0)
    schema = make_schema()
    model = MODELS[name](schema).eval()
    batch, task = make_batch(schema, 10), 1
    before = model(batch)
    with torch.no_grad():
        model.embedding.weight[:, 3 + task] += 0.5
    after, sums = model(batch), model.features(batch).first_order
    assert sums is not None

    def logits(predictions: Predictions) -> Tensor:
        given = predictions.latent
        if given is None:
            return predictions.log_p - predictions.log_q
        return given.log_given_up - given.log_not_given_up

    moved, wanted = logits(after) - logits(before), torch.zeros(10, len(schema.tasks))
    wanted[:, task] = sums[:, task]
    assert bool((wanted[:, task] > 0).all())
    torch.testing.assert_close(moved, wanted, rtol=1e-5, atol=1e-5)


def test_without_first_order_terms_there_are_none() -> None:
    model = MMoE(make_schema(), embedding_dim=3, first_order=False)
    assert model.embedding.weight.shape[1] == 3
    assert model(make_batch(make_schema(), 4)).log_p.shape == (4, 3)
