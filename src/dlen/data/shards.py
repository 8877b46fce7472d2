"""Where the rows of several shards, and what they point to, lie in arrays that hold the rows of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlen.schema import Kind, Schema


@dataclass(eq=False, slots=True)
class Shards:
    """Where the rows of K shards lie in the arrays of a split, and where what they point to starts.

    A shard is written on its own: its rows are numbered from 0, and so is what they point to.

    Attributes:
        starts: (K,) int64 number of the first row of each shard; rows are numbered from 0 without gaps.
        rows: (K,) int64 first row in the arrays of the split.
        values: (K,) int64 first ragged value.
        groups: (K,) int64 first user group.
        group_values: (K,) int64 first ragged value of the user groups.
        sequences: (K, Q) int64 first value of each sequence.
        vectors: (K, X) int64 first vector of each field.
    """

    starts: Tensor
    rows: Tensor
    values: Tensor
    groups: Tensor
    group_values: Tensor
    sequences: Tensor
    vectors: Tensor


@dataclass(frozen=True, slots=True)
class Found:
    """B rows in the arrays of a split.

    Attributes:
        index: (B,) int64 rows of the arrays.
        shards: the shards of the split; None for a single one, whose rows point to what starts at 0.
        shard: (B,) int64 shard of each row.
    """

    index: Tensor
    shards: Shards | None = None
    shard: Tensor | None = None

    def moved(self, pointers: Tensor, what: str) -> Tensor:
        """What the rows point to: pointers (B,) or (B, Q) of their shards, moved to where ``what`` lies."""
        if self.shards is None or self.shard is None:
            return pointers
        first: Tensor = getattr(self.shards, what).index_select(0, self.shard)
        return pointers + first


@dataclass(eq=False, slots=True)
class Codes:
    """How ids of K shards become rows of the embedding table, if the vocabularies have grown since or were smaller.

    An id keeps its code, which is its place among the rows of its field. A code that a field does not have yet is 0,
    unknown.

    Attributes:
        was: (K, F) int32 first row of the S fields with single ids, then of the M with several, in each shard.
        now: (F,) int32 first row now.
        sizes: (F,) int32 number of codes now.
        singles: S.
    """

    was: Tensor
    now: Tensor
    sizes: Tensor
    singles: int

    @classmethod
    def between(cls, before: Sequence[Schema], now: Schema) -> Codes:
        """From the schemas of the shards to another one."""
        fields = [*now.of_kind(Kind.ID), *now.of_kind(Kind.IDS)]
        offsets = [[schema.offsets[f.name] for f in fields] for schema in (*before, now)]
        first = torch.tensor(offsets, dtype=torch.int32).reshape(len(offsets), len(fields))
        sizes = torch.tensor([f.vocab_size for f in fields], dtype=torch.int32)
        return cls(first[:-1], first[-1], sizes, len(now.of_kind(Kind.ID)))

    def __call__(self, found: Found, ids: Tensor, lengths: Tensor, bag_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the embedding table: (B, S) of single ids and (L,) of several, whose lengths (M, B) are given."""
        shard = torch.zeros_like(found.index) if found.shard is None else found.shard
        was = self.was.index_select(0, shard)  # (B, F)
        ids = _moved(ids, was[:, : self.singles], self.now[: self.singles], self.sizes[: self.singles])
        if not len(bag_ids):
            return ids, bag_ids
        of_bags = was[:, self.singles :].T.flatten(), *(t[self.singles :] for t in (self.now, self.sizes))
        firsts = [of_bags[0], *(t[:, None].expand(-1, len(shard)).flatten() for t in of_bags[1:])]
        of_values = (t.repeat_interleave(lengths.flatten(), output_size=len(bag_ids)) for t in firsts)
        return ids, _moved(bag_ids, *of_values)


def _moved(ids: Tensor, was: Tensor, now: Tensor, sizes: Tensor) -> Tensor:
    codes = ids - was
    return codes * ((codes >= 0) & (codes < sizes)) + now  # padding may repeat an id of another field


def find(index: Tensor, shards: Shards | None) -> Found:
    """Where rows ``index`` (B,), numbered without gaps, lie in the arrays."""
    if shards is None:
        return Found(index)
    shard = torch.searchsorted(shards.starts, index, right=True) - 1
    shift = shards.rows - shards.starts
    return Found(index + shift.index_select(0, shard), shards, shard)
