"""Sequences of a prepared store: ordered lists of ids, stored once and shared by all rows that see them.

The values of a sequence lie one after the other in one array. A row sees a range of them, so the history of a user is
stored once, however many rows the user has.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlen.batch import Sequence
from dlen.data.columns import GAP_BUCKETS, Array, Places
from dlen.data.shards import Found


@dataclass(eq=False, slots=True)
class StoredSequence:
    """The V values of one sequence, with N lists.

    Attributes:
        values: (V, N) int32 codes, or (V, N - 1) with ``gaps``.
        when: (V,) float64 time of each value; empty if there are no times.
        offsets: (N,) int32 first row of each list's ids in the embedding table.
        gaps: whether the last list is the :func:`gap_codes` between each value and its row.
        sizes: number of codes that each stored list has now, (N,) or (N - 1,) int32: later ones become 0; None if there
            are none.
    """

    values: Tensor
    when: Tensor
    offsets: Tensor
    gaps: bool
    sizes: Tensor | None = None

    @classmethod
    def of(cls, values: Array, offsets: Items[int]) -> StoredSequence:
        """Values in memory, (V, N), without times."""
        starts = torch.tensor(offsets, dtype=torch.int32)
        return cls(torch.from_numpy(values), torch.zeros(0, dtype=torch.float64), starts, gaps=False)

    def gather(self, start: Tensor, length: Tensor, when: Tensor, total: int) -> Sequence:
        """The ranges of B rows.

        Args:
            start: (B,) int64 first value of each row.
            length: (B,) int64 number of values.
            when: (B,) float64 time of each row.
            total: sum of ``length``, which the caller passes so that the device is not synchronised to compute it.
        """
        ends = length.cumsum(0)
        shift = torch.repeat_interleave(start - (ends - length), length, output_size=total)
        place = shift + torch.arange(total, device=start.device)
        codes = self.values.index_select(0, place)
        if self.sizes is not None:
            codes = codes * (codes < self.sizes)
        if self.gaps:
            of_rows = torch.repeat_interleave(when, length, output_size=total)
            codes = torch.cat([codes, gap_codes(of_rows - self.when.index_select(0, place))[:, None]], 1)
        return Sequence(length, codes + self.offsets)


def gap_codes(gap: Tensor) -> Tensor:
    """(L,) times between values and their rows -> (L,) int32 codes: 1 + floor(log2(1 + gap)), at most GAP_BUCKETS."""
    # frexp is exact at powers of two, where a logarithm may round
    exponent: Tensor = torch.frexp(gap.clamp(0, 2.0**GAP_BUCKETS) + 1).exponent
    return exponent.clamp(max=GAP_BUCKETS).int()


@dataclass(eq=False, slots=True)
class SplitSequences:
    """The Q sequences of the n rows of a split.

    Attributes:
        tables: the values of each sequence.
        start: (n, Q) int64, see :class:`~dlen.data.columns.Places`.
        length: (n, Q) int16.
        when: (n, Q) float64.
    """

    tables: tuple[StoredSequence, ...]
    start: Tensor
    length: Tensor
    when: Tensor

    @classmethod
    def of(cls, tables: Items[StoredSequence], places: Places) -> SplitSequences:
        """Rows in memory."""
        arrays = (torch.from_numpy(np.ascontiguousarray(a)) for a in (places.start, places.length, places.when))
        return cls(tuple(tables), *arrays)

    def count(self, index: Tensor) -> tuple[int, ...]:
        """Number of values of each sequence in rows ``index`` (B,)."""
        totals: list[int] = self.length.index_select(0, index).sum(0, dtype=torch.int64).tolist()
        return tuple(totals)

    def gather(self, found: Found, totals: Items[int]) -> tuple[Sequence, ...]:
        """The sequences of B rows; ``totals`` is the result of :meth:`count`."""
        start = found.moved(self.start.index_select(0, found.index), "sequences")
        length, when = self.length.index_select(0, found.index).long(), self.when.index_select(0, found.index)
        return tuple(
            table.gather(start[:, q], length[:, q], when[:, q], total)
            for q, (table, total) in enumerate(zip(self.tables, totals, strict=True))
        )
