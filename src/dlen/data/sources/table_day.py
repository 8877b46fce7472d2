"""Appends the files of one day to a prepared table: ids are added, rates and histories go on, and all else stays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRows
from dlen.data.columns import Array
from dlen.data.days import SPLIT
from dlen.data.sources.table_passes import TablePasses
from dlen.data.sources.table_spec import TableSpec
from dlen.data.sources.table_split import RowSplit
from dlen.data.store import Store
from dlen.data.writer import DayWriter
from dlen.schema import Kind, Schema


class _DaySplit(RowSplit):
    """One split, of all rows."""

    names = (SPLIT,)

    def assign(self, frame: pl.DataFrame, path: Path, file_split: str) -> Array:
        """(n,) zeros."""
        return np.zeros(len(frame), np.int64)


class TableDay(TablePasses):
    """The conversion of one appended day.

    Args:
        spec: spec of the table.
        files: files of the day, under ``all``.
        join_files: files of each join.
        bad: counter of unreadable rows.
        writer: the shard to write.
        store: the store that the rows follow.
    """

    def __init__(
        self,
        spec: TableSpec,
        files: dict[str, list[Path]],
        join_files: dict[str, list[Path]],
        bad: BadRows,
        writer: DayWriter,
        store: Store,
    ) -> None:
        super().__init__(spec, files, join_files, bad, writer)
        known = store.content["histories"]
        self.columns = [c for c in self.columns if c not in self.offered or c.name in known]
        for column in self.columns:
            column.restore(store)
        self.split = _DaySplit(spec, files)
        self.before = store.schema

    def run(self) -> Schema:
        """Write the rows. Returns the schema with the new ids."""
        for path in self.rows.files["all"]:
            self._check_columns(path)
        for chunk, path, file_split in self.rows.chunks("reading the appended rows"):
            frame, (_, labels, _) = self.rows.readable(chunk, path, partial(self._read, file_split))
            untrained, observed = np.ones(len(frame), np.int64), self.labels.observed(labels)
            self.users.see(frame, path)
            for column in self.columns:
                column.grow(frame, path)
                column.show(frame, path, untrained, labels, observed)
        for column in self.columns:
            column.extend(self.writer)
        fields = tuple(f for kind in Kind for column in self.columns for f in column.fields() if f.kind is kind)
        self.schema = replace(self.before, fields=fields)
        self.users.number(hashed=True)
        self.write_rows(self.writer.shard(), self.rows.chunks("writing the appended rows"))
        return self.schema
