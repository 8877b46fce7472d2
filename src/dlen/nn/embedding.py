"""One embedding table for all fields, with row-sparse gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.batch import Batch
from dlen.schema import Kind, Pooling, Schema

_CHUNK = 1 << 20  # rows drawn at a time; a multiple of 16, torch's step, so that chunks draw what the whole would
_ALIGNED = 4  # first-order numbers are padded to a multiple, as FBGEMM wants it
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
        schema: fields and tasks.
        dim: length of each id's vector.
        first_order: give each id one number per task beside its vector, initially 0. Summed over the F fields and
            divided by the root of F they are first-order terms of the tasks' logits (the wide part of Cheng et al.
            2016), so that a rare task has parameters of its own in the table.
        private: give each task vectors of its own, ``dim`` numbers of each id.
        std: standard deviation of the initial vectors.

    Attributes:
        dim: E, length of a vector: ``dim``, or T times that where vectors are private.
        parts: P, equal parts of a vector that belong to one task each, and that an optimiser must keep apart.
        first_order: O, first-order numbers of each id: T or 0.
        out_dim: D, vectors and numbers; the first-order sums come behind them.

    Raises:
        ValueError: ``dim`` is not a positive whole number.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int = 16,
        *,
        first_order: bool = False,
        private: bool = False,
        std: float = 0.05,
    ) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"embedding.dim must be at least 1, got {dim}")
        self.parts = len(schema.tasks) if private else 1
        self.first_order = len(schema.tasks) if first_order else 0
        self.dim = dim = dim * self.parts
        self._std, rows = std, schema.num_embeddings
        width = dim + -(-self.first_order // _ALIGNED) * _ALIGNED
        if _deferred:
            self._random = torch.get_rng_state()
            for _ in self._draw(rows, width, torch.default_generator):
                pass  # other parameters are to be the same as beside a table with memory
            self.weight = nn.Parameter(torch.empty(rows, width, device="meta"))
        else:
            self.weight = nn.Parameter(torch.empty(rows, width).normal_(std=std))
            self.weight.data[:, dim:] = 0
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
            values = torch.empty(last - first, dim, dtype=torch.float32).normal_(std=self._std, generator=generator)
            values[:, self.dim :] = 0
            yield first, values

    def forward(self, batch: Batch) -> Tensor:
        """(B, D + O): vectors of single ids, pooled vectors of multi-valued fields, numbers, and first-order sums."""
        vectors = []
        if self.num_single:
            vectors.append(F.embedding(batch.ids, self.weight, sparse=True))
        if self.num_bags:
            vectors.append(self._pool(batch).transpose(0, 1))
        return join_input(vectors, batch.numeric, self.dim, self.first_order)

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


def join_input(vectors: Sequence[Tensor], numeric: Tensor, dim: int, first_order: int) -> Tensor:
    """The input of a model from what was looked up.

    Args:
        vectors: of single ids, and of multi-valued fields, (B, F, width) each, those that there are.
        numeric: (B, K).
        dim: E, of a vector; first-order numbers come behind it.
        first_order: O.

    Returns:
        (B, F E + K + O): vectors, numbers, and the sums of the first-order numbers over the fields, over the root of F.
    """
    parts = [v[..., :dim].flatten(1) for v in vectors]
    parts += [numeric] if numeric.shape[1] else []
    if first_order:
        sums = [v[..., dim : dim + first_order].sum(1) for v in vectors]
        # A step of Adam moves the numbers of all fields by as much: by their root, many fields do not overshoot.
        fields = max(sum(v.shape[1] for v in vectors), 1)
        parts.append(sum(sums, numeric.new_zeros(numeric.shape[0], first_order)) / fields**0.5)
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


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
