"""SingleTask: one model for each task in one run, the reference that gains of sharing are measured against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlen.models.backbones import EXPERT, Backbone, TaskNetworksBackbone
from dlen.models.heads import TOWER, IndependentHead
from dlen.models.ranker import Ranker
from dlen.nn.embedding import EmbeddingTable
from dlen.schema import Schema


class OwnVectors(Backbone):
    """Cuts each id's vector into one part for each task, and gives each task's network its own parts.

    Args:
        num_tasks: T.
        vectors: F, id vectors at the beginning of the input, of length T * E each.
        numbers: numeric fields behind them, which have no parameters and go to all tasks.
        dim: E.
        expert: layer sizes of each network.
        dropout: after each layer.
    """

    def __init__(
        self, num_tasks: int, vectors: int, numbers: int, dim: int, expert: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.shape = (vectors, num_tasks, dim)
        self.networks = TaskNetworksBackbone(vectors * dim + numbers, num_tasks, expert=expert, dropout=dropout)
        self.out_dim = self.networks.out_dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, F * T * E + numbers) -> (T, B, H)."""
        vectors, num_tasks, dim = self.shape
        end = vectors * num_tasks * dim
        own = x[:, :end].unflatten(1, self.shape).transpose(0, 2).transpose(1, 2).flatten(2)  # (T, B, F * E)
        return self.networks(torch.cat([own, x[:, end:].expand(num_tasks, -1, -1)], 2))

    def shared_parameters(self) -> list[nn.Parameter]:
        """None."""
        return []


class SingleTask(Ranker):
    """A model of its own for each task, embeddings included: no parameter has a gradient from two tasks.

    They are trained side by side on the same batches. Training stops, and the best weights are chosen, by the mean
    AUC of all of them.

    Args:
        schema: fields and tasks.
        embedding_dim: length of each id's vector, for each task.
        expert: layers of each task's network.
        tower: hidden layers of each tower.
        dropout: everywhere but in the embeddings.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_dim: int = 16,
        expert: Sequence[int] = EXPERT,
        tower: Sequence[int] = TOWER,
        dropout: float = 0.0,
    ) -> None:
        tasks = len(schema.tasks)
        embedding = EmbeddingTable(schema, tasks * embedding_dim, parts=tasks)
        vectors = embedding.num_single + embedding.num_bags
        backbone = OwnVectors(tasks, vectors, embedding.num_numeric, embedding_dim, expert, dropout)
        head = IndependentHead(schema, backbone.out_dim, embedding.out_dim, tower=tower, dropout=dropout)
        super().__init__(schema, embedding, backbone, head)
