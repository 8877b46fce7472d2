"""Vectors of a table: fixed-size lists of numbers in its rows, or in a joined table, where each is kept once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRowError
from dlen.data.columns import Array
from dlen.data.sources.cells import LINE, lists_or_empty
from dlen.data.sources.table_columns import Append, KeptRows, TableColumn
from dlen.data.sources.table_spec import FieldSpec
from dlen.data.writer import PartWriter, StoreWriter
from dlen.errors import UserError
from dlen.schema import Field, Kind

if TYPE_CHECKING:  # processes that prepare a piece of the log import no torch, which takes a second
    from dlen.data.store import Store

_PIECE = 1 << 22  # numbers converted to 64 bits at a time
_ROUNDING = 1e-12  # relative to the numbers; a smaller deviation is rounding error of a constant, not a scale


@dataclass(slots=True)
class _Part:
    """The m vectors of a chunk of a file.

    Attributes:
        values: (m, d) float32.
        lines: (m,) row of each one in the file.
    """

    path: Path
    values: Array
    lines: Array


class _Scale:
    """Mean of each dimension, and one deviation for all of them, the root of their mean variance.

    One deviation keeps the angles and distances between vectors, which are what they were trained for. A deviation for
    each dimension would make those that hardly vary as loud as the others.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Array = np.zeros(0)
        self.deviation, self._squares, self._largest = 1.0, 0.0, 0.0

    def observe(self, values: Array, times: Array | None = None) -> None:
        """Learn from (m, d) vectors, each of which occurs ``times`` (m,); by default once."""
        for first, piece in _pieces(values):
            weights = np.ones(len(piece)) if times is None else times[first : first + len(piece)]
            if not (n := int(weights.sum())):
                continue
            # Chan, Golub and LeVeque (1979): exact moments in one pass over any number of pieces.
            mean, largest = weights @ piece / n, float(np.abs(piece[weights > 0]).max())
            self._add(n, mean, float((weights @ (piece - mean) ** 2).sum()), largest)

    def _add(self, n: int, mean: Array, squares: float, largest: float) -> None:
        total, shift = self.count + n, mean - (self.mean if self.count else 0.0)
        self._squares += squares
        self._squares += float((shift**2).sum()) * self.count * n / total
        self.mean = mean if not self.count else self.mean + shift * n / total
        self.count, self._largest = total, max(self._largest, largest)

    def merge(self, other: _Scale) -> None:
        """Add what another scale learned."""
        if other.count:
            self._add(other.count, other.mean, other._squares, other._largest)

    def finish(self) -> None:
        """Compute the deviation."""
        deviation = float(np.sqrt(self._squares / (self.count * len(self.mean))))
        self.deviation = deviation if deviation > _ROUNDING * self._largest else 1.0

    def __call__(self, part: _Part, column: str) -> Array:
        """(m, d) float32 scaled vectors."""
        scaled = np.empty_like(part.values)
        with np.errstate(over="ignore"):
            for first, piece in _pieces(part.values):
                scaled[first : first + len(piece)] = (piece - self.mean) / self.deviation
        bad = ~np.isfinite(scaled).all(1)
        if bad.any():
            problem = f"column {column}: is too far outside the range of the training rows"
            raise BadRowError(part.path, part.lines[bad].tolist(), problem)
        return scaled


