"""Rates and counts of a table: the history of a user, an item or a pair of them in the log before each row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRowError
from dlen.data.columns import MISSING, Array
from dlen.data.rates import RateTable, Settings, kept_rates
from dlen.data.sources.cells import LINE, ROW, Rising, id_text, list_of_cells
from dlen.data.sources.expression import Expression
from dlen.data.sources.table_columns import TableColumn, TimeColumn
from dlen.data.sources.table_labels import read_label
from dlen.data.sources.table_spec import FieldSpec, TableSpec, names_of
from dlen.data.store import Store
from dlen.data.writer import StoreWriter
from dlen.errors import UserError
from dlen.hashing import fraction
from dlen.schema import Field, Kind

_BETWEEN = "\x1f"  # separates the values of a multi-column key
_DAY = 86_400_000_000  # microseconds
_TWO_FORMS = (
    "holds {now}, but other rows of the log hold {then}; write it in one form, or make it a field of kind time, "
    "which accepts both"
)
_ROUNDING = 1e-5  # of counts in 32 bits


class Clock:
    """The time of each row, as used for rates.

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

    def periods(self, frame: pl.DataFrame, path: Path, *, new: bool = False) -> Array:
        """(n,) float64. A new row without a time is later than all others; a log row without one raises BadRowError."""
        assert self.column is not None
        values = self.field.moments(frame, path) if self.field else self.rising.read(frame, path)[0]
        if values.null_count() and not new:
            lines = frame.filter(values.is_null())[LINE].to_list()
            raise BadRowError(path, lines, f"column {self.column}: is empty, but rates need this time in every row")
        periods = values.cast(pl.Float64).fill_null(np.inf).to_numpy()
        return np.floor(periods / _DAY) if self.spec.every == "day" else periods

    def folds(self, row: Array) -> Array:
        """(n,) fold of each row, derived from its number."""
        return np.floor(fraction(row, 0) * self.spec.folds)


