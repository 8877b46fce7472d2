"""Encodes rows of a table: the columns of its fields as row indices and numbers, and the numbers of its users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.columns import Array, Columns, Places
from dlen.data.ragged import Entries, Keep, to_columns
from dlen.data.sources.cells import hashes
from dlen.data.sources.expression import Expression
from dlen.data.sources.table_columns import (
    BucketColumn,
    HashedIds,
    IdColumn,
    IdsColumn,
    NumberColumn,
    TableColumn,
    TimeColumn,
    ViewColumn,
)
from dlen.data.sources.table_rates import RateColumn
from dlen.data.sources.table_sequences import HistoryColumn, SequenceColumn, sequences_of
from dlen.data.sources.table_spec import FieldSpec, TableSpec
from dlen.data.sources.table_vectors import VectorColumn, vectors_of
from dlen.data.vocabulary import enough_to_merge
from dlen.schema import Kind, Schema

_HASHED = 1 << 30  # above the numbers of users with a code of their own


def make_columns(spec: TableSpec, labels: dict[str, Expression], scratch: Path | None = None) -> list[TableColumn]:
    """The column of each field.

    Args:
        spec: spec of the table.
        labels: the parsed label of each task.
        scratch: folder for intermediate files; None to restore from a store.
    """
    columns: dict[str, TableColumn] = {}
    owners: dict[str, IdColumn] = {}
    sequences: dict[str, SequenceColumn] = {}
    # A field that uses the vocabulary of another comes after it, and histories, which look up ids, after all others.
    for name, field in sorted(spec.fields.items(), key=lambda entry: _turn(entry[1])):
        shared = owners[field.share].vocabulary if field.share else None
        if field.kind == "rate":
            columns[name] = RateColumn(name, field, spec, labels, scratch)
        elif field.kind == "history":
            of = {of: owners[of] for of in field.history.of}
            columns[name] = HistoryColumn(name, field, spec, labels, of, scratch)
        elif field.kind == "sequence":
            one = IdColumn(name, field, shared)
            if field.along:
                sequences[field.along].lists.append(one)
            else:
                columns[name] = sequences[name] = SequenceColumn(name, field, [one])
        elif field.kind == "vector":
            columns[name] = VectorColumn(name, field)
        elif field.kind == "view":
            columns[name] = ViewColumn(name, field)
        elif field.kind == "numeric":
            columns[name] = (BucketColumn if field.transform == "quantile" else NumberColumn)(name, field)
        elif field.kind == "time":
            columns[name] = TimeColumn(name, field)
        else:
            columns[name] = owners[name] = (IdColumn if field.kind == "id" else IdsColumn)(name, field, shared)
    in_order = [name for name in spec.fields if name in columns]
    return [columns[name] for name in sorted(in_order, key=lambda name: spec.fields[name].kind == "history")]


def _turn(field: FieldSpec) -> int:
    """When the column of a field is created: after those that it refers to."""
    return 2 if field.kind == "history" or field.along else int(bool(field.share))


def encode(frame: pl.DataFrame, path: Path, columns: list[TableColumn], schema: Schema) -> Columns:
    """Rows of the file ``path`` as row indices into the embedding table and scaled numbers."""
    n, offsets = len(frame), schema.offsets

    def stacked(values: list[Array], dtype: type) -> Array:
        return np.stack(values, 1).astype(dtype) if values else np.zeros((n, 0), dtype)

    codes = [code for column in columns for code in column.ids(frame, path)]
    ids = [code + offsets[field.name] for field, code in zip(schema.of_kind(Kind.ID), codes, strict=True)]
    scaled = [value for column in columns for value in column.numbers(frame, path)]
    bags = [(column, bag) for column in columns if (bag := column.bag(frame, path)) is not None]
    flat = [
        (row, np.full(len(row), number), code + offsets[column.name], weight)
        for number, (column, (row, code, weight)) in enumerate(bags)
    ]
    parts = [np.concatenate(part) for part in zip(*flat, strict=True)] or [np.zeros(0, np.int64)] * 4
    caps, keep = [c.spec.max_values for c, _ in bags], [Keep(c.spec.keep) for c, _ in bags]
    ragged = to_columns(Entries(n, *parts), [], range(len(bags)), caps, keep)
    places = [column.places(frame, path) for column in sequences_of(columns)]
    vectors = [column.index(frame, path) for column in vectors_of(columns)]
    return Columns(
        stacked(ids, np.int32),
        stacked(scaled, np.float32),
        ragged.bag_lengths,
        ragged.bag_ids,
        ragged.bag_weights,
        Places.stack(places) if places else None,
        np.stack(vectors, 1) if vectors else None,
    )


def views_of(columns: list[TableColumn]) -> list[ViewColumn]:
    """The columns that are known only afterwards."""
    return [column for column in columns if isinstance(column, ViewColumn)]


class UserNumbers:
    """Numbers of users, shared by all splits: 0 for no user, then users of the vocabulary, then new ones.

    A user not seen in training, or seen too rarely, has no embedding vector but still counts as a user. So does each
    of several users whose ids hash to the same bucket.

    Args:
        columns: columns of the table.
        user: name of the user field; None without any.
    """

    def __init__(self, columns: list[TableColumn], user: str | None) -> None:
        of_user = (c for c in columns if isinstance(c, IdColumn) and not isinstance(c, IdsColumn) and c.name == user)
        self.column = next(of_user, None)
        self._seen: list[pl.Series] = []
        self._held = self._merged = 0  # users of chunks that are not merged yet, and of those that are

    def see(self, frame: pl.DataFrame, path: Path) -> None:
        """Take the users of rows, in order."""
        if self.column is not None:
            self._add([self.column.texts(frame, path).rename("text").drop_nulls().unique(maintain_order=True)])

    def merge(self, other: UserNumbers) -> None:
        """Take the users of the rows that follow."""
        self._add(other._seen)

    def _add(self, texts: list[pl.Series]) -> None:
        self._seen += texts
        self._held += sum(map(len, texts))
        if enough_to_merge(self._held, self._merged):
            self.pack()

    def pack(self) -> None:
        """Keep each user once."""
        self._seen = [pl.concat(self._seen).unique(maintain_order=True)] if self._seen else []
        self._held, self._merged = 0, sum(map(len, self._seen))

    def number(self, *, hashed: bool = False) -> None:
        """Number the users that have no id of their own, once the vocabulary is frozen.

        Args:
            hashed: by a hash, which is the same for the rows of all appended days; otherwise in turn.
        """
        if self.column is None:
            return
        self.pack()
        codes, size = self.column.vocabulary, len(self.column.vocabulary)
        new = self._seen.pop() if self._seen else pl.Series("text", [], pl.String)
        if not isinstance(codes, HashedIds):
            new = new.filter(pl.Series(codes.encode(new) == 0))
        numbers = pl.int_range(size, size + len(new), dtype=pl.Int32, eager=True)
        if hashed:
            numbers = pl.Series(((hashes(new) >> np.uint64(34)) | np.uint64(_HASHED)).astype(np.int32))
        self._numbers = pl.DataFrame({"text": new, "code": numbers})

    def of(self, frame: pl.DataFrame, path: Path) -> Array | None:
        """(n,) int32 user numbers of rows that were seen."""
        if self.column is None:
            return None
        texts, codes = self.column.texts(frame, path), self.column.vocabulary
        joined = pl.DataFrame({"text": texts}).join(self._numbers, on="text", how="left", maintain_order="left")
        new: Array = joined["code"].fill_null(0).to_numpy()
        return new if isinstance(codes, HashedIds) else np.where(new > 0, new, codes.encode(texts))
