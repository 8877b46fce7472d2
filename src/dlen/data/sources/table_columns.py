"""What each kind of table field learns from the training rows, and how it encodes rows afterwards."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRowError
from dlen.data.buckets import bucket_edges
from dlen.data.columns import MISSING, Array
from dlen.data.sample import Sample
from dlen.data.sources.cells import (
    HASH_BYTES,
    LARGEST,
    LINE,
    hashes,
    id_text,
    list_of_cells,
    listed_ids,
    moments,
    numbers,
    refuse,
    text_of,
)
from dlen.data.sources.table_spec import TIME_PARTS, FieldSpec
from dlen.data.vocabulary import enough_to_merge
from dlen.data.writer import PartWriter, StoreWriter
from dlen.errors import UserError
from dlen.schema import Field, Kind, Pooling, View

if TYPE_CHECKING:  # processes that prepare a piece of the log import no torch, which takes a second
    from dlen.data.store import Store

_PORTION = 1 << 21  # strings whose counts are summed at once
_PORTIONS = 64  # at most, as each looks at the hashes of all strings
_ROUNDING = 1e-12  # relative to the numbers; a smaller deviation is rounding error of a constant, not a scale


class TextVocabulary:
    """Counts strings over chunks, then encodes them. The most frequent one is 1; unknown and absent strings are 0.

    A restored vocabulary grows: strings that it does not have yet get the next codes, and no code changes.
    """

    def __init__(self, min_count: int) -> None:
        self.min_count = min_count
        self._parts: list[pl.DataFrame] = []
        self._pending = self._merged = 0  # strings of the parts that are not merged yet, and of those that are
        self.frame = pl.DataFrame(schema={"value": pl.String, "count": pl.Int64})

    def add(self, values: pl.Series) -> None:
        """Count a chunk; nulls are absent."""
        frame = pl.DataFrame({"value": values}).drop_nulls()
        self._add([frame.group_by("value").agg(pl.len().cast(pl.Int64).alias("count"))])

    def merge(self, other: TextVocabulary) -> None:
        """Add what another vocabulary counted."""
        self._add(other._parts)

    def _add(self, parts: list[pl.DataFrame]) -> None:
        self._parts += parts
        self._pending += sum(map(len, parts))
        if enough_to_merge(self._pending, self._merged):
            self._merge()

    def pack(self) -> None:
        """Count each string once."""
        if self._parts:
            self._merge()

    def _merge(self) -> None:
        # In portions, by the hash of a string, as summing takes 200 bytes for each
        portions = min(1 + (self._pending + self._merged) // _PORTION, _PORTIONS)
        parts = [(part, part["value"].hash(0) % portions) for part in self._parts]
        self._parts = [
            pl.concat([part.filter(of_part == number) for part, of_part in parts])
            .group_by("value")
            .agg(pl.col("count").sum())
            for number in range(portions)
        ]
        self._pending, self._merged = 0, sum(map(len, self._parts))

    def freeze(self) -> pl.DataFrame:
        """Fix the codes. Returns the strings that are new, with their counts."""
        counted = self.frame.clear()
        if self._parts:
            self._merge()
            counted = pl.concat(self._parts)
        self._parts = []
        new = counted.filter(pl.col("count") >= self.min_count)
        if len(self.frame):  # a join takes as much memory as the counts themselves
            counts = self.frame.join(counted, on="value", how="left", maintain_order="left")["count_right"].fill_null(0)
            self.frame = self.frame.with_columns(counts.alias("count"))
            new = new.join(self.frame, on="value", how="anti")
        new = new.sort(["count", "value"], descending=[True, False])
        self.frame = pl.concat([self.frame, new])
        self._names = pl.Enum(self.frame["value"])
        return new

    def restore(self, values: pl.Series) -> None:
        """Load the codes of a store: the i-th value has code i + 1."""
        self.frame = pl.DataFrame({"value": values.cast(pl.String)}).with_columns(count=pl.lit(0, pl.Int64))
        self._names = pl.Enum(self.frame["value"])

    def __len__(self) -> int:
        return len(self.frame) + 1

    def encode(self, values: pl.Series) -> Array:
        """(n,) codes."""
        known = values.cast(self._names, strict=False).to_physical().cast(pl.Int32)
        return (known + 1).fill_null(0).to_numpy()


class HashedIds:
    """Encodes strings by a hash into a number of buckets, 1 to ``buckets``, without a vocabulary. Absent strings are 0.

    The code of a string depends on nothing but the string and the number of buckets.
    """

    def __init__(self, buckets: int) -> None:
        self.buckets = buckets

    def __len__(self) -> int:
        return self.buckets + 1

    def encode(self, values: pl.Series) -> Array:
        """(n,) codes."""
        codes = np.zeros(len(values), np.int32)
        present = values.is_not_null()
        codes[present.to_numpy()] = 1 + hashes(values.filter(present)) % np.uint64(self.buckets)
        return codes

    def statistics(self) -> dict[str, Any]:
        """How a server encodes a string, as in the export's schema.json."""
        return {"hash": {"function": "blake2b", "digest_size": HASH_BYTES, "buckets": self.buckets}}


