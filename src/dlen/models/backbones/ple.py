"""CGC and PLE: shared experts and task experts, in one or more levels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from dlen.models.backbones.base import EXPERT, Backbone, Mixture, check_sizes, expert_names, mix
from dlen.models.features import Features, FeatureSpec
from dlen.nn.gate import Gate
from dlen.nn.mlp import MLP


class CGCLevel(nn.Module):
    """Customized gate control: task experts, shared experts, and gates that separate them.

    The gate of task t takes the input of t and mixes its own experts with the shared ones (Tang et al. 2020, equations
    1 to 3). Between two levels of PLE, a shared gate takes the shared input and mixes all experts (equations 5 and 6).

    Args:
        in_dim: input size D.
        task_experts: number of experts per task.
        expert: layer sizes of each expert.
        dropout: dropout probability after each layer.
        last: whether this is the last level, which has no shared gate.
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
        self.gates = nn.ModuleList(Gate(in_dim, 1, task_experts + shared_experts) for _ in range(num_tasks))
        num_experts = num_tasks * task_experts + shared_experts
        self.shared_gate = None if last else Gate(in_dim, 1, num_experts)

    def forward(self, tasks: Sequence[Tensor], shared: Tensor) -> tuple[list[Tensor], Tensor]:
        """T task inputs and the shared input, (B, D) each -> T task outputs and the shared output, (B, H)."""
        of_shared = [expert(shared) for expert in self.shared_experts]
        of_tasks = [[expert(x) for expert in group] for x, group in zip(tasks, self.task_experts, strict=True)]  # type: ignore[attr-defined]
        mixed = [
            mix(gate(x), [*of_task, *of_shared])[0]
            for x, gate, of_task in zip(tasks, self.gates, of_tasks, strict=True)
        ]
        if self.shared_gate is None:
            return mixed, shared
        all_outputs = [output for of_task in of_tasks for output in of_task] + of_shared
        return mixed, mix(self.shared_gate(shared), all_outputs)[0]

    def mixtures(self, level: int) -> list[Mixture]:
        """The task gates and the shared gate."""
        shared, shared_names = list(self.shared_experts), expert_names("shared", len(self.shared_experts))
        groups = [list(group.children()) for group in self.task_experts]
        names = [expert_names(f"task{task}_expert", len(group)) for task, group in enumerate(groups)]
        mixtures = [
            Mixture(level, gate, [task], [*names[task], *shared_names], [*groups[task], *shared])  # type: ignore[arg-type]
            for task, gate in enumerate(self.gates)
        ]
        if self.shared_gate is not None:
            all_names, all_experts = [*chain(*names), *shared_names], [*chain(*groups), *shared]
            mixtures.append(Mixture(level, self.shared_gate, [None], all_names, all_experts))
        return mixtures


class PLEBackbone(Backbone):
    """Progressive layered extraction: a stack of CGC levels (Tang et al. 2020). With one level it is CGC.

    Args:
        levels: number of levels, at least 1.
        shared_experts: shared experts per level; 5 in the paper's feed setting, 2 on Ali-CCP.
        task_experts: experts per task and level; 2 in the paper's feed setting, 1 on Ali-CCP.
        expert: layer sizes of each expert, in every level.
        dropout: dropout probability after each layer.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_tasks: int,
        *,
        levels: int = 2,
        shared_experts: int = 5,
        task_experts: int = 2,
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(expert, levels=levels, shared_experts=shared_experts, task_experts=task_experts)
        self.num_tasks = num_tasks
        widths = [spec.width] + [expert[-1]] * (levels - 1)
        self.levels = nn.ModuleList(
            CGCLevel(width, num_tasks, shared_experts, task_experts, expert, dropout, last=number == levels - 1)
            for number, width in enumerate(widths)
        )
        self.out_dim = expert[-1]

    def forward(self, features: Features) -> Tensor:
        """Compute the (T, B, H) task representations."""
        shared = features.flat
        tasks = [shared] * self.num_tasks
        for level in self.levels:
            tasks, shared = level(tasks, shared)
        return torch.stack(tasks)

    def shared_parameters(self) -> list[nn.Parameter]:
        """The shared experts, plus the task experts below the last level, where a shared gate mixes all of them."""
        levels = list(self.levels)
        modules = [level.shared_experts for level in levels] + [level.task_experts for level in levels[:-1]]
        return [p for module in modules for p in module.parameters()]  # type: ignore[union-attr]

    def mixtures(self) -> list[Mixture]:
        """The gates of every level."""
        return [m for number, level in enumerate(self.levels, 1) for m in level.mixtures(number)]  # type: ignore[operator]


class CGCBackbone(PLEBackbone):
    """One level of customized gate control (Tang et al. 2020, section 4.1).

    Takes the arguments of :class:`PLEBackbone`, except ``levels``.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_tasks: int,
        *,
        shared_experts: int = 5,
        task_experts: int = 2,
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            spec,
            num_tasks,
            levels=1,
            shared_experts=shared_experts,
            task_experts=task_experts,
            expert=expert,
            dropout=dropout,
        )
