"""Cross-stitch networks against a slow loop, and the authors' of AdaTT, and what a unit lets through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dlen.models.backbones import CrossStitchBackbone
from dlen.models.features import Features
from dlen.nn.mlp import MLP
from tests.models.test_backbones import SPEC, B, D, Vector, batch, slow_mlp, total_gradient

EXPERT = (6, 5, 3)


def made(tasks: int, expert: tuple[int, ...] = EXPERT) -> CrossStitchBackbone:
    """A module with units drawn at random, as if it had been trained."""
    torch.manual_seed(1)
    module = CrossStitchBackbone(SPEC, tasks, expert=expert)
    for unit in module.units:
        nn.init.normal_(unit)
    return module


def slow_cross_stitch(module: Any, x: Vector) -> list[Vector]:
    tasks = range(len(module.units[0]))
    inputs = [x for _ in tasks]
    for networks, unit in zip(module.layers, module.units, strict=True):
        outputs = [slow_mlp(networks[s], inputs[s]) for s in tasks]
        weight = unit.tolist()
        width = range(len(outputs[0]))
        inputs = [[sum(weight[t][s] * outputs[s][k] for s in tasks) for k in width] for t in tasks]
    return inputs


@pytest.mark.parametrize("tasks", [1, 2, 4])
@pytest.mark.parametrize("expert", [(3,), EXPERT])
def test_it_equals_the_definition(tasks: int, expert: tuple[int, ...]) -> None:
    module, x = made(tasks, expert), batch()
    out = module(x)
    assert out.shape == (tasks, B, 3)
    assert module.out_dim == 3
    wanted = torch.tensor([slow_cross_stitch(module, row) for row in x.flat.tolist()]).transpose(0, 1)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


def wave(size: tuple[int, ...], start: float) -> torch.Tensor:
    return (0.5 * torch.sin(torch.arange(torch.Size(size).numel()) * 1.7 + start)).view(size)


def test_it_predicts_what_the_code_of_adatt_does() -> None:
    """The numbers are of CrossStitch in mtl_lib.py of github.com/facebookresearch/AdaTT, with the same weights."""
    module = CrossStitchBackbone(SPEC, 3, expert=(3, 2))
    for start, parameter in enumerate([*module.layers.parameters(), *module.units]):
        parameter.data = wave(tuple(parameter.shape), start)
    out = module(Features(wave((2, D), 0.3), SPEC))
    wanted = [
        [[0.0583380, 0.0804241], [0.0659906, 0.0655323]],
        [[-0.0945969, -0.1446794], [-0.0749842, -0.1152183]],
        [[-0.1298492, -0.1897954], [-0.1226754, -0.1526323]],
    ]
    torch.testing.assert_close(out, torch.tensor(wanted), rtol=1e-4, atol=1e-6)


def test_the_first_units_are_convex_and_mostly_the_tasks_own() -> None:
    for unit in CrossStitchBackbone(SPEC, 3, expert=EXPERT).units:
        torch.testing.assert_close(unit.diagonal(), torch.full((3,), 0.9))
        torch.testing.assert_close(unit.sum(1), torch.ones(3))
        torch.testing.assert_close(unit[0, 1:], torch.full((2,), 0.05))


def test_one_task_is_an_ordinary_network() -> None:
    module, x = CrossStitchBackbone(SPEC, 1, expert=EXPERT), batch()
    alone = MLP(D, EXPERT)
    alone.load_state_dict(dict(zip(alone.state_dict(), module.layers.state_dict().values(), strict=True)))
    assert torch.equal(module(x)[0], alone(x.flat))


@pytest.mark.parametrize("mixed", [False, True])
def test_tasks_learn_from_each_other_through_the_units_alone(mixed: bool) -> None:
    torch.manual_seed(2)
    module = CrossStitchBackbone(SPEC, 3, expert=(32, 16))
    if not mixed:
        for unit in module.units:
            nn.init.eye_(unit)
    module(batch())[0].square().sum().backward()
    networks: Any = module.layers
    for layer in networks:
        assert [total_gradient(network) > 0 for network in layer] == [True, mixed, mixed]
