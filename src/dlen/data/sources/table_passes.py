"""Converts a table to a prepared store: one pass learns from the training rows, the next encodes all rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRows
from dlen.data.columns import Array, Columns
from dlen.data.ragged import select_rows
from dlen.data.sources.expression import Expression
from dlen.data.sources.table_encoding import UserNumbers, encode, make_columns, views_of
from dlen.data.sources.table_id_rates import offered_rates, worth_a_rate
from dlen.data.sources.table_labels import Labels, Tally
from dlen.data.sources.table_log import LogColumn, check_time
from dlen.data.sources.table_paths import SPLITS
from dlen.data.sources.table_rows import TableRows
from dlen.data.sources.table_spec import TableSpec
from dlen.data.sources.table_split import RowSplit
from dlen.data.sources.table_weights import Weights
from dlen.data.writer import StoreWriter
from dlen.errors import UserError
from dlen.schema import Kind, Schema
from dlen.valid import did_you_mean


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
        self.split = RowSplit(spec, files)

    def run(self) -> Schema:
        """Write the splits and vocabularies."""
        if any(isinstance(column, LogColumn) for column in self.columns):
            check_time(self.spec)
        for paths in self.rows.files.values():
            for path in paths:
                self._check_columns(path)
        self.split.find_boundaries(self.rows)
        self._choose_rates()
        tally = self._learn()
        if not self.sampled:
            self.split.check_values()
            self.rows.joins.check_matched(self.rows.total)
        for column in self.columns:
            column.freeze(self.writer)
        if not self.sampled:
            tally.check()
        fields = [f for kind in Kind for column in self.columns for f in column.fields() if f.kind is kind]
        views = tuple(column.view() for column in views_of(self.columns))
        user, position = self.spec.user, self.spec.position
        schema = Schema(tuple(fields), tally.schema_tasks(), user=user, position=position, views=views)
        self._write_splits(schema)
        self._write_notes(tally)
        return schema

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

    def _learn(self) -> Tally:
        """Show all rows to every column, the training rows to learn from, and count the labels."""
        tally = Tally(self.labels)
        for chunk, path, file_split in self.rows.chunks("learning vocabularies and statistics"):
            frame, (where, labels, weights) = self.rows.readable(chunk, path, partial(self._read, file_split))
            training = frame.filter(pl.Series(where == 0))
            observed = self.labels.observed(labels)
            for column in self.columns:
                column.observe(training, path)
                column.show(frame, path, where, labels, observed)
            tally.add(where, labels, observed, weights, self.labels.values(frame, path, labels))
        return tally

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
        self, schema: Schema, file_split: str, frame: pl.DataFrame, path: Path
    ) -> tuple[Array, Array, Array | None, Columns]:
        return *self._read(file_split, frame, path), encode(frame, path, self.columns, schema)

    def _write_splits(self, schema: Schema) -> None:
        counts = {kind: len(schema.of_kind(kind)) for kind in Kind}
        shard = self.writer.shard()
        start = partial(shard.split, num_values=len(schema.regressions), num_views=len(schema.views))
        start = partial(start, num_sequences=len(schema.sequences), num_vectors=counts[Kind.VECTOR])
        splits = [start(name, counts, len(schema.tasks)) for name in self.split.names]
        for column in self.columns:
            column.begin(shard)
        users = UserNumbers(self.columns, schema, numbered=self.split.names == SPLITS)
        for chunk, path, file_split in self.rows.chunks("writing the prepared store"):
            read = partial(self._read_encoded, schema, file_split)
            frame, (where, labels, weights, encoded) = self.rows.readable(chunk, path, read)
            parts = {"users": users.of(frame, path, encoded.ids), "weights": weights}
            parts["values"] = self.labels.values(frame, path, labels)
            bins = [column.bins(frame, path) for column in views_of(self.columns)]
            parts["views"] = np.stack(bins, 1) if bins else None
            for number, split in enumerate(splits):
                mask = where == number
                if mask.any():
                    given = {name: part[mask] for name, part in parts.items() if part is not None}
                    split.append(select_rows(encoded, mask), labels[mask], **given)

    def _write_notes(self, tally: Tally) -> None:
        rows, notes = max(self.rows.kept, 1), self.writer.notes
        notes |= {"rows_left_out_by_where": f"{n:,}"} if (n := self.rows.total - self.rows.kept) else {}
        notes |= {f"rows_without_{name}": n for name, n in self.rows.joins.unmatched.items() if n}
        notes |= {"bad_rows_left_out": len(self.bad)} if len(self.bad) else {}
        notes |= self.weights.note()
        missing = zip(self.spec.tasks, tally.missing, strict=True)
        notes |= {f"rows_without_a_label_of_{name}": f"{n:,} ({n / rows:.2%})" for name, n in missing if n}
        for column in self.columns:
            notes |= column.notes()


def missing_column_hint(column: str, existing: list[str]) -> str:
    """Suggest which column a missing one may have been meant to be."""
    return did_you_mean(column, existing).removeprefix("; ") or f"its columns are {', '.join(existing)}"
