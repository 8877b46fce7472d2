"""HoME against a slow loop, and which experts each task and group trains."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from dlen.models.backbones import HoMEBackbone
from tests.models.test_backbones import SPEC, B, Vector, batch, linear, slow_mix, slow_mlp, total_gradient

EXPERT = (6, 3)
SIZES: dict[str, Any] = {"feature_gates": 2, "rank": 2, "expert": EXPERT}


def drawn(tasks: int, **settings: Any) -> Any:
    """A module with all weights drawn at random, as if it had been trained."""
    module = HoMEBackbone(SPEC, tasks, **(SIZES | settings))
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return module


def slow_expert(expert: Any, x: Vector) -> Vector:
    """Swish(gamma * (z - mean) / sqrt(variance + epsilon) + beta) of an MLP's output z."""
    hidden = slow_mlp(expert.hidden, x)
    z = [s + b for s, b in zip(linear(expert.output.weight.tolist(), hidden), expert.output.bias.tolist(), strict=True)]
    mean = sum(z) / len(z)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in z) / len(z) + 1e-5)
    scales = zip(z, expert.norm.weight.tolist(), expert.norm.bias.tolist(), strict=True)
    normed = [gamma * (v - mean) / deviation + beta for v, gamma, beta in scales]
    return [v / (1 + math.exp(-v)) for v in normed]


def slow_unit(unit: Any, x: Vector) -> list[Vector]:
    feature = unit.feature_gate
    gates = []
    for down, up in zip(feature.down, feature.up, strict=True):
        gates.append([2 / (1 + math.exp(-v)) for v in linear(up.weight.tolist(), linear(down.weight.tolist(), x))])
    scaled = [g * v for g, v in zip(slow_mix(feature.weights.weight.tolist(), x, gates), x, strict=True)]
    return [slow_expert(expert, scaled) for expert in unit.experts]


def slow_self(fusion: Any, x: Vector, own: list[Vector]) -> Vector:
    weight = fusion.self_gate.weights.weight.tolist()
    if len(own) > 1:
        return slow_mix(weight, x, own)
    share = 1 / (1 + math.exp(-linear(weight, x)[0]))
    return [share * v for v in own[0]]


def added(first: Vector, second: Vector) -> Vector:
    return [a + b for a, b in zip(first, second, strict=True)]


def slow_home(module: Any, groups: list[list[int]], x: Vector) -> list[Vector]:
    meta, level = module.meta, module.level
    shared, of_groups = slow_unit(meta.shared, x), [slow_unit(unit, x) for unit in meta.groups]
    gate = meta.shared_fusion.gate.weight.tolist()
    z = added(slow_mix(gate, x, [*chain(*of_groups), *shared]), slow_self(meta.shared_fusion, x, shared))
    top = slow_unit(level.shared, z)
    found: dict[int, Vector] = {}
    for group, tasks in enumerate(groups):
        fusion, own = meta.fusions[group], of_groups[group]
        z_g = added(slow_mix(fusion.gate.weight.tolist(), x, shared + own), slow_self(fusion, x, own))
        middle = slow_unit(level.groups[group], z_g)
        for task in tasks:
            fusion, own = level.fusions[task], slow_unit(level.tasks[task], z_g)
            mixed = slow_mix(fusion.gate.weight.tolist(), z_g + z, top + middle + own)
            found[task] = added(mixed, slow_self(fusion, z_g, own))
    return [found[task] for task in sorted(found)]


@pytest.mark.parametrize(
    ("tasks", "groups"),
    [(1, None), (2, None), (3, [[0, 1, 2]]), (3, [[1], [2, 0]]), (4, [[3, 0], [1, 2]])],
)
@pytest.mark.parametrize(("shared", "of_group", "own"), [(1, 1, 1), (2, 1, 3), (1, 2, 2)])
def test_it_equals_the_formulas(
    tasks: int, groups: list[list[int]] | None, shared: int, of_group: int, own: int
) -> None:
    module = drawn(tasks, groups=groups, shared_experts=shared, group_experts=of_group, task_experts=own)
    x = batch()
    out = module(x)
    assert out.shape == (tasks, B, EXPERT[-1])
    assert module.out_dim == EXPERT[-1]
    lists = groups or [[task] for task in range(tasks)]
    wanted = torch.tensor([slow_home(module, lists, row) for row in x.flat.tolist()]).transpose(0, 1)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


