"""Gradient conflict against separate backward passes, and which parameters each backbone shares."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision, Precision

from dlen.models import DLEN, MMoE, Ranker, SharedBottom
from dlen.models.backbones import CGCBackbone, MMoEBackbone, PLEBackbone, SharedBottomBackbone
from dlen.models.features import Features, FeatureSpec
from dlen.models.interactions import FMInteraction
from dlen.models.predictions import task_losses
from dlen.targets import Targets
from dlen.training.conflict import GradientConflict, cosines, task_gradients
from dlen.training.module import RankingModule
from tests.helpers import FIELDS, make_batch, make_schema

SPEC = FeatureSpec((), (), ("a", "b", "c", "d", "e"), dim=1)
SMALL: dict[str, Any] = {"embedding_dim": 3, "tower": (4,)}


def test_cosines_are_numpys() -> None:
    gradients = np.random.default_rng(0).normal(size=(4, 3, 7))
    found = cosines(torch.tensor(gradients))
    for row in range(4):
        for i in range(3):
            for j in range(3):
                a, b = gradients[row, i], gradients[row, j]
                wanted = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                assert found[row, i, j].item() == pytest.approx(wanted, abs=1e-12)


def test_a_task_without_gradient_has_no_cosine() -> None:
    gradients = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert cosines(gradients).isnan().tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize(
    "make", [partial(MMoE, num_experts=2), SharedBottom, partial(SharedBottom, interaction=FMInteraction)]
)
def test_task_gradients_are_those_of_separate_backward_passes(make: Any) -> None:
    torch.manual_seed(0)
    schema = make_schema()
    model: Ranker = make(schema, expert=(6, 5), **SMALL)
    batch, targets = make_batch(schema, 12), Targets(schema)
    by_task, by_row = task_gradients(model, batch, targets)
    assert by_row.shape == (12, 3, model.embedding.out_dim)
    for task in range(3):
        model.zero_grad()
        task_losses(model(batch), batch.labels, torch.ones(12, 3))[task].backward()
        shared = {n: p for n, p in model.named_parameters() if n.startswith(("interaction", "backbone"))}
        grads = [p.grad for name, p in shared.items() if "gates" not in name]
        wanted = torch.cat([g.flatten() for g in grads if g is not None])
        torch.testing.assert_close(by_task[task], wanted)


def test_a_sample_of_a_batch_is_its_first_rows() -> None:
    schema = make_schema(fields=(FIELDS[0], FIELDS[3]))
    model, targets, batch = MMoE(schema, num_experts=2, expert=(6, 5), **SMALL), Targets(schema), make_batch(schema, 9)
    few = replace(batch, ids=batch.ids[:4], labels=batch.labels[:4], numeric=batch.numeric[:4])
    for found, wanted in zip(
        task_gradients(model, batch, targets, 4), task_gradients(model, few, targets), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "backbone",
    [
        SharedBottomBackbone(SPEC, 3, expert=(4,)),
        MMoEBackbone(SPEC, 3, num_experts=2, expert=(4,)),
        CGCBackbone(SPEC, 3, shared_experts=2, task_experts=1, expert=(4,)),
        PLEBackbone(SPEC, 3, levels=2, shared_experts=2, task_experts=1, expert=(4,)),
    ],
    ids=["shared_bottom", "mmoe", "cgc", "ple"],
)
def test_every_task_reaches_what_is_shared_and_nothing_else_is(backbone: Any) -> None:
    torch.manual_seed(1)
    outputs = backbone(Features(torch.randn(64, 5), SPEC))
    shared = {id(p) for p in backbone.shared_parameters()}
    reached: dict[str, int] = {}
    for task in outputs:
        backbone.zero_grad()
        task.sum().backward(retain_graph=True)
        for name, p in backbone.named_parameters():
            reached[name] = reached.get(name, 0) + int(p.grad is not None and bool((p.grad != 0).any()))
    for name, p in backbone.named_parameters():
        if "gate" not in name:
            assert (id(p) in shared) == (reached[name] == 3), name
        else:
            assert id(p) not in shared


def sampled(labels: list[list[float]]) -> dict[str, float]:
    """Metrics of one sample in which every row has the given labels."""
    torch.manual_seed(0)
    schema = make_schema()
    model = SharedBottom(schema, expert=(32,))
    batch = make_batch(schema, len(labels))
    batch.labels = torch.tensor(labels)
    conflict = GradientConflict(1)
    conflict.add(*task_gradients(model, batch, Targets(schema)))
    again = GradientConflict(1)
    again.load_state_dict(conflict.state_dict())
    assert again.figures(schema.task_names) == conflict.figures(schema.task_names)
    return conflict.figures(schema.task_names)


def test_samples_of_auto_become_rare_and_count_for_the_steps_to_the_next_one() -> None:
    conflict = GradientConflict("auto")
    weights = {step: weight for step in range(100_000) if (weight := conflict.weight(step))}
    steps = np.array([*weights])
    assert steps[:12].tolist() == [*range(0, 1200, 100)]
    gaps = np.diff(steps)
    assert gaps.tolist() == [round(100 * weight) for weight in weights.values()][:-1]
    later = steps[:-1] >= 1000
    assert (gaps[later] == steps[:-1][later] // 10).all()
    assert len(steps) < 60
    for start in (0, 1, 1100, 1101, 54_321):  # resumed there: the same samples
        resumed = GradientConflict("auto")
        assert [step for step in range(start, 60_000) if resumed.weight(step)] == [
            step for step in weights if start <= step < 60_000
        ]


@pytest.mark.parametrize(("plugin", "half"), [(MixedPrecision("bf16-mixed", "cpu"), True), (Precision(), False)])
def test_a_sample_is_taken_in_the_precision_of_the_training(plugin: Precision, half: bool) -> None:
    schema, asked = make_schema(), []
    model = MMoE(schema, num_experts=2, expert=(6, 5), **SMALL)
    model.backbone.register_forward_pre_hook(lambda *_: asked.append(torch.is_autocast_enabled("cpu")))
    trainer: Any = SimpleNamespace(global_step=0, strategy=SimpleNamespace(precision_plugin=plugin))
    conflict = GradientConflict(every=1)
    conflict.on_train_batch_start(trainer, RankingModule(model), make_batch(schema, 12), 0)
    assert asked == [half]
    assert conflict.total


def test_samples_at_a_fixed_interval_count_alike() -> None:
    conflict = GradientConflict(7)
    assert [conflict.weight(step) for step in range(15)] == [0.07] + [0.0] * 6 + [0.07] + [0.0] * 6 + [0.07]


def test_a_sample_counts_by_its_weight() -> None:
    """Two kinds of samples, one of them three times as often, or once with three times the weight."""
    torch.manual_seed(0)
    first, second = ((torch.randn(2, 5), torch.randn(4, 2, 3)) for _ in range(2))
    weighted, repeated = GradientConflict("auto"), GradientConflict(1)
    weighted.add(*first)
    weighted.add(*second, 3.0)
    for gradients in (first, second, second, second):
        repeated.add(*gradients)
    assert weighted.figures(["a", "b"]) == pytest.approx(repeated.figures(["a", "b"]))


def test_figures_are_means_over_pairs() -> None:
    figures = sampled([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    pairs = [figures[f"train/conflict/cosine/{a}-{b}"] for a, b in (("t0", "t1"), ("t0", "t2"), ("t1", "t2"))]
    assert figures["train/conflict/cosine"] == pytest.approx(np.mean(pairs))
    assert figures["train/conflict/share"] == pytest.approx(np.mean([p < 0 for p in pairs]))
    assert 0 <= figures["train/conflict/rows"] <= 1


def test_opposite_labels_conflict_and_equal_ones_do_not() -> None:
    """Towers are copies: equal labels align the gradients of two tasks, opposite labels oppose them exactly."""
    torch.manual_seed(0)
    schema = make_schema(make_schema().tasks[:2])
    model = SharedBottom(schema, expert=(6,), **SMALL)
    head: Any = model.head
    head.towers.towers[1].load_state_dict(head.towers.towers[0].state_dict())
    head.towers.outputs[1].load_state_dict(head.towers.outputs[0].state_dict())
    batch = make_batch(schema, 8)
    for first, second, sign in ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0)):
        batch.labels = torch.tensor([[first, second]]).expand(8, 2)
        by_task, by_row = task_gradients(model, batch, Targets(schema))
        for cosine in (cosines(by_task)[0, 1], *cosines(by_row)[:, 0, 1]):
            if not cosine.isnan():
                assert cosine.item() * sign > 0.5


def test_dlens_gradients_are_measured_on_its_marginals() -> None:
    """Whatever DLEN's training loss, conflict is measured on the tasks' cross entropies, as for any other model."""
    schema = make_schema()
    torch.manual_seed(0)
    make = partial(MMoEBackbone, num_experts=2, expert=(6,))
    full = DLEN(schema, backbone=make, hidden=(5,), match=2, likelihood="full", **SMALL)
    marginal = DLEN(schema, backbone=make, hidden=(5,), match=2, likelihood="marginal", **SMALL)
    marginal.load_state_dict(full.state_dict())
    batch, targets = make_batch(schema, 10), Targets(schema)
    for a, b in zip(task_gradients(full, batch, targets), task_gradients(marginal, batch, targets), strict=True):
        torch.testing.assert_close(a, b)
