"""Embedding tables for fields whose vectors differ in length: one table per length, and projections to the longest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlen.batch import Batch
from dlen.batch import Sequence as BatchSequence
from dlen.nn.embedding import EmbeddingTable, columns
from dlen.nn.logspace import at_least_float32
from dlen.schema import Field, Kind, Schema

MakeEmbedding = Callable[..., EmbeddingTable]  # called with (schema), or (schema, dim=) for vectors of another length


@dataclass(frozen=True, slots=True)
class TableColumns:
    """Which columns of a batch one of several tables embeds, and which rows of the schema's numbering it holds.

    Attributes:
        first: the table's first row in the numbering of the whole schema.
        rows: number of its rows.
        single: places of its single ids.
        bags: places of its multi-valued fields.
        all_bags: whether these are all there are.
        fields: names of its single ids and multi-valued fields.
        lists: places of its lists in each of the schema's sequences.
        list_fields: names of these lists.
    """

    first: int
    rows: int
    single: list[int]
    bags: list[int]
    all_bags: bool
    fields: list[str]
    lists: list[list[int]]
    list_fields: list[list[str]]

    @classmethod
    def of(cls, schema: Schema, own: Schema) -> TableColumns:
        """The columns of the fields of ``own``, a part of ``schema``."""
        bags, all_bags = own.of_kind(Kind.IDS), schema.of_kind(Kind.IDS)
        lists = [[field for field in all_lists if field in own.fields] for all_lists in schema.sequences.values()]
        return cls(
            first=min((schema.offsets[field.name] for field in own.owners), default=0),
            rows=own.num_embeddings,
            single=_places(own.of_kind(Kind.ID), schema.of_kind(Kind.ID)),
            bags=_places(bags, all_bags),
            all_bags=bags == all_bags,
            fields=_embedded(own),
            lists=[_places(of, all_lists) for of, all_lists in zip(lists, schema.sequences.values(), strict=True)],
            list_fields=[[field.name for field in of] for of in lists],
        )

    def select(self, batch: Batch) -> Batch:
        """The table's columns of a batch, without numbers and sequences."""
        lengths, bag_ids, bag_weights = self._select_bags(batch)
        return replace(
            batch,
            ids=columns(batch.ids, self.single) - self.first,
            numeric=batch.numeric[:, :0],
            bag_lengths=lengths,
            bag_ids=bag_ids,
            bag_weights=bag_weights,
            sequences=(),
        )

    def select_lists(self, batch: Batch, sequence: int) -> Batch:
        """A batch with the table's lists of one sequence instead of all sequences."""
        whole = batch.sequences[sequence]
        own = columns(whole.ids, self.lists[sequence]) - self.first
        return replace(batch, sequences=(BatchSequence(whole.lengths, own),))

    def _select_bags(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Lengths, ids and weights of the table's bags.

        The values of other tables stay, since counting them would wait for the device. They lengthen the bag before
        them, or the first one, with weight 0. Each has the id of a value that is the table's own, so that no row gets a
        gradient that would not get one otherwise, except a single one where all of the table's bags are empty.
        """
        lengths, ids, weights = batch.bag_lengths, batch.bag_ids, batch.bag_weights
        if self.all_bags:
            return lengths, ids - self.first, weights
        if not self.bags:
            return lengths[:0], ids[:0], weights[:0]
        is_own = (ids >= self.first) & (ids < self.first + self.rows)
        own = torch.where(is_own, ids - self.first, 0)
        starts = (lengths.flatten().cumsum(0) - lengths.flatten()).view_as(lengths)
        begins = columns(starts.T, self.bags).T.flatten()
        begins[:1] = 0
        longer = F.pad(begins, (0, 1), value=len(ids))[1:] - begins
        any_own = F.pad(own, (0, 1)).amax()
        return longer.view(len(self.bags), lengths.shape[1]), torch.where(is_own, own, any_own), weights * is_own


class MixedTables(nn.Module):
    """Embeds a batch like an :class:`EmbeddingTable`, with fewer numbers per id for fields with a ``dim``.

    The fields without a ``dim`` share a table of vectors of length E, and those of the same ``dim`` d share one with d
    numbers per id. A matrix of each field, without a bias, turns its vectors into vectors of length E (mixed dimension
    embeddings, Ginart et al. 2019). A field that shares the ids of another shares its matrix as well, and with private
    vectors there is a matrix for each part.

    Args:
        make: factory of the tables.

    Attributes:
        dim: as of :class:`EmbeddingTable`; so are ``parts``, ``shared_part`` and ``first_order``.
        columns: what each of the tables embeds.

    Raises:
        ValueError: a field's ``dim`` is above that of the table.
    """

    def __init__(self, schema: Schema, make: MakeEmbedding) -> None:
        super().__init__()
        by_dim = schema.by_dim
        wide, *narrow = (make(own, dim=dim) if dim else make(own) for dim, own in by_dim.items())
        self.dim, self.parts, self.first_order = wide.dim, wide.parts, wide.first_order
        self.shared_part = wide.shared_part
        longest, dim = schema.owners[-1], self.dim // self.parts
        if longest.dim > dim:
            raise ValueError(
                f"embedding.dim must be at least {longest.dim}, the dim of field {longest.name} in the data, got {dim}"
            )
        self.tables = nn.ModuleList([wide, *narrow])
        # With this deviation, random vectors come out as long as those of the other fields.
        self.projections = nn.ParameterList(
            torch.empty(len(own.owners), self.parts, d, dim).normal_(std=d**-0.5) for d, own in by_dim.items() if d
        )
        places = {owner.name: place for own in by_dim.values() for place, owner in enumerate(own.owners)}
        self._matrix = {f.name: places[f.share or f.name] for own in by_dim.values() for f in own.fields}
        self.columns = [TableColumns.of(schema, own) for own in by_dim.values()]
        self._fields = _embedded(schema)
        self._lists = [[field.name for field in lists] for lists in schema.sequences.values()]
        with_terms = [sum(not f.share for f in own.fields if f.kind is not Kind.SEQUENCE) for own in by_dim.values()]
        self._shares = [(number / max(sum(with_terms), 1)) ** 0.5 for number in with_terms]

    @property
    def pairs(self) -> list[tuple[EmbeddingTable, TableColumns]]:
        """Each table, and what it embeds."""
        return [(cast(EmbeddingTable, table), own) for table, own in zip(self.tables, self.columns, strict=True)]

    @property
    def weight(self) -> nn.Parameter:
        """The rows of the fields without a ``dim``, which are the first ones of the schema's numbering."""
        return self.pairs[0][0].weight

    @property
    def flops(self) -> int:
        """Multiplications and additions of the projections of a row, without sequences."""
        narrow = zip(self.projections, self.columns[1:], strict=True)
        return sum(2 * matrices[0].numel() * len(own.fields) for matrices, own in narrow)

    def forward(self, batch: Batch) -> Tensor:
        """(B, D + O), as from an :class:`EmbeddingTable`."""
        return self.joined([table(own.select(batch)) for table, own in self.pairs], batch.numeric)

    def joined(self, outputs: Sequence[Tensor], numeric: Tensor) -> Tensor:
        """Join what the tables return to (B, D + O).

        Args:
            outputs: vectors and first-order sums of each table's fields.
            numeric: (B, K) values of the numeric fields.
        """
        vectors = [
            out[:, : table.out_dim].unflatten(1, (len(own.fields), table.dim))
            for (table, own), out in zip(self.pairs, outputs, strict=True)
        ]
        found = self._projected(vectors, [own.fields for own in self.columns])
        parts = [*(found[name] for name in self._fields), numeric]
        if self.first_order:
            # A table divides the sum of its fields by the root of their number, rather than that of all fields.
            shared = zip(outputs, self._shares, strict=True)
            terms = [out[:, out.shape[1] - self.first_order :] * share for out, share in shared]
            parts.append(torch.stack(terms).sum(0))
        return torch.cat(parts, 1)

    def of_sequences(self, batch: Batch) -> list[Tensor]:
        """(L, N, E) vectors of each sequence."""
        return [
            self._of_sequence([t.of_sequences(own.select_lists(batch, place))[0] for t, own in self.pairs], place)
            for place in range(len(batch.sequences))
        ]

    def padded(self, ids: Tensor, numeric: Tensor, bag_ids: Tensor, bag_weights: Tensor) -> Tensor:
        """(B, D + O), as from :meth:`EmbeddingTable.padded`."""
        outputs = [
            table.padded(
                columns(ids, own.single) - own.first,
                numeric[:, :0],
                (columns(bag_ids, own.bags) - own.first).clamp(min=0),  # padding is 0
                columns(bag_weights, own.bags),
            )
            for table, own in self.pairs
        ]
        return self.joined(outputs, numeric)

    def of_lists(self, ids: Tensor, sequence: int) -> Tensor:
        """(P, N, E) vectors of ids (P, N) of the lists of one sequence. Padding may have the vector of any id."""
        found = [
            table.vectors((columns(ids, own.lists[sequence]) - own.first).clamp(min=0)) for table, own in self.pairs
        ]
        return self._of_sequence(found, sequence)

    def _of_sequence(self, vectors: list[Tensor], sequence: int) -> Tensor:
        found = self._projected(vectors, [own.list_fields[sequence] for own in self.columns])
        return torch.stack([found[name] for name in self._lists[sequence]], 1)

    def _projected(self, vectors: list[Tensor], fields: list[list[str]]) -> dict[str, Tensor]:
        """The (B, E) vectors of fields by name, from each table's (B, F, d) and names."""
        found: dict[str, Tensor] = {}
        for of_table, matrices, names in zip(vectors, (None, *self.projections), fields, strict=True):
            if not names:
                continue
            if matrices is not None:
                of_names = torch.stack([matrices[self._matrix[name]] for name in names])
                projected = torch.einsum("bfpd,fpde->bfpe", of_table.unflatten(2, (self.parts, -1)), of_names)
                of_table = at_least_float32(projected.flatten(2))
            found |= zip(names, of_table.unbind(1), strict=True)
        return found


def make_tables(make: MakeEmbedding, schema: Schema) -> EmbeddingTable | MixedTables:
    """Build a table, or several if fields have vectors of another length."""
    return MixedTables(schema, make) if any(field.dim for field in schema.fields) else make(schema)


def _places(fields: list[Field], among: list[Field]) -> list[int]:
    return [among.index(field) for field in fields]


def _embedded(schema: Schema) -> list[str]:
    """Names of single ids and multi-valued fields, in the order of a table's output."""
    return [field.name for kind in (Kind.ID, Kind.IDS) for field in schema.of_kind(kind)]
