"""One embedding table for all fields, with row-sparse gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.batch import Batch
from dlen.schema import Kind, Pooling, Schema


class EmbeddingTable(nn.Module):
    """Turns a batch into one dense row for each impression.

    The ids of every field are rows of a single table, so a batch costs one gather for all single-valued fields and
    one pooled gather for all multi-valued ones, whatever their number. The gradient of the table is sparse: it
    holds the touched rows alone.

    Args:
        schema: which fields there are.
        dim: length of each id's vector.
        std: standard deviation of the initial vectors.
        parts: P, equal parts of a vector that belong to different models, and that an optimiser must keep apart.
    """

    def __init__(self, schema: Schema, dim: int, std: float = 0.05, parts: int = 1) -> None:
        super().__init__()
        self.parts = parts
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {dim}")
        self.weight = nn.Parameter(torch.empty(schema.num_embeddings, dim).normal_(std=std))
        bags = schema.of_kind(Kind.IDS)
        self.num_single, self.num_bags = len(schema.of_kind(Kind.ID)), len(bags)
        self.num_numeric = len(schema.of_kind(Kind.NUMERIC))
        mean = torch.tensor([f.pooling is Pooling.MEAN for f in bags], dtype=torch.bool)
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.mean: Tensor
        self.out_dim = (self.num_single + self.num_bags) * dim + self.num_numeric

    def forward(self, batch: Batch) -> Tensor:
        """(B, out_dim): vectors of single ids, then pooled vectors of multi-valued fields, then numbers."""
        parts = []
        if self.num_single:
            parts.append(F.embedding(batch.ids, self.weight, sparse=True).flatten(1))
        if self.num_bags:
            parts.append(self._pool(batch).transpose(0, 1).flatten(1))
        if self.num_numeric:
            parts.append(batch.numeric)
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def _pool(self, batch: Batch) -> Tensor:
        """(M, B, dim): weighted sum or weighted mean of each bag; an empty bag is a zero vector."""
        lengths = batch.bag_lengths.flatten()
        ends = lengths.cumsum(0)
        starts = F.pad(ends, (1, 0)).to(batch.bag_ids.dtype)
        pooled = F.embedding_bag(
            batch.bag_ids,
            self.weight,
            starts,
            mode="sum",
            sparse=True,
            per_sample_weights=batch.bag_weights.to(self.weight.dtype),
            include_last_offset=True,
        ).view(*batch.bag_lengths.shape, -1)
        # unsafe: without the check of the lengths, for which a GPU would have to wait
        total = torch.segment_reduce(batch.bag_weights, "sum", lengths=lengths, unsafe=True)
        total = total.view(*batch.bag_lengths.shape, 1)
        return pooled / torch.where(self.mean & (total > 0), total, 1.0).to(pooled.dtype)
