"""Backbones: from one row of features to one representation for each task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dlen.nn.gate import Gate
from dlen.nn.mlp import MLP

EXPERT = (256, 128, 64)  # every expert of the paper


@dataclass(frozen=True, slots=True)
class Mixture:
    """A gate and the experts it mixes, by name, to be looked at.

    Attributes:
        level: of the backbone, from 1.
        gate: its module.
        owners: for each of its G mixtures the task it is for, or None where it is for all.
        names: of its E experts.
        experts: their modules.
    """

    level: int
    gate: Gate
    owners: list[int | None]
    names: list[str]
    experts: list[nn.Module]


class Backbone(nn.Module, ABC):
    """(B, D) features -> (T, B, H) task representations.

    Attributes:
        out_dim: H.
    """

    out_dim: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (T, B, H)."""

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """What all tasks train: experts that every task's output depends on, without the gates."""

    def mixtures(self) -> list[Mixture]:
        """Its gates; none where nothing is mixed."""
        return []


_MOST = 1024  # experts or levels


def _check(expert: Sequence[int], **numbers: int) -> None:
    """Raise ValueError for sizes that make no backbone."""
    if not expert:
        raise ValueError("expert must name at least one layer size")
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
        if number > _MOST:  # each is a module of its own: a slip of the hand would build for hours
            raise ValueError(f"{name} must be at most {_MOST}, got {number}")


def _names(kind: str, number: int) -> list[str]:
    return [f"{kind}{i}" for i in range(number)]