def test_no_expert_outweighs_the_others_by_its_scale() -> None:
    module, x = drawn(2, shared_experts=3), batch()
    before, last = module(x), module.meta.shared.experts[1].output
    for parameter in last.parameters():
        parameter.data *= 100
    torch.testing.assert_close(module(x), before, rtol=1e-3, atol=1e-4)


def test_before_training_feature_gates_change_nothing() -> None:
    module: Any = HoMEBackbone(SPEC, 2, **SIZES)
    x = batch().flat
    torch.testing.assert_close(module.meta.shared.feature_gate(x), x)
    nn.init.ones_(module.meta.shared.feature_gate.up[0].weight)
    assert not torch.allclose(module.meta.shared.feature_gate(x), x)


def test_a_task_trains_its_own_experts_and_its_groups_and_reaches_other_groups_through_the_shared_ones_alone() -> None:
    module, task = drawn(4, groups=[[0, 1], [2, 3]], shared_experts=2, group_experts=2, task_experts=2), 1
    module(batch())[task].square().sum().backward()
    assert [total_gradient(unit) > 0 for unit in module.level.tasks] == [False, True, False, False]
    assert [total_gradient(fusion) > 0 for fusion in module.level.fusions] == [False, True, False, False]
    assert [total_gradient(unit) > 0 for unit in module.level.groups] == [True, False]
    assert [total_gradient(fusion) > 0 for fusion in module.meta.fusions] == [True, False]
    assert [total_gradient(unit) > 0 for unit in module.meta.groups] == [True, True]
    module.zero_grad()
    for parameter in module.level.shared.parameters():
        parameter.data.zero_()
    nn.init.zeros_(module.level.fusions[task].gate.weight)  # which reads z as well
    module(batch())[task].square().sum().backward()
    assert [total_gradient(unit) > 0 for unit in module.meta.groups] == [True, False]


@pytest.mark.parametrize("groups", [None, [[0, 1, 2]], [[0, 2], [1]]])
def test_shared_parameters_are_those_that_every_task_trains(groups: list[list[int]] | None) -> None:
    module = drawn(3, groups=groups, shared_experts=1, group_experts=1, task_experts=1)
    experts = [p for name, p in module.named_parameters() if ".experts." in name]
    trained = []
    for task in range(3):
        module.zero_grad()
        module(batch())[task].square().sum().backward()
        trained.append([p.grad is not None and bool(p.grad.any()) for p in experts])
    wanted = {id(p) for p, *by_task in zip(experts, *trained, strict=True) if all(by_task)}
    assert {id(p) for p in module.shared_parameters()} == wanted


def test_the_gates_are_mixtures_of_named_experts() -> None:
    module = HoMEBackbone(SPEC, 3, groups=[[0, 2], [1]], shared_experts=1, group_experts=1, task_experts=1, **SIZES)
    mixtures = module.mixtures()
    assert [(m.level, m.owners) for m in mixtures] == [(1, [0]), (1, [1]), (1, [2]), (1, [None])] + [
        (2, [task]) for task in range(3)
    ]
    assert mixtures[0].gate is mixtures[2].gate
    assert mixtures[3].names == ["group0.0", "group1.0", "shared0"]
    assert mixtures[6].names == ["shared0", "group0.0", "task2_expert0"]
    assert all(len(m.experts) == m.gate.shape[1] for m in mixtures)


@pytest.mark.parametrize("groups", [[[0, 1]], [[0, 1], [1, 2]], [[0, 1, 2], []], [0, 1, 2], [["0", "1", "2"]], "x", 3])
def test_groups_that_do_not_hold_every_task_once_are_refused(groups: Any) -> None:
    with pytest.raises(ValueError, match=r"groups must be lists of task numbers with each task from 0 to 2 in one"):
        HoMEBackbone(SPEC, 3, groups=groups, **SIZES)


def test_a_wrong_setting_is_named() -> None:
    for name in ("shared_experts", "group_experts", "task_experts", "feature_gates", "rank"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number from 1"):
            HoMEBackbone(SPEC, 2, **(SIZES | {name: 0}))
    with pytest.raises(ValueError, match="at least 2 units"):
        HoMEBackbone(SPEC, 2, expert=(8, 1))
    with pytest.raises(ValueError, match="layer sizes must be a list"):
        HoMEBackbone(SPEC, 2, expert=5)  # type: ignore[arg-type]
