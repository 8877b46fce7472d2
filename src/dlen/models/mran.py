"""MRAN: attention between fields, from tasks to fields and between tasks, in place of experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.batch import Batch
from dlen.models.backbones import Backbone
from dlen.models.heads import TOWER, IndependentHead
from dlen.models.ranker import Ranker
from dlen.nn.embedding import EmbeddingTable
from dlen.nn.mlp import MLP
from dlen.schema import Schema


@dataclass(slots=True)
class Attention:
    """Weights that sum to 1 along the last dimension.

    Attributes:
        fields: (B, A, F, F) from each field to the fields, by head.
        tasks: (B, A, T, F) from each task to the fields, by head.
        transfer: (B, T, T) from each task to the tasks.
    """

    fields: Tensor
    tasks: Tensor
    transfer: Tensor


class MRANBackbone(Backbone):
    """Three relations by attention, one after the other (Zhao et al. 2019).

    1. Between features: multi-head self-attention over the fields' vectors, with a residual projection.
    2. From a task to features: a learned query for each task over the fields, multi-head, then an MLP for each task.
    3. Between tasks: each task's representation attends to all of them, with a residual.

    Reconstructed from the published description: no code of the authors is known, and the sizes are ours.

    Args:
        num_tasks: T.
        vectors: id vectors at the beginning of the input, E each.
        numbers: numeric fields behind them; each becomes a field by a learned vector that it scales.
        dim: E.
        heads: A.
        head_dim: length of a vector within a head.
        expert: layers of each task's MLP.
        dropout: in the MLPs.
    """

    def __init__(
        self,
        num_tasks: int,
        vectors: int,
        numbers: int,
        dim: int,
        *,
        heads: int = 2,
        head_dim: int = 16,
        expert: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(heads, head_dim) < 1 or not expert:
            raise ValueError(
                f"mran needs at least one head of one number and a layer, got {heads}, {head_dim}, {expert}"
            )
        self.vectors, self.dim, self.heads = vectors, dim, heads
        width = heads * head_dim
        self.number_vectors = nn.Parameter(torch.empty(numbers, dim).normal_(std=0.05))
        self.between_fields = nn.Linear(dim, 3 * width, bias=False)
        self.residual = nn.Linear(dim, width, bias=False)
        self.queries = nn.Parameter(torch.empty(num_tasks, heads, head_dim).normal_(std=1.0))
        self.to_fields = nn.Linear(width, 2 * width, bias=False)
        self.networks = nn.ModuleList(MLP(width, expert, dropout) for _ in range(num_tasks))
        self.out_dim = expert[-1]
        self.between_tasks = nn.Linear(self.out_dim, 3 * self.out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F * E + numbers) -> (T, B, H)."""
        return self.attend(x)[0]

    def attend(self, x: Tensor) -> tuple[Tensor, Attention]:
        """(T, B, H) representations, and the attention they were made with."""
        fields = self._fields(x)
        query, key, value = (self._split(part) for part in self.between_fields(fields).chunk(3, 2))  # (B, A, F, K)
        by_field = _weights(query, key)
        mixed = F.relu(self._joined(by_field @ value) + self.residual(fields))  # (B, F, A * K)
        key, value = (self._split(part) for part in self.to_fields(mixed).chunk(2, 2))
        by_task = _weights(self.queries.transpose(0, 1), key)  # (B, A, T, F)
        pooled = self._joined(by_task @ value)  # (B, T, A * K)
        tasks = torch.stack(
            [net(own) for net, own in zip(self.networks, pooled.unbind(1), strict=True)], 1
        )  # (B, T, H)
        query, key, value = self.between_tasks(tasks).chunk(3, 2)
        transfer = _weights(query, key)
        return (tasks + transfer @ value).transpose(0, 1), Attention(by_field, by_task, transfer)

    def _fields(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, F, E) with the numeric fields last."""
        end = self.vectors * self.dim
        ids = x[:, :end].unflatten(1, (self.vectors, self.dim))
        return torch.cat([ids, x[:, end:, None] * self.number_vectors], 1)

    def _split(self, x: Tensor) -> Tensor:
        """(B, F, A * K) -> (B, A, F, K)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _joined(self, x: Tensor) -> Tensor:
        """(B, A, F, K) -> (B, F, A * K)."""
        return x.transpose(1, 2).flatten(2)

    def shared_parameters(self) -> list[nn.Parameter]:
        """All: by the attention between tasks each one's output depends on every other's network."""
        return list(self.parameters())


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Softmax of scaled dot products: (..., Q, K) and (..., F, K) -> (..., Q, F)."""
    return (query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])).softmax(-1)


class MRAN(Ranker):
    """Multiple relational attention network (Zhao et al. 2019), reconstructed from its description.

    Args:
        schema: fields and tasks.
        embedding_dim: length of each id's vector.
        heads: of the attention to fields.
        head_dim: length of a vector within a head.
        expert: layers of each task's MLP.
        tower: hidden layers of each tower.
        dropout: everywhere but in the embeddings and the attention.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 16,
        heads: int = 2,
        head_dim: int = 16,
        expert: Sequence[int] = (128, 64),
        tower: Sequence[int] = TOWER,
        dropout: float = 0.0,
    ) -> None:
        embedding = EmbeddingTable(schema, embedding_dim)
        backbone = MRANBackbone(
            len(schema.tasks),
            embedding.num_single + embedding.num_bags,
            embedding.num_numeric,
            embedding_dim,
            heads=heads,
            head_dim=head_dim,
            expert=expert,
            dropout=dropout,
        )
        head = IndependentHead(schema, backbone.out_dim, embedding.out_dim, tower=tower, dropout=dropout)
        super().__init__(schema, embedding, backbone, head)

    def attention(self, batch: Batch) -> Attention:
        """What attends to what for B rows, to be looked at."""
        backbone = self.backbone
        assert isinstance(backbone, MRANBackbone)
        return backbone.attend(self.embedding(batch))[1]