class VectorColumn(TableColumn):
    """``kind: vector``: a list of d numbers in each cell, scaled by :class:`_Scale`; a missing one becomes the mean, 0.

    Vectors of the rows themselves are stored one by one. Those of a joined table, which :class:`Joins` passes to
    :meth:`join`, are stored once, if any row has them, and are looked up by their row in that table.
    """

    def __init__(self, name: str, spec: FieldSpec) -> None:
        super().__init__(name, spec)
        self.size = 0
        self.scale = _Scale()
        self._row = ""  # column with the row in the joined table
        self._joined: list[_Part] = []
        self._place = np.zeros(1, np.int32)  # by 1 + row in the joined table: 1 + number of its vector, or 0
        self._times = self._used = np.zeros(0, np.int64)  # of each joined vector, in training rows and in all rows
        self._append: Append  # of the store, or of the rows that are kept for new ones
        self._table: Array | None = None

    @property
    def joined(self) -> int:
        """Number of vectors of a joined table, each of which is stored at most once; 0 for vectors of the rows."""
        return len(self._times)

    def join(self, frame: pl.DataFrame, path: Path, row: str) -> None:
        """Take the vectors of further rows of a joined table, whose row number is in the column ``row`` of the rows."""
        part, present = self._read(frame, path)
        numbers = np.where(present, len(self._times) + np.cumsum(present), 0).astype(np.int32)
        self._row, self._place = row, np.append(self._place, numbers)
        self._times = np.append(self._times, np.zeros(len(part.values), np.int64))
        self._used = np.zeros_like(self._times)
        self._joined += [part] if len(part.values) else []

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        """Raise BadRowError for rows with an unreadable vector; those of a joined table have been read before."""
        if not self._row:
            self._read(frame, path)

    def observe(self, frame: pl.DataFrame, path: Path) -> None:
        """Learn the scale, in which a joined vector counts once for each training row that has it."""
        if self._row:
            self._times += self._uses(frame)
        else:
            self.scale.observe(self._read(frame, path)[0].values)

    def show(self, frame: pl.DataFrame, path: Path, where: Array, labels: Array, observed: Array) -> None:
        """Find out which joined vectors any row has."""
        if self._row:
            self._used += self._uses(frame)

    def forget_joined(self) -> None:
        """Leave only what :meth:`merge` needs."""
        self._joined, self._place = [], self._place[:0]

    def agrees(self, other: Self) -> bool:
        return 0 in (self.size, other.size) or self.size == other.size

    def merge(self, other: Self) -> None:
        self.size = self.size or other.size
        self.scale.merge(other.scale)
        self._times, self._used = self._times + other._times, self._used + other._used

    def freeze(self, writer: StoreWriter) -> None:
        """Finish the scale, and write joined vectors."""
        for part, (first, last) in self._ranges():
            self.scale.observe(part.values, self._times[first:last])
        if not self.scale.count:
            raise UserError(f"field {self.name}: no training row has a vector in column {self.spec.column}")
        self.scale.finish()
        writer.statistics[self.name] = {"mean": self.scale.mean.tolist(), "deviation": self.scale.deviation}
        if self._row:
            self._write_joined(writer.beside)

    def _write_joined(self, beside: PartWriter) -> None:
        """Write the joined vectors that a row has, and keep their places."""
        append, used = beside.vectors(self.name, self.size).append, self._used > 0
        for part, (first, last) in self._ranges():
            kept = used[first:last]
            append(self.scale(_Part(part.path, part.values[kept], part.lines[kept]), self.spec.column))
        self._place = np.append(0, np.where(used, np.cumsum(used), 0)).astype(np.int32)[self._place]
        self._joined = []

    def begin(self, shard: PartWriter) -> None:
        if not self._row:
            self._append = shard.vectors(self.name, self.size).append

    def extend(self, writer: StoreWriter) -> None:
        """Write the joined vectors that a row of an appended day has."""
        if self._row:
            self._write_joined(writer.beside)

    def restore(self, store: Store) -> None:
        statistics = store.content["statistics"][self.name]
        self.scale.mean, self.scale.deviation = np.array(statistics["mean"]), float(statistics["deviation"])
        self.size = len(self.scale.mean)
        self._kept = KeptRows(np.zeros((1, self.size), np.float32))
        self._append = self._kept.append

    def notes(self) -> dict[str, str]:
        missing = self.encoded["missing"] / max(self.encoded["rows"], 1)
        return {f"vectors_of_{self.name}": f"{self.size} numbers; {missing:.2%} of rows have none"}

    def fields(self) -> list[Field]:
        return [Field(self.name, Kind.VECTOR, self.spec.side, size=self.size)]

    def index(self, frame: pl.DataFrame, path: Path) -> Array:
        """(n,) int32 row of each row's vector among those stored, to which vectors of the rows themselves are added."""
        if self._row:
            rows = self._numbers(frame)
        else:
            part, present = self._read(frame, path)
            first = self._append(self.scale(part, self.spec.column))
            rows = np.where(present, first - 1 + np.cumsum(present), 0).astype(np.int32)
        self.encoded.update({"rows": len(rows), "missing": int((rows == 0).sum())})
        return rows

    def stored(self) -> Array:
        """(1 + m, d) vectors that the latest new rows refer to, after one of zeros."""
        if not self._row:
            return self._kept.take()
        if self._table is None:
            for part in self._joined:
                self._kept.append(self.scale(part, self.spec.column))
            self._table, self._joined = self._kept.take(), []
        return self._table

    def _ranges(self) -> Iterator[tuple[_Part, tuple[int, int]]]:
        """The joined vectors, with the first and last number of each part."""
        first = 0
        for part in self._joined:
            yield part, (first, first + len(part.values))
            first += len(part.values)

    def _numbers(self, frame: pl.DataFrame) -> Array:
        """(n,) 1 + number of the joined vector of each row; 0 for none."""
        rows: Array = self._place[(frame[self._row].cast(pl.Int64) + 1).fill_null(0).to_numpy()]
        return rows

    def _uses(self, frame: pl.DataFrame) -> Array:
        """How many rows have each joined vector."""
        return np.bincount(self._numbers(frame), minlength=1 + len(self._times))[1:]

    def _read(self, frame: pl.DataFrame, path: Path) -> tuple[_Part, Array]:
        """The vectors of n rows, and (n,) whether a row has one.

        Raises:
            UserError: the column holds no lists of numbers.
            BadRowError: a list has another length than most, or an entry that is not a finite number.
        """
        column = self.spec.column
        lists = lists_or_empty(frame, column, self.spec.separator, path)
        inner = lists.dtype.inner if isinstance(lists.dtype, pl.List) else lists.dtype
        if not inner.is_numeric() and inner not in (pl.String, pl.Boolean, pl.Null):
            raise UserError(f"{path}: column {column}: has type {frame[column].dtype}, expected lists of numbers")
        lengths, lines = lists.list.len().to_numpy(), frame[LINE].to_numpy()
        present = lengths > 0
        if not self.size and present.any():  # that of most vectors, so that a wrong first one is told from the others
            self.size = int(Counter(lengths[present].tolist()).most_common(1)[0][0])
        wrong = present & (lengths != self.size)
        if wrong.any():
            problem = f"column {column}: has {lengths[wrong][0]} numbers, but other vectors have {self.size}"
            raise BadRowError(path, lines[wrong].tolist(), problem)
        flat = lists.filter(pl.Series(present)).explode()
        numbers = flat.str.strip_chars().cast(pl.Float64, strict=False) if inner == pl.String else flat
        values = numbers.cast(pl.Float32, strict=False).fill_null(np.nan).to_numpy().reshape(-1, max(self.size, 1))
        bad = ~np.isfinite(values)
        if bad.any():
            problem = f"column {column}: {flat[int(bad.argmax())]!r} is not a finite number of 32 bits"
            raise BadRowError(path, lines[present][bad.any(1)].tolist(), problem)
        return _Part(path, values, lines[present]), present


def _pieces(values: Array) -> Iterator[tuple[int, Array]]:
    """Vectors in 64 bits, some at a time, each time with the number of the first one."""
    step = max(_PIECE // max(values.shape[1], 1), 1)
    for first in range(0, len(values), step):
        yield first, values[first : first + step].astype(np.float64)


def vectors_of(columns: Sequence[TableColumn]) -> list[VectorColumn]:
    """The columns that hold vectors."""
    return [column for column in columns if isinstance(column, VectorColumn)]