def mix(gates: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """Weighted sums of experts.

    Args:
        gates: (B, G, E) weights of G mixtures.
        experts: E tensors (B, H).

    Returns:
        (G, B, H).
    """
    return torch.einsum("bge,ebh->gbh", gates, torch.stack(list(experts)))


class SharedBottomBackbone(Backbone):
    """One MLP that all tasks share (Caruana 1997).

    Args:
        in_dim: D.
        num_tasks: T.
        expert: layer sizes of the MLP.
        dropout: after each layer.
    """

    def __init__(self, in_dim: int, num_tasks: int, *, expert: Sequence[int] = EXPERT, dropout: float = 0.0) -> None:
        super().__init__()
        _check(expert)
        self.num_tasks = num_tasks
        self.bottom = MLP(in_dim, expert, dropout)
        self.out_dim = self.bottom.out_dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (T, B, H), the same for each task."""
        return self.bottom(x).expand(self.num_tasks, -1, -1)

    def shared_parameters(self) -> list[nn.Parameter]:
        """The one MLP."""
        return list(self.bottom.parameters())


class MMoEBackbone(Backbone):
    """E experts and a softmax gate for each task (Ma et al. 2018, equations 6 and 7).

    Args:
        in_dim: D.
        num_tasks: T.
        num_experts: E.
        expert: layer sizes of each expert.
        dropout: after each layer.
    """

    def __init__(
        self,
        in_dim: int,
        num_tasks: int,
        *,
        num_experts: int = 5,
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(expert, num_experts=num_experts)
        self.experts = nn.ModuleList(MLP(in_dim, expert, dropout) for _ in range(num_experts))
        self.gates = Gate(in_dim, num_tasks, num_experts)
        self.out_dim = expert[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (T, B, H)."""
        return mix(self.gates(x), [expert(x) for expert in self.experts])

    def shared_parameters(self) -> list[nn.Parameter]:
        """All experts."""
        return list(self.experts.parameters())

    def mixtures(self) -> list[Mixture]:
        """The gate of each task."""
        num_tasks, num_experts = self.gates.shape
        return [Mixture(1, self.gates, list(range(num_tasks)), _names("expert", num_experts), list(self.experts))]


class MoEBackbone(MMoEBackbone):
    """E experts and one softmax gate for all tasks (Jacobs et al. 1991; "OMoE" in Ma et al. 2018).

    Arguments as :class:`MMoEBackbone`.
    """

    def __init__(
        self,
        in_dim: int,
        num_tasks: int,
        *,
        num_experts: int = 5,
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_dim, 1, num_experts=num_experts, expert=expert, dropout=dropout)
        self.num_tasks = num_tasks

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (T, B, H), the same for each task."""
        return super().forward(x).expand(self.num_tasks, -1, -1)

    def mixtures(self) -> list[Mixture]:
        """The one gate."""
        return [replace(mixture, owners=[None]) for mixture in super().mixtures()]


class TaskNetworksBackbone(Backbone):
    """An MLP for each task; the tasks share the input and nothing else.

    Args:
        in_dim: D.
        num_tasks: T.
        expert: layer sizes of each MLP.
        dropout: after each layer.
    """

    def __init__(self, in_dim: int, num_tasks: int, *, expert: Sequence[int] = EXPERT, dropout: float = 0.0) -> None:
        super().__init__()
        _check(expert)
        self.networks = nn.ModuleList(MLP(in_dim, expert, dropout) for _ in range(num_tasks))
        self.out_dim = expert[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D), or (T, B, D) with an input for each task -> (T, B, H)."""
        inputs = x if x.dim() == 3 else x.expand(len(self.networks), *x.shape)
        return torch.stack([network(own) for network, own in zip(self.networks, inputs, strict=True)])

    def shared_parameters(self) -> list[nn.Parameter]:
        """None."""
        return []


class CGCLevel(nn.Module):
    """Customized gate control: experts of each task, shared experts, and gates that keep them apart.

    The gate of task t mixes the experts of t and the shared ones, by the input of t (Tang et al. 2020, equations 1
    to 3). Between two levels of PLE the shared gate mixes all experts, by the shared input (equations 5 and 6).

    Args:
        in_dim: D.
        num_tasks: T.
        shared_experts: number of shared experts.
        task_experts: number of experts of each task.
        expert: layer sizes of each expert.
        dropout: after each layer.
        last: no level follows, so there is no shared gate.
    """

    def __init__(
        self,
        in_dim: int,
        num_tasks: int,
        shared_experts: int,
        task_experts: int,
        expert: Sequence[int],
        dropout: float,
        *,
        last: bool,
    ) -> None:
        super().__init__()

        def experts(number: int) -> nn.ModuleList:
            return nn.ModuleList(MLP(in_dim, expert, dropout) for _ in range(number))

        self.shared_experts = experts(shared_experts)
        self.task_experts = nn.ModuleList(experts(task_experts) for _ in range(num_tasks))
        mixed = task_experts + shared_experts
        self.gates = nn.ModuleList(Gate(in_dim, 1, mixed) for _ in range(num_tasks))
        everything = num_tasks * task_experts + shared_experts
        self.shared_gate = None if last else Gate(in_dim, 1, everything)

    def forward(self, tasks: Sequence[Tensor], shared: Tensor) -> tuple[list[Tensor], Tensor]:
        """T task inputs and the shared input, (B, D) each -> T task outputs and the shared output, (B, H)."""
        common = [expert(shared) for expert in self.shared_experts]
        own = [[expert(x) for expert in group] for x, group in zip(tasks, self.task_experts, strict=True)]  # type: ignore[attr-defined]
        outputs = [mix(gate(x), [*mine, *common])[0] for x, gate, mine in zip(tasks, self.gates, own, strict=True)]
        if self.shared_gate is None:
            return outputs, shared
        everything = [output for mine in own for output in mine] + common
        return outputs, mix(self.shared_gate(shared), everything)[0]

    def mixtures(self, level: int) -> list[Mixture]:
        """The gate of each task, and the shared one."""
        common, shared = list(self.shared_experts), _names("shared", len(self.shared_experts))
        own = [(f"task{t}_expert", list(group.children())) for t, group in enumerate(self.task_experts)]
        found = [
            Mixture(level, gate, [task], [*_names(name, len(group)), *shared], [*group, *common])  # type: ignore[arg-type]
            for task, (gate, (name, group)) in enumerate(zip(self.gates, own, strict=True))
        ]
        if self.shared_gate is not None:
            names = [n for name, group in own for n in _names(name, len(group))]
            experts = [e for _, group in own for e in group]
            found.append(Mixture(level, self.shared_gate, [None], [*names, *shared], [*experts, *common]))
        return found


class PLEBackbone(Backbone):
    """Progressive layered extraction: CGC levels, one on another (Tang et al. 2020). One level is CGC.

    Args:
        in_dim: D.
        num_tasks: T.
        levels: number of levels, at least 1.
        shared_experts: shared experts in each level.
        task_experts: experts of each task in each level.
        expert: layer sizes of each expert, in every level.
        dropout: after each layer.
    """

    def __init__(
        self,
        in_dim: int,
        num_tasks: int,
        *,
        levels: int = 2,
        shared_experts: int = 5,
        task_experts: int = 2,
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(expert, levels=levels, shared_experts=shared_experts, task_experts=task_experts)
        self.num_tasks = num_tasks
        widths = [in_dim] + [expert[-1]] * (levels - 1)
        self.levels = nn.ModuleList(
            CGCLevel(width, num_tasks, shared_experts, task_experts, expert, dropout, last=number == levels - 1)
            for number, width in enumerate(widths)
        )
        self.out_dim = expert[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (T, B, H)."""
        tasks, shared = [x] * self.num_tasks, x
        for level in self.levels:
            tasks, shared = level(tasks, shared)
        return torch.stack(tasks)

    def shared_parameters(self) -> list[nn.Parameter]:
        """The shared experts; below the last level, where a shared gate mixes all, also those of the tasks."""
        levels = list(self.levels)
        modules = [level.shared_experts for level in levels] + [level.task_experts for level in levels[:-1]]
        return [p for module in modules for p in module.parameters()]  # type: ignore[union-attr]

    def mixtures(self) -> list[Mixture]:
        """The gates of all levels."""
        return [m for number, level in enumerate(self.levels, 1) for m in level.mixtures(number)]  # type: ignore[operator]


class CGCBackbone(PLEBackbone):
    """A single level of customized gate control (Tang et al. 2020, section 4.1). Arguments as :class:`PLEBackbone`."""

    def __init__(
        self,
        in_dim: int,
        num_tasks: int,
        *,
        shared_experts: int = 5,
        task_experts: int = 2,
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            in_dim,
            num_tasks,
            levels=1,
            shared_experts=shared_experts,
            task_experts=task_experts,
            expert=expert,
            dropout=dropout,
        )
