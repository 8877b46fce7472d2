"""Joined tables of a table: read into memory, and added to its rows by a key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import polars as pl

from dlen.data.sources.cells import id_text
from dlen.data.sources.table_file import TableFile
from dlen.data.sources.table_spec import TableSpec
from dlen.data.sources.table_vectors import VectorColumn
from dlen.errors import UserError

_KEY = "__joined_by"
_ROW_OF = "__row_of_"  # before the name of a join: column of the row in its table


class Joins:
    """The joined tables.

    Args:
        spec: spec of the table.
        files: files of each join.
        wanted: columns that are added to the rows.
        open_file: opens a file.
        vectors: columns that receive the vectors of a joined table by its rows, instead of a vector for each row.

    Attributes:
        unmatched: rows without a match since :meth:`restart`, by the name of the join.
    """

    def __init__(
        self,
        spec: TableSpec,
        files: dict[str, list[Path]],
        wanted: Collection[str],
        open_file: Callable[[Path], TableFile],
        vectors: Sequence[VectorColumn] = (),
    ) -> None:
        self.specs, self.files, self.path = spec.joins, files, spec.path
        self._vectors: dict[str, list[str]] = {}  # columns of vectors, by the name of the join
        self._tables = {name: self._read(name, wanted, open_file, vectors) for name in spec.joins}
        self.restart()

    def restart(self) -> None:
        """Begin to count unmatched rows."""
        self.unmatched = dict.fromkeys(self.specs, 0)

    def _read(
        self,
        name: str,
        wanted: Collection[str],
        open_file: Callable[[Path], TableFile],
        vectors: Sequence[VectorColumn],
    ) -> pl.DataFrame:
        """The key of a joined table, named like that of the rows, and the wanted columns."""
        spec, parts = self.specs[name], []
        for path in self.files[name]:
            file = open_file(path)
            if spec.key not in file.names:
                raise UserError(f"{path}: no column {spec.key!r}, the key of joins.{name} in {self.path}")
            chosen = [c for c in file.names if c in wanted and c != spec.key]
            of_file = [v for v in vectors if v.spec.column in file.names and v.spec.column != spec.key]
            held = list(dict.fromkeys(v.spec.column for v in of_file))
            if held != self._vectors.setdefault(name, held):
                raise self._differing(name, "not all have the same vectors")
            for frame in file.chunks():
                keys = id_text(frame[spec.key], path).alias(spec.by)
                with_keys = frame.with_columns(keys).drop_nulls(spec.by)
                parts.append(with_keys.select(list(dict.fromkeys([*chosen, spec.by]))))
                for column in of_file:
                    column.join(with_keys, path, _ROW_OF + name)
        first = self.files[name][0]
        try:
            table = pl.concat(parts)
        except pl.exceptions.PolarsError as error:
            raise self._differing(name, str(error).splitlines()[0]) from None
        repeated = table.filter(table[spec.by].is_duplicated())[spec.by]
        if len(repeated):
            raise UserError(f"{first}: {spec.key} {repeated[0]} occurs more than once, so rows cannot be joined to it")
        return table

    def _differing(self, name: str, reason: str) -> UserError:
        first = self.files[name][0]
        return UserError(f"{first}: the files of joins.{name} differ in their columns or column types ({reason})")

    def columns(self, columns: list[str], path: Path) -> list[str]:
        """Columns of a file and of its joined tables, each once."""
        for name, table in self._tables.items():
            by = self.specs[name].by
            if by not in columns:
                raise UserError(f"{path}: no column {by!r}, named by joins.{name}.by in {self.path}")
            added = [c for c in dict.fromkeys([*table.columns, *self._vectors[name]]) if c != by]
            for column in added:
                if column in columns:
                    raise UserError(f"{self.path}: joins.{name}: {path.name} also has a column {column!r}; rename one")
            columns = [*columns, *added]
        return columns

    def add(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add the columns of the joined tables to rows; a key without a match gives empty cells.

        Of vectors, the row in the joined table is added instead.
        """
        for name, table in self._tables.items():
            by = self.specs[name].by
            keys = id_text(frame[by], self.files[name][0])
            self.unmatched[name] += int((~keys.is_in(table[by].implode()).fill_null(False)).sum())
            side = table.rename({by: _KEY})
            side = side.with_row_index(_ROW_OF + name) if self._vectors[name] else side
            frame = frame.with_columns(keys.alias(_KEY)).join(side, on=_KEY, how="left", maintain_order="left")
            frame = frame.drop(_KEY)
        return frame

    def check_matched(self, rows: int) -> None:
        """Raise UserError if none of the rows had a match in a joined table."""
        for name, unmatched in self.unmatched.items():
            if unmatched == rows:
                join = self.specs[name]
                raise UserError(
                    f"{self.path}: joins.{name}: no {join.by} of the rows is a {join.key} of {self.files[name][0]}; "
                    "check that both are written alike"
                )
