"""Converts a table to a prepared store: one pass learns from the training rows, the next encodes all rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.columns import Array, Columns
from dlen.data.finished import FinishedShard
from dlen.data.parallel import Advance, Workers
from dlen.data.ragged import select_rows
from dlen.data.sources.expression import Expression
from dlen.data.sources.table_columns import TableColumn
from dlen.data.sources.table_encoding import UserNumbers, encode, make_columns, views_of
from dlen.data.sources.table_id_rates import offered_rates, worth_a_rate
from dlen.data.sources.table_labels import Labels, Tally
from dlen.data.sources.table_log import LogColumn, check_time
from dlen.data.sources.table_pieces import Piece
from dlen.data.sources.table_rows import PassCounts, TableRows
from dlen.data.sources.table_spec import TableSpec
from dlen.data.sources.table_split import RowSplit
from dlen.data.sources.table_vectors import vectors_of
from dlen.data.sources.table_weights import Weights
from dlen.data.writer import PartWriter, StoreWriter, WrittenPart, shard_folder
from dlen.errors import UserError
from dlen.progress import Stage
from dlen.schema import Kind, Schema
from dlen.valid import did_you_mean


@dataclass(slots=True)
class Found:
    """What a pass found in a piece.

    Attributes:
        rows: how many rows there are.
        bad: arguments of :class:`BadRowError` for rows that were left out.
        columns: what the columns learned.
        split: how rows are split.
        tally: counts of labels.
        users: the users.
        shard: the encoded rows.
        encoded: what the notes of each column tell about them.
    """

    rows: PassCounts
    bad: list[tuple[Path, list[int], str, str]]
    columns: list[TableColumn] = field(default_factory=list)
    split: RowSplit | None = None
    tally: Tally | None = None
    users: UserNumbers | None = None
    shard: WrittenPart | None = None
    encoded: dict[str, dict[str, int]] = field(default_factory=dict)


class TablePasses:
    """One conversion of a table.

    Args:
        spec: spec of the table.
        files: files by split, or under ``all``.
        join_files: files of each join.
        bad: counter of unreadable rows.
        writer: the store to write.
        sampled: whether the files are a sample of the log, in which a split, a value or a label may be absent that the
            log has.
    """

    def __init__(
        self,
        spec: TableSpec,
        files: dict[str, list[Path]],
        join_files: dict[str, list[Path]],
        bad: BadRows,
        writer: StoreWriter,
        *,
        sampled: bool = False,
    ) -> None:
        self.spec, self.writer, self.bad, self.sampled = spec, writer, bad, sampled
        self.labels, self.weights = Labels(spec), Weights(spec)
        self.offered = offered_rates(spec, self.labels.expressions, writer.scratch)
        self.columns = [*make_columns(spec, self.labels.expressions, writer.scratch), *self.offered]
        weights, where = self.weights.columns.values(), Expression(spec.where) if spec.where else None
        self.rows = TableRows(spec, files, join_files, self.columns, weights, bad, writer.scratch, where)
        self.split, self.tally = RowSplit(spec, files), Tally(self.labels)
        self.users, self.folder = UserNumbers(self.columns, spec.user), writer.folder

    def run(self) -> Schema:
        """Write the splits and vocabularies."""
        with Workers(self.writer.pool, len(self.rows.pieces)) as self.workers:
            return self._run()

    def _run(self) -> Schema:
        logged = any(isinstance(column, LogColumn) for column in self.columns)
        if logged:
            check_time(self.spec)
        for paths in self.rows.files.values():
            for path in paths:
                self._check_columns(path)
        if self.split.needs_times():
            self._pass("finding the split by time", _look, self._look, self._merge_split)
            self.split.set_boundaries()
        elif logged and len(self.rows.pieces) > 1:  # what they are computed from is found by the numbers of rows
            self._pass("counting rows", _count, self._count, lambda _: None)
        self._choose_rates()
        self._learn()
        if not self.sampled:
            self.split.check_values()
            self.rows.joins.check_matched(self.rows.total)
        for column in self.columns:
            column.freeze(self.writer)
        if not self.sampled:
            self.tally.check()
        fields = [f for kind in Kind for column in self.columns for f in column.fields() if f.kind is kind]
        views = tuple(column.view() for column in views_of(self.columns))
        user, position = self.spec.user, self.spec.position
        self.schema = Schema(tuple(fields), self.tally.schema_tasks(), user=user, position=position, views=views)
        self.users.number()
        self._write_shards()
        self._write_notes()
        return self.schema

    # Passes

    def __getstate__(self) -> dict[str, Any]:
        """A worker writes no more of the store than shards, and has no workers."""
        return {name: value for name, value in vars(self).items() if name not in ("writer", "workers")}

    def _pass(
        self,
        label: str,
        work: Callable[[TablePasses, Piece, Advance], Found],
        alone: Callable[[Piece, Advance], None],
        merge: Callable[[Found], None],
    ) -> None:
        """Work on all pieces, in other processes if there are some, and count their rows.

        Args:
            label: description of the pass, for the progress bar.
            work: works on a piece in a copy of this object.
            alone: does the same in this object, for a single piece or one that fails.
            merge: adds the result of a piece to this object.
        """
        rows, starts = self.rows, [0]

        def add(found: Found) -> bool:
            if not self._agrees(found):
                return False
            for error in found.bad:
                self.bad.add(BadRowError(*error))
            rows.add(found.rows)
            merge(found)
            return True

        rows.begin()
        with Stage(label, rows.size, "B") as stage:
            for _ in self.workers.merged(work, self, self.writer.scratch, rows.pieces, stage, add, alone):
                starts.append(rows.total)
        rows.end()
        rows.starts = starts

    def _agrees(self, found: Found) -> bool:
        """Whether what was found in a piece can be added to what was found before it."""
        pairs = zip(self.columns, found.columns, strict=False)
        return (found.split is None or self.split.agrees(found.split)) and all(mine.agrees(c) for mine, c in pairs)

    def begin_worker(self, piece: Piece) -> None:
        """Begin with a piece in a copy of this object."""
        self.bad.kept = []
        self.rows.before = self.rows.starts[piece.number] if self.rows.starts else 0

    def found(self, **parts: Any) -> Found:
        """The result of a piece."""
        return Found(self.rows.counted(), self.bad.kept or [], **parts)

    def _look(self, piece: Piece, advance: Advance) -> None:
        for chunk, path, file_split in self.rows.read(piece, advance):
            self.rows.readable(chunk, path, partial(self.split.look, file_split=file_split))

    def _merge_split(self, found: Found) -> None:
        assert found.split is not None
        self.split.merge(found.split)

    def _count(self, piece: Piece, advance: Advance) -> None:
        for _ in self.rows.read(piece, advance):
            pass

    def _check_columns(self, path: Path) -> None:
        """Check that every column in the spec exists, and that every column of the file is used or ignored."""
        existing = self.rows.columns(path)
        named = {name: f"fields.{column.name}" for column in self.columns for name in column.inputs}
        named |= {name: f"fields.{column.name}" for column in self.columns for name in column.happened}
        named |= {column: key for key, column in self.weights.columns.items()}
        named |= {name: f"tasks.{task}" for name, task in self.labels.inputs()}
        named |= dict.fromkeys(self.rows.where.columns if self.rows.where else [], "where")
        if self.spec.rates.time not in ("", "none", *self.spec.fields):
            named.setdefault(self.spec.rates.time, "rates.time")
        if self.spec.split.column:
            named.setdefault(self.spec.split.column, "split.column")
        ignore = self.spec.ignore if isinstance(self.spec.ignore, list) else [self.spec.ignore]
        named |= {str(name): "ignore" for name in ignore if name != "rest"}
        for name, key in named.items():
            if name not in existing:
                hint = missing_column_hint(name, existing)
                raise UserError(f"{path}: no column {name!r}, named by {key} in {self.spec.path}; {hint}")
        unnamed = [name for name in existing if name not in {**named, **self.rows.partitions(path)}]
        if unnamed and "rest" not in ignore:
            listed = ", ".join(
                name or "'' (an unnamed column, such as the index that pandas writes)" for name in unnamed
            )
            raise UserError(
                f"{self.spec.path}: does not name these columns of {path.name}: {listed}; add them to fields, list "
                "them under ignore, or set ignore: rest"
            )

    def _choose_rates(self) -> None:
        """Keep the offered rates that are worth their place."""
        chosen = worth_a_rate(self.offered, self.rows, self.split)
        self.columns = [c for c in self.columns if c not in self.offered or c in chosen]
        if chosen:
            names = ", ".join(name for column in chosen for name in column.names)
            self.writer.notes["rates_of_ids"] = (
                f"{names}, from earlier rows; `rates: {{ids: none}}` in the YAML leaves them out"
            )

    def _learn(self) -> None:
        """Show all rows to every column, the training rows to learn from, and count the labels."""
        self._pass("learning vocabularies and statistics", _learn, self.learn, self._merge)

    def learn(self, piece: Piece, advance: Advance) -> None:
        """Learn from the rows of a piece."""
        for column in self.columns:
            column.begin_piece(piece.number)
        for chunk, path, file_split in self.rows.read(piece, advance):
            frame, (where, labels, weights) = self.rows.readable(chunk, path, partial(self._read, file_split))
            training = frame.filter(pl.Series(where == 0))
            observed = self.labels.observed(labels)
            for column in self.columns:
                column.observe(training, path)
                column.show(frame, path, where, labels, observed)
            self.users.see(frame, path)
            self.tally.add(where, labels, observed, weights, self.labels.values(frame, path, labels))
        if len(self.rows.pieces) > 1:
            for column in self.columns:
                column.pack()

    def _merge(self, found: Found) -> None:
        """Add what was learned from a piece."""
        assert found.tally is not None
        assert found.users is not None
        self._merge_split(found)
        for column, other in zip(self.columns, found.columns, strict=True):
            column.merge(other)
        self.tally.merge(found.tally)
        self.users.merge(found.users)

    def training_rows(self) -> Iterator[tuple[pl.DataFrame, Path]]:
        """The training rows in chunks, each with its file, once :meth:`run` has read them."""
        for chunk, path, file_split in self.rows.chunks("reading training rows"):
            frame, (where, _, _) = self.rows.readable(chunk, path, partial(self._read, file_split))
            yield frame.filter(pl.Series(where == 0)), path

    def _read(self, file_split: str, frame: pl.DataFrame, path: Path) -> tuple[Array, Array, Array | None]:
        """Split (n,), labels (n, T) and weights of rows. If bad rows may be skipped, every cell is checked as well."""
        where, labels = self.split.assign(frame, path, file_split), self.labels.read(frame, path)
        for column in self.columns if self.bad.allowed else ():
            column.check(frame, path)
        return where, labels, self.weights.read(frame, path)

    def _read_encoded(
        self, file_split: str, frame: pl.DataFrame, path: Path
    ) -> tuple[Array, Array, Array | None, Columns]:
        return *self._read(file_split, frame, path), encode(frame, path, self.columns, self.schema)

    def _write_shards(self) -> None:
        """Encode each piece as a shard."""
        self._pass("writing the prepared store", _encode, self._write_shard, self._merge_shard)

    def _write_shard(self, piece: Piece, advance: Advance) -> None:
        self.writer.add(self.encode(piece, advance))

    def _merge_shard(self, found: Found) -> None:
        assert found.shard is not None
        self.writer.add(found.shard)
        for column in self.columns:
            column.encoded.update(found.encoded[column.name])

    def encode(self, piece: Piece, advance: Advance) -> WrittenPart:
        """Write the rows of a piece as a shard."""
        shard = PartWriter(self.folder, shard_folder(piece.number))
        shutil.rmtree(shard.folder, ignore_errors=True)  # what a killed worker has left
        self.write_rows(shard, self.rows.read(piece, advance))
        return shard.close()

    def write_rows(self, shard: PartWriter, chunks: Iterator[tuple[pl.DataFrame, Path, str]]) -> None:
        """Write encoded rows to a shard."""
        schema, counts = self.schema, {kind: len(self.schema.of_kind(kind)) for kind in Kind}
        start = partial(shard.split, num_values=len(schema.regressions), num_views=len(schema.views))
        start = partial(start, num_sequences=len(schema.sequences), num_vectors=counts[Kind.VECTOR])
        splits = [start(name, counts, len(schema.tasks)) for name in self.split.names]
        for column in self.columns:
            column.begin(shard)
        for chunk, path, file_split in chunks:
            read = partial(self._read_encoded, file_split)
            frame, (where, labels, weights, encoded) = self.rows.readable(chunk, path, read)
            parts = {"users": self.users.of(frame, path), "weights": weights}
            parts["values"] = self.labels.values(frame, path, labels)
            bins = [column.bins(frame, path) for column in views_of(self.columns)]
            parts["views"] = np.stack(bins, 1) if bins else None
            for number, split in enumerate(splits):
                mask = where == number
                if mask.any():
                    given = {name: part[mask] for name, part in parts.items() if part is not None}
                    split.append(select_rows(encoded, mask), labels[mask], **given)

    def _write_notes(self) -> None:
        rows, notes = max(self.rows.kept, 1), self.writer.notes
        notes |= {"rows_left_out_by_where": f"{n:,}"} if (n := self.rows.total - self.rows.kept) else {}
        notes |= {f"rows_without_{name}": n for name, n in self.rows.joins.unmatched.items() if n}
        notes |= {"bad_rows_left_out": len(self.bad)} if len(self.bad) else {}
        notes |= self.weights.note()
        missing = zip(self.spec.tasks, self.tally.missing, strict=True)
        notes |= {f"rows_without_a_label_of_{name}": f"{n:,} ({n / rows:.2%})" for name, n in missing if n}
        for column in self.columns:
            notes |= column.notes()


def _look(passes: TablePasses, piece: Piece, advance: Advance) -> Found:
    passes.begin_worker(piece)
    passes._look(piece, advance)
    return passes.found(split=passes.split)


def _count(passes: TablePasses, piece: Piece, advance: Advance) -> Found:
    passes.begin_worker(piece)
    passes._count(piece, advance)
    return passes.found()


def _learn(passes: TablePasses, piece: Piece, advance: Advance) -> Found:
    passes.begin_worker(piece)
    passes.learn(piece, advance)
    passes.users.column = None
    for vectors in vectors_of(passes.columns):
        vectors.forget_joined()
    return passes.found(columns=passes.columns, split=passes.split, tally=passes.tally, users=passes.users)


def _encode(passes: TablePasses, piece: Piece, advance: Advance) -> Found:
    before = FinishedShard.of(passes.folder, piece.number)
    if before is not None:
        advance(piece.size)
        rows = PassCounts(**before.content["rows"])
        return Found(rows, list(before.bad), shard=before.shard, encoded=before.content["encoded"])
    passes.begin_worker(piece)
    shard = passes.encode(piece, advance)
    found = passes.found(shard=shard, encoded={column.name: dict(column.encoded) for column in passes.columns})
    content = {"rows": asdict(found.rows), "encoded": found.encoded}
    FinishedShard(shard, content, found.bad).save(passes.folder, piece.number)
    return found


def missing_column_hint(column: str, existing: list[str]) -> str:
    """Suggest which column a missing one may have been meant to be."""
    return did_you_mean(column, existing).removeprefix("; ") or f"its columns are {', '.join(existing)}"
