"""MRAN: attention between fields, from tasks to fields, and between tasks, instead of experts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.checks import whole
from dlen.models.backbones.base import Attention, AttentionBackbone, check_sizes
from dlen.models.features import Features, FeatureSpec
from dlen.nn.mlp import MLP


class MRANBackbone(AttentionBackbone):
    """Three attention stages in sequence (Zhao et al. 2019).

    1. Feature to feature: multi-head self-attention over the field vectors, with a residual projection.
    2. Task to feature: a learned multi-head query per task over the fields, followed by an MLP per task.
    3. Task to task: each task representation attends to all of them, with a residual connection.

    Reimplemented from the paper's description: no code by the authors is known, and the layer sizes are ours.

    Args:
        spec: layout of the input features; each numeric field becomes a learned vector scaled by its value.
        heads: number of attention heads A.
        head_dim: size of each attention head.
        expert: layer sizes of each task's MLP.
        dropout: dropout probability in the MLPs.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_tasks: int,
        *,
        heads: int = 2,
        head_dim: int = 16,
        expert: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(expert)
        self.heads = whole("heads", heads, 1)
        whole("head_dim", head_dim, 1)
        dim, width = spec.dim, heads * head_dim
        self.number_vectors = nn.Parameter(torch.empty(len(spec.numbers), dim).normal_(std=0.05))
        self.between_fields = nn.Linear(dim, 3 * width, bias=False)
        self.residual = nn.Linear(dim, width, bias=False)
        self.queries = nn.Parameter(torch.empty(num_tasks, heads, head_dim).normal_(std=1.0))
        self.to_fields = nn.Linear(width, 2 * width, bias=False)
        self.networks = nn.ModuleList(MLP(width, expert, dropout) for _ in range(num_tasks))
        self.out_dim = expert[-1]
        self.between_tasks = nn.Linear(self.out_dim, 3 * self.out_dim, bias=False)

    def forward(self, features: Features) -> Tensor:
        """Compute the (T, B, H) task representations."""
        return self._attend(features)[0]

    def attention(self, features: Features) -> Attention:
        """The attention weights of all three stages."""
        return self._attend(features)[1]

    def _attend(self, features: Features) -> tuple[Tensor, Attention]:
        """Return the (T, B, H) representations and their attention weights."""
        numbers = features.numbers[..., None] * self.number_vectors  # (B, K, E)
        fields = torch.cat([features.fields, numbers], 1)
        query, key, value = (self._split(part) for part in self.between_fields(fields).chunk(3, 2))  # (B, A, F, K)
        by_field = _weights(query, key)
        mixed = F.relu(self._joined(by_field @ value) + self.residual(fields))  # (B, F, A * K)
        key, value = (self._split(part) for part in self.to_fields(mixed).chunk(2, 2))
        by_task = _weights(self.queries.transpose(0, 1), key)  # (B, A, T, F)
        pooled = self._joined(by_task @ value)  # (B, T, A * K)
        tasks = torch.stack(
            [network(x) for network, x in zip(self.networks, pooled.unbind(1), strict=True)], 1
        )  # (B, T, H)
        query, key, value = self.between_tasks(tasks).chunk(3, 2)
        transfer = _weights(query, key)
        return (tasks + transfer @ value).transpose(0, 1), Attention(by_field, by_task, transfer)

    def _split(self, x: Tensor) -> Tensor:
        """(B, F, A * K) -> (B, A, F, K)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _joined(self, x: Tensor) -> Tensor:
        """(B, A, F, K) -> (B, F, A * K)."""
        return x.transpose(1, 2).flatten(2)

    def shared_parameters(self) -> list[nn.Parameter]:
        """All parameters: attention between tasks makes every output depend on every task's network."""
        return list(self.parameters())


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Scaled dot-product attention weights: (..., Q, K) and (..., F, K) -> (..., Q, F)."""
    return (query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])).softmax(-1)
