"""Joined tables of a table: read into memory, and added to its rows by a key."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import polars as pl

from dlen.data.sources.cells import id_text
from dlen.data.sources.table_file import TableFile
from dlen.data.sources.table_spec import TableSpec
from dlen.errors import UserError

_KEY = "__joined_by"


class Joins:
    """The joined tables.

    Args:
        spec: spec of the table.
        files: files of each join.
        wanted: columns that a field reads; others are not kept.
        open_file: opens a file.

    Attributes:
        unmatched: rows without a match since :meth:`restart`, by the name of the join.
    """

    def __init__(
        self,
        spec: TableSpec,
        files: dict[str, list[Path]],
        wanted: Collection[str],
        open_file: Callable[[Path], TableFile],
    ) -> None:
        self.specs, self.files, self.path = spec.joins, files, spec.path
        self._tables = {name: self._read(name, wanted, open_file) for name in spec.joins}
        self.restart()

    def restart(self) -> None:
        """Begin to count unmatched rows."""
        self.unmatched = dict.fromkeys(self.specs, 0)

    def _read(self, name: str, wanted: Collection[str], open_file: Callable[[Path], TableFile]) -> pl.DataFrame:
        """The key of a joined table, named like that of the rows, and the columns that a field reads."""
        spec, parts = self.specs[name], []
        for path in self.files[name]:
            file = open_file(path)
            if spec.key not in file.names:
                raise UserError(f"{path}: no column {spec.key!r}, the key of joins.{name} in {self.path}")
            chosen = [c for c in file.names if c in wanted and c != spec.key]
            for frame in file.chunks():
                keys = id_text(frame[spec.key], path).alias(spec.by)
                parts.append(frame.select(chosen).with_columns(keys).drop_nulls(spec.by))
        first = self.files[name][0]
        try:
            table = pl.concat(parts)
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{first}: the files of joins.{name} differ in their columns or column types ({reason})"
            ) from None
        repeated = table.filter(table[spec.by].is_duplicated())[spec.by]
        if len(repeated):
            raise UserError(f"{first}: {spec.key} {repeated[0]} occurs more than once, so rows cannot be joined to it")
        return table

    def columns(self, columns: list[str], path: Path) -> list[str]:
        """Columns of a file and of its joined tables, each once."""
        for name, table in self._tables.items():
            by = self.specs[name].by
            if by not in columns:
                raise UserError(f"{path}: no column {by!r}, named by joins.{name}.by in {self.path}")
            added = [c for c in table.columns if c != by]
            for column in added:
                if column in columns:
                    raise UserError(f"{self.path}: joins.{name}: {path.name} also has a column {column!r}; rename one")
            columns = [*columns, *added]
        return columns

    def add(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add the columns of the joined tables to rows; a key without a match gives empty cells."""
        for name, table in self._tables.items():
            by = self.specs[name].by
            keys = id_text(frame[by], self.files[name][0])
            self.unmatched[name] += int((~keys.is_in(table[by].implode()).fill_null(False)).sum())
            side = table.rename({by: _KEY})
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
