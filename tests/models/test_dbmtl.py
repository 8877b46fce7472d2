"""DBMTL against a slow loop from its equations, and its network of tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from dlen.models import DBMTL, SharedBottom
from dlen.schema import Task, TaskKind
from dlen.targets import Targets
from tests.helpers import make_batch, make_schema
from tests.models.test_backbones import slow_mlp

TASKS = (
    Task("buy", 0.5, observed_where="click"),
    Task("like", 0.15),
    Task("click", 0.3),
    Task("watch", 0.5, kind=TaskKind.REGRESSION),
)
RELATIONS: Mapping[str, Sequence[str]] = {"buy": ["click", "watch"], "watch": ["like"]}
SIZES: dict[str, Any] = {"embedding_dim": 3, "expert": (16, 8), "tower": (7, 5), "relation": (6, 4)}


def made(relations: Any = "auto", tasks: tuple[Task, ...] = TASKS) -> DBMTL:
    torch.manual_seed(1)
    return DBMTL(make_schema(tasks), relations=relations, **SIZES)


@pytest.mark.parametrize("relations", ["auto", RELATIONS])
def test_each_task_is_the_slow_loop_over_what_it_depends_on(relations: Any) -> None:
    names = [task.name for task in TASKS]
    if relations == "auto":  # click .3, like .15, click and buy .15, then the regression
        relations = {"like": ["click"], "buy": ["click", "like"], "watch": ["click", "like", "buy"]}
        model = made()
    else:
        model = made(relations)
    head: Any = model.head
    batch = make_batch(model.schema, 6)
    features = model.features(batch)
    representations = model.backbone(features).tolist()

    def hidden(name: str, row: int) -> list[float]:
        task = names.index(name)
        own = slow_mlp(head.towers[task], representations[task][row])
        for other in relations.get(name, ()):
            own = own + hidden(other, row)
        return slow_mlp(head.relations[str(task)], own) if relations.get(name) else own

    predictions = model(batch)
    assert features.first_order is not None
    assert predictions.values is not None
    for task, name in enumerate(names):
        output = head.outputs[task]
        for row in range(6):
            z = torch.tensor(hidden(name, row))
            logit = output.weight[0] @ z + output.bias[0] + features.first_order[row, task]
            torch.testing.assert_close(predictions.log_p[row, task], logit.sigmoid().log(), rtol=1e-5, atol=1e-6)
            if name == "watch":
                torch.testing.assert_close(predictions.values.expected[row, 0], logit, rtol=1e-5, atol=1e-6)


def gradient(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize(("task", "trained"), [("buy", "1110"), ("like", "0110"), ("click", "0010"), ("watch", "1111")])
def test_a_task_trains_the_towers_it_depends_on_and_no_other(task: str, trained: str) -> None:
    model = made()
    index = model.schema.task_index(task)
    batch, targets = make_batch(model.schema, 32), Targets(model.schema)
    batch.labels[:, 2] = 1  # all clicked
    head: Any = model.head
    losses = head.task_losses(model(batch), targets.training_labels(batch.labels), targets.trained(batch.labels))
    losses[index].backward()
    assert "".join("1" if gradient(tower) else "0" for tower in head.towers) == trained


def test_what_all_tasks_train_is_the_tower_of_the_first() -> None:
    head: Any = made().head
    assert [id(p) for p in head.shared_parameters()] == [id(p) for p in head.towers[2].parameters()]
    assert made(RELATIONS).head.shared_parameters() == []
    chain: Any = made({"click": ["like"], "buy": ["click"], "watch": ["click"]}).head
    assert [id(p) for p in chain.shared_parameters()] == [id(p) for p in chain.towers[1].parameters()]


def test_without_relations_it_is_the_independent_head() -> None:
    tasks = TASKS[:3]
    alone, batch = made({}, tasks), make_batch(make_schema(tasks), 5)
    settings = {key: value for key, value in SIZES.items() if key != "relation"}
    independent = SharedBottom(make_schema(tasks), **settings)
    own = alone.state_dict()
    renamed = {
        key: own[re.sub(r"head\.towers\.(towers|outputs)", lambda m: f"head.{m[1]}", key)]
        for key in independent.state_dict()
    }
    assert renamed.keys() == independent.state_dict().keys()
    assert len(renamed) == len(own)
    independent.load_state_dict(renamed)
    torch.testing.assert_close(independent(batch).log_p, alone(batch).log_p)


def test_parents_come_first_whatever_their_rates() -> None:
    tasks = (Task("buy", 1.0, observed_where="cart"), Task("cart", 1.0, observed_where="click"), Task("click", 0.01))
    assert made(tasks=tasks).head.order == [2, 1, 0]


def test_a_single_task_depends_on_nothing() -> None:
    model = made(tasks=(Task("click", 0.3),))
    assert model(make_batch(model.schema, 3)).log_p.shape == (3, 1)


@pytest.mark.parametrize(
    ("relations", "message"),
    [
        ({"buy": ["clik"]}, "relations name an unknown task clik; the tasks are buy, like, click, watch"),
        ({"byu": ["click"]}, "relations name an unknown task byu"),
        ({"buy": ["click"], "click": ["like"], "like": ["buy"]}, "relations must not be circular, got "),
        ({"buy": ["buy"]}, "relations must not be circular, got buy -> buy"),
        ({"buy": "click"}, r"relations must be auto or map tasks to lists of tasks, got \{'buy': 'click'\}"),
        ({"buy": [3]}, "relations must be auto or map tasks to lists of tasks"),
        ({"buy": None}, "relations must be auto or map tasks to lists of tasks"),
        ("none", "relations must be auto or map tasks to lists of tasks, got 'none'"),
        (None, "relations must be auto or map tasks to lists of tasks, got None"),
    ],
)
def test_relations_that_are_none_are_refused_in_one_line(relations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        made(relations)
    assert "\n" not in str(error.value)
