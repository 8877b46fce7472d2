"""What each kind of table field learns from the training rows, and how it encodes any row afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlen.data.bad_rows import BadRowError
from dlen.data.buckets import bucket_edges
from dlen.data.sample import Sample
from dlen.data.sources.table_spec import TIME_PARTS, FieldSpec
from dlen.data.store import Store, StoreWriter
from dlen.errors import UserError
from dlen.schema import Field, Kind, Pooling

Array = NDArray[Any]
LINE = "__line__"  # number of the row in its file
_PENDING = 1 << 22
_LATEST = 7_258_118_400_000_000  # the year 2200, in microseconds since 1970


class TextVocabulary:
    """Counts strings over chunks, then encodes them: the most frequent is 1, unknown and absent are 0."""

    def __init__(self, min_count: int) -> None:
        self.min_count = min_count
        self._parts: list[pl.DataFrame] = []
        self._pending = 0
        self.frame = pl.DataFrame(schema={"value": pl.String, "count": pl.Int64})

    def add(self, values: pl.Series) -> None:
        """Count a chunk; nulls and empty strings are absent."""
        frame = pl.DataFrame({"value": values}).filter(pl.col("value").is_not_null() & (pl.col("value") != ""))
        self._parts.append(frame.group_by("value").agg(pl.len().cast(pl.Int64).alias("count")))
        self._pending += len(self._parts[-1])
        if self._pending > _PENDING:
            self._merge()

    def _merge(self) -> None:
        self._parts = [pl.concat(self._parts).group_by("value").agg(pl.col("count").sum())]
        self._pending = len(self._parts[0])

    def freeze(self) -> None:
        """Fix the codes."""
        if self._parts:
            self._merge()
            known = self._parts[0].filter(pl.col("count") >= self.min_count)
            self.frame = known.sort(["count", "value"], descending=[True, False])
        self._parts = []
        self._names = pl.Enum(self.frame["value"])

    def restore(self, values: pl.Series) -> None:
        """Take the codes of a store: the i-th value has code i + 1."""
        self.frame = pl.DataFrame({"value": values.cast(pl.String)})
        self._names = pl.Enum(self.frame["value"])

    def __len__(self) -> int:
        return len(self.frame) + 1

    def encode(self, values: pl.Series) -> Array:
        """(n,) codes."""
        known = values.cast(self._names, strict=False).to_physical().cast(pl.Int32)
        return (known + 1).fill_null(0).to_numpy()


class TableColumn(ABC):
    """One entry of ``fields``: first shown the training rows, then frozen, then asked to encode.

    Args:
        name: of the field.
        spec: its settings.
    """

    def __init__(self, name: str, spec: FieldSpec) -> None:
        self.name, self.spec = name, spec

    @property
    def inputs(self) -> list[str]:
        """The columns that every row needs, new ones too."""
        return [self.spec.column]

    @property
    def happened(self) -> list[str]:
        """The further columns that rows of the log need, as they say what happened."""
        return []

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        """Raise BadRowError for rows whose cell cannot be read; an error in ``observe`` would come half-way."""

    def observe(self, frame: pl.DataFrame, path: Path) -> None:
        """Learn from training rows of the file ``path``."""

    def show(self, frame: pl.DataFrame, path: Path, where: Array, labels: Array, observed: Array) -> None:
        """Rows of all splits with their labels, for what is made of the log itself."""

    def freeze(self, writer: StoreWriter) -> None:
        """No more rows will be shown; keep what was learnt in the store."""

    def restore(self, store: Store) -> None:
        """Take what was learnt from the store in which it was kept, instead of learning."""

    @abstractmethod
    def fields(self) -> list[Field]:
        """The schema's fields that this one becomes."""

    def ids(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        """Codes (n,) of each single-valued id field."""
        return []

    def numbers(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        """Values (n,) of each numeric field."""
        return []

    def bag(self, frame: pl.DataFrame, path: Path) -> tuple[Array, Array, Array] | None:
        """Row (L,), code (L,) and weight (L,) of a multi-valued field."""
        return None


class IdColumn(TableColumn):
    """A single-valued id."""

    def __init__(self, name: str, spec: FieldSpec) -> None:
        super().__init__(name, spec)
        self.vocabulary = TextVocabulary(spec.min_count)

    def observe(self, frame: pl.DataFrame, path: Path) -> None:
        self.vocabulary.add(text(frame[self.spec.column]))

    def freeze(self, writer: StoreWriter) -> None:
        self.vocabulary.freeze()
        writer.vocabulary(self.name, self.vocabulary.frame["value"], self.vocabulary.frame["count"])

    def restore(self, store: Store) -> None:
        self.vocabulary.restore(store.vocabulary(self.name)["value"])

    def fields(self) -> list[Field]:
        return [Field(self.name, Kind.ID, self.spec.side, len(self.vocabulary))]

    def ids(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        return [self.vocabulary.encode(text(frame[self.spec.column]))]


class IdsColumn(IdColumn):
    """Several ids in one cell, perhaps with weights, or a Parquet list of them."""

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        self._values(frame, path)

    def observe(self, frame: pl.DataFrame, path: Path) -> None:
        self.vocabulary.add(self._values(frame, path)[1])

    def freeze(self, writer: StoreWriter) -> None:
        super().freeze(writer)
        writer.statistics[self.name] = {"max_values": self.spec.max_values}

    def fields(self) -> list[Field]:
        pooling = Pooling(self.spec.pooling)
        return [Field(self.name, Kind.IDS, self.spec.side, len(self.vocabulary), pooling)]

    def ids(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        return []

    def bag(self, frame: pl.DataFrame, path: Path) -> tuple[Array, Array, Array]:
        row, values, weights = self._values(frame, path)
        return row, self.vocabulary.encode(values), weights

    def _values(self, frame: pl.DataFrame, path: Path) -> tuple[Array, pl.Series, Array]:
        cells = frame[self.spec.column]
        if not isinstance(cells.dtype, pl.List):
            cells = text(cells).str.split(self.spec.separator)
        long = pl.DataFrame({"row": pl.int_range(len(cells), eager=True), "value": cells, LINE: frame[LINE]})
        long = long.explode("value").with_columns(pl.col("value").cast(pl.String).str.strip_chars())
        long = long.filter(pl.col("value").is_not_null() & (pl.col("value") != ""))
        if not self.spec.weight_separator:
            return long["row"].to_numpy(), long["value"], np.ones(len(long), np.float32)
        parts = long["value"].str.splitn(self.spec.weight_separator, 2).struct.unnest()
        weights = parts["field_1"].cast(pl.Float32, strict=False)
        bad = weights.is_null() | ~weights.is_finite()
        if bad.any():
            found = long.filter(bad)
            shape = f"id{self.spec.weight_separator}weight"
            problem = f"field {self.name}: {found['value'][0]!r} is not {shape} with a number"
            raise BadRowError(path, found[LINE].unique(maintain_order=True).to_list(), problem)
        return long["row"].to_numpy(), parts["field_0"], weights.to_numpy()


class NumberColumn(TableColumn):
    """A number, or its logarithm, standardised with mean and deviation of the training rows; absent is the mean."""

    def __init__(self, name: str, spec: FieldSpec) -> None:
        super().__init__(name, spec)
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high = np.inf, -np.inf

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        numbers(frame, self.spec.column, path)

    def observe(self, frame: pl.DataFrame, path: Path) -> None:
        values = self._values(frame, path).drop_nulls().to_numpy()
        if not len(values):
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        # Chan, Golub and LeVeque (1979): exact moments in one pass over any number of chunks.
        mean, total = float(values.mean()), self.count + len(values)
        shift = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + shift**2 * self.count * len(values) / total
        self.mean += shift * len(values) / total
        self.count = total

    def freeze(self, writer: StoreWriter) -> None:
        if not self.count:
            raise UserError(f"field {self.name}: no training row has a number in column {self.spec.column}")
        # Of a constant the sum of squares is rounding, which is no scale.
        self.deviation = float(np.sqrt(self.squares / self.count)) if self.low < self.high else 1.0
        transform = {"transform": "log1p"} if self.spec.transform == "log1p" else {}
        writer.statistics[self.name] = {"mean": self.mean, "deviation": self.deviation, **transform}

    def restore(self, store: Store) -> None:
        kept = store.content["statistics"][self.name]
        self.mean, self.deviation = float(kept["mean"]), float(kept["deviation"])

    def fields(self) -> list[Field]:
        return [Field(self.name, Kind.NUMERIC, self.spec.side)]

    def numbers(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        values = self._values(frame, path).fill_null(self.mean).to_numpy()
        return [(values - self.mean) / self.deviation]

    def _values(self, frame: pl.DataFrame, path: Path) -> pl.Series:
        values = numbers(frame, self.spec.column, path)
        return values.sign() * values.abs().log1p() if self.spec.transform == "log1p" else values


class BucketColumn(TableColumn):
    """A number as the id of its bucket, :func:`bucket_edges`; absent numbers have a bucket of their own.

    Ids: 0 is unknown, which an absent number is where training has none; 1 is absent where training has some; the
    buckets follow in rising order.
    """

    def __init__(self, name: str, spec: FieldSpec) -> None:
        super().__init__(name, spec)
        self.sample, self.absent = Sample(), False

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        numbers(frame, self.spec.column, path)

    def observe(self, frame: pl.DataFrame, path: Path) -> None:
        values = numbers(frame, self.spec.column, path)
        self.absent |= values.null_count() > 0
        self.sample.add(values.drop_nulls().to_numpy())

    def freeze(self, writer: StoreWriter) -> None:
        values = self.sample.sorted()
        if not len(values):
            raise UserError(f"field {self.name}: no training row has a number in column {self.spec.column}")
        self.edges = bucket_edges(values, self.spec.buckets)
        writer.statistics[self.name] = {"edges": self.edges.tolist(), "absent": self.absent}
        if (made := len(self.edges) + 1) < self.spec.buckets:
            writer.notes[f"buckets_of_{self.name}"] = f"{made} of {self.spec.buckets}, one for each value there is"

    def restore(self, store: Store) -> None:
        kept = store.content["statistics"][self.name]
        self.edges, self.absent = np.asarray(kept["edges"]), bool(kept["absent"])

    def fields(self) -> list[Field]:
        return [Field(self.name, Kind.ID, self.spec.side, len(self.edges) + 2 + self.absent)]

    def ids(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        values = numbers(frame, self.spec.column, path)
        bucket = np.searchsorted(self.edges, values.fill_null(0.0).to_numpy(), side="right") + 1 + self.absent
        return [np.where(values.is_null().to_numpy(), int(self.absent), bucket)]


class TimeColumn(TableColumn):
    """Parts of a time stamp, each an id field of its own; an absent stamp is 0."""

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        self._stamps(frame, path)

    def freeze(self, writer: StoreWriter) -> None:
        for part in self.spec.parts:
            first = int(part != "hour")  # of days and months the first is 1
            writer.statistics[f"{self.name}_{part}"] = {"range": [first, first + TIME_PARTS[part] - 1]}

    def fields(self) -> list[Field]:
        return [Field(f"{self.name}_{p}", Kind.ID, self.spec.side, TIME_PARTS[p] + 1) for p in self.spec.parts]

    def ids(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        stamps = self._stamps(frame, path) + pl.duration(seconds=round(3600 * self.spec.utc_offset))
        part = {
            "hour": stamps.dt.hour().cast(pl.Int32) + 1,
            "weekday": stamps.dt.weekday().cast(pl.Int32),
            "day": stamps.dt.day().cast(pl.Int32),
            "month": stamps.dt.month().cast(pl.Int32),
        }
        chosen = frame.select(**{p: part[p].fill_null(0) for p in self.spec.parts})
        return [chosen[p].to_numpy() for p in self.spec.parts]

    def moments(self, frame: pl.DataFrame, path: Path) -> pl.Series:
        """(n,) local time in microseconds; null where there is none."""
        stamps = self._stamps(frame, path) + pl.duration(seconds=round(3600 * self.spec.utc_offset))
        return frame.select(when=stamps.cast(pl.Datetime("us")).cast(pl.Int64))["when"]

    def _stamps(self, frame: pl.DataFrame, path: Path) -> pl.Expr:
        column = frame[self.spec.column]
        if column.dtype.is_temporal():
            return pl.lit(column.cast(pl.Datetime("us")))
        if not self.spec.format:
            scale = 1_000_000 if self.spec.unit == "s" else 1000
            stamps = numbers(frame, self.spec.column, path) * scale
            unit = f"{self.spec.unit} since 1970 before the year 2200 (is the unit right?)"
            _refuse(frame, ~stamps.is_between(0, _LATEST), self.spec.column, path, f"not a time in {unit}")
            moments = stamps.cast(pl.Int64)
            return pl.lit(moments.cast(pl.Datetime("us")))
        written = text(column)
        parsed = written.str.to_datetime(self.spec.format, strict=False, time_unit="us")
        _refuse(
            frame,
            parsed.is_null() & (written != ""),
            self.spec.column,
            path,
            f"not a time like {self.spec.format}",
        )
        return pl.lit(parsed)


def make_column(name: str, spec: FieldSpec) -> TableColumn:
    """The column class for a field's kind."""
    kinds: dict[str, type[TableColumn]] = {"id": IdColumn, "ids": IdsColumn, "time": TimeColumn}
    if spec.kind == "numeric":
        return BucketColumn(name, spec) if spec.transform == "quantile" else NumberColumn(name, spec)
    return kinds[spec.kind](name, spec)


def numbers(frame: pl.DataFrame, column: str, path: Path) -> pl.Series:
    """A column as finite floats, null where the cell is empty; BadRowError for any other cell."""
    cells = frame[column]
    if cells.dtype.is_nested():
        raise UserError(f"{path}: column {column}: holds {cells.dtype}, not numbers")
    if isinstance(cells.dtype, pl.Categorical | pl.Enum):
        cells = cells.cast(pl.String)
    if cells.dtype == pl.String:
        cells = cells.set(cells == "", None)
    try:
        values = cells.cast(pl.Float64, strict=False)
    except pl.exceptions.PolarsError:
        raise UserError(f"{path}: column {column}: holds {cells.dtype}, not numbers") from None
    _refuse(frame, cells.is_not_null() & values.is_null(), column, path, "not a number")
    _refuse(frame, values.is_not_null() & ~values.is_finite(), column, path, "not a finite number")
    return values


def rising_numbers(frame: pl.DataFrame, column: str, path: Path) -> pl.Series:
    """A column that orders rows in time: any :func:`numbers`, or a date or time stamp in microseconds."""
    if frame[column].dtype in (pl.Date, pl.Datetime):
        frame = frame.with_columns(pl.col(column).cast(pl.Datetime("us")).cast(pl.Int64))
    return numbers(frame, column, path)


def _refuse(frame: pl.DataFrame, bad: pl.Series, column: str, path: Path, why: str) -> None:
    if bad.any():
        found = frame.filter(bad)
        raise BadRowError(path, found[LINE].to_list(), f"column {column}: {found[column][0]!r} is {why}")


def text(cells: pl.Series) -> pl.Series:
    """Cells of any type as text."""
    return cells if cells.dtype == pl.String else cells.cast(pl.String)
