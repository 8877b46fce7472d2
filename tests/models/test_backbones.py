"""Backbones against slow loops from the papers' definitions, with the module's own weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import pytest
import torch
from torch import nn

from dlen.models.backbones import Backbone, CGCBackbone, CGCLevel, MMoEBackbone, PLEBackbone, SharedBottomBackbone
from dlen.models.features import Features, FeatureSpec
from dlen.nn.mlp import MLP

Vector = list[float]
D, B, EXPERT = 4, 5, (6, 3)
SPEC = FeatureSpec((), (), tuple(f"n{i}" for i in range(D)), dim=1)


def batch() -> Features:
    return Features(torch.randn(B, D, generator=torch.Generator().manual_seed(0)), SPEC)


def linear(weight: Sequence[Vector], x: Vector) -> Vector:
    return [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight]


def slow_mlp(module: nn.Module, x: Vector) -> Vector:
    assert isinstance(module, MLP)
    for layer in module.layers:
        if isinstance(layer, nn.Linear):
            sums = linear(layer.weight.tolist(), x)
            x = [max(0.0, s + b) for s, b in zip(sums, layer.bias.tolist(), strict=True)]
    return x


def slow_mix(weight: Sequence[Vector], x: Vector, outputs: Sequence[Vector]) -> Vector:
    """Softmax of a linear map of x, as weights of the experts' outputs."""
    powers = [math.exp(z) for z in linear(weight, x)]
    shares = [p / sum(powers) for p in powers]
    return [sum(s * o[k] for s, o in zip(shares, outputs, strict=True)) for k in range(len(outputs[0]))]


def slow_mmoe(module: MMoEBackbone, x: Vector) -> list[Vector]:
    experts = [slow_mlp(e, x) for e in module.experts]
    rows = module.gates.weight.tolist()
    count = len(experts)
    return [slow_mix(rows[start : start + count], x, experts) for start in range(0, len(rows), count)]


def slow_level(level: CGCLevel, tasks: list[Vector], shared: Vector) -> tuple[list[Vector], Vector]:
    common = [slow_mlp(e, shared) for e in level.shared_experts]
    outputs, everything = [], []
    for x, group, gate in zip(tasks, level.task_experts, level.gates, strict=True):
        assert isinstance(group, nn.ModuleList)
        assert isinstance(gate, nn.Linear)
        own = [slow_mlp(e, x) for e in group]
        everything += own
        outputs.append(slow_mix(gate.weight.tolist(), x, own + common))
    if level.shared_gate is None:
        return outputs, []
    return outputs, slow_mix(level.shared_gate.weight.tolist(), shared, everything + common)


def slow_ple(module: PLEBackbone, x: Vector) -> list[Vector]:
    tasks, shared = [x] * module.num_tasks, x
    for level in module.levels:
        assert isinstance(level, CGCLevel)
        tasks, shared = slow_level(level, tasks, shared)
    return tasks


@pytest.mark.parametrize(("tasks", "experts"), [(1, 1), (2, 3), (3, 2), (4, 5)])
def test_mmoe_equals_the_definition(tasks: int, experts: int) -> None:
    torch.manual_seed(1)
    module = MMoEBackbone(SPEC, tasks, num_experts=experts, expert=EXPERT)
    x = batch()
    out = module(x)
    assert out.shape == (tasks, B, EXPERT[-1])
    assert module.out_dim == EXPERT[-1]
    wanted = torch.tensor([slow_mmoe(module, row) for row in x.flat.tolist()]).transpose(0, 1)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("tasks", "shared", "own"), [(2, 1, 1), (3, 2, 1), (2, 1, 3)])
def test_ple_equals_the_definition(levels: int, tasks: int, shared: int, own: int) -> None:
    torch.manual_seed(2)
    module = PLEBackbone(SPEC, tasks, levels=levels, shared_experts=shared, task_experts=own, expert=EXPERT)
    x = batch()
    out = module(x)
    assert out.shape == (tasks, B, EXPERT[-1])
    assert len(module.levels) == levels
    wanted = torch.tensor([slow_ple(module, row) for row in x.flat.tolist()]).transpose(0, 1)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


def test_cgc_equals_the_definition_and_ple_with_one_level() -> None:
    torch.manual_seed(3)
    cgc = CGCBackbone(SPEC, 3, shared_experts=2, task_experts=2, expert=EXPERT)
    ple = PLEBackbone(SPEC, 3, levels=1, shared_experts=2, task_experts=2, expert=EXPERT)
    x = batch()
    assert not torch.equal(cgc(x), ple(x))
    ple.load_state_dict(cgc.state_dict())
    assert torch.equal(cgc(x), ple(x))
    wanted = torch.tensor([slow_ple(cgc, row) for row in x.flat.tolist()]).transpose(0, 1)
    torch.testing.assert_close(cgc(x), wanted, rtol=1e-5, atol=1e-5)


def test_shared_bottom_gives_every_task_the_same() -> None:
    module = SharedBottomBackbone(SPEC, 3, expert=EXPERT)
    x = batch()
    wanted = torch.tensor([slow_mlp(module.bottom, row) for row in x.flat.tolist()])
    assert module(x).shape == (3, B, EXPERT[-1])
    for representation in module(x):
        torch.testing.assert_close(representation, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [MMoEBackbone(SPEC, 2, num_experts=4, expert=EXPERT), PLEBackbone(SPEC, 2, levels=2, expert=EXPERT)],
)
def test_experts_differ_after_initialisation(module: Backbone) -> None:
    first_weights = [next(m.parameters()) for m in module.modules() if isinstance(m, MLP)]
    assert len(first_weights) >= 4
    for one, other in combinations(first_weights, 2):
        assert one.shape != other.shape or not torch.equal(one, other)


def total_gradient(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_own_experts_learn_from_their_task_alone(task: int) -> None:
    torch.manual_seed(4)
    module = CGCBackbone(SPEC, 3, shared_experts=2, task_experts=2, expert=(32, 16))
    module(batch())[task].square().sum().backward()
    level = module.levels[0]
    assert isinstance(level, CGCLevel)
    for owner in range(3):
        learns = owner == task
        assert (total_gradient(level.task_experts[owner]) > 0) is learns
        assert (total_gradient(level.gates[owner]) > 0) is learns
    assert all(total_gradient(expert) > 0 for expert in level.shared_experts)


def test_lower_levels_of_ple_learn_from_every_task() -> None:
    torch.manual_seed(5)
    module = PLEBackbone(SPEC, 2, levels=2, shared_experts=1, task_experts=1, expert=(32, 16))
    module(batch())[0].square().sum().backward()
    lower, upper = module.levels
    assert isinstance(lower, CGCLevel)
    assert isinstance(upper, CGCLevel)
    assert total_gradient(lower.task_experts[1]) > 0  # through the shared gate
    assert total_gradient(upper.task_experts[1]) == 0


def test_ple_without_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="levels must be a whole number from 1 to 1024, got 0"):
        PLEBackbone(SPEC, 2, levels=0)


def test_a_slip_of_the_hand_is_refused_before_it_builds_for_hours() -> None:
    with pytest.raises(ValueError, match="num_experts must be a whole number from 1 to 1024, got 100000000"):
        MMoEBackbone(SPEC, 2, num_experts=100_000_000, expert=[4])
    with pytest.raises(ValueError, match="levels must be a whole number from 1 to 1024"):
        PLEBackbone(SPEC, 2, levels=10**30, shared_experts=1, task_experts=1, expert=[4])
