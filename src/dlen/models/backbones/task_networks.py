"""Task networks: one MLP per task, on shared or private embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlen.models.backbones.base import EXPERT, Backbone, check_sizes
from dlen.models.features import Features, FeatureSpec
from dlen.nn.mlp import MLP

_OLD_PREFIX = "networks.networks."  # key prefix of the single-task model in version 0.1.0


class TaskNetworksBackbone(Backbone):
    """One MLP per task. Tasks share only the embeddings, or nothing if the embeddings are private.

    Args:
        expert: layer sizes of each MLP.
        dropout: dropout probability after each layer.
    """

    def __init__(
        self, spec: FeatureSpec, num_tasks: int, *, expert: Sequence[int] = EXPERT, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes(expert)
        self.networks = nn.ModuleList(MLP(spec.task_width, expert, dropout) for _ in range(num_tasks))
        self.out_dim = expert[-1]

    def forward(self, features: Features) -> Tensor:
        """Compute the (T, B, H) task representations."""
        inputs = features.by_task(len(self.networks))
        return torch.stack([network(x) for network, x in zip(self.networks, inputs, strict=True)])

    def shared_parameters(self) -> list[nn.Parameter]:
        """Empty: the tasks share no parameters here."""
        return []

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix + _OLD_PREFIX)]:
            state_dict[f"{prefix}networks.{key.removeprefix(prefix + _OLD_PREFIX)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
