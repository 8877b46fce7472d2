"""Vectors of a prepared store: fixed-size lists of numbers, stored once and looked up by the rows that have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlen.data.columns import Array
from dlen.data.shards import Found


@dataclass(eq=False, slots=True)
class SplitVectors:
    """The X vector fields of the n rows of a split.

    Attributes:
        tables: (1 + U, d) float32 scaled vectors of each field; the first row is 0, for a missing vector.
        index: (n, X) int32 row of each field's table.
    """

    tables: tuple[Tensor, ...]
    index: Tensor

    @classmethod
    def of(cls, tables: Sequence[Array], index: Array) -> SplitVectors:
        """Rows in memory."""
        return cls(tuple(map(torch.from_numpy, tables)), torch.from_numpy(np.ascontiguousarray(index)))

    def gather(self, found: Found) -> tuple[Tensor, ...]:
        """The (B, d) vectors of each field in B rows."""
        rows = found.moved(self.index.index_select(0, found.index), "vectors")
        return tuple(table.index_select(0, rows[:, x]) for x, table in enumerate(self.tables))