class RateColumn(TableColumn):
    """A ``rate`` or ``count`` of a table's YAML, as numbers: one per label, and the standardised count of rows.

    Args:
        name: name of the field.
        spec: settings of the field.
        table: spec of the whole table.
        labels: the parsed label of each task.
        scratch: folder for intermediate files; None to restore from a store.
    """

    def __init__(
        self,
        name: str,
        spec: FieldSpec,
        table: TableSpec,
        labels: dict[str, Expression],
        scratch: Path | None = None,
    ) -> None:
        super().__init__(name, spec)
        rate = spec.rate if spec.rate is not None else spec.count
        assert rate is not None
        self.clock, self.path = Clock(table), table.path
        self.names = rate.by
        self.by = [table.fields[b].column if b in table.fields else b for b in rate.by]
        self.separators = [table.fields[b].separator if b in table.fields else "|" for b in rate.by]
        fields = [table.fields.get(b) for b in rate.by]
        self.lists = [f is not None and f.kind == "ids" and not f.weight_separator for f in fields]
        self.tasks = list(labels)
        self.of = rate.of
        self.expressions = {of: Expression(of) for of in rate.of if of not in labels}
        self._check_no_label(labels)
        settings = Settings(len(self.of), self.clock.timed, rate.smoothing, table.rates.rows == "train")
        self.table = RateTable(settings, None if scratch is None else scratch / f"rate-{name}")
        self._training = 0  # training rows
        self._features: Array | None = None
        self._rows = 0

    @property
    def inputs(self) -> list[str]:
        """The columns of the key and of the time."""
        return [*self.by, *([self.clock.column] if self.clock.column else [])]

    @property
    def happened(self) -> list[str]:
        """The columns of the rate's expressions."""
        return [c for e in self.expressions.values() for c in e.columns]

    def _check_no_label(self, labels: dict[str, Expression]) -> None:
        """Reject a key or time computed from outcomes of the row: its own label would leak into its features."""
        outcomes = {c: f"task {task}" for task, e in labels.items() for c in e.columns}
        outcomes |= dict.fromkeys(self.happened, "the rate itself")
        for column in self.inputs:
            if column in outcomes:
                raise UserError(
                    f"{self.path}: fields.{self.name}: column {column} determines {outcomes[column]}, so it can "
                    "be neither key nor time of the rate: a row's own label would be in its features"
                )

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        """Raise BadRowError for rows without a time, or with a label that is neither 0 nor 1."""
        if self.clock.timed:
            self.clock.periods(frame, path)
        for expression in self.expressions.values():
            read_label(frame, path, f"field {self.name}", expression, self.path)

    def show(self, frame: pl.DataFrame, path: Path, where: Array, labels: Array, observed: Array) -> None:
        """Add rows of every split, with labels (n, T) and whether each label counts."""
        row = frame[ROW].to_numpy().astype(np.int64)
        when = self.clock.periods(frame, path) if self.clock.timed else self.clock.folds(row)
        counted, known = [], []
        for of in self.of:
            if of in self.tasks:
                counted.append(labels[:, self.tasks.index(of)])
                known.append(observed[:, self.tasks.index(of)])
            else:
                counted.append(read_label(frame, path, f"field {self.name}", self.expressions[of], self.path))
                known.append(counted[-1] != MISSING)
        shape = (len(self.of), len(frame))
        self.table.add(
            row,
            self._keys(frame, path),
            when,
            where == 0,
            np.array(counted, np.uint8).reshape(shape).T,
            np.array(known, bool).reshape(shape).T,
        )
        self._training += int((where == 0).sum())
        self._rows = max(self._rows, int(row.max(initial=-1)) + 1)

    def freeze(self, writer: StoreWriter) -> None:
        """Count the rows, then scale by mean and deviation of the training rows."""
        self._features = self.table.finish(self._rows, writer.history(self.name))
        # A lift is already centred and in log-odds. Only the count is scaled, with statistics independent of labels.
        rows = max(self._training, 1)  # a split without training rows is reported later
        mean = self.table.count_sum / rows
        deviation = max(self.table.count_squares / rows - mean**2, 0.0) ** 0.5
        self.mean, self.deviation = np.zeros(len(self.of) + 1), np.ones(len(self.of) + 1)
        self.mean[-1] = mean
        if deviation > _ROUNDING * max(mean, 1.0):
            self.deviation[-1] = deviation
        for place, name in self._outputs():
            statistics = {"mean": float(self.mean[place]), "deviation": float(self.deviation[place])}
            output = "count" if place == len(self.of) else str(place)
            key = {"by": self.names, "separators": self.separators}
            writer.statistics[name] = statistics | {"rate": {"history": self.name, "output": output, **key}}
        writer.histories[self.name] = {**self.table.kept(), "dated": self.clock.rising.dated}
        origin = "earlier rows" if self.clock.timed else f"{self.clock.spec.folds} folds"
        writer.notes[f"rate_of_{self.name}"] = f"by {', '.join(self.by)}, from {origin}"

    def restore(self, store: Store) -> None:
        """Load the history of a store."""
        self.table = kept_rates(store, self.name)
        self.clock.rising.dated = store.content["histories"][self.name]["dated"]
        self.mean, self.deviation = np.zeros(len(self.of) + 1), np.ones(len(self.of) + 1)
        for place, name in self._outputs():
            statistics = store.content["statistics"][name]
            self.mean[place], self.deviation[place] = statistics["mean"], statistics["deviation"]

    def fields(self) -> list[Field]:
        """One number per label, and one for the count."""
        return [Field(name, Kind.NUMERIC, self.spec.side) for _, name in self._outputs()]

    def numbers(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        """Features of rows passed to :meth:`show`, or of new rows after :meth:`restore`."""
        if self._features is not None:
            features = self._features[frame[ROW].to_numpy()]
        else:
            when = self.clock.periods(frame, path, new=True) if self.clock.timed else None
            features = self.table.features(self._keys(frame, path), when)
        scaled = (features - self.mean) / self.deviation
        return [scaled[:, place] for place, _ in self._outputs()]

    def _outputs(self) -> list[tuple[int, str]]:
        """Feature index and name of each number: the labels and count of a rate, or only the count."""
        return list(enumerate(names_of(self.name, self.spec)))

    def _keys(self, frame: pl.DataFrame, path: Path) -> pl.Series:
        """(n,) text of the key; null if one of its columns is empty. A list becomes its values, joined as in CSV."""
        parts = zip(self.by, self.separators, self.lists, strict=True)
        cells = [_key(frame, column, separator, path, is_list) for column, separator, is_list in parts]
        return pl.select(pl.concat_str([pl.lit(c) for c in cells], separator=_BETWEEN)).to_series()


def _key(frame: pl.DataFrame, column: str, separator: str, path: Path, is_list: bool) -> pl.Series:
    """(n,) text of a cell; for a list, its values, each as the text of an id."""
    cells = frame[column]
    if not is_list and not cells.dtype.is_nested():
        return id_text(cells, path)
    lists = list_of_cells(frame, column, separator, path)
    if not isinstance(lists.dtype, pl.List):
        raise UserError(f"{path}: column {column}: has type {cells.dtype}, which cannot be a key")
    long = pl.DataFrame({"row": pl.int_range(len(lists), eager=True), "value": lists}).explode("value")
    long = long.with_columns(id_text(long["value"].alias(column), path).alias("value")).drop_nulls("value")
    joined = long.group_by("row").agg(pl.col("value").str.join(separator))
    rows = pl.DataFrame({"row": pl.int_range(len(lists), eager=True)})
    return rows.join(joined, on="row", how="left", maintain_order="left")["value"]
