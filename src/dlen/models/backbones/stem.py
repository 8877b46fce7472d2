"""STEM-Net: experts on vectors of each task and on shared ones, mixed forward and kept apart backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlen.models.backbones.base import EXPERT, Backbone, Mixture, check_sizes, expert_names, mix
from dlen.models.features import Features, FeatureSpec
from dlen.nn.gate import Gate
from dlen.nn.mlp import MLP


class STEMBackbone(Backbone):
    """Shared and task-specific embeddings (Su et al. 2024): all forward, task-specific backward.

    Each task has experts on its own part x_t of the vectors, and shared experts work on the shared part x_s. The gate
    of a task mixes all of them, but the experts of the other tasks without a gradient, so that no task trains the
    vectors and experts of another:

        h_t = sum over experts e of g_te e(x_e),    g_t = softmax of W_t (x_t + x_s)

    As in the authors' code, the gate takes the sum of both parts. It is one linear layer here, where the code has an
    MLP, and there is one level.

    Args:
        spec: layout of input features with a part for each task and a shared one.
        shared_experts: number of shared experts.
        task_experts: number of experts per task.
        expert: layer sizes of each expert.
        dropout: dropout probability after each layer.

    Raises:
        ValueError: the vectors do not have these parts, or a size is out of range.
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
        super().__init__()
        check_sizes(expert, shared_experts=shared_experts, task_experts=task_experts)
        if not spec.shared_part:
            raise ValueError(
                "stem needs vectors of each task and shared ones; set embedding.private=true and "
                "embedding.shared_part=true"
            )

        def experts(number: int) -> nn.ModuleList:
            return nn.ModuleList(MLP(spec.part_width, expert, dropout) for _ in range(number))

        self.shared_experts = experts(shared_experts)
        self.task_experts = nn.ModuleList(experts(task_experts) for _ in range(num_tasks))
        num_experts = num_tasks * task_experts + shared_experts
        self.gates = nn.ModuleList(Gate(spec.part_width, 1, num_experts) for _ in range(num_tasks))
        self.out_dim = expert[-1]

    def forward(self, features: Features) -> Tensor:
        """Compute the (T, B, H) task representations."""
        *tasks, shared = features.by_part()
        of_shared = [expert(shared) for expert in self.shared_experts]
        of_tasks = [[expert(x) for expert in group] for x, group in zip(tasks, self.task_experts, strict=True)]  # type: ignore[attr-defined]
        mixed = []
        for task, (x, gate) in enumerate(zip(tasks, self.gates, strict=True)):
            outputs = [out if owner == task else out.detach() for owner, of in enumerate(of_tasks) for out in of]
            mixed.append(mix(gate(x + shared), [*outputs, *of_shared])[0])
        return torch.stack(mixed)

    def shared_parameters(self) -> list[nn.Parameter]:
        """The shared experts."""
        return list(self.shared_experts.parameters())

    def mixtures(self) -> list[Mixture]:
        """The gates of all tasks."""
        names, experts = [], []
        for task, group in enumerate(self.task_experts):
            names += expert_names(f"task{task}_expert", len(group))  # type: ignore[arg-type]
            experts += list(group.children())
        names += expert_names("shared", len(self.shared_experts))
        experts += list(self.shared_experts)
        return [Mixture(1, gate, [task], names, experts) for task, gate in enumerate(self.gates)]  # type: ignore[arg-type]
