"""Features: the embedded batch, with the names and sides of its fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlen.nn.embedding import EmbeddingTable, columns
from dlen.nn.mixed import MixedTables
from dlen.schema import Kind, Schema


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """Layout of :class:`Features`, known before the first batch. Backbones and heads are built from it.

    Attributes:
        fields: names of the F embedded fields: lists of sequences, vector fields, single-valued fields, multi-valued
            fields.
        sides: side of each of these fields, see :class:`~dlen.schema.Field`.
        numbers: names of the K numeric fields.
        dim: length E of a field's vector.
        parts: number P of equal parts of a vector, one per task and then the shared one; 1 if all tasks share it.
        shared_part: whether the last part belongs to all tasks.
        first_order: number O of first-order terms appended to the input; 0 for none.
        own_numbers: whether the numbers are P equal parts too, as the vectors are.
    """

    fields: tuple[str, ...]
    sides: tuple[str, ...]
    numbers: tuple[str, ...]
    dim: int
    parts: int = 1
    first_order: int = 0
    own_numbers: bool = False
    shared_part: bool = False

    @classmethod
    def of(cls, schema: Schema, table: EmbeddingTable | MixedTables) -> FeatureSpec:
        """The layout of the features that a table produces for a schema."""
        embedded = [*schema.lists, *schema.of_kind(Kind.VECTOR), *schema.of_kind(Kind.ID), *schema.of_kind(Kind.IDS)]
        return cls(
            fields=tuple(f.name for f in embedded),
            sides=tuple(f.side for f in embedded),
            numbers=tuple(f.name for f in schema.of_kind(Kind.NUMERIC)),
            dim=table.dim,
            parts=table.parts,
            first_order=table.first_order,
            shared_part=table.shared_part,
        )

    @property
    def width(self) -> int:
        """D = F E + K, the width of :attr:`Features.flat`."""
        return len(self.fields) * self.dim + len(self.numbers)

    @property
    def part_width(self) -> int:
        """Width D' of each part's input, see :meth:`Features.by_part`."""
        numbers = len(self.numbers) // (self.parts if self.own_numbers else 1)
        return len(self.fields) * self.dim // self.parts + numbers

    @property
    def task_width(self) -> int:
        """Width of each task's input, see :meth:`Features.by_task`."""
        return self.part_width * (2 if self.shared_part else 1)

    def without(self, names: Sequence[str]) -> FeatureSpec:
        """Return the layout without the named fields.

        Raises:
            ValueError: there is no such field.
        """
        _check_known(names, self.fields)
        kept = [i for i, name in enumerate(self.fields) if name not in names]
        return replace(self, fields=tuple(self.fields[i] for i in kept), sides=tuple(self.sides[i] for i in kept))


@dataclass(frozen=True, slots=True)
class Features:
    """Input of a backbone and a head, for B rows.

    Attributes:
        values: (B, D + O) tensor of the F vectors, the K numbers and the O first-order terms.
        spec: layout of ``values``.
    """

    values: Tensor
    spec: FeatureSpec

    @property
    def flat(self) -> Tensor:
        """(B, D) vectors of all fields and numbers, concatenated."""
        return self.values[:, : self.spec.width]

    @property
    def fields(self) -> Tensor:
        """(B, F, E) vectors of the embedded fields."""
        spec = self.spec
        return self.values[:, : len(spec.fields) * spec.dim].unflatten(1, (len(spec.fields), spec.dim))

    @property
    def numbers(self) -> Tensor:
        """(B, K) values of the numeric fields."""
        return self.values[:, len(self.spec.fields) * self.spec.dim : self.spec.width]

    @property
    def first_order(self) -> Tensor | None:
        """(B, O) first-order terms, one per task; None if the table has none."""
        return self.values[:, self.spec.width :] if self.spec.first_order else None

    def field(self, name: str) -> Tensor:
        """(B, E) vectors of one field."""
        _check_known([name], self.spec.fields)
        return self.fields[:, self.spec.fields.index(name)]

    def select(self, names: Sequence[str]) -> Tensor:
        """(B, M, E) vectors of some fields."""
        _check_known(names, self.spec.fields)
        return columns(self.fields, [self.spec.fields.index(name) for name in names])

    def by_task(self, num_tasks: int) -> Tensor:
        """(T, B, ...) input of each task: its own part and the shared one, or the whole vectors if tasks share them."""
        if self.spec.parts == 1:
            return self.flat.expand(num_tasks, -1, -1)
        parts = self.by_part()
        if not self.spec.shared_part:
            return parts
        return torch.cat([parts[:-1], parts[-1:].expand(num_tasks, -1, -1)], 2)

    def by_part(self) -> Tensor:
        """(P, B, D') input of each part of the vectors, with the numbers."""
        spec = self.spec
        vectors = self.fields.unflatten(2, (spec.parts, -1)).transpose(0, 2).transpose(1, 2).flatten(2)  # (P, B, F E')
        numbers = self.numbers.expand(spec.parts, -1, -1)
        if spec.own_numbers:
            numbers = self.numbers.unflatten(1, (spec.parts, len(spec.numbers) // spec.parts)).transpose(0, 1)
        return torch.cat([vectors, numbers], 2)

    def changed(self, parts: Sequence[Tensor], spec: FeatureSpec) -> Features:
        """Return features with other vectors and numbers, and the same first-order terms.

        Args:
            parts: tensors of B rows that make up (B, D) vectors and numbers.
            spec: their layout.
        """
        first_order = [] if self.first_order is None else [self.first_order]
        return Features(torch.cat([*parts, *first_order], 1), spec)

    def without(self, names: Sequence[str]) -> Features:
        """Return the features without the named fields."""
        if not names:
            return self
        spec = self.spec.without(names)
        vectors = zip(self.spec.fields, self.fields.unbind(1), strict=True)
        kept = [vector for name, vector in vectors if name not in names]
        numbers_and_terms = self.values[:, len(self.spec.fields) * self.spec.dim :]
        return Features(torch.cat([*kept, numbers_and_terms], 1), spec)


def _check_known(names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no embedded field {unknown[0]}; the embedded fields are {', '.join(known)}")
