"""Where the rows of several shards, and what they point to, lie in arrays that hold the rows of all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def to(self, device: torch.device) -> Shards:
        """Copy everything to a device."""
        return Shards(*(getattr(self, name).to(device) for name in self.__slots__))


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


def find(index: Tensor, shards: Shards | None) -> Found:
    """Where rows ``index`` (B,), numbered without gaps, lie in the arrays."""
    if shards is None:
        return Found(index)
    shard = torch.searchsorted(shards.starts, index, right=True) - 1
    shift = shards.rows - shards.starts
    return Found(index + shift.index_select(0, shard), shards, shard)
