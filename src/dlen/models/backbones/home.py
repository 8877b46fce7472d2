"""HoME: normalised experts in a hierarchy of all tasks, groups of tasks, and single tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.checks import is_whole
from dlen.models.backbones.base import EXPERT, Backbone, Mixture, check_sizes, expert_names, mix
from dlen.models.features import Features, FeatureSpec
from dlen.nn.gate import Gate
from dlen.nn.mlp import MLP


class NormedExpert(nn.Module):
    """Swish(norm(MLP(x))), so that the outputs of all experts have the same distribution.

    Args:
        in_dim: input size D.
        sizes: layer sizes; the layers before the last have a ReLU.
        dropout: dropout probability after each layer.
    """

    def __init__(self, in_dim: int, sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.hidden = MLP(in_dim, sizes[:-1], dropout)
        self.output = nn.Linear(self.hidden.out_dim, sizes[-1])
        self.norm = nn.LayerNorm(sizes[-1])
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, H)."""
        return F.dropout(F.silu(self.norm(self.output(self.hidden(x)))), self.dropout, self.training)


class FeatureGate(nn.Module):
    """Scales each input by a softmax mix of L gates of low rank, 2 sigmoid(x B A). With A = 0, all of them start at 1.

    Args:
        dim: input size D.
        gates: number of gates L.
        rank: rank of each gate's matrix.
    """

    def __init__(self, dim: int, gates: int, rank: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(dim, rank, bias=False) for _ in range(gates))
        self.up = nn.ModuleList(nn.Linear(rank, dim, bias=False) for _ in range(gates))
        self.weights = Gate(dim, 1, gates)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        gates = [2 * torch.sigmoid(up(down(x))) for down, up in zip(self.down, self.up, strict=True)]
        return x * mix(self.weights(x), gates)[0]


class SelfGate(nn.Module):
    """Weights of a unit's own experts: a softmax, or a sigmoid for a single expert.

    Args:
        in_dim: input size D.
        experts: number of experts N.
    """

    def __init__(self, in_dim: int, experts: int) -> None:
        super().__init__()
        self.weights = nn.Linear(in_dim, experts, bias=False)

    def forward(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """(B, D) and N outputs of (B, H) -> (B, H)."""
        weights = self.weights(x)
        weights = weights.sigmoid() if len(outputs) == 1 else weights.softmax(1)
        return mix(weights[:, None], outputs)[0]


class HoMEUnit(nn.Module):
    """Experts behind one feature gate.

    Args:
        in_dim: input size D.
        experts: number of experts N.
        expert: layer sizes of each expert.
        gates: number of gates that the feature gate mixes.
        rank: rank of each of them.
        dropout: dropout probability after each layer of an expert.
    """

    def __init__(
        self, in_dim: int, experts: int, *, expert: Sequence[int], gates: int, rank: int, dropout: float
    ) -> None:
        super().__init__()
        self.feature_gate = FeatureGate(in_dim, gates, rank)
        self.experts = nn.ModuleList(NormedExpert(in_dim, expert, dropout) for _ in range(experts))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, D) -> N outputs of (B, H)."""
        scaled = self.feature_gate(x)
        return [expert(scaled) for expert in self.experts]


class Fusion(nn.Module):
    """A gate's mix of other experts and own ones, plus a self gate's mix of the own ones.

    Args:
        gate_dim: size of the gate's input.
        self_dim: size of the self gate's input.
        others: number of other experts.
        own: number of own experts.
    """

    def __init__(self, gate_dim: int, self_dim: int, others: int, own: int) -> None:
        super().__init__()
        self.gate = Gate(gate_dim, 1, others + own)
        self.self_gate = SelfGate(self_dim, own)

    def forward(self, x: Tensor, x_self: Tensor, others: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
        """Inputs of the gate and of the self gate, and outputs of (B, H) -> (B, H)."""
        return mix(self.gate(x), [*others, *own])[0] + self.self_gate(x_self, own)


class HoMELevel(nn.Module):
    """Units of all tasks and of each group; the fusions of a level are its subclasses'.

    Args:
        make: factory of a unit, called with its input size and its number of experts.
        in_dim: input size D.
        count: number of groups.
        shared_experts: number of shared experts.
        group_experts: number of experts per group.
    """

    def __init__(
        self, make: Callable[[int, int], HoMEUnit], in_dim: int, count: int, shared_experts: int, group_experts: int
    ) -> None:
        super().__init__()
        self.shared = make(in_dim, shared_experts)
        self.groups = nn.ModuleList(make(in_dim, group_experts) for _ in range(count))

    def experts(self, *groups: int | None) -> dict[str, nn.Module]:
        """Experts of groups, by name; a group of None has those of all tasks."""
        found: dict[str, nn.Module] = {}
        for group in groups:
            kind, unit = ("shared", self.shared) if group is None else (f"group{group}.", self.groups[group])
            found |= _by_name(kind, unit)
        return found


class MetaLevel(HoMELevel):
    """The first level: one output of all tasks and one of each group. Takes the arguments of :class:`HoMELevel`."""

    def __init__(
        self, make: Callable[[int, int], HoMEUnit], in_dim: int, count: int, shared_experts: int, group_experts: int
    ) -> None:
        super().__init__(make, in_dim, count, shared_experts, group_experts)
        self.shared_fusion = Fusion(in_dim, in_dim, count * group_experts, shared_experts)
        self.fusions = nn.ModuleList(Fusion(in_dim, in_dim, shared_experts, group_experts) for _ in range(count))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, D) -> (B, H) of all tasks, and (B, H) of each group."""
        shared = self.shared(x)
        groups = [unit(x) for unit in self.groups]
        of_groups = [fusion(x, x, shared, own) for fusion, own in zip(self.fusions, groups, strict=True)]
        return self.shared_fusion(x, x, [*chain(*groups)], shared), of_groups

    def mixtures(self, group_of: Sequence[int]) -> list[Mixture]:
        """The gate of each task's group, and the gate of all tasks."""
        everything = self.experts(*range(len(self.groups)), None)
        of_groups = [
            _mixture(1, self.fusions[group], task, self.experts(None, group)) for task, group in enumerate(group_of)
        ]
        return [*of_groups, _mixture(1, self.shared_fusion, None, everything)]


