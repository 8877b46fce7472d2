"""Gates: mean weights, entropy and top share against a slow loop, and duplicate experts."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlen.models import CGC, PLE, MMoE, MoE, Ranker, SharedBottom
from dlen.training.gates import GateMonitor, copies
from dlen.training.module import RankingModule
from tests.helpers import make_batch, make_schema

SIZES: dict[str, Any] = {"embedding_dim": 3, "expert": (8, 6), "tower": (4,)}
TRAINER: Any = SimpleNamespace(sanity_checking=False, loggers=[], global_step=1)


def watched(model: Ranker, *, batches: int = 2) -> GateMonitor:
    monitor, module = GateMonitor(), RankingModule(model)
    monitor.on_validation_start(TRAINER, module)
    for seed in range(batches):
        model(make_batch(model.schema, 20, seed=seed))
    monitor.on_validation_end(TRAINER, module)
    return monitor


def test_figures_equal_a_slow_loop() -> None:
    torch.manual_seed(0)
    model = MMoE(make_schema(), num_experts=4, **SIZES)
    monitor = watched(model)
    rows: list[list[list[float]]] = []  # by row, task and expert
    for seed in range(2):
        x = model.embedding(make_batch(model.schema, 20, seed=seed))[:, : model.embedding.out_dim]
        gates: Any = model.backbone.gates
        for vector in x:
            logits = (gates.weight @ vector).view(3, 4)
            rows.append([[math.exp(v) / sum(math.exp(w) for w in line) for v in line] for line in logits.tolist()])
    assert [(g.owner, g.level) for g in monitor.last] == [("t0", 1), ("t1", 1), ("t2", 1)]
    for task, found in enumerate(monitor.last):
        mine = [row[task] for row in rows]
        assert found.weights.tolist() == pytest.approx([sum(w[e] for w in mine) / 40 for e in range(4)], rel=1e-5)
        entropy = sum(-p * math.log(p) for w in mine for p in w) / 40 / math.log(4)
        assert found.entropy == pytest.approx(entropy, rel=1e-5)
        heaviest = [w.index(max(w)) for w in mine]
        assert found.top1 == pytest.approx(max(heaviest.count(e) for e in range(4)) / 40)


def test_ple_has_gates_of_every_level_by_the_names_of_tasks() -> None:
    monitor = watched(PLE(make_schema(), levels=2, shared_experts=2, task_experts=1, **SIZES))
    assert [g.key for g in monitor.last] == [
        *(f"gates/level1/{t}" for t in ("t0", "t1", "t2", "all")),
        *(f"gates/level2/{t}" for t in ("t0", "t1", "t2")),
    ]
    assert monitor.last[1].experts == ["t1_expert0", "shared0", "shared1"]
    assert monitor.last[3].experts == ["t0_expert0", "t1_expert0", "t2_expert0", "shared0", "shared1"]
    for gate in monitor.last:
        assert float(gate.weights.sum()) == pytest.approx(1, rel=1e-5)
    assert set(monitor.figures()) == {f"{g.key}/{k}" for g in monitor.last for k in ("entropy", "top1")}


def test_experts_of_a_user_have_any_name() -> None:
    model = MMoE(make_schema(), num_experts=2, **SIZES)
    (mixture,) = model.mixtures()
    model.mixtures = lambda: [replace(mixture, names=["my_expert0", "task7_b"])]  # type: ignore[method-assign]
    assert watched(model).last[0].experts == ["my_expert0", "task7_b"]


def test_one_gate_for_all_and_none() -> None:
    assert [g.owner for g in watched(MoE(make_schema(), num_experts=2, **SIZES)).last] == ["all"]
    none = watched(SharedBottom(make_schema(), **SIZES))
    assert (none.last, none.figures(), none.warnings()) == ([], {}, [])


def test_experts_that_are_copies_are_warned_of() -> None:
    torch.manual_seed(0)
    model = CGC(make_schema(), shared_experts=2, task_experts=2, **SIZES)
    assert watched(model).warnings() == []
    backbone: Any = model.backbone
    level = backbone.levels[0]
    level.task_experts[1][1].load_state_dict(level.task_experts[1][0].state_dict())
    (line,) = watched(model).warnings()
    assert "level 1 t1_expert0 and t1_expert1" in line
    assert "model.dropout" in line


def test_copies_are_told_up_to_scale_within_a_level() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    outputs = {"level 1 expert0": x, "level 1 expert1": 3 * x + 1e-3, "level 2 expert0": x, "level 1 dead": 0 * x}
    assert copies(outputs) == ["level 1 expert0 and expert1"]


def test_nothing_is_watched_after_a_validation() -> None:
    model = MMoE(make_schema(), num_experts=2, **SIZES)
    monitor = watched(model)
    before = [g.weights.clone() for g in monitor.last]
    model(make_batch(model.schema, 20, seed=5))
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(a, g.weights) for a, g in zip(before, monitor.last, strict=True))
