"""The rows of all files of a table, in chunks, with the columns of its joined tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import polars as pl

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.parallel import Advance
from dlen.data.sources.cells import LINE, ROW
from dlen.data.sources.expression import Expression, read_label
from dlen.data.sources.table_columns import TableColumn
from dlen.data.sources.table_file import TableFile
from dlen.data.sources.table_joins import Joins
from dlen.data.sources.table_pieces import Piece, cut
from dlen.data.sources.table_spec import TableSpec
from dlen.data.sources.table_vectors import vectors_of
from dlen.errors import UserError
from dlen.progress import Stage

T = TypeVar("T")


@dataclass(slots=True)
class PassCounts:
    """Rows that were read.

    Attributes:
        counts: number of rows of each file, by its path.
        kept: how many of them ``where`` keeps.
        unmatched: how many have no match, by the name of the join.
    """

    counts: dict[str, int]
    kept: int
    unmatched: dict[str, int]


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
        before: number of rows before those of this pass.
        starts: number of rows before each piece, after a pass.
        counts: number of rows of each file, read in this pass.
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
        self.before = self.kept = 0
        self.starts: list[int] = []
        self.counts: dict[Path, int] = {}

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

    @cached_property
    def pieces(self) -> list[Piece]:
        """The files in pieces."""
        return cut((self._open(path), split) for split, paths in self.files.items() for path in paths)

    @property
    def size(self) -> float:
        """Bytes of all files."""
        return sum(piece.size for piece in self.pieces)

    def chunks(self, label: str) -> Iterator[tuple[pl.DataFrame, Path, str]]:
        """Chunks of the rows of all files that ``where`` keeps, each with its file and split.

        A row has the number LINE in its file, and the number ROW over all files. Both are the same in every pass.

        Args:
            label: description of the pass, for the progress bar.

        Raises:
            UserError: a file has no rows or cannot be read.
        """
        self.begin()
        with Stage(label, self.size, "B") as stage:
            for piece in self.pieces:
                yield from self.read(piece, stage.advance)
        self.end()

    def begin(self) -> None:
        """Begin to count rows."""
        self.joins.restart()
        self.counts = {}
        self.kept = 0

    def read(self, piece: Piece, advance: Advance) -> Iterator[tuple[pl.DataFrame, Path, str]]:
        """Chunks of the rows of a piece, which follow the rows that have been counted."""
        for part in piece.ranges:
            file, bytes_left = self._open(part.path), part.size
            count = self.counts.setdefault(part.path, 0)
            for frame in file.chunks(part.first, part.rows):
                size = min(file.bytes_of(frame), bytes_left)
                kept = self._kept(self.joins.add(frame).with_row_index(ROW, self.before + self.total), part.path)
                count += len(frame)
                self.counts[part.path], self.kept = count, self.kept + len(kept)
                if len(kept) or self.where is None:
                    yield kept, part.path, part.split
                advance(size)
                bytes_left -= size
            if part.rows is None and not count:
                raise UserError(f"{part.path}: has no rows")
            advance(bytes_left)

    def end(self) -> None:
        """Raise UserError if ``where`` keeps none of the rows."""
        if not self.kept and self.total:
            raise UserError(f"{self.spec.path}: where: {self.spec.where} holds in none of the {self.total:,} rows")

    @property
    def total(self) -> int:
        """Number of rows read in this pass."""
        return sum(self.counts.values())

    def counted(self) -> PassCounts:
        """What :meth:`read` has counted in this pass."""
        counts = {str(path): count for path, count in self.counts.items()}
        return PassCounts(counts, self.kept, self.joins.unmatched)

    def add(self, counted: PassCounts) -> None:
        """Count the rows of a piece that was read elsewhere."""
        for name, count in counted.counts.items():
            self.counts[Path(name)] = self.counts.get(Path(name), 0) + count
        self.kept += counted.kept
        for name, count in counted.unmatched.items():
            self.joins.unmatched[name] += count

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
