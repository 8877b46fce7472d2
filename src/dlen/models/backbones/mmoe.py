"""Mixtures of experts with one gate per task (MMoE) or one gate for all tasks (MoE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from dlen.models.backbones.base import EXPERT, Backbone, Mixture, check_sizes, expert_names, mix
from dlen.models.features import Features, FeatureSpec
from dlen.nn.gate import Gate
from dlen.nn.mlp import MLP


class MMoEBackbone(Backbone):
    """E experts and a softmax gate per task (Ma et al. 2018, equations 6 and 7).

    Args:
        num_experts: number of experts E; 5 in the paper's feed setting, 2 on Ali-CCP.
        expert: layer sizes of each expert.
        dropout: dropout probability after each layer.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_tasks: int,
        *,
        num_experts: int = 5,
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(expert, num_experts=num_experts)
        self.experts = nn.ModuleList(MLP(spec.width, expert, dropout) for _ in range(num_experts))
        self.gates = Gate(spec.width, num_tasks, num_experts)
        self.out_dim = expert[-1]

    def forward(self, features: Features) -> Tensor:
        """Compute the (T, B, H) task representations."""
        x = features.flat
        return mix(self.gates(x), [expert(x) for expert in self.experts])

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of all experts."""
        return list(self.experts.parameters())

    def mixtures(self) -> list[Mixture]:
        """The gates of all tasks."""
        num_tasks, num_experts = self.gates.shape
        names = expert_names("expert", num_experts)
        return [Mixture(1, self.gates, list(range(num_tasks)), names, list(self.experts))]


class MoEBackbone(MMoEBackbone):
    """E experts and one softmax gate for all tasks (Jacobs et al. 1991; "OMoE" in Ma et al. 2018).

    Takes the arguments of :class:`MMoEBackbone`.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_tasks: int,
        *,
        num_experts: int = 5,
        expert: Sequence[int] = EXPERT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, 1, num_experts=num_experts, expert=expert, dropout=dropout)
        self.num_tasks = num_tasks

    def forward(self, features: Features) -> Tensor:
        """(T, B, H) representations, identical for all tasks."""
        return super().forward(features).expand(self.num_tasks, -1, -1)

    def mixtures(self) -> list[Mixture]:
        """The single gate."""
        return [replace(mixture, owners=[None]) for mixture in super().mixtures()]
