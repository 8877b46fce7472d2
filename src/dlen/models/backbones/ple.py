"""CGC and PLE: shared experts, experts of each task, and levels of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlen.models.backbones.base import EXPERT, Backbone, Mixture, check_sizes, expert_names, mix
from dlen.models.features import Features, FeatureSpec
from dlen.nn.gate import Gate
from dlen.nn.mlp import MLP


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
        common, shared = list(self.shared_experts), expert_names("shared", len(self.shared_experts))
        own = [(f"task{t}_expert", list(group.children())) for t, group in enumerate(self.task_experts)]
        found = [
            Mixture(level, gate, [task], [*expert_names(name, len(group)), *shared], [*group, *common])  # type: ignore[arg-type]
            for task, (gate, (name, group)) in enumerate(zip(self.gates, own, strict=True))
        ]
        if self.shared_gate is not None:
            names = [n for name, group in own for n in expert_names(name, len(group))]
            experts = [e for _, group in own for e in group]
            found.append(Mixture(level, self.shared_gate, [None], [*names, *shared], [*experts, *common]))
        return found


class PLEBackbone(Backbone):
    """Progressive layered extraction: CGC levels, one on another (Tang et al. 2020). One level is CGC.

    Args:
        spec: of the features.
        num_tasks: T.
        levels: number of levels, at least 1.
        shared_experts: shared experts in each level; 5 in the paper's feed setting, 2 on Ali-CCP.
        task_experts: experts of each task in each level; 2 in the paper's feed setting, 1 on Ali-CCP.
        expert: layer sizes of each expert, in every level.
        dropout: after each layer.
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
        """(T, B, H)."""
        shared = features.flat
        tasks = [shared] * self.num_tasks
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
