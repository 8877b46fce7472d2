"""AdaTT against a slow loop, and the authors' code, and what its fusions let through."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dlen.models.backbones import AdaTTBackbone
from dlen.models.features import Features
from tests.models.test_backbones import SPEC, B, D, Vector, batch, slow_mix, slow_mlp, total_gradient
from tests.models.test_cross_stitch import wave

EXPERT = (6, 3)


def slow_adatt(module: Any, x: Vector) -> list[Vector]:
    inputs = [x for _ in module.levels[0].experts]
    for level in module.levels:
        outputs = [[slow_mlp(e, own) for e in group] for own, group in zip(inputs, level.experts, strict=True)]
        fused = []
        for unit, gate in enumerate(level.gates):
            weights = [1.0] if len(outputs[unit]) == 1 else level.native[unit].weights.tolist()
            mixed = slow_mix(gate.weight.tolist(), inputs[unit], [o for group in outputs for o in group])
            own = [sum(w * o[k] for w, o in zip(weights, outputs[unit], strict=True)) for k in range(len(mixed))]
            fused.append([a + b for a, b in zip(mixed, own, strict=True)])
        inputs = fused
    return inputs


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("tasks", "own", "shared"), [(1, 1, 0), (3, 1, 0), (3, 2, 0), (2, 1, 1), (2, 2, 1), (3, 1, 2)])
def test_it_equals_the_definition(levels: int, tasks: int, own: int, shared: int) -> None:
    torch.manual_seed(1)
    module = AdaTTBackbone(SPEC, tasks, levels=levels, task_experts=own, shared_experts=shared, expert=EXPERT)
    x = batch()
    out = module(x)
    assert out.shape == (tasks, B, EXPERT[-1])
    assert module.out_dim == EXPERT[-1]
    wanted = torch.tensor([slow_adatt(module, row) for row in x.flat.tolist()]).transpose(0, 1)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (
            {"task_experts": 2},
            [
                [[-0.0528200, 0.2505562], [-0.0532538, 0.2515146]],
                [[0.1230669, 0.1407519], [0.1240803, 0.1429143]],
                [[0.3125181, 0.0585575], [0.3080736, 0.0573364]],
            ],
        ),
        (
            {"task_experts": 1},
            [
                [[0.6457990, 0.1441571], [0.6541256, 0.1613033]],
                [[0.4642534, 0.6948137], [0.4520964, 0.7407299]],
                [[0.2174071, 0.2582380], [0.2149105, 0.2704968]],
            ],
        ),
        (
            {"task_experts": 2, "shared_experts": 2},
            [[[0.1850300, 0.5300150], [0.1890972, 0.5232795]], [[0.4086784, 0.3052458], [0.4079338, 0.3005203]]],
        ),
    ],
)
def test_it_predicts_what_the_authors_code_does(settings: dict[str, int], wanted: list[list[Vector]]) -> None:
    """The numbers are of mtl_lib.py of github.com/facebookresearch/AdaTT, with the same weights and no gate biases."""
    module: Any = AdaTTBackbone(SPEC, len(wanted), expert=(3, 2), **settings)
    experts = [p for level in module.levels for p in level.experts.parameters()]
    gates = [p for level in module.levels for p in level.gates.parameters()]
    for start, parameter in enumerate([*experts, *gates]):
        parameter.data = wave(tuple(parameter.shape), start)
    native = [list(level.native.parameters()) for level in module.levels]
    if "shared_experts" in settings:  # there, one parameter holds a unit's weights of all its levels, here a level's
        native = [[level[unit] for level in native if unit < len(level)] for unit in range(len(native[0]))]
    for start, together in enumerate((weights for weights in native if weights), len(experts) + len(gates)):
        values = wave((len(together), len(together[0])), start)
        for weights, value in zip(together, values, strict=True):
            weights.data = value
    torch.testing.assert_close(module(Features(wave((2, D), 0.3), SPEC)), torch.tensor(wanted), rtol=1e-4, atol=1e-6)


def test_every_task_trains_all_experts_of_its_last_level_but_only_its_own_gate() -> None:
    torch.manual_seed(2)
    module: Any = AdaTTBackbone(SPEC, 3, levels=2, task_experts=2, shared_experts=1, expert=(32, 16))
    module(batch())[1].square().sum().backward()
    lower, upper = module.levels
    assert all(total_gradient(expert) > 0 for level in (lower, upper) for group in level.experts for expert in group)
    assert [total_gradient(gate) > 0 for gate in upper.gates] == [False, True, False]
    assert [total_gradient(native) > 0 for native in upper.native] == [False, True, False]
    assert [total_gradient(gate) > 0 for gate in lower.gates] == [True] * 4


def test_a_tasks_own_experts_count_even_where_its_gate_shuts_them_out() -> None:
    torch.manual_seed(3)
    module: Any = AdaTTBackbone(SPEC, 2, levels=1, task_experts=1, expert=EXPERT)
    x, (level,) = batch(), module.levels
    own, other = (level.experts[task][0](x.flat) for task in range(2))
    with torch.no_grad():
        level.gates[0].weight.zero_()
    torch.testing.assert_close(module(x)[0], own + (own + other) / 2)


def test_the_gates_are_mixtures_of_all_experts() -> None:
    module = AdaTTBackbone(SPEC, 2, levels=2, task_experts=1, shared_experts=1, expert=EXPERT)
    mixtures = module.mixtures()
    assert [(m.level, m.owners) for m in mixtures] == [(1, [0]), (1, [1]), (1, [None]), (2, [0]), (2, [1])]
    assert {tuple(m.names) for m in mixtures} == {("task0_expert0", "task1_expert0", "shared0")}
    assert all(len(m.experts) == m.gate.shape[1] for m in mixtures)


def test_a_wrong_setting_is_named() -> None:
    for name, value in {"levels": 0, "task_experts": 0, "shared_experts": -1}.items():
        with pytest.raises(ValueError, match=f"{name} must be a whole number from"):
            AdaTTBackbone(SPEC, 2, **{name: value})  # type: ignore[arg-type]
