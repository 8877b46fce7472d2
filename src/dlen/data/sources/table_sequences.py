"""Sequences of a table: ordered lists in its cells, and histories computed from the log itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRowError
from dlen.data.columns import GAP_BUCKETS, Array, Places
from dlen.data.histories import HistoryTable, histories_of, stored_history
from dlen.data.partitions import KeyPartitions
from dlen.data.sources.cells import LINE, ROW, id_text, lists_or_empty, with_absent
from dlen.data.sources.expression import Expression
from dlen.data.sources.table_columns import Append, IdColumn, KeptRows, TableColumn, TextVocabulary
from dlen.data.sources.table_log import LogColumn
from dlen.data.sources.table_spec import FieldSpec, TableSpec, names_of
from dlen.data.writer import PartWriter, StoreWriter
from dlen.errors import UserError
from dlen.schema import Field, Kind

if TYPE_CHECKING:  # processes that prepare a piece of the log import no torch, which takes a second
    from dlen.data.sequences import StoredSequence
    from dlen.data.store import Store

NEVER_RARE = 1 << 40  # count of ids that id dropout leaves alone: those of labels and gaps, which are never new


class OrderedColumn(TableColumn):
    """An entry that becomes the lists of one sequence."""

    def places(self, frame: pl.DataFrame, path: Path) -> Places:
        """Where the sequences of n rows lie."""
        raise NotImplementedError

    def stored(self, store: Store) -> StoredSequence:
        """The values that the places of the latest new rows refer to."""
        raise NotImplementedError


class SequenceColumn(OrderedColumn):
    """``kind: sequence``: an ordered list of ids in a cell, with parallel lists in other columns.

    Args:
        name: name of the sequence and of its first list.
        lists: columns of the lists, the first of which is the sequence itself.
    """

    def __init__(self, name: str, spec: FieldSpec, lists: list[IdColumn]) -> None:
        super().__init__(name, spec)
        self.lists = lists
        self._append: Append  # of the store, or of the rows that are kept for new ones

    @property
    def inputs(self) -> list[str]:
        return [one.spec.column for one in self.lists]

    def check(self, frame: pl.DataFrame, path: Path) -> None:
        """Raise BadRowError for rows whose parallel lists differ in length."""
        self._read(frame, path)

    def observe(self, frame: pl.DataFrame, path: Path) -> None:
        """Count the ids that no other field counts."""
        _, _, texts = self._read(frame, path)
        for one, values in zip(self.lists, texts, strict=True):
            one.observe_texts(values)

    def pack(self) -> None:
        for one in self.lists:
            one.pack()

    def merge(self, other: Self) -> None:
        for one, theirs in zip(self.lists, other.lists, strict=True):
            one.merge(theirs)

    def occurrences(self, frame: pl.DataFrame, path: Path) -> dict[str, tuple[Array, pl.Series]]:
        _, lengths, texts = self._read(frame, path)
        row = np.repeat(np.arange(len(frame)), lengths)
        return {one.name: (row, values) for one, values in zip(self.lists, texts, strict=True) if one.own is not None}

    def freeze(self, writer: StoreWriter) -> None:
        for one in self.lists:
            one.freeze(writer)
            cut = {"max_values": self.spec.max_values, "order": self.spec.order}
            writer.statistics[one.name] = writer.statistics.get(one.name, {}) | cut
            if not one.spec.share:
                writer.counts[one.name] = _counts(one)

    def begin(self, shard: PartWriter) -> None:
        self._append = shard.sequence(self.name, len(self.lists)).append

    def grow(self, frame: pl.DataFrame, path: Path) -> None:
        self.observe(frame, path)

    def extend(self, writer: StoreWriter) -> None:
        self.freeze(writer)

    def restore(self, store: Store) -> None:
        for one in self.lists:
            one.restore(store)
        self._kept = KeptRows(np.zeros((0, len(self.lists)), np.int32))
        self._append = self._kept.append

    def notes(self) -> dict[str, str]:
        """How long the lists are, and how many are cut."""
        found, most = self.encoded, self.spec.max_values
        rows = max(found["rows"], 1)
        cut = f"; {found['cut'] / rows:.2%} have more than {most}, and keep the newest" if found["cut"] else ""
        return {f"sequence_of_{self.name}": f"{found['values'] / rows:.1f} values per row{cut}"}

    def fields(self) -> list[Field]:
        return [replace(one.field(Kind.SEQUENCE), sequence=self.name) for one in self.lists]

    def places(self, frame: pl.DataFrame, path: Path) -> Places:
        """Store the values of n rows."""
        whole, lengths, texts = self._read(frame, path)
        codes = [one.vocabulary.encode(values) for one, values in zip(self.lists, texts, strict=True)]
        first = self._append(np.stack(codes, 1).astype(np.int32))
        start = first + np.cumsum(lengths) - lengths
        cut, values = int((whole > self.spec.max_values).sum()), int(lengths.sum())
        self.encoded.update({"rows": len(frame), "cut": cut, "values": values})
        return Places(start[:, None], lengths.astype(np.int16)[:, None], np.zeros((len(frame), 1)))

    def stored(self, store: Store) -> StoredSequence:
        """The values of the rows read since the last call."""
        from dlen.data.sequences import StoredSequence  # needed for new rows alone, see above

        return StoredSequence.of(self._kept.take(), [store.schema.offsets[one.name] for one in self.lists])

    @staticmethod
    def _lists(frame: pl.DataFrame, one: IdColumn, path: Path) -> pl.Series:
        """A column as lists of ids; an empty cell is an empty list."""
        lists = lists_or_empty(frame, one.spec.column, one.spec.separator, path)
        if isinstance(lists.dtype, pl.List) and lists.dtype.inner.is_nested():
            raise UserError(f"{path}: column {one.spec.column}: has type {lists.dtype}, expected lists of ids")
        return lists

    def _with_absent(self, frame: pl.DataFrame, cells: list[pl.Series], path: Path) -> list[pl.Series]:
        """Read an empty text as one absent value where a parallel list has one value: text cannot say it otherwise."""
        if len(cells) == 1:
            return cells
        single = pl.select(pl.max_horizontal(pl.lit(lists.list.len()) for lists in cells)).to_series() == 1
        texts = [frame[one.spec.column] for one in self.lists]
        return [
            lists if text.dtype.is_nested() else with_absent(lists, single & id_text(text, path).is_null())
            for lists, text in zip(cells, texts, strict=True)
        ]

    def _read(self, frame: pl.DataFrame, path: Path) -> tuple[Array, Array, list[pl.Series]]:
        """(n,) number of values of each row in its cell, and after the cut, and the (L,) texts of each list.

        The texts are oldest first; null for an empty value.
        """
        cells = self._with_absent(frame, [self._lists(frame, one, path) for one in self.lists], path)
        lengths = [lists.list.len() for lists in cells]
        for one, length in zip(self.lists[1:], lengths[1:], strict=True):
            wrong = lengths[0] != length
            if wrong.any():
                rows = frame.filter(wrong)[LINE].to_list()
                first, other = (int(part.filter(wrong)[0]) for part in (lengths[0], length))
                problem = f"column {one.spec.column}: has {other} values, but {self.spec.column} has {first}"
                raise BadRowError(path, rows, f"{problem}; parallel lists need one value for each")
        if self.spec.order == "newest_first":
            cells = [lists.list.head(self.spec.max_values).list.reverse() for lists in cells]
        else:
            cells = [lists.list.tail(self.spec.max_values) for lists in cells]
        # Polars explodes an empty list to one null
        flat = [lists.filter(lists.list.len() > 0).explode() for lists in cells]
        texts = [id_text(values.alias(one.spec.column), path) for values, one in zip(flat, self.lists, strict=True)]
        return lengths[0].to_numpy(), cells[0].list.len().to_numpy().astype(np.int64), texts


def _counts(column: IdColumn) -> Array:
    """(vocab_size,) occurrences of each id, for id dropout, which leaves hashed ids of a list alone."""
    if isinstance(column.vocabulary, TextVocabulary):
        return np.append(0, column.vocabulary.frame["count"].to_numpy())
    return np.full(len(column.vocabulary), NEVER_RARE)


class HistoryColumn(LogColumn, OrderedColumn):
    """A ``history`` of a table's YAML: the earlier rows with the same key, as lists that share fields' vectors.

    Args:
        name: name of the field.
        spec: settings of the field.
        table: spec of the whole table.
        labels: the parsed label of each task.
        of: column of each listed field, with its name.
        scratch: folder for intermediate files; None to restore from a store.

    Raises:
        UserError: the table has no time.
    """

    def __init__(
        self,
        name: str,
        spec: FieldSpec,
        table: TableSpec,
        labels: dict[str, Expression],
        of: Mapping[str, IdColumn],
        scratch: Path | None = None,
    ) -> None:
        self.history = history = spec.history
        super().__init__(name, spec, table, labels, history.by, [history.where] if history.where else [])
        if not self.clock.timed:
            raise UserError(
                f"{table.path}: fields.{name}.history: needs a time to tell what came before; add a field of kind time"
            )
        self.of = dict(of)
        self.training_only = table.rates.rows == "train"
        self.table = None if scratch is None else HistoryTable(history.length, scratch / f"history-{name}")
        self._found: Places | None = None

    def show(self, frame: pl.DataFrame, path: Path, where: Array, labels: Array, observed: Array) -> None:
        assert self.table is not None
        row, event = self.numbered(frame), np.ones(len(frame), bool)
        if self.history.where:
            value, known = self.label(self.history.where, frame, path, labels, observed)
            event = (value == 1) & known
        if self.training_only:
            event &= where == 0
        values = {f"of{place}": id_text(frame[c.spec.column], path) for place, c in enumerate(self.of.values())}
        values |= {"labels": pl.Series(self._label_codes(labels), dtype=pl.Int32)} if self.history.labels else {}
        self.table.add(row, self.keys(frame, path), self.clock.periods(frame, path), event, values)

    @property
    def partitions(self) -> KeyPartitions:
        assert self.table is not None
        return self.table.partitions

    def _label_codes(self, labels: Array) -> Array:
        """(n,) one id for the labels (n, T) of a row: 1 plus a bit for each positive one."""
        bits = [(labels[:, self.tasks.index(t)] == 1).astype(np.int32) << i for i, t in enumerate(self.history.labels)]
        return np.stack(bits).sum(0, dtype=np.int32) + 1

    def freeze(self, writer: StoreWriter) -> None:
        """Sort the log, write the events and find the history of each row."""
        assert self.table is not None
        stored = writer.beside.sequence(self.name, len(self.of) + bool(self.history.labels))
        keys = writer.history(self.name)
        self._found = self.table.finish(self.rows, self.clock.unit, self._encode, stored, keys)
        further = [f for f in self.fields() if not f.share]
        writer.counts |= {f.name: np.full(f.vocab_size, NEVER_RARE) for f in further}
        if self.history.labels:
            writer.statistics[further[0].name] = {"labels": self.history.labels}
        writer.histories[self.name] = {
            "by": self.names,
            "separators": self.separators,
            "length": self.history.length,
            "dated": self.clock.rising.dated,
            "seconds": self.clock.seconds,
        }
        length = self._found.length
        where = f", where {self.history.where}" if self.history.where else ""
        writer.notes[f"history_of_{self.name}"] = (
            f"by {', '.join(self.by)}{where}: {float(np.mean(length)) if self.rows else 0.0:.1f} earlier rows on "
            f"average, {float(np.mean(length == 0)):.2%} have none"
        )

    def extend(self, writer: StoreWriter) -> None:
        """Find the histories of an appended day, and write its events after those of the store."""
        self.freeze(writer)

    def _encode(self, events: pl.DataFrame) -> Array:
        """(L, N) codes of events."""
        codes = [c.vocabulary.encode(events[f"of{place}"]) for place, c in enumerate(self.of.values())]
        codes += [events["labels"].to_numpy()] if self.history.labels else []
        return np.stack(codes, 1)

    def restore(self, store: Store) -> None:
        kept = store.content["histories"][self.name]
        self.clock.rising.dated = kept["dated"]
        self._events, self._known = stored_history(store, self.name)
        if self.table is not None:
            self.table.before = self._events, self._known

    def fields(self) -> list[Field]:
        """One field per listed field, then one for labels and one for gaps."""
        sizes = [(len(c.vocabulary), c.spec.share or name) for name, c in self.of.items()]
        sizes += [(1 + 2 ** len(self.history.labels), "")] if self.history.labels else []
        sizes += [(1 + GAP_BUCKETS, "")] if self.history.gap else []
        return [
            Field(name, Kind.SEQUENCE, self.spec.side, size, share=share, sequence=self.name)
            for name, (size, share) in zip(names_of(self.name, self.spec), sizes, strict=True)
        ]

    def places(self, frame: pl.DataFrame, path: Path) -> Places:
        """Histories of rows passed to :meth:`show`, or of new rows after :meth:`restore`."""
        if self._found is not None:
            return self._found.select(frame[ROW].to_numpy())
        when = self.clock.periods(frame, path, new=True) * self.clock.unit
        return histories_of(self.keys(frame, path), when, self._events, self._known, self.history.length)

    def stored(self, store: Store) -> StoredSequence:
        return self._events


def sequences_of(columns: Sequence[TableColumn]) -> list[OrderedColumn]:
    """The columns that become sequences."""
    return [column for column in columns if isinstance(column, OrderedColumn)]
