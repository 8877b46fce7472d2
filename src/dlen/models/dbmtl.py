"""DBMTL: towers that form a Bayesian network, in which each takes what the tasks it depends on have learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

import torch
from torch import Tensor, nn

from dlen.models.features import Features, FeatureSpec
from dlen.models.heads import TOWER, Head, PointRegression, add_first_order, initial_logits, sigmoids, training_rates
from dlen.models.predictions import Predictions
from dlen.nn.logspace import at_least_float32
from dlen.nn.mlp import MLP, each_mlp
from dlen.schema import Schema, check_known_tasks


class DBMTLHead(Head):
    """Deep Bayesian multi-target learning (Wang et al. 2019): P(l, m, n | x) = P(l | x) P(m | l, x) P(n | l, m, x).

    A task's tower makes h from its representation. The Bayesian layer of a task that depends on others is an MLP of
    its own h and of what their Bayesian layers make:

        z_t = MLP_t(h_t, z_u for each u that t depends on),    z_t = h_t without any,    logit_t = w_t z_t + b_t

    It takes hidden layers in place of labels, so all tasks are predicted at once, and each is fitted to its own label.
    A regression task has no sigmoid.

    Differs from the paper: it chooses the network by model selection, and ``auto`` is ours. The shared layer is the
    backbone.

    Args:
        rep_dim: size H of the task representations.
        tower: layer sizes of each task's tower.
        relation: layer sizes of each Bayesian layer.
        relations: for each task, those it depends on; a task without an entry depends on none. ``auto`` lets each
            depend on all that happen more often, together with their parents in the funnel, so that parents come first;
            regression tasks come last.
        dropout: dropout probability in towers and Bayesian layers.

    Raises:
        ValueError: ``relations`` names an unknown task, is circular, or is no such mapping.
    """

    def __init__(
        self,
        schema: Schema,
        rep_dim: int,
        spec: FeatureSpec,
        *,
        tower: Sequence[int] = TOWER,
        relation: Sequence[int] = (32,),
        relations: str | Mapping[str, Sequence[str]] = "auto",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.parents = _parents(schema, relations)
        self.order = _order(schema, self.parents)
        self.towers = nn.ModuleList(MLP(rep_dim, tower, dropout) for _ in self.parents)
        self.relations, self.outputs = nn.ModuleDict(), nn.ModuleList()
        widths = [tower[-1] if tower else rep_dim for _ in self.parents]
        for task in self.order:
            if self.parents[task]:
                layer = MLP(widths[task] + sum(widths[parent] for parent in self.parents[task]), relation, dropout)
                self.relations[str(task)], widths[task] = layer, layer.out_dim
        for width, bias in zip(widths, initial_logits(schema), strict=True):
            self.outputs.append(output := nn.Linear(width, 1))
            output.bias.data.copy_(bias)
        self.regression = PointRegression(schema) if schema.regressions else None

    def forward(self, representations: Tensor, features: Features) -> Predictions:
        """Apply the towers, then the Bayesian layers in the order of their dependence."""
        hidden = list(each_mlp(self.towers, representations))  # type: ignore[arg-type]
        for task in self.order:
            if self.parents[task]:
                inputs = [hidden[task], *(hidden[parent] for parent in self.parents[task])]
                hidden[task] = self.relations[str(task)](torch.cat(inputs, 1))
        outputs = torch.cat([output(z) for z, output in zip(hidden, self.outputs, strict=True)], 1)
        return sigmoids(add_first_order(at_least_float32(outputs), features), self.regression)

    def shared_parameters(self) -> list[nn.Parameter]:
        """The tower of the task that all others depend on, directly or through others; empty without one."""
        before: dict[int, set[int]] = {}
        for task in self.order:
            before[task] = {task}.union(*(before[parent] for parent in self.parents[task]))
        first = set.intersection(*before.values())  # one at most, as there is no circle
        return [parameter for task in first for parameter in self.towers[task].parameters()]


def _parents(schema: Schema, relations: str | Mapping[str, Sequence[str]]) -> list[list[int]]:
    """The tasks that each task depends on."""
    names = schema.task_names
    if relations == "auto":
        rates = training_rates(schema)
        chains = [list(schema.chain(name)) for name in names]
        often = [
            (t.is_regression, -math.prod(rates[i] for i in chain), len(chain))
            for t, chain in zip(schema.tasks, chains, strict=True)
        ]
        order = sorted(range(len(names)), key=lambda task: often[task])
        return [order[: order.index(task)] for task in range(len(names))]
    if not isinstance(relations, Mapping) or not all(_is_list(of) for of in relations.values()):
        given = dict(relations) if isinstance(relations, Mapping) else relations
        raise ValueError(f"relations must be auto or map tasks to lists of tasks, got {given!r}")
    check_known_tasks("relations", [*relations, *(name for of in relations.values() for name in of)], names)
    return [[schema.task_index(parent) for parent in dict.fromkeys(relations.get(name, ()))] for name in names]


def _is_list(names: object) -> bool:
    return isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(n, str) for n in names)


def _order(schema: Schema, parents: Sequence[Sequence[int]]) -> list[int]:
    """The tasks, each after those it depends on."""
    try:
        return list(TopologicalSorter(dict(enumerate(parents))).static_order())
    except CycleError as error:
        circle = " -> ".join(schema.task_names[task] for task in error.args[1])
        raise ValueError(f"relations must not be circular, got {circle}") from None
