"""One embedding table for all fields, with row-sparse gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.batch import Batch
from dlen.checks import is_whole
from dlen.schema import Kind, Pooling, Schema

_CHUNK = 1 << 20  # rows drawn at a time; a multiple of 16, torch's step, so chunks draw the same values as the whole
_ALIGNED = 4  # FBGEMM needs first-order terms padded to a multiple of this
_deferred = False


@cache
def row_kernels(device: str) -> ModuleType | None:
    """The Triton kernels for rows of a table on a type of device; None where they cannot run."""
    if device != "cuda" or find_spec("triton") is None:
        return None
    from dlen.nn import row_kernels as kernels  # Triton takes a while to import, and is there with CUDA only

    return kernels


@contextmanager
def deferred_tables() -> Iterator[None]:
    """Create tables without memory inside this context; :meth:`EmbeddingTable.initial` draws their initial values."""
    global _deferred
    before, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = before


def row_width(dim: int, first_order: int) -> int:
    """Columns of a table: a vector, then O first-order terms, padded."""
    return dim + -(-first_order // _ALIGNED) * _ALIGNED


class EmbeddingTable(nn.Module):
    """Embeds a batch as one dense row per impression.

    The ids of all fields share one table, so a batch needs one gather for all single-valued fields and one pooled
    gather for all multi-valued fields, regardless of their number. The table's gradient is sparse: it contains only
    the touched rows.

    Args:
        dim: length of each id's embedding vector.
        first_order: add one number per id and task next to the vector, initially 0. Summed over the F fields that
            have ids of their own and divided by the root of F, they are first-order terms of the tasks' logits (the
            wide part of Cheng et al. 2016), which give a rare task its own parameters in the table.
        private: give each task its own vectors, of length ``dim`` per id.
        shared_part: with private vectors, one more vector of this length per id, which all tasks share.
        std: standard deviation of the initial vectors.

    Attributes:
        dim: length E of a vector: ``dim``, or P times ``dim`` with private vectors.
        parts: number P of equal parts of a vector, one per task and then the shared one, which an optimiser must treat
            separately; 1 if tasks share the vectors.
        shared_part: whether the last part belongs to all tasks.
        first_order: number O of first-order terms per id: one per task and per view, or 0.
        out_dim: width D of vectors and numbers, without sequences and vector fields; the O first-order sums follow.

    Raises:
        ValueError: ``dim`` is not a positive whole number, or a shared part is to be added to no private ones.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int = 16,
        *,
        first_order: bool = False,
        private: bool = False,
        shared_part: bool = False,
        std: float = 0.05,
    ) -> None:
        super().__init__()
        if not is_whole(dim) or dim < 1:
            raise ValueError(f"embedding.dim must be a whole number of at least 1, got {dim!r}")
        switches = {"first_order": first_order, "private": private, "shared_part": shared_part}
        for name, value in switches.items():
            if not isinstance(value, bool):
                raise ValueError(f"embedding.{name} must be true or false, got {value!r}")
        if shared_part and not private:
            raise ValueError("embedding.shared_part is one more vector beside private ones; set embedding.private=true")
        self.shared_part = shared_part
        self.parts = len(schema.tasks) + shared_part if private else 1
        self.first_order = len(schema.tasks) + len(schema.views) if first_order else 0
        self.dim = dim = dim * self.parts
        self._std, rows = std, schema.num_embeddings
        width = row_width(dim, self.first_order)
        if _deferred:
            self._random = torch.get_rng_state()
            self.weight = nn.Parameter(torch.empty(rows, width, device="meta"))
            for _ in self.draw(torch.default_generator):
                pass  # advance the generator, so that all other parameters match those of a normal table
        else:
            self.weight = nn.Parameter(torch.empty(rows, width).normal_(std=std))
            self.weight.data[:, dim:] = 0
        bags = schema.of_kind(Kind.IDS)
        self.num_single, self.num_bags = len(schema.of_kind(Kind.ID)), len(bags)
        mean = torch.tensor([f.pooling is Pooling.MEAN for f in bags], dtype=torch.bool)
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.mean: Tensor
        # A term belongs to the field that owns the id: a video's own term is not that of having been the last video.
        shares = [bool(f.share) for f in (*schema.of_kind(Kind.ID), *bags)]
        weights = torch.tensor([not s for s in shares]) / max(shares.count(False), 1) ** 0.5
        own = weights[:, None] if any(shares) else None
        self.register_buffer("own", own, persistent=False)
        self.own: Tensor | None
        self.out_dim = (self.num_single + self.num_bags) * dim + len(schema.of_kind(Kind.NUMERIC))

    def initial(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the initial values of a deferred table in chunks: first row and (n, dim) values."""
        generator = torch.Generator()
        generator.set_state(self._random)
        yield from self.draw(generator)

    def draw(self, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
        """Draw the values of a new table on the CPU, in chunks: first row and (n, dim) values."""
        rows, width = self.weight.shape
        chunks = max(rows // _CHUNK, 1)
        for chunk in range(chunks):
            first, last = chunk * _CHUNK, rows if chunk == chunks - 1 else (chunk + 1) * _CHUNK
            values = torch.empty(last - first, width, dtype=torch.float32).normal_(std=self._std, generator=generator)
            values[:, self.dim :] = 0
            yield first, values

    @torch.no_grad()
    def renew(self, generator: torch.Generator) -> None:
        """Draw the whole table anew, in place."""
        for first, values in self.draw(generator):
            self.weight[first : first + len(values)] = values.to(self.weight.device)

    def forward(self, batch: Batch) -> Tensor:
        """(B, D + O) vectors of single ids, pooled vectors of multi-valued fields, numbers, and first-order sums.

        Sequences, see :meth:`vectors`, and vector fields are not part of it.
        """
        vectors = []
        if self.num_single:
            vectors.append(_look_up(batch.ids, self.weight))
        if self.num_bags:
            vectors.append(self._pool(batch).transpose(0, 1))
        return join_input(vectors, batch.numeric, self.dim, self.first_order, self.own)

    def vectors(self, ids: Tensor) -> Tensor:
        """(..., E) vectors of ids of any shape."""
        return _look_up(ids, self.weight)[..., : self.dim]

    def of_lists(self, ids: Tensor, sequence: int) -> Tensor:
        """(P, N, E) vectors of ids (P, N) of the lists of one sequence, padding included."""
        return self.vectors(ids)

    def padded(self, ids: Tensor, numeric: Tensor, bag_ids: Tensor, bag_weights: Tensor) -> Tensor:
        """(B, D + O) as from :meth:`forward`, for lists that are padded as a server sends them.

        Args:
            ids: (B, S) rows of the table.
            numeric: (B, K).
            bag_ids: (B, M, L) rows of the table.
            bag_weights: (B, M, L); 0 is padding.
        """
        parts = [self.weight[ids]] if self.num_single else []
        if self.num_bags:
            pooled = (self.weight[bag_ids] * bag_weights[..., None]).sum(2)
            total = bag_weights.sum(2, keepdim=True)
            mean = self.mean[:, 0][None]  # (1, M, 1)
            parts.append(pooled / torch.where(mean & (total > 0), total, torch.ones_like(total)))
        return join_input(parts, numeric, self.dim, self.first_order, self.own)

    def of_sequences(self, batch: Batch) -> list[Tensor]:
        """(L, N, E) vectors of each sequence.

        On a CPU each distinct id is looked up once: sequences repeat ids, and a gradient row for each value would cost
        more than the rest of the step. On a GPU finding them would wait for the device.
        """
        flat = torch.cat([s.ids.flatten() for s in batch.sequences])
        if flat.device.type == "cpu":
            distinct, place = torch.unique(flat, return_inverse=True)
            vectors = self.vectors(distinct).index_select(0, place)
        else:
            vectors = self.vectors(flat)
        sizes = [s.ids.numel() for s in batch.sequences]
        parts = zip(vectors.split(sizes), batch.sequences, strict=True)
        return [part.view(*sequence.ids.shape, self.dim) for part, sequence in parts]

    def _pool(self, batch: Batch) -> Tensor:
        """(M, B, dim) weighted sum or weighted mean of each bag; zero for an empty bag."""
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


def _look_up(ids: Tensor, table: Tensor) -> Tensor:
    """(..., D) rows of a table (R, D), whose gradient is sparse."""
    if row_kernels(table.device.type) is None:
        return F.embedding(ids, table, sparse=True)
    rows: Tensor = _LookUp.apply(ids, table)
    return rows


class _LookUp(torch.autograd.Function):
    """``F.embedding(..., sparse=True)`` by the kernel for short rows."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor) -> Tensor:
        kernels = row_kernels(table.device.type)
        assert kernels is not None
        ctx.save_for_backward(ids)
        ctx.shape = table.shape
        rows: Tensor = kernels.look_up(ids, table)
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        values = gradient.reshape(-1, ctx.shape[1])
        return None, torch.sparse_coo_tensor(ids.reshape(1, -1).long(), values, ctx.shape, check_invariants=False)


def columns(tensor: Tensor, places: Sequence[int]) -> Tensor:
    """Some columns of (B, F, ...), without sending their places to the device."""
    return torch.stack([tensor[:, place] for place in places], 1) if places else tensor[:, :0]


def join_input(
    vectors: Sequence[Tensor], numeric: Tensor, dim: int, first_order: int, own: Tensor | None = None
) -> Tensor:
    """Concatenate looked-up vectors and numeric fields to the input of a model.

    Args:
        vectors: table rows of single ids and of multi-valued fields, (B, F, width) each; absent kinds are left out.
        numeric: (B, K) values of the numeric fields.
        dim: length E of a vector; the first-order terms follow it in each row.
        first_order: number O of first-order terms.
        own: (F, 1) weights of the fields' first-order terms, 0 for fields that share the ids of another; None if none
            does, for the reciprocal root of F.

    Returns:
        (B, F E + K + O) vectors, numbers, and the first-order terms summed over fields and divided by the root of F.
    """
    parts = [v[..., :dim].flatten(1) for v in vectors]
    parts += [numeric] if numeric.shape[1] or not parts else []
    if first_order:
        terms = [v[..., dim : dim + first_order] for v in vectors]
        # Adam moves the terms of all fields by the same amount; without the root, many fields would overshoot.
        if own is None:
            fields = max(sum(v.shape[1] for v in vectors), 1)
            sums = sum((t.sum(1) for t in terms), numeric.new_zeros(numeric.shape[0], first_order)) / fields**0.5
        else:
            sums = (torch.cat(terms, 1) * own).sum(1)
        parts.append(sums)
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def bag_divisors(batch: Batch, mean: Tensor) -> Tensor:
    """(M, B, 1) divisor of each bag's weighted sum: the sum of its weights for mean pooling, otherwise 1.

    Args:
        mean: (M, 1, 1) True for fields with mean pooling.
    """
    # unsafe skips the check of the lengths, which would synchronise with a GPU
    total = torch.segment_reduce(batch.bag_weights, "sum", lengths=batch.bag_lengths.flatten(), unsafe=True)
    total = total.view(*batch.bag_lengths.shape, 1)
    return torch.where(mean & (total > 0), total, 1.0)
