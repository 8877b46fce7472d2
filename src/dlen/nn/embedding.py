"""One embedding table for all fields, with row-sparse gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.batch import Batch
from dlen.schema import Kind, Pooling, Schema

_CHUNK = 1 << 20  # rows drawn at a time; a multiple of 16, torch's step, so that chunks draw what the whole would
_deferred = False


@contextmanager
def deferred_tables() -> Iterator[None]:
    """Tables made within have no memory; their first values are drawn by :meth:`EmbeddingTable.initial`."""
    global _deferred
    before, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = before


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
        self._std, rows = std, schema.num_embeddings
        if _deferred:
            self._random = torch.get_rng_state()
            for _ in self._draw(rows, dim, torch.default_generator):
                pass  # other parameters are to be the same as beside a table with memory
            self.weight = nn.Parameter(torch.empty(rows, dim, device="meta"))
        else:
            self.weight = nn.Parameter(torch.empty(rows, dim).normal_(std=std))
        bags = schema.of_kind(Kind.IDS)
        self.num_single, self.num_bags = len(schema.of_kind(Kind.ID)), len(bags)
        self.num_numeric = len(schema.of_kind(Kind.NUMERIC))
        mean = torch.tensor([f.pooling is Pooling.MEAN for f in bags], dtype=torch.bool)
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.mean: Tensor
        self.out_dim = (self.num_single + self.num_bags) * dim + self.num_numeric

    def initial(self) -> Iterator[tuple[int, Tensor]]:
        """Of a deferred table, the values it would have had: the first row and (n, dim) values of each chunk."""
        generator = torch.Generator()
        generator.set_state(self._random)
        rows, dim = self.weight.shape
        yield from self._draw(rows, dim, generator)

    def _draw(self, rows: int, dim: int, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
        chunks = max(rows // _CHUNK, 1)
        for chunk in range(chunks):
            first, last = chunk * _CHUNK, rows if chunk == chunks - 1 else (chunk + 1) * _CHUNK
            yield first, torch.empty(last - first, dim, dtype=torch.float32).normal_(std=self._std, generator=generator)

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
        ).view(*batch.bag_lengths.shape, self.weight.shape[1])
        return pooled / bag_divisors(batch, self.mean).to(pooled.dtype)


def bag_divisors(batch: Batch, mean: Tensor) -> Tensor:
    """(M, B, 1) what the weighted sum of each bag is divided by: its weights' sum, or 1.

    Args:
        batch: with M multi-valued fields.
        mean: (M, 1, 1), which fields are pooled by their mean.
    """
    # unsafe: without the check of the lengths, for which a GPU would have to wait
    total = torch.segment_reduce(batch.bag_weights, "sum", lengths=batch.bag_lengths.flatten(), unsafe=True)
    total = total.view(*batch.bag_lengths.shape, 1)
    return torch.where(mean & (total > 0), total, 1.0)