Codes = TextVocabulary | HashedIds


Append = Callable[[Array], int]  # stores rows of an array, and returns where the first one is


class KeptRows:
    """Rows that are kept in memory for new rows, where preparing writes them to the store.

    Args:
        start: what comes before them, and tells their width and type.
    """

    def __init__(self, start: Array) -> None:
        self._start, self._parts = start, [start]

    def append(self, rows: Array) -> int:
        """Add rows. Returns where the first one is."""
        first = sum(map(len, self._parts))
        self._parts.append(rows)
        return first

    def take(self) -> Array:
        """All rows since the last call."""
        parts, self._parts = self._parts, [self._start]
        return np.concatenate(parts)


class TableColumn(ABC):
    """One entry of ``fields``. It first observes the training rows, is then frozen, and then encodes rows.

    Args:
        name: name of the field.
        spec: settings of the field.
    """

    def __init__(self, name: str, spec: FieldSpec) -> None:
        self.name, self.spec = name, spec
        self.encoded: Counter[str] = Counter()  # what notes() tells about encoded rows

    @property
    def inputs(self) -> list[str]:
        """Columns that every row needs, including new rows."""
        return [self.spec.column]

    @property
    def happened(self) -> list[str]:
        """Further columns that rows of the log need because they record outcomes."""
        return []

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        """Raise BadRowError for rows with an unreadable cell, before ``observe`` could fail half-way."""

    def observe(self, frame: pl.DataFrame, path: Path) -> None:
        """Learn from training rows of the file ``path``."""

    def show(self, frame: pl.DataFrame, path: Path, where: Array, labels: Array, observed: Array) -> None:
        """Process rows of all splits with their labels, for features computed from the log itself."""

    def begin_piece(self, piece: int) -> None:
        """Begin to learn from the rows of a piece of the log."""

    def pack(self) -> None:
        """Write or shorten what was learned, after a piece."""

    def agrees(self, other: Self) -> bool:
        """Whether what ``other`` learned from the piece that follows can be added."""
        return True

    def merge(self, other: Self) -> None:
        """Add what a packed column learned from the rows of the piece that follows, from none before it."""

    def occurrences(self, frame: pl.DataFrame, path: Path) -> dict[str, tuple[Array, pl.Series]]:
        """Row (L,) and text (L,) of each id in rows, by the field whose vocabulary counts it; null if absent."""
        return {}

    def freeze(self, writer: StoreWriter) -> None:
        """Finish learning and write the result to the store."""

    def begin(self, shard: PartWriter) -> None:
        """Prepare to encode the rows of a shard, which keeps what only they point to."""

    def restore(self, store: Store) -> None:
        """Load what was learned from a store."""

    def grow(self, frame: pl.DataFrame, path: Path) -> None:
        """Learn from rows of an appended day, after :meth:`restore`: new ids alone, while scales and buckets stay."""

    def extend(self, writer: StoreWriter) -> None:
        """Finish an appended day and write what it adds to the store."""

    def notes(self) -> dict[str, str]:
        """Notes for the user about encoded rows."""
        return {}

    @abstractmethod
    def fields(self) -> list[Field]:
        """Schema fields of this entry."""

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
    """A single-valued id.

    Args:
        vocabulary: the vocabulary of the field whose ids this one shares; None for its own.
    """

    def __init__(self, name: str, spec: FieldSpec, vocabulary: Codes | None = None) -> None:
        super().__init__(name, spec)
        made = HashedIds(spec.hash) if spec.hash else TextVocabulary(spec.min_count)
        self.vocabulary: Codes = made if vocabulary is None else vocabulary

    def observe(self, frame: pl.DataFrame, path: Path) -> None:
        self.observe_texts(self.texts(frame, path))

    @property
    def own(self) -> TextVocabulary | None:
        """The vocabulary for which the field counts ids; None if it hashes them, or shares those of another field."""
        return None if isinstance(self.vocabulary, HashedIds) or self.spec.share else self.vocabulary

    def observe_texts(self, texts: pl.Series) -> None:
        """Count the ids of training rows; those of a shared vocabulary are counted by the field that it belongs to."""
        if self.own is not None:
            self.own.add(texts)

    def occurrences(self, frame: pl.DataFrame, path: Path) -> dict[str, tuple[Array, pl.Series]]:
        return {self.name: (np.arange(len(frame)), self.texts(frame, path))} if self.own is not None else {}

    def pack(self) -> None:
        if self.own is not None:
            self.own.pack()

    def merge(self, other: Self) -> None:
        if self.own is not None and other.own is not None:
            self.own.merge(other.own)

    def texts(self, frame: pl.DataFrame, path: Path) -> pl.Series:
        """The id of each value as text; null if absent."""
        return id_text(frame[self.spec.column], path)

    def freeze(self, writer: StoreWriter) -> None:
        if self.spec.share:
            return
        if isinstance(self.vocabulary, HashedIds):
            writer.statistics[self.name] = self.vocabulary.statistics()
            return
        new = self.vocabulary.freeze()
        writer.vocabulary(self.name, new["value"], new["count"])

    def grow(self, frame: pl.DataFrame, path: Path) -> None:
        self.observe(frame, path)

    def extend(self, writer: StoreWriter) -> None:
        if self.own is not None:
            self.freeze(writer)

    def restore(self, store: Store) -> None:
        if self.own is not None:
            self.own.restore(store.vocabulary(self.name)["value"])

    def fields(self) -> list[Field]:
        return [self.field(Kind.ID)]

    def field(self, kind: Kind) -> Field:
        """The schema field of the ids."""
        spec = self.spec
        return Field(self.name, kind, spec.side, len(self.vocabulary), share=spec.share, dim=spec.dim)

    def ids(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        return [self.vocabulary.encode(self.texts(frame, path))]


class IdsColumn(IdColumn):
    """Several ids in one cell, optionally with weights, or a Parquet list of ids."""

    def notes(self) -> dict[str, str]:
        if not self.encoded["cut"]:
            return {}
        which = "first" if self.spec.keep == "heaviest" and not self.spec.weight_separator else self.spec.keep
        hint = "; keep: last would keep the newest of a history" if which == "first" else ""
        share = f"{self.encoded['cut'] / self.encoded['rows']:.2%} have more than {self.spec.max_values} values"
        return {f"lists_of_{self.name}": f"{share} and keep the {which}{hint}"}

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        self._values(frame, path)

    def texts(self, frame: pl.DataFrame, path: Path) -> pl.Series:
        return self._values(frame, path)[1]

    def occurrences(self, frame: pl.DataFrame, path: Path) -> dict[str, tuple[Array, pl.Series]]:
        return {self.name: self._values(frame, path)[:2]} if self.own is not None else {}

    def freeze(self, writer: StoreWriter) -> None:
        super().freeze(writer)
        keep = {} if self.spec.keep == "heaviest" else {"keep": self.spec.keep}
        writer.statistics.setdefault(self.name, {}).update({"max_values": self.spec.max_values, **keep})

    def fields(self) -> list[Field]:
        return [replace(self.field(Kind.IDS), pooling=Pooling(self.spec.pooling))]

    def ids(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        return []

    def bag(self, frame: pl.DataFrame, path: Path) -> tuple[Array, Array, Array]:
        row, values, weights = self._values(frame, path)
        self.encoded["rows"] += len(frame)
        self.encoded["cut"] += int((np.bincount(row, minlength=1) > self.spec.max_values).sum())
        return row, self.vocabulary.encode(values), weights

    def _values(self, frame: pl.DataFrame, path: Path) -> tuple[Array, pl.Series, Array]:
        """Row (L,), id text (L,) and weight (L,) of each value that is present, in cell order."""
        column, separator = self.spec.column, self.spec.separator
        if not self.spec.weight_separator:
            long = listed_ids(frame, column, separator, path)
            return long["row"].to_numpy(), long["value"], np.ones(len(long), np.float32)
        lists = list_of_cells(frame, column, separator, path)
        long = pl.DataFrame({"row": pl.int_range(len(lists), eager=True), "value": lists, LINE: frame[LINE]})
        long = long.explode("value")
        try:
            long = long.with_columns(text_of(long["value"]).alias("value")).drop_nulls("value")
        except pl.exceptions.PolarsError:
            kind = long["value"].dtype
            raise UserError(f"{path}: column {column}: has lists of type {kind}, expected ids with weights") from None
        parts = long["value"].str.splitn(self.spec.weight_separator, 2).struct.unnest()
        weights = parts["field_1"].cast(pl.Float32, strict=False)
        bad = weights.is_null() | ~weights.is_finite()
        if bad.any():
            rows = long.filter(bad)
            form = f"id{self.spec.weight_separator}weight"
            problem = f"field {self.name}: {rows['value'][0]!r} is not of the form {form} with a finite weight"
            raise BadRowError(path, rows[LINE].unique(maintain_order=True).to_list(), problem)
        ids = id_text(parts["field_0"].alias(column), path)
        present = ids.is_not_null()
        return long["row"].filter(present).to_numpy(), ids.filter(present), weights.filter(present).to_numpy()


class NumberColumn(TableColumn):
    """A number or its logarithm, standardised with mean and deviation of the training rows; absent becomes the mean."""

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
        mean = float(values.mean())
        self._add(len(values), mean, float(((values - mean) ** 2).sum()))

    def _add(self, count: int, mean: float, squares: float) -> None:
        # Chan, Golub and LeVeque (1979): exact moments in one pass over any number of chunks.
        shift, total = mean - self.mean, self.count + count
        self.squares += squares + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    def merge(self, other: Self) -> None:
        if other.count:
            self.low, self.high = min(self.low, other.low), max(self.high, other.high)
            self._add(other.count, other.mean, other.squares)

    def freeze(self, writer: StoreWriter) -> None:
        if not self.count:
            raise UserError(f"field {self.name}: no training row has a number in column {self.spec.column}")
        deviation = float(np.sqrt(self.squares / self.count))
        self.deviation = deviation if deviation > _ROUNDING * max(abs(self.low), abs(self.high)) else 1.0
        transform = {"transform": "log1p"} if self.spec.transform == "log1p" else {}
        writer.statistics[self.name] = {"mean": self.mean, "deviation": self.deviation, **transform}

    def restore(self, store: Store) -> None:
        statistics = store.content["statistics"][self.name]
        self.mean, self.deviation = float(statistics["mean"]), float(statistics["deviation"])

    def fields(self) -> list[Field]:
        return [Field(self.name, Kind.NUMERIC, self.spec.side)]

    def numbers(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        scaled = (self._values(frame, path).fill_null(self.mean) - self.mean) / self.deviation
        refuse(frame, scaled.abs() > LARGEST, self.spec.column, path, "too far outside the range of the training rows")
        return [scaled.to_numpy()]

    def _values(self, frame: pl.DataFrame, path: Path) -> pl.Series:
        values = numbers(frame, self.spec.column, path)
        return values.sign() * values.abs().log1p() if self.spec.transform == "log1p" else values


class BucketColumn(TableColumn):
    """A number as the id of its bucket, see :func:`bucket_edges`; absent numbers have a separate bucket.

    If training has absent numbers, 0 is unknown and 1 is absent; otherwise 0 is both. The buckets follow in ascending
    order.
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

    def merge(self, other: Self) -> None:
        self.absent |= other.absent
        self.sample.merge(other.sample)

    def freeze(self, writer: StoreWriter) -> None:
        values = self.sample.sorted()
        if not len(values):
            raise UserError(f"field {self.name}: no training row has a number in column {self.spec.column}")
        self.edges = bucket_edges(values, self.spec.buckets)
        writer.statistics[self.name] = {"edges": self.edges.tolist(), "absent": self.absent}
        if (made := len(self.edges) + 1) < self.spec.buckets:
            writer.notes[f"buckets_of_{self.name}"] = f"{made} of {self.spec.buckets}, one for each value there is"

    def restore(self, store: Store) -> None:
        statistics = store.content["statistics"][self.name]
        self.edges, self.absent = np.asarray(statistics["edges"]), bool(statistics["absent"])

    def fields(self) -> list[Field]:
        return [Field(self.name, Kind.ID, self.spec.side, len(self.edges) + 2 + self.absent)]

    def ids(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        return [self._buckets(frame, path, 1 + self.absent, int(self.absent))]

    def _buckets(self, frame: pl.DataFrame, path: Path, first: int, absent: int) -> Array:
        """(n,) bucket of each row, counted from ``first``; ``absent`` where the cell is empty."""
        values = numbers(frame, self.spec.column, path)
        bucket = np.searchsorted(self.edges, values.fill_null(0.0).to_numpy(), side="right") + first
        return np.where(values.is_null().to_numpy(), absent, bucket)


class ViewColumn(BucketColumn):
    """A number that is known only afterwards, in buckets. It is no field: new rows do not have it."""

    @property
    def inputs(self) -> list[str]:
        return []

    @property
    def happened(self) -> list[str]:
        return [self.spec.column]

    def fields(self) -> list[Field]:
        return []

    def ids(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        return []

    def view(self) -> View:
        """The entry of the schema."""
        return View(self.name, len(self.edges) + 1, tuple(self.spec.of))

    def bins(self, frame: pl.DataFrame, path: Path) -> Array:
        """(n,) uint8 bin of each row, MISSING where the cell is empty."""
        return self._buckets(frame, path, 0, MISSING).astype(np.uint8)


class TimeColumn(TableColumn):
    """Parts of a time stamp, each a separate id field; an absent time stamp is 0."""

    def __init__(self, name: str, spec: FieldSpec) -> None:
        super().__init__(name, spec)
        self._first, self._last = math.inf, -math.inf

    def observe(self, frame: pl.DataFrame, path: Path) -> None:
        stamps = self.moments(frame, path).drop_nulls().to_numpy()
        if len(stamps):
            self._first, self._last = min(self._first, int(stamps.min())), max(self._last, int(stamps.max()))

    def merge(self, other: Self) -> None:
        self._first, self._last = min(self._first, other._first), max(self._last, other._last)

    def notes(self) -> dict[str, str]:
        if self._last < self._first:
            return {}
        first, last = (str(np.datetime64(int(t), "us")) for t in (self._first, self._last))
        hint = "; all in 1970: is the unit right?" if last.startswith("1970") else ""
        return {f"training_times_of_{self.name}": f"{first[:16]} to {last[:16]}{hint}".replace("T", " ")}

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        self.moments(frame, path)

    def freeze(self, writer: StoreWriter) -> None:
        for part in self.spec.parts:
            first = int(part != "hour")  # days and months start at 1
            writer.statistics[f"{self.name}_{part}"] = {"range": [first, first + TIME_PARTS[part] - 1]}

    def fields(self) -> list[Field]:
        return [Field(f"{self.name}_{p}", Kind.ID, self.spec.side, TIME_PARTS[p] + 1) for p in self.spec.parts]

    def ids(self, frame: pl.DataFrame, path: Path) -> list[Array]:
        stamps = pl.lit(self.moments(frame, path).cast(pl.Datetime("us")))
        part = {
            "hour": stamps.dt.hour().cast(pl.Int32) + 1,
            "weekday": stamps.dt.weekday().cast(pl.Int32),
            "day": stamps.dt.day().cast(pl.Int32),
            "month": stamps.dt.month().cast(pl.Int32),
        }
        chosen = frame.select(**{p: part[p].fill_null(0) for p in self.spec.parts})
        return [chosen[p].to_numpy() for p in self.spec.parts]

    def moments(self, frame: pl.DataFrame, path: Path) -> pl.Series:
        """(n,) local time in microseconds; null if absent."""
        stamps = moments(frame, self.spec.column, path, self.spec.unit, self.spec.format)
        return stamps + round(3_600_000_000 * self.spec.utc_offset)
