"""Shared bottom: one MLP for all tasks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dlen.models.backbones.base import EXPERT, Backbone, check_sizes
from dlen.models.features import Features, FeatureSpec
from dlen.nn.mlp import MLP


class SharedBottomBackbone(Backbone):
    """One MLP shared by all tasks (Caruana 1997).

    Args:
        expert: layer sizes of the MLP.
        dropout: dropout probability after each layer.
    """

    def __init__(
        self, spec: FeatureSpec, num_tasks: int, *, expert: Sequence[int] = EXPERT, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes(expert)
        self.num_tasks = num_tasks
        self.bottom = MLP(spec.width, expert, dropout)
        self.out_dim = self.bottom.out_dim

    def forward(self, features: Features) -> Tensor:
        """(T, B, H) representations, identical for all tasks."""
        return self.bottom(features.flat).expand(self.num_tasks, -1, -1)

    def shared_parameters(self) -> list[nn.Parameter]:
        """All parameters of the MLP."""
        return list(self.bottom.parameters())
