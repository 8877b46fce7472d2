"""Any table: CSV, TSV or Parquet files with a YAML that describes their columns.

The files are streamed two or three times: once for the boundaries of a split by time, once for vocabularies,
statistics and labels of the training rows, and once to encode. Memory is bounded by a chunk, the vocabularies and the
joined tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRows
from dlen.data.remote import RemoteFiles
from dlen.data.sources.table_columns import TableColumn
from dlen.data.sources.table_day import TableDay
from dlen.data.sources.table_encoding import encode, make_columns
from dlen.data.sources.table_id_rates import offered_rates
from dlen.data.sources.table_labels import Labels
from dlen.data.sources.table_parse import parse_spec, read_spec
from dlen.data.sources.table_partitions import label_of
from dlen.data.sources.table_passes import TablePasses, missing_column_hint
from dlen.data.sources.table_paths import files_by_split, join_files, matching_in
from dlen.data.sources.table_rows import TableRows
from dlen.data.sources.table_sample import TableSample
from dlen.data.sources.table_sequences import sequences_of
from dlen.data.sources.table_spec import TableSpec
from dlen.data.sources.table_vectors import vectors_of
from dlen.data.split import Split, split_of
from dlen.data.store import Store
from dlen.data.writer import DayWriter, StoreWriter
from dlen.errors import UserError
from dlen.schema import Schema


class Table:
    """A user's own table as a data source.

    Args:
        spec: path of the YAML that describes the table, read when it is first needed.
        name: name of the data set.
        files: replaces the ``files`` of the spec; relative to the working directory.
        folder: folder of the spec's ``files`` and ``joins``, or its address, instead of the folder of the spec.
        content: parsed spec to use instead of a YAML; ``spec`` then only names it in messages.
        bad_rows: maximum number of unreadable rows to skip, count and report; one more raises an error.
        copies: folder for copies of files that have an address, such as ``s3://bucket/log.parquet``.
    """

    def __init__(
        self,
        spec: str,
        name: str = "table",
        files: Any = None,
        folder: str | None = None,
        content: TableSpec | None = None,
        bad_rows: int = 0,
        copies: str = "data/copies",
    ) -> None:
        self.name = name
        self.bad = BadRows(bad_rows)
        self.path = Path(spec)
        self.remote = RemoteFiles(Path(str(copies)))  # a folder 3 comes as a number
        self.find = partial(matching_in, self.path.parent if folder is None else str(folder), self.remote)
        self._files_setting = files
        if content is not None:
            self.table = content
            content.path = self.path

    @cached_property
    def _text(self) -> str:
        return read_spec(self.path)

    @cached_property
    def table(self) -> TableSpec:
        """The parsed YAML."""
        return parse_spec(self._text, self.path)

    @cached_property
    def joins(self) -> dict[str, list[Path]]:
        """The files of each join."""
        return self._copied(join_files(self.table, self.find))

    @cached_property
    def sources(self) -> dict[str, list[Path]]:
        """Paths by split; ``all`` if one table is to be split."""
        if self._files_setting is None:
            return self._copied(files_by_split(self.table, self.table.files, self.find))
        return self._copied(files_by_split(self.table, self._files_setting, partial(matching_in, "", self.remote)))

    def _copied(self, files: dict[str, list[Path]]) -> dict[str, list[Path]]:
        """Copy what is not on this machine."""
        self.remote.copy([path for paths in files.values() for path in paths])
        return files

    def settings(self) -> dict[str, Any]:
        """Settings that affect the store. They include the spec, so new rows do not depend on later changes to it."""
        named = self.sources | {f"joins.{name}": paths for name, paths in self.joins.items()}
        files = {name: [self.remote.address(p) for p in paths] for name, paths in named.items()}
        tolerated = {"bad_rows": self.bad.allowed} if self.bad.allowed else {}
        return {"spec": self._text, "files": files, **tolerated}

    def files(self) -> list[Path]:
        """The files of the table and of its joins."""
        paths = [p for paths in (*self.sources.values(), *self.joins.values()) for p in paths]
        for path in paths:
            if not path.is_file():
                hint = self.table.obtain or f"correct files in {self.path}, or set data.files=FILE"
                raise UserError(f"{path}: no such file; {hint}")
            if path.stat().st_size == 0:
                raise UserError(f"{path}: the file is empty")
        return paths

    def write(self, writer: StoreWriter) -> Schema:
        """Split, learn from the training rows, and encode."""
        self.files()
        return TablePasses(self.table, self.sources, self.joins, self.bad, writer).run()

    def day_of(self, path: Path) -> str:
        """The partition of a file: the value of the column that splits by time, if it is one, or all values."""
        if any(path in paths for name, paths in self.sources.items() if name not in ("all", "train")):
            raise UserError(f"{path}: is a new file of validation or test; only the table itself can be appended to")
        if any(path in paths for paths in self.joins.values()):
            raise UserError(f"{path}: is a new file of joins; run prepare.py without append")
        return label_of(path, self.table.split.column)

    def append(self, paths: Sequence[Path], store: Store, writer: DayWriter) -> Schema:
        """Encode the rows of further files as those of one day, which come after those of a store."""
        return TableDay(self.table, {"all": list(paths)}, self.joins, self.bad, writer, store).run()

    def sample(self, folder: Path, pieces: int) -> TableSample:
        """Take some pieces of the files, of about half a megabyte each, for a dry run."""
        self.files()
        return TableSample(self.table, self.sources, self.joins, self.bad.allowed, folder, pieces)

    def read(self, path: Path, store: Store, labels: bool = False) -> Iterator[Split]:
        """Read another file with the same columns, encoded like the rows of a store.

        The columns are described by the YAML that the store contains.

        Args:
            path: path of a table.
            store: store written by a source with this spec.
            labels: read the labels; otherwise they may be missing and are zero.

        Raises:
            UserError: a column is missing, or a cell cannot be read.
        """
        return (split for split, _ in self._read(path, store, labels, ()))

    def read_keeping(self, path: Path, store: Store, keep: Sequence[str]) -> Iterator[tuple[Split, pl.DataFrame]]:
        """Like :meth:`read` without labels, each chunk with some columns of the file or of its joins, as they are.

        Raises:
            UserError: a column is missing, or a cell cannot be read.
        """
        return self._read(path, store, False, keep)

    def _read(
        self, path: Path, store: Store, labels: bool, keep: Sequence[str]
    ) -> Iterator[tuple[Split, pl.DataFrame]]:
        settings = store.content["settings"]
        spec = parse_spec(settings["spec"], self.path) if "spec" in settings else self.table
        label_reader = Labels(spec)
        offered = offered_rates(spec, label_reader.expressions)
        kept = [column for column in offered if column.name in store.content["histories"]]
        columns = [*make_columns(spec, label_reader.expressions), *kept]
        for column in columns:
            column.restore(store)
        joins = self._copied(join_files(spec, self.find))
        bad = BadRows(0)  # every input row must have an output row
        with TemporaryDirectory() as scratch:
            rows = TableRows(spec, {"all": [path]}, joins, columns, keep, bad, Path(scratch))
            existing = rows.columns(path)
            _check_inputs(path, existing, columns, label_reader if labels else None)
            for name in keep:
                if name not in existing:
                    raise UserError(
                        f"config keep: {path} has no column {name!r}; {missing_column_hint(name, existing)}"
                    )
            for frame, _, _ in rows.chunks(f"scoring {path.name}"):
                happened = label_reader.read(frame, path) if labels else np.zeros((len(frame), len(spec.tasks)))
                encoded = encode(frame, path, columns, store.schema)
                sequences = [column.stored(store) for column in sequences_of(columns)]
                vectors = [column.stored() for column in vectors_of(columns)]
                yield split_of(encoded, happened, sequences=sequences, vectors=vectors), frame.select(keep)


def _check_inputs(path: Path, existing: list[str], columns: list[TableColumn], labels: Labels | None) -> None:
    """Check that every column needed by a field, or by a label, exists."""
    needed = [(name, f"field {column.name}") for column in columns for name in column.inputs]
    if labels is not None:
        needed += [(name, f"task {task}") for name, task in labels.inputs()]
    for name, reader in needed:
        if name not in existing:
            hint = missing_column_hint(name, existing)
            raise UserError(f"{path}: no column {name!r}, which {reader} needs; {hint}")