class TaskLevel(HoMELevel):
    """The second level: one output of each task.

    Args:
        make: factory of a unit, called with its input size and its number of experts.
        in_dim: input size D.
        group_of: group of each task.
        shared_experts: number of shared experts.
        group_experts: number of experts per group.
        task_experts: number of experts per task.
    """

    def __init__(
        self,
        make: Callable[[int, int], HoMEUnit],
        in_dim: int,
        group_of: Sequence[int],
        shared_experts: int,
        group_experts: int,
        task_experts: int,
    ) -> None:
        super().__init__(make, in_dim, max(group_of) + 1, shared_experts, group_experts)
        self.group_of = tuple(group_of)
        self.tasks = nn.ModuleList(make(in_dim, task_experts) for _ in group_of)
        others = shared_experts + group_experts
        self.fusions = nn.ModuleList(Fusion(2 * in_dim, in_dim, others, task_experts) for _ in group_of)

    def forward(self, x: Tensor, of_groups: Sequence[Tensor]) -> Tensor:
        """(B, D) of all tasks and (B, D) of each group -> (T, B, H)."""
        shared = self.shared(x)
        groups = [unit(own) for unit, own in zip(self.groups, of_groups, strict=True)]
        tasks = []
        for group, unit, fusion in zip(self.group_of, self.tasks, self.fusions, strict=True):
            own = of_groups[group]
            tasks.append(fusion(torch.cat([own, x], 1), own, [*shared, *groups[group]], unit(own)))
        return torch.stack(tasks)

    def mixtures(self) -> list[Mixture]:
        """The gate of each task."""
        return [
            _mixture(2, self.fusions[task], task, self.experts(None, group) | _by_name(f"task{task}_expert", unit))
            for task, (group, unit) in enumerate(zip(self.group_of, self.tasks, strict=True))
        ]


