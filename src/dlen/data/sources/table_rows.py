"""The rows of all files of a table, in chunks, with the columns of its joined tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.sources.cells import LINE, ROW
from dlen.data.sources.expression import Expression, read_label
from dlen.data.sources.table_columns import TableColumn
from dlen.data.sources.table_file import TableFile
from dlen.data.sources.table_joins import Joins
from dlen.data.sources.table_spec import TableSpec
from dlen.data.sources.table_vectors import vectors_of
from dlen.errors import UserError
from dlen.progress import Stage

T = TypeVar("T")


class TableRows:
    """Reads the files of a table, any number of times.

    Args:
        spec: spec of the table.
        files: files by split, or under ``all``.
        join_files: files of each join.
        columns: columns of the fields, which decide what is read of joined tables.
        also: further columns that are read.
        bad: counter of unreadable rows.
        scratch: folder for unpacked copies.
        where: the expression that rows have to satisfy; None for all rows.

    Attributes:
        joins: the joined tables.
        total: number of rows of the files, after the first pass.
        kept: how many of them ``where`` keeps.
    """

    def __init__(
        self,
        spec: TableSpec,
        files: dict[str, list[Path]],
        join_files: dict[str, list[Path]],
        columns: Sequence[TableColumn],
        also: Iterable[str],
        bad: BadRows,
        scratch: Path,
        where: Expression | None = None,
    ) -> None:
        self.spec, self.files, self.bad, self.scratch, self.where = spec, files, bad, scratch, where
        self._opened: dict[Path, TableFile] = {}
        vectors = vectors_of(columns)
        wanted = {*(name for column in columns if column not in vectors for name in column.inputs), *also}
        wanted |= set(where.columns) if where is not None else set()
        self.joins = Joins(spec, join_files, wanted, self._open, vectors)
        self.total = self.kept = 0

    def _open(self, path: Path) -> TableFile:
        """Open a file. It is scanned only once, however often it is read."""
        if path not in self._opened:
            self._opened[path] = TableFile(path, self.spec, self.bad, self.scratch)
        return self._opened[path]

    def partitions(self, path: Path) -> Mapping[str, str | None]:
        """Columns and values of the folders that a file is in."""
        return self._open(path).partitions

    def columns(self, path: Path) -> list[str]:
        """Columns of a file, of the folders it is in, and of the tables joined to it."""
        file = self._open(path)
        return self.joins.columns([*file.names, *file.partitions], path)

    def chunks(self, label: str) -> Iterator[tuple[pl.DataFrame, Path, str]]:
        """Chunks of the rows of all files that ``where`` keeps, each with its file and split.

        A row has the number LINE in its file, and the number ROW over all files. Both are the same in every pass.

        Args:
            label: description of the pass, for the progress bar.

        Raises:
            UserError: a file has no rows or cannot be read.
        """
        paths = [(path, split) for split, paths in self.files.items() for path in paths]
        self.joins.restart()
        self.total = self.kept = 0
        with Stage(label, sum(path.stat().st_size for path, _ in paths), "B") as stage:
            for path, split in paths:
                file, before = self._open(path), self.total
                bytes_left: float = file.size
                for frame in file.chunks():
                    size = min(file.bytes_of(frame), bytes_left)
                    kept = self._kept(self.joins.add(frame).with_row_index(ROW, self.total), path)
                    self.total, self.kept = self.total + len(frame), self.kept + len(kept)
                    if len(kept) or self.where is None:
                        yield kept, path, split
                    stage.advance(size)
                    bytes_left -= size
                if self.total == before:
                    raise UserError(f"{path}: has no rows")
                stage.advance(bytes_left)
        if not self.kept and self.total:
            raise UserError(f"{self.spec.path}: where: {self.spec.where} holds in none of the {self.total:,} rows")

    def _kept(self, frame: pl.DataFrame, path: Path) -> pl.DataFrame:
        """The rows that satisfy ``where``."""
        if self.where is None:
            return frame
        where, spec = self.where, self.spec.path
        frame, values = self.readable(frame, path, lambda rows, path: read_label(rows, path, "where", where, spec))
        return frame.filter(pl.Series(values == 1))

    def readable(
        self, frame: pl.DataFrame, path: Path, read: Callable[[pl.DataFrame, Path], T]
    ) -> tuple[pl.DataFrame, T]:
        """Read a chunk. Returns it without the rows skipped as unreadable, and what ``read`` returns for the others."""
        while True:
            try:
                return frame, read(frame, path)
            except BadRowError as error:
                self.bad.add(error)
                frame = frame.filter(~pl.col(LINE).is_in(error.lines))
