"""The rows of a split as batches: memory-mapped, in memory, or resident on a device."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlen.batch import Batch
from dlen.data.columns import MISSING, TABLE_ARRAYS, Array, Columns
from dlen.data.sequences import SplitSequences, StoredSequence
from dlen.data.shards import Codes, Found, Shards, find
from dlen.data.vectors import SplitVectors
from dlen.label_scale import LabelScale


@dataclass(eq=False, slots=True)
class StoredTable:
    """A memory-mapped table that gathers arbitrary rows without per-row Python work, see :data:`TABLE_ARRAYS`."""

    ids: Tensor
    numeric: Tensor
    bag_lengths: Tensor
    bag_start: Tensor
    bag_ids: Tensor
    bag_weights: Tensor

    def values_of(self, index: Tensor) -> Tensor:
        """(B,) number of ragged values in each of the rows ``index`` (B,)."""
        return self.bag_start.index_select(0, index + 1) - self.bag_start.index_select(0, index)

    def count_values(self, index: Tensor) -> int:
        """L, the total number of ragged values in rows ``index`` (B,)."""
        return int(self.values_of(index).sum()) if self.bag_lengths.shape[1] else 0

    def gather_bags(
        self, index: Tensor, found: Found, first: str, total: int, *, padded: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ragged values of rows ``index`` (B,): lengths (M, B), ids (L,) and weights (L,), field-major.

        Args:
            index: (B,) int64.
            found: the rows of the split that these are, or belong to.
            first: which attribute of :class:`Shards` tells where the values of a shard start.
            total: L. The caller passes it so that the device is not synchronised to compute it.
            padded: whether L may be more than the rows have, so that batches of one size have one shape. Every bag then
                ends with its share of values of weight 0, which repeat an id of the rows and so touch no further one.
        """
        rows = self.bag_lengths.index_select(0, index).long()  # (B, M)
        if rows.shape[1] == 0:
            return rows.T, self.bag_ids[:0], self.bag_weights[:0]
        starts = found.moved(self.bag_start.index_select(0, index), first)[:, None] + rows.cumsum(1) - rows
        lengths = rows.T.contiguous()  # (M, B)
        real = lengths.flatten()
        flat = real + _shares(total - real.sum(), len(real)) if padded else real
        ends, places = flat.cumsum(0), torch.arange(total, device=flat.device)
        shift = starts.T.flatten() - (ends - flat)
        where = torch.repeat_interleave(shift, flat, output_size=total) + places
        if not padded or not total:
            return lengths, self.bag_ids.index_select(0, where), self.bag_weights.index_select(0, where)
        is_real = places < torch.repeat_interleave(ends - flat + real, flat, output_size=total)
        repeated = where.index_select(0, is_real.int().argmax()[None]).clamp(max=len(self.bag_ids) - 1)
        where = torch.where(is_real, where, repeated)
        weights = self.bag_weights.index_select(0, where) * is_real
        return flat.view(lengths.shape), self.bag_ids.index_select(0, where), weights


def _shares(whole: Tensor, parts: int) -> Tensor:
    """(parts,) whole numbers as equal as possible whose sum is ``whole``, a scalar of at least 0."""
    bounds = torch.arange(parts + 1, device=whole.device) * whole // parts
    return bounds.diff()