class HoMEBackbone(Backbone):
    """Hierarchy of multi-gate experts: a level of groups of tasks, then a level of tasks (Wang et al. 2024).

    With shared experts S, experts G of group g and experts K of task t, each unit behind a feature gate of its own:

        z_g = gate_g(x) [S(x), G(x)] + self_g(x) G(x)
        z = gate(x) [all G(x), S(x)] + self(x) S(x)
        z_t = gate_t([z_g, z]) [S'(z), G'(z_g), K(z_g)] + self_t(z_g) K(z_g)

    so that a group mixes no experts of another. Differs from the paper: experts are normalised over their units (layer
    normalisation) instead of over the batch, so that a row's prediction depends on no other row, and several processes
    equal one; the rank of the feature gates is free, and they start at 1. Reconstructed from its description: no code
    by the authors is known, and the numbers of experts are those of PLE here.

    Args:
        groups: lists of the numbers of the tasks that form a group, such as [[0, 1], [2]], with each task in one of
            them; None for a group of each task.
        shared_experts: shared experts per level.
        group_experts: experts per group and level.
        task_experts: experts per task, in the second level.
        feature_gates: number of low-rank gates that each feature gate mixes.
        rank: rank of each of them.
        expert: layer sizes of each expert, in both levels; the last at least 2, as it is normalised.
        dropout: dropout probability after each layer of an expert.

    Raises:
        ValueError: a setting is out of range, or a task is in no group or in several.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_tasks: int,
        *,
        groups: Sequence[Sequence[int]] | None = None,
        shared_experts: int = 5,
        group_experts: int = 2,
        task_experts: int = 2,
        feature_gates: int = 2,
        rank: int = 16,
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(expert, shared_experts=shared_experts, group_experts=group_experts, task_experts=task_experts)
        check_sizes(expert, feature_gates=feature_gates, rank=rank)
        if expert[-1] < 2:
            raise ValueError(f"the last layer of a normalised expert must have at least 2 units, got expert={expert!r}")
        group_of = _group_of(groups, num_tasks)
        make = partial(HoMEUnit, expert=expert, gates=feature_gates, rank=rank, dropout=dropout)
        self.meta = MetaLevel(make, spec.width, max(group_of) + 1, shared_experts, group_experts)
        self.level = TaskLevel(make, expert[-1], group_of, shared_experts, group_experts, task_experts)
        self.out_dim = expert[-1]

    def forward(self, features: Features) -> Tensor:
        """Compute the (T, B, H) task representations."""
        representations: Tensor = self.level(*self.meta(features.flat))
        return representations

    def shared_parameters(self) -> list[nn.Parameter]:
        """All experts of the first level, which a gate of all tasks mixes, and the shared ones of the second."""
        groups = range(len(self.meta.groups))
        experts = [*self.meta.experts(None, *groups).values(), *self.level.experts(None).values()]
        if len(groups) == 1:
            experts += self.level.experts(0).values()
        return [p for expert in experts for p in expert.parameters()]

    def mixtures(self) -> list[Mixture]:
        """The gates of both levels; the gate of a group appears with each of its tasks."""
        return [*self.meta.mixtures(self.level.group_of), *self.level.mixtures()]


def _by_name(kind: str, unit: nn.Module) -> dict[str, nn.Module]:
    """The experts of a unit, by name."""
    experts: list[nn.Module] = list(unit.experts)  # type: ignore[arg-type]
    return dict(zip(expert_names(kind, len(experts)), experts, strict=True))


def _mixture(level: int, fusion: nn.Module, owner: int | None, experts: dict[str, nn.Module]) -> Mixture:
    """The mixture of a fusion's gate."""
    return Mixture(level, fusion.gate, [owner], list(experts), list(experts.values()))  # type: ignore[arg-type]


def _group_of(groups: Sequence[Sequence[int]] | None, num_tasks: int) -> list[int]:
    """The group of each task."""
    if groups is None:
        return list(range(num_tasks))
    lists = isinstance(groups, Sequence) and all(isinstance(group, Sequence) and group for group in groups)
    named = [task for group in groups for task in group] if lists else []
    if not all(is_whole(task) for task in named) or sorted(named) != list(range(num_tasks)):
        raise ValueError(
            f"groups must be lists of task numbers with each task from 0 to {num_tasks - 1} in one of them, such as "
            f"{[list(range(num_tasks))]}, or null; got {groups!r}"
        )
    return [next(g for g, group in enumerate(groups) if task in group) for task in range(num_tasks)]
