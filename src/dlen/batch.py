"""Batch: the tensors of a batch of rows, the only input format of models."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence of B rows: N parallel lists for each row, oldest values first.

    Attributes:
        lengths: (B,) int64, number of places in each row.
        ids: (L, N) int32 row indices of the embedding table, where L is the sum of ``lengths``; rows of the batch one
            after the other.
    """

    lengths: Tensor
    ids: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Sequence:
        """Return the sequence on another device."""
        return Sequence(*(t.to(device, non_blocking=non_blocking) for t in (self.lengths, self.ids)))


@dataclass(slots=True)
class Batch:
    """B rows of a prepared data set, with S single ids, M multi-valued fields, K numeric fields and T tasks.

    Ids are row indices of the shared embedding table, with :attr:`Schema.offsets` already added. Multi-valued fields
    are ragged and field-major: the values of bag (m, b) follow those of bag (m, b - 1) in ``bag_ids``.

    Attributes:
        ids: (B, S) int32.
        numeric: (B, K) float32, scaled with training statistics.
        bag_lengths: (M, B) int64, number of values in each bag.
        bag_ids: (L,) int32, where L is the sum of ``bag_lengths``.
        bag_weights: (L,) float32.
        labels: (B, T) float32, 0 or 1 as logged, whether observed or not; standardised for a regression task; nan if
            missing from the log.
        truth: (B, R) float32, the simulator's true values; R = 0 on real logs.
        users: (B,) int32, number of each row's user, 0 for none; empty if the user field's ids identify users.
        weights: (B, 1 + T) float32, the weight of each row in training, then that of each task's label in it; empty if
            all are 1.
        sequences: the sequences, in the order of :attr:`Schema.sequences`.
        vectors: (B, d) float32 of each vector field, scaled with training statistics; 0 for a missing vector.
        views: (B, V) uint8 bin of each of :attr:`Schema.views`, 255 where missing; empty without any.
    """

    ids: Tensor
    numeric: Tensor
    bag_lengths: Tensor
    bag_ids: Tensor
    bag_weights: Tensor
    labels: Tensor
    truth: Tensor
    users: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))
    weights: Tensor = field(default_factory=lambda: torch.zeros(0, 1))
    sequences: tuple[Sequence, ...] = ()
    vectors: tuple[Tensor, ...] = ()
    views: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.uint8))

    @classmethod
    def of_ids(cls, ids: Tensor, labels: Tensor) -> Batch:
        """Build a batch from (B, S) ids and (B, T) labels, without multi-valued fields, numbers or truth."""
        empty = torch.zeros(len(ids), 0)
        return cls(ids, empty, empty.T.long(), empty.flatten().int(), empty.flatten(), labels, empty)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def row_weights(self) -> Tensor | None:
        """(B, 1 + T) :attr:`weights`; None if all are 1."""
        return self.weights if len(self.weights) else None

    @property
    def known_views(self) -> Tensor | None:
        """(B, V) :attr:`views`; None if none is known."""
        return self.views if self.views.numel() else None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("sequences", "vectors")}
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()}
        return Batch(
            **moved,
            sequences=tuple(s.to(device, non_blocking) for s in self.sequences),
            vectors=tuple(v.to(device, non_blocking=non_blocking) for v in self.vectors),
        )