@dataclass(eq=False, slots=True)
class Split:
    """A memory-mapped split; ``split.batch(index)`` joins rows with their user groups.

    Attributes:
        rows: n, the number of rows.
        table: features of the rows.
        groups: features of the user groups that the rows are joined with.
        labels: (n, T) uint8: 0, 1 or :data:`MISSING`; 0 or :data:`MISSING` of a regression task.
        group: (n,) row number in ``groups``; empty without groups.
        truth: (n, R) a simulator's probabilities.
        users: (n,) user numbers; empty if users are distinguished by their ids.
        weights: (n, 1 + T) weights of rows and of their labels; empty if all are 1.
        values: (n, R) labels of the regression tasks in their own unit, nan where missing; empty without labels.
        views: (n, V) uint8 bins of what is known only afterwards, or :data:`MISSING`; empty without any.
        scale: standardises ``values``; None without them.
        sequences: the rows' sequences; None without any.
        vectors: the rows' vectors; None without any.
        complete: whether no label is missing.
        shards: where the rows of several shards lie in these arrays; None for a single shard, whose rows are theirs.
        first: number of rows of the shards that come before those of the split.
        codes: how ids of the shards become rows of the embedding table; None if they are.
    """

    rows: int
    table: StoredTable
    groups: StoredTable | None
    labels: Tensor
    group: Tensor
    truth: Tensor
    users: Tensor
    weights: Tensor
    values: Tensor
    views: Tensor
    sequences: SplitSequences | None = field(default=None, kw_only=True)
    vectors: SplitVectors | None = field(default=None, kw_only=True)
    scale: LabelScale | None = field(kw_only=True)
    complete: bool = field(kw_only=True)
    shards: Shards | None = field(default=None, kw_only=True)
    first: int = field(default=0, kw_only=True)
    codes: Codes | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return self.rows

    def count_values(self, index: Tensor) -> tuple[int, ...]:
        """Number of ragged values in rows ``index`` (B,): of the rows, of their user groups, and of each sequence."""
        return self._count(self._find(index))

    def values_of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) number of ragged values of each of the rows ``index`` (B,), and of its user group, 0 without any."""
        found = self._find(index)
        of_rows = self.table.values_of(found.index)
        groups = self.groups
        return of_rows, torch.zeros_like(of_rows) if groups is None else groups.values_of(self._groups(found))

    def _find(self, index: Tensor) -> Found:
        return find(index + self.first if self.first else index, self.shards)

    def checksum(self, part: str) -> int:
        """CRC-32 of ``labels`` or ``values`` of the rows, as stored."""
        rows = self._find(torch.arange(self.rows)).index
        return zlib.crc32(getattr(self, part).index_select(0, rows).numpy())

    def labels_of(self, index: Tensor) -> Tensor:
        """(B, T) float32 stored labels of rows ``index`` (B,), with NaN for missing ones."""
        return self._logged(self._find(index))

    def batch(self, index: Tensor, totals: tuple[int, ...] | None = None, *, padded: bool = False) -> Batch:
        """Rows ``index`` (B,) int64 as one batch.

        Args:
            index: row numbers.
            totals: the result of :meth:`count_values`, if known.
            padded: whether ``totals`` may be more than that for multi-valued fields, see
                :meth:`StoredTable.gather_bags`.
        """
        found = self._find(index)
        of_rows, of_groups, *of_sequences = self._count(found) if totals is None else totals
        index = found.index
        ids = self.table.ids.index_select(0, index)
        numeric = self.table.numeric.index_select(0, index)
        bags = self.table.gather_bags(index, found, "values", of_rows, padded=padded)
        if self.groups is not None:
            group = self._groups(found)
            ids = torch.cat([ids, self.groups.ids.index_select(0, group)], 1)
            numeric = torch.cat([numeric, self.groups.numeric.index_select(0, group)], 1)
            of_group = self.groups.gather_bags(group, found, "group_values", of_groups, padded=padded)
            bags = tuple(torch.cat(pair) for pair in zip(bags, of_group, strict=True))  # type: ignore[assignment]
        if self.codes is not None:
            lengths, bag_ids, weights = bags
            ids, bag_ids = self.codes(found, ids, lengths, bag_ids)
            bags = lengths, bag_ids, weights
        labels = self._logged(found)
        if self.scale is not None:
            values = self.scale.standardise(self.values.index_select(0, index))
            labels = labels.index_copy(1, self.scale.columns, values)
        return Batch(
            ids,
            numeric,
            *bags,
            labels,
            self.truth.index_select(0, index),
            self.users.index_select(0, index) if len(self.users) else self.users,
            self.weights.index_select(0, index) if len(self.weights) else self.weights,
            () if self.sequences is None else self.sequences.gather(found, of_sequences),
            () if self.vectors is None else self.vectors.gather(found),
            self.views.index_select(0, index) if len(self.views) else self.views,
        )

    def _count(self, found: Found) -> tuple[int, ...]:
        of_groups = 0 if self.groups is None else self.groups.count_values(self._groups(found))
        of_sequences = () if self.sequences is None else self.sequences.count(found.index)
        return self.table.count_values(found.index), of_groups, *of_sequences

    def _groups(self, found: Found) -> Tensor:
        """(B,) int64 user group of each row."""
        return found.moved(self.group.index_select(0, found.index).long(), "groups")

    def _logged(self, found: Found) -> Tensor:
        labels = self.labels.index_select(0, found.index)
        return labels.float() if self.complete else torch.where(labels == MISSING, torch.nan, labels.float())

    @property
    def bytes(self) -> int:
        """Size of all arrays in bytes, including user groups."""
        return sum(array.nbytes for array in tensors(self))


def split_of(
    columns: Columns,
    labels: Array,
    groups: StoredTable | None = None,
    group: Array | None = None,
    sequences: Sequence[StoredSequence] = (),
    vectors: Sequence[Array] = (),
) -> Split:
    """Wrap rows in memory as a split.

    Args:
        columns: features of n rows.
        labels: (n, T) 0, 1 or :data:`MISSING`.
        groups: table that the rows are joined with.
        group: (n,) row numbers in ``groups``.
        sequences: values of the sequences, in the order of the columns' places.
        vectors: (1 + U, d) vectors of each vector field, see :class:`SplitVectors`.
    """
    n = len(columns.ids)
    bag_start = np.append(0, columns.values_per_row().cumsum())
    arrays = {
        part: np.ascontiguousarray(bag_start if part == "bag_start" else getattr(columns, part), dtype)
        for part, (dtype, _) in TABLE_ARRAYS.items()
    }
    table = StoredTable(**{part: torch.from_numpy(values) for part, values in arrays.items()})
    group_rows = np.zeros(0, np.int32) if group is None else group.astype(np.int32)
    return Split(
        n,
        table,
        groups,
        labels=torch.from_numpy(labels.astype(np.uint8)),
        group=torch.from_numpy(group_rows),
        truth=torch.zeros(n, 0),
        users=torch.zeros(0, dtype=torch.int32),
        weights=torch.zeros(0, 1),
        values=torch.zeros(0, 0),
        views=torch.zeros(0, 0, dtype=torch.uint8),
        sequences=None if columns.places is None else SplitSequences.of(sequences, columns.places),
        vectors=None if columns.vectors is None else SplitVectors.of(vectors, columns.vectors),
        scale=None,
        complete=not bool((labels == MISSING).any()),
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, which may be a tuple or a dataclass of others."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        yield from (tensor for part in value for tensor in tensors(part))
    elif is_dataclass(value):
        yield from (tensor for part in fields(value) for tensor in tensors(getattr(value, part.name)))


def moved(value: Any, device: torch.device) -> Any:
    """A copy of a value whose tensors and modules are on a device, also those in tuples and dataclasses."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, nn.Module):
        return deepcopy(value).to(device)
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: moved(getattr(value, part.name), device) for part in fields(value)})
    return value


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """The row numbers of a batch that is still to be gathered, for a step that gathers it itself.

    Attributes:
        index: (B,) int64 row numbers, on the host.
        split: the split that they belong to.
    """

    index: Tensor
    split: ResidentSplit

    def __len__(self) -> int:
        return len(self.index)

    def batch(self) -> Batch:
        """Gather the batch."""
        return self.split.batch(self.index)


class ResidentSplit:
    """A split in device memory. Making a batch transfers only the row numbers.

    The row numbers of a batch and its number of ragged values are computed on the host, so no step waits for the
    device.

    Args:
        split: the memory-mapped split.
        device: target device.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.host = split
        self.device = device
        self.copy: Split = moved(split, device)

    def __len__(self) -> int:
        return self.host.rows

    def batch(self, index: Tensor) -> Batch:
        """Rows ``index`` (B,) int64, a host tensor, as one batch on the device."""
        totals = self.host.count_values(index)
        if self.device.type == "cuda":
            index = index.pin_memory()
        return self.copy.batch(index.to(self.device, non_blocking=True), totals)
