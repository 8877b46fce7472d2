"""The search space: the meaning of its entries, what is refused, and the points that a check and a grid visit."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from dlen.errors import UserError
from dlen.sweeping.space import Value, parse_space

TASKS = ["click", "like"]
SPACE: dict[str, Any] = {
    "model/backbone": {"choices": ["mmoe", "ple"]},
    "model.backbone.levels": {"low": 1, "high": 3, "when": {"model/backbone": ["ple"]}},
    "model.backbone.expert": {"choices": [[64, 32], [16]]},
    "model.head.alpha": {"low": 0.1, "high": 0.5, "each_task": True},
    "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.head.hidden": {"choices": [None, [8]]},
}


def test_a_trial_has_the_parameters_whose_conditions_hold() -> None:
    space = parse_space(SPACE, TASKS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(20):
        params = space.suggest(study.ask())
        seen.add(params["model/backbone"])
        assert ("model.backbone.levels" in params) == (params["model/backbone"] == "ple")
        assert 0.1 <= float(params["model.head.alpha.click"] or 0) <= 0.5
        assert params["model.head.alpha.click"] != params["model.head.alpha.like"]
        assert 1e-4 <= float(params["optimizer.lr"] or 0) <= 1e-2
    assert seen == {"mmoe", "ple"}


def test_overrides_are_hydras() -> None:
    space = parse_space(SPACE, TASKS)
    params: dict[str, Value] = {
        "model/backbone": "ple",
        "model.backbone.levels": 2,
        "model.backbone.expert": "[64,32]",
        "model.head.alpha.click": 0.25,
        "model.head.alpha.like": 0.5,
        "optimizer.lr": 1e-05,
        "model.head.hidden": None,
    }
    assert space.overrides(params) == [
        "model/backbone=ple",
        "model.backbone.levels=2",
        "model.backbone.expert=[64,32]",
        "optimizer.lr=1e-05",
        "model.head.hidden=null",
        "model.head.alpha={click:0.25,like:0.5}",
    ]


def test_probes_see_every_choice_and_both_ends() -> None:
    space = parse_space(SPACE, TASKS)
    points = list(space.probes())
    for parameter in space.parameters:
        values = {p[parameter.name] for p in points if parameter.name in p}
        assert values == set(parameter.extremes()), parameter.name
    for point in points:
        assert ("model.backbone.levels" in point) == (point["model/backbone"] == "ple")


def test_a_grid_has_every_point_once() -> None:
    space = parse_space(
        {
            "a": {"choices": ["x", "y"]},
            "b": {"low": 1, "high": 3, "when": {"a": ["x"]}},
            "c": {"low": 0.0, "high": 0.3, "step": 0.1},
        },
        TASKS,
    )
    points = space.grid()
    assert len(points) == (3 + 1) * 4
    assert len({tuple(sorted(p.items())) for p in points}) == len(points)
    assert {round(float(p["c"] or 0), 10) for p in points} == {0.0, 0.1, 0.2, 0.3}
    for point in points:  # Optuna accepts them unchanged
        for parameter in space.parameters:
            if parameter.name in point:
                assert parameter.distribution._contains(parameter.distribution.to_internal_repr(point[parameter.name]))


def test_a_range_without_step_has_no_grid() -> None:
    with pytest.raises(UserError, match=r"sampler=grid needs choices or a step for model\.head\.alpha\.click"):
        parse_space(SPACE, TASKS).grid()


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({}, "is empty"),
        ({"a": 3}, "a must be .*got 3"),
        ({"a": {"lo": 1, "high": 2}}, "unknown key 'lo'; did you mean low"),
        ({"a": {"low": 1}}, "needs numbers for low, high"),
        ({"a": {"low": 2, "high": 1}}, "config sweep.space: a: "),
        ({"a": {"low": 0.0, "high": 1.0, "log": True}}, "config sweep.space: a: "),
        ({"a": {"low": 1, "choices": [1]}}, "either choices or low and high"),
        ({"a": {"choices": []}}, "list of choices, got"),
        ({"a": {"low": True, "high": 2}}, "needs numbers"),
        ({"a": {"choices": [1], "when": {"b": [1]}}}, "depends on b, which must come before it"),
        ({"b": {"choices": [1]}, "a": {"choices": [1], "when": {"b": [2]}}}, "not among its choices"),
        ({"b": {"low": 1, "high": 2}, "a": {"choices": [1], "when": {"b": [2]}}}, "not among its choices"),
        ({"a": {"choices": [1], "when": 3}}, "`when` that maps keys"),
    ],
)
def test_what_is_refused(space: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected.replace("(", r"\(")):
        parse_space(space, TASKS)
