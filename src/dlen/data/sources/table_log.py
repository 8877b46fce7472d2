"""What rates and histories share: the time and key of each row of the log, and the labels that they look at."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRowError
from dlen.data.columns import MISSING, Array
from dlen.data.partitions import BETWEEN, KeyPartitions
from dlen.data.sources.cells import LINE, ROW, Rising, id_text, listed_ids
from dlen.data.sources.expression import Expression, read_label
from dlen.data.sources.table_columns import TableColumn, TimeColumn
from dlen.data.sources.table_spec import FieldSpec, TableSpec
from dlen.errors import UserError
from dlen.hashing import fraction

_DAY = 86_400_000_000  # microseconds
_TWO_FORMS = (
    "holds {now}, but other rows of the log hold {then}; write it in one form, or make it a field of kind time, "
    "which accepts both"
)


class Clock:
    """The time of each row, as used for rates and histories.

    Args:
        spec: spec of the table.
    """

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec.rates
        fields = {name: f for name, f in spec.fields.items() if f.kind == "time"}
        name = self.spec.time
        if not name:
            name = next(iter(fields), spec.split.column if spec.split.by == "time" else "none")
        self.field = TimeColumn(name, fields[name]) if name in fields else None
        self.column = None if name == "none" else fields[name].column if self.field else name
        self.rising = Rising(str(self.column), _TWO_FORMS)
        if self.spec.every == "day" and self.field is None:
            raise UserError(f"{spec.path}: rates.every: day needs rates.time to name a field of kind time")

    @property
    def timed(self) -> bool:
        """Whether there is a time at all."""
        return self.column is not None

    @property
    def unit(self) -> float:
        """Seconds in a unit of :meth:`periods`, known once rows were read; 1 for a column of plain numbers."""
        if self.spec.every == "day":
            return 86_400.0
        return 1e-6 if self.field or self.rising.dated else 1.0

    @property
    def seconds(self) -> dict[str, float] | None:
        """How seconds since 1970 become a time in seconds here: hours to add, then rounding down to a step."""
        if not (self.field or self.rising.dated):
            return None
        offset = self.field.spec.utc_offset if self.field else 0.0
        return {"utc_offset": offset, "step": 86_400.0 if self.spec.every == "day" else 0.0}

    def periods(self, frame: pl.DataFrame, path: Path, *, new: bool = False) -> Array:
        """(n,) float64. A new row without a time is later than all others; a log row without one raises BadRowError."""
        assert self.column is not None
        if new and self.column not in frame.columns:
            return np.full(len(frame), np.inf)
        values = self.field.moments(frame, path) if self.field else self.rising.read(frame, path)[0]
        if values.null_count() and not new:
            lines = frame.filter(values.is_null())[LINE].to_list()
            raise BadRowError(
                path, lines, f"column {self.column}: is empty, but rates and histories need this time in every row"
            )
        periods = values.cast(pl.Float64).fill_null(np.inf).to_numpy()
        return np.floor(periods / _DAY) if self.spec.every == "day" else periods

    def folds(self, row: Array) -> Array:
        """(n,) fold of each row, derived from its number."""
        return np.floor(fraction(row, 0) * self.spec.folds)


def check_time(spec: TableSpec) -> None:
    """Raise UserError if the time of the rows is not set and the spec names several.

    One of them may be the time at which a user joined, by which rows would see later ones.
    """
    names = times_of(spec)
    if not spec.rates.time and len(names) > 1:
        listed = ", ".join(names)
        raise UserError(f"{spec.path}: rates.time: must name the time at which a row happened, one of {listed}")


def times_of(spec: TableSpec) -> list[str]:
    """The times that a spec names, by a field of kind time or by a split by time, each column once."""
    by_column: dict[str, str] = {}
    for name, field in spec.fields.items():
        if field.kind == "time":
            by_column.setdefault(field.column, name)
    if spec.split.by == "time":
        by_column.setdefault(spec.split.column, spec.split.column)
    return list(by_column.values())


class LogColumn(TableColumn):
    """A feature that is computed from the log itself: from the earlier rows with the same key.

    Args:
        name: name of the field.
        spec: settings of the field.
        table: spec of the whole table.
        labels: the parsed label of each task.
        by: fields or columns that form the key.
        looked_at: tasks or label expressions that the feature looks at.
    """

    def __init__(
        self,
        name: str,
        spec: FieldSpec,
        table: TableSpec,
        labels: dict[str, Expression],
        by: list[str],
        looked_at: list[str],
    ) -> None:
        super().__init__(name, spec)
        self.clock, self.path = Clock(table), table.path
        self.names = by
        self.by = [table.fields[b].column if b in table.fields else b for b in by]
        self.separators = [table.fields[b].separator if b in table.fields else "|" for b in by]
        fields = [table.fields.get(b) for b in by]
        self.lists = [f is not None and f.kind == "ids" and not f.weight_separator for f in fields]
        self.tasks = list(labels)
        self.expressions = {of: Expression(of) for of in looked_at if of not in labels}
        self._check_no_label(labels)
        self.rows = 0  # an upper bound of the row numbers shown

    @property
    def inputs(self) -> list[str]:
        return [*self.by, *([self.clock.column] if self.clock.column else [])]

    @property
    def happened(self) -> list[str]:
        return [c for e in self.expressions.values() for c in e.columns]

    def _check_no_label(self, labels: dict[str, Expression]) -> None:
        """Reject a key or time computed from outcomes of the row: its own label would leak into its features."""
        outcomes = {c: f"task {task}" for task, e in labels.items() for c in e.columns}
        outcomes |= dict.fromkeys(self.happened, "an expression of this field")
        for column in self.inputs:
            if column in outcomes:
                raise UserError(
                    f"{self.path}: fields.{self.name}: column {column} determines {outcomes[column]}, so it can "
                    f"be neither key nor time of a {self.spec.kind}: a row's own label would be in its features"
                )

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        """Raise BadRowError for rows without a time, or with a label that is neither 0 nor 1."""
        if self.clock.timed:
            self.clock.periods(frame, path)
        for expression in self.expressions.values():
            read_label(frame, path, f"field {self.name}", expression, self.path)

    @property
    def partitions(self) -> KeyPartitions:
        """The rows shown, by their key."""
        raise NotImplementedError

    def begin_piece(self, piece: int) -> None:
        self.partitions.begin(piece)

    def pack(self) -> None:
        self.partitions.pack()

    def agrees(self, other: Self) -> bool:
        return self.clock.rising.agrees(other.clock.rising)

    def merge(self, other: Self) -> None:
        self.clock.rising.merge(other.clock.rising)
        self.partitions.merge(other.partitions)
        self.rows = max(self.rows, other.rows)

    def numbered(self, frame: pl.DataFrame) -> Array:
        """(n,) int64 numbers of rows that are shown."""
        row = frame[ROW].to_numpy().astype(np.int64)
        self.rows = max(self.rows, int(row.max(initial=-1)) + 1)
        return row

    def label(self, of: str, frame: pl.DataFrame, path: Path, labels: Array, observed: Array) -> tuple[Array, Array]:
        """(n,) label of a task or expression, and (n,) whether it counts."""
        if of in self.tasks:
            return labels[:, self.tasks.index(of)], observed[:, self.tasks.index(of)]
        values = read_label(frame, path, f"field {self.name}", self.expressions[of], self.path)
        return values, values != MISSING

    def keys(self, frame: pl.DataFrame, path: Path) -> pl.Series:
        """(n,) text of the key; null if one of its columns is empty. A list becomes its values, joined as in CSV."""
        parts = zip(self.by, self.separators, self.lists, strict=True)
        cells = [_key(frame, column, separator, path, is_list) for column, separator, is_list in parts]
        return pl.select(pl.concat_str([pl.lit(c) for c in cells], separator=BETWEEN)).to_series()


def _key(frame: pl.DataFrame, column: str, separator: str, path: Path, is_list: bool) -> pl.Series:
    """(n,) text of a cell; for a list, its values, each as the text of an id."""
    cells = frame[column]
    if not is_list and not cells.dtype.is_nested():
        return id_text(cells, path)
    joined = listed_ids(frame, column, separator, path).group_by("row").agg(pl.col("value").str.join(separator))
    rows = pl.DataFrame({"row": pl.int_range(len(frame), eager=True)})
    return rows.join(joined, on="row", how="left", maintain_order="left")["value"]
