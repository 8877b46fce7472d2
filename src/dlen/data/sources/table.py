"""Any table: CSV, TSV or Parquet files with a YAML that describes their columns.

The files are streamed two or three times: once for the boundaries of a split by time, once for vocabularies,
statistics and labels of the training rows, and once to encode. Memory is bounded by a chunk, the vocabularies and the
joined tables.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator
from copy import copy
from datetime import date
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.columns import MISSING, Columns
from dlen.data.ragged import Entries, Keep, select_rows, to_columns
from dlen.data.sample import Sample
from dlen.data.sources.cells import LINE, Rising, id_text, moments
from dlen.data.sources.expression import Expression
from dlen.data.sources.table_columns import IdColumn, TableColumn, make_column
from dlen.data.sources.table_file import Form, TableFile, csv_bytes
from dlen.data.sources.table_rates import ROW, RateColumn, read_label
from dlen.data.sources.table_spec import TableSpec, expression, parse_spec, read_spec
from dlen.data.split import Split, split_of
from dlen.data.store import Store
from dlen.data.writer import SplitWriter, StoreWriter
from dlen.errors import UserError
from dlen.hashing import fraction
from dlen.progress import Stage
from dlen.schema import Field, Kind, Schema, Task

Array = NDArray[Any]
T = TypeVar("T")
SPLITS = ("train", "validation", "test")
_ENDINGS = tuple(f".{kind}{p}" for kind in ("csv", "tsv", "tab", "txt") for p in ("", ".gz", ".bz2", ".xz"))
_ENDINGS += (".parquet", ".pq")  # files of a folder that are read
_KEY = "__joined_by"
_TWO_FORMS = "holds {now}, and {then} elsewhere ({other}), so there is no order of the rows; write it in one form"


class Table:
    """A user's own table as a data source.

    Args:
        spec: path of the YAML that describes the table, read when it is first needed.
        name: name of the data set.
        files: replaces the ``files`` of the spec; relative to the working directory.
        folder: folder of the spec's ``files`` and ``joins``, instead of the folder of the spec.
        content: parsed spec to use instead of a YAML; ``spec`` then only names it in messages.
        bad_rows: maximum number of unreadable rows to skip, count and report; one more raises an error.
    """

    def __init__(
        self,
        spec: str,
        name: str = "table",
        files: Any = None,
        folder: str | None = None,
        content: TableSpec | None = None,
        bad_rows: int = 0,
    ) -> None:
        self.name = name
        self.bad = BadRows(bad_rows)
        self.path = Path(spec)
        self.folder = self.path.parent if folder is None else Path(folder)
        self._files_setting = files
        if content is not None:
            self.table = content
        self._opened: dict[Path, TableFile] = {}
        self._scratch = Path()  # for unpacked copies, while rows are read
        self._joined: dict[str, pl.DataFrame] = {}  # joined tables, by the name of the join
        self._unmatched: dict[str, int] = {}  # rows of this pass without a match, by the name of the join

    @cached_property
    def _text(self) -> str:
        return read_spec(self.path)

    @cached_property
    def table(self) -> TableSpec:
        """The parsed YAML."""
        return parse_spec(self._text, self.path)

    @cached_property
    def labels(self) -> dict[str, Expression]:
        """The parsed label of each task."""
        return {task: expression(t, self.path, task) for task, t in self.table.tasks.items()}

    @cached_property
    def observed(self) -> dict[str, Expression]:
        """The parsed ``observed`` of each task that has one."""
        return {n: expression(t, self.path, n, "observed") for n, t in self.table.tasks.items() if t.observed}

    @cached_property
    def joins(self) -> dict[str, list[Path]]:
        """The files of each join."""
        return {name: _matches(self.folder, join.file) for name, join in self.table.joins.items()}

    @cached_property
    def sources(self) -> dict[str, list[Path]]:
        """Paths by split; ``all`` if one table is to be split."""
        override = self._files_setting
        given = self.table.files if override is None else override
        folder = self.folder if override is None else Path()
        if given is None:
            raise UserError(f"{self.path}: files: name the table here, or set data.files=FILE")
        by_split = given if isinstance(given, dict) else {"all": given}
        if set(by_split) not in ({"all"}, {"train", "test"}, set(SPLITS)):
            raise UserError(f"{self.path}: files: give one table, or train and test, or train, validation and test")
        split = self.table.split
        if split.by == "column" and set(by_split) != set(SPLITS) and not split.validation:
            raise UserError(f"{self.path}: split.validation: with by: column, list the values that make this split")
        found = {
            name: [match for p in (paths if isinstance(paths, list) else [paths]) for match in _matches(folder, str(p))]
            for name, paths in by_split.items()
        }
        seen: dict[Path, Path] = {}
        for path in (p for paths in found.values() for p in paths):
            other = seen.setdefault(path.resolve(), path)
            if other is not path:
                also = "" if other == path else f", also as {other}"
                raise UserError(f"{self.path}: files: {path} is named twice{also}, so its rows would count twice")
        return found

    def settings(self) -> dict[str, Any]:
        """Settings that affect the store. They include the spec, so new rows do not depend on later changes to it."""
        files = {split: [str(p) for p in paths] for split, paths in self.sources.items()}
        files |= {f"joins.{name}": [str(p) for p in paths] for name, paths in self.joins.items()}
        tolerated = {"bad_rows": self.bad.allowed} if self.bad.allowed else {}
        return {"spec": self._text, "files": files, **tolerated}

    def files(self) -> list[Path]:
        """The files of the table and of its joins."""
        paths = [*self._own_files(), *(p for paths in self.joins.values() for p in paths)]
        for path in paths:
            if not path.is_file():
                hint = self.table.obtain or f"set it with files in {self.path} or data.files=FILE"
                raise UserError(f"{path}: no such file; {hint}")
            if path.stat().st_size == 0:
                raise UserError(f"{path}: the file is empty")
        return paths

    def _own_files(self) -> list[Path]:
        return [p for paths in self.sources.values() for p in paths]

    def write(self, writer: StoreWriter) -> Schema:
        """Split, learn from the training rows, and encode."""
        self._scratch, self._opened = writer.scratch, {}
        self._rising = Rising(self.table.split.column, _TWO_FORMS)
        self.files()
        self._joined = {name: self._read_join(name) for name in self.joins}
        for path in self._own_files():
            self._check_columns(path)
        self._boundaries = self._time_boundaries()
        columns = self._make_columns(writer.scratch)
        tally = self._learn(columns)
        self._check_all_found()
        for column in columns:
            column.freeze(writer)
        self._check_tally(tally)
        fields = [f for kind in Kind for c in columns for f in c.fields() if f.kind is kind]
        schema = Schema(tuple(fields), self._tasks(tally), user=self.table.user, position=self.table.position)
        self._encode(writer, columns, schema)
        rows = max(self._rows, 1)
        writer.notes |= {f"rows_without_{name}": n for name, n in self._unmatched.items() if n}
        writer.notes |= {"bad_rows_left_out": len(self.bad)} if len(self.bad) else {}
        for name, n in zip(self.table.tasks, self._missing, strict=True):
            writer.notes |= {f"rows_without_a_label_of_{name}": f"{n:,} ({n / rows:.2%})"} if n else {}
        for column in columns:
            writer.notes |= column.notes()
        return schema

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
        own = copy(self)  # this source may still prepare its own files
        kept = store.content["settings"]
        if "spec" in kept:
            own.table = parse_spec(kept["spec"], self.path)
            for parsed in ("labels", "observed", "joins"):  # derived from the current YAML
                own.__dict__.pop(parsed, None)
        own.sources, own.bad, own._opened = {"all": [path]}, BadRows(0), {}  # every input row must have an output row
        yield from own._read(path, store, labels)

    def _read(self, path: Path, store: Store, labels: bool) -> Iterator[Split]:
        columns = self._make_columns()
        for column in columns:
            column.restore(store)
        with TemporaryDirectory() as scratch:
            self._scratch = Path(scratch)
            self._joined = {name: self._read_join(name) for name in self.joins}
            self._check_inputs(path, labels)
            for frame, _, _ in self._frames(f"scoring {path.name}"):
                happened = self._labels(frame, path) if labels else np.zeros((len(frame), len(store.schema.tasks)))
                yield split_of(_columns(frame, path, columns, store.schema), happened)

    def _make_columns(self, scratch: Path | None = None) -> list[TableColumn]:
        return [
            RateColumn(name, spec, self.table, self.path, self.labels, scratch)
            if spec.kind == "rate"
            else make_column(name, spec)
            for name, spec in self.table.fields.items()
        ]

    def _columns_of_fields(self) -> list[tuple[str, str]]:
        """Columns from which fields are read, with the field name; for rates, the columns of their keys and times."""
        return [(column, field.name) for field in self._make_columns() for column in field.inputs]

    def _columns_of_tasks(self) -> list[tuple[str, str]]:
        """Columns from which labels are computed, or whether they are observed, with the task name."""
        parsed = [*self.labels.items(), *self.observed.items()]
        return [(column, name) for name, made in parsed for column in made.columns]

    def _check_inputs(self, path: Path, labels: bool) -> None:
        """Check that every column needed by a field, or by a label, exists."""
        found = self._found_columns(path)
        needed = [(column, f"field {name}") for column, name in self._columns_of_fields()]
        if labels:
            needed += [(column, f"task {name}") for column, name in self._columns_of_tasks()]
        for column, whom in needed:
            if column not in found:
                raise UserError(f"{path}: no column {column!r}, which {whom} needs; {_hint(column, found)}")

    def _found_columns(self, path: Path) -> list[str]:
        """Columns of a file and of the tables joined to it."""
        return self._with_joined_columns(self._open(path).names, path)

    # Reading

    def _open(self, path: Path) -> TableFile:
        """Open a file. It is scanned only once, however often it is read."""
        if path not in self._opened:
            t = self.table
            absent = tuple(t.null_values)
            form = Form(t.separator, t.header, tuple(t.columns), t.comment, t.encoding, t.quote, absent, self.path)
            self._opened[path] = TableFile(path, form, self.bad, self._scratch)
        return self._opened[path]

    def _frames(self, label: str) -> Iterator[tuple[pl.DataFrame, Path, str]]:
        """Chunks of all files without blank lines, each with its file and split."""
        total = sum(p.stat().st_size for p in self._own_files())
        self._unmatched = dict.fromkeys(self._joined, 0)
        with Stage(label, total, "B") as stage:
            for split, paths in self.sources.items():
                for path in paths:
                    opened = self._open(path)
                    rows, left = 0, opened.size
                    for frame in opened.chunks():
                        rows += len(frame)
                        size = 0 if opened.parquet else min(csv_bytes(frame), left)
                        yield self._join(frame), path, split
                        stage.advance(size)
                        left -= size
                    if rows == 0:
                        raise UserError(f"{path}: no rows")
                    stage.advance(left)

    def _numbered(self, label: str) -> Iterator[tuple[pl.DataFrame, Path, str]]:
        """Like :meth:`_frames`, but each row has a number over all files that is the same in every pass."""
        rows = 0
        for frame, path, split in self._frames(label):
            yield frame.with_row_index(ROW, rows), path, split
            rows += len(frame)
        self._rows = rows

    def _read_join(self, name: str) -> pl.DataFrame:
        """Read the key of a joined table, and the columns that a field uses."""
        spec, path = self.table.joins[name], self.joins[name][0]
        wanted = {column for column, _ in self._columns_of_fields()}
        parts = []
        for each in self.joins[name]:
            opened = self._open(each)
            if spec.key not in opened.names:
                raise UserError(f"{each}: no column {spec.key!r}, the key of joins.{name} in {self.path}")
            chosen = [c for c in opened.names if c in wanted and c != spec.key]
            for frame in opened.chunks():
                keys = id_text(frame[spec.key], each).alias(spec.by)
                parts.append(frame.select(chosen).with_columns(keys).drop_nulls(spec.by))
        try:
            table = pl.concat(parts)
        except pl.exceptions.PolarsError as error:
            said = str(error).splitlines()[0]
            raise UserError(f"{path}: its parts have other columns, or other types of one ({said})") from None
        twice = table[spec.by].is_duplicated()
        if twice.any():
            value = table[spec.by].filter(twice)[0]
            raise UserError(f"{path}: {spec.key} {value} occurs more than once, so rows cannot be joined to it")
        return table

    def _join(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add the columns of the joined tables to a chunk; a key without a match gives empty cells."""
        for name, table in self._joined.items():
            by = self.table.joins[name].by
            keys = id_text(frame[by], self.joins[name][0])
            self._unmatched[name] += int((~keys.is_in(table[by].implode()).fill_null(False)).sum())
            side = table.rename({by: _KEY})
            frame = frame.with_columns(keys.alias(_KEY)).join(side, on=_KEY, how="left", maintain_order="left")
            frame = frame.drop(_KEY)
        return frame

    def _check_columns(self, path: Path) -> None:
        """Check that every column in the spec exists, and that every column of the file is used or ignored."""
        found = self._found_columns(path)
        named = {column: f"fields.{name}" for column, name in self._columns_of_fields()}
        named |= {column: f"fields.{field.name}" for field in self._make_columns() for column in field.happened}
        named |= {column: f"tasks.{name}" for column, name in self._columns_of_tasks()}
        if self.table.split.column:
            named.setdefault(self.table.split.column, "split.column")
        ignore = self.table.ignore if isinstance(self.table.ignore, list) else [self.table.ignore]
        named |= {str(c): "ignore" for c in ignore if c != "rest"}
        for column, key in named.items():
            if column not in found:
                hint = _hint(column, found)
                raise UserError(f"{path}: no column {column!r}, named by {key} in {self.path}; {hint}")
        unnamed = [c for c in found if c not in named]
        if unnamed and "rest" not in ignore:
            listed = ", ".join(c or "'' (without a name: the index that pandas writes)" for c in unnamed)
            raise UserError(
                f"{self.path}: columns of {path.name} that it does not name: {listed}; "
                "make them fields, or list them (or the word rest) under ignore"
            )

    def _with_joined_columns(self, columns: list[str], path: Path) -> list[str]:
        """Columns of a file and of its joins, each once."""
        for name, table in self._joined.items():
            by = self.table.joins[name].by
            if by not in columns:
                raise UserError(f"{path}: no column {by!r}, by which joins.{name} in {self.path} joins")
            added = [c for c in table.columns if c != by]
            both = [c for c in added if c in columns]
            if both:
                raise UserError(f"{self.path}: joins.{name}: {path.name} has a column {both[0]!r} as well")
            columns = [*columns, *added]
        return columns

    # Splitting

    def _time_boundaries(self) -> Array | None:
        """Start of validation and of test, for a split by time."""
        split = self.table.split
        if split.by != "time" or set(self.sources) == set(SPLITS):
            return None
        if split.test_from is not None:
            starts = [self._from("validation_from"), self._from("test_from")]
            if starts[0] > starts[1]:
                raise UserError(f"{self.path}: split.validation_from: is later than test_from")
            return np.array(starts)
        sample = Sample()
        for frame, path, file_split in self._frames("finding the split by time"):
            if file_split != "test":
                sample.add(self._readable(frame, path, self._times)[1])
        times = sample.sorted()
        test = 0.0 if "test" in self.sources else split.test
        places = [round(len(times) * (1 - split.validation - test)), round(len(times) * (1 - test))]
        ends = [times[p] if p < len(times) else np.inf for p in places]
        return np.array(ends, np.float64)

    def _from(self, key: str) -> float:
        """Start of a split in units of the column: a number, or microseconds for a time."""
        value = getattr(self.table.split, key)
        if isinstance(value, str | date):
            frame = pl.DataFrame({LINE: [0], key: [value.isoformat() if isinstance(value, date) else value]})
            try:
                return float(moments(frame, key, self.path)[0])
            except BadRowError as error:
                raise UserError(f"{self.path}: split.{key}: {error.problem.partition(': ')[2]}") from None
        return float(value)

    def _times(self, frame: pl.DataFrame, path: Path) -> Array:
        split = self.table.split
        values, dated = self._rising.read(frame, path)
        if split.test_from is not None and dated != isinstance(split.test_from, str | date):
            held, example = ("times", "2023-11-14") if dated else ("numbers", "1700000000")
            raise UserError(
                f"{self.path}: split.test_from: {split.test_from!r}, but column {split.column} of {path.name} holds "
                f"{held}; write it, and validation_from, such as {example}"
            )
        if values.null_count():
            lines = frame.filter(values.is_null())[LINE].to_list()
            raise BadRowError(path, lines, f"column {split.column}: empty, but the split is by this time")
        return values.to_numpy()

    def _assign(self, frame: pl.DataFrame, path: Path, file_split: str) -> Array:
        """(n,) 0 for train, 1 for validation, 2 for test."""
        split = self.table.split
        if file_split == "test" or set(self.sources) == set(SPLITS):
            return np.full(len(frame), SPLITS.index(file_split))
        test = split.test if file_split == "all" else 0.0
        if split.by == "column":
            cells = id_text(frame[split.column], path)
            self._seen_values |= set(cells.unique().drop_nulls())
            chosen = [cells.is_in(values).fill_null(False).to_numpy() for values in (split.validation, split.test)]
            return np.where(chosen[1], 2, np.where(chosen[0], 1, 0))
        if split.by == "time":
            assert self._boundaries is not None
            place = np.searchsorted(self._boundaries, self._times(frame, path), side="right")
            return np.minimum(place, 2 if file_split == "all" else 1)
        # Each row is assigned separately, including rows without a value of the column: they do not form a group.
        keys = frame[LINE].to_numpy().astype(np.int64) + (self._own_files().index(path) << 40)
        if split.by == "hash":
            cells = id_text(frame[split.column], path)
            keys = np.where(cells.is_null(), keys, _hash_texts(cells.fill_null("")))
        where = fraction(keys, split.seed)
        return np.where(where < test, 2, np.where(where < test + split.validation, 1, 0))

    # Labels

    def _labels(self, frame: pl.DataFrame, path: Path) -> Array:
        """(n, T) 0, 1 or MISSING."""
        labels = [read_label(frame, path, f"task {name}", p, self.path) for name, p in self.labels.items()]
        found = np.stack(labels, 1)
        for place, name in enumerate(self.labels):
            if name in self.observed:
                told = read_label(frame, path, f"tasks.{name}.observed", self.observed[name], self.path)
                found[told != 1, place] = MISSING
        return found

    # Passes

    def _learn(self, columns: list[TableColumn]) -> Array:
        """Show the training rows to every column, and return counts (split, task, label) of observed rows."""
        names = list(self.table.tasks)
        tally = np.zeros((len(SPLITS), len(names), 2), np.int64)
        self._missing = np.zeros(len(names), np.int64)
        self._joint_rows = np.zeros(len(names), np.int64)
        self._seen_values: set[str] = set()
        for chunk, path, file_split in self._numbered("learning vocabularies and statistics"):

            def read(frame: pl.DataFrame, path: Path, of: str = file_split) -> tuple[Array, Array]:
                where, labels = self._assign(frame, path, of), self._labels(frame, path)
                for column in columns if self.bad.allowed else ():
                    column.check(frame, path)
                return where, labels

            frame, (where, labels) = self._readable(chunk, path, read)
            training = frame.filter(pl.Series(where == 0))
            observed = self._observed(labels)
            for column in columns:
                column.observe(training, path)
                column.show(frame, path, where, labels, observed)
            self._missing += (labels == MISSING).sum(axis=0)
            self._joint_rows += self._told(labels[where == 0]).sum(axis=0)
            for task in range(len(names)):
                for split in range(len(SPLITS)):
                    tally[split, task] += np.bincount(labels[(where == split) & observed[:, task], task], minlength=2)
        return tally

    def _readable(
        self, frame: pl.DataFrame, path: Path, read: Callable[[pl.DataFrame, Path], T]
    ) -> tuple[pl.DataFrame, T]:
        """Read a chunk. Returns it without the rows skipped as unreadable, and what ``read`` returns for the others."""
        while True:
            try:
                return frame, read(frame, path)
            except BadRowError as error:
                self.bad.add(error)
                frame = frame.filter(~pl.col(LINE).is_in(error.lines))

    def _chain(self, name: str) -> list[int]:
        """Column indices of a task and of its ``observed_where`` ancestors, nearest first."""
        names, found = list(self.table.tasks), [name]
        while (parent := self.table.tasks[found[-1]].observed_where) is not None:
            if parent in found:
                raise UserError(f"{self.path}: tasks.{name}.observed_where goes in a circle")
            found.append(parent)
        return [names.index(n) for n in found]

    def _observed(self, labels: Array) -> Array:
        """(n, T) whether a row measures a task: its label is present, and its ancestors are 1."""
        chains = [self._chain(name) for name in self.table.tasks]
        return np.stack([(labels[:, own] != MISSING) & (labels[:, above] == 1).all(1) for own, *above in chains], 1)

    def _told(self, labels: Array) -> Array:
        """(n, T) whether the labels determine if a task and all its ancestors happened."""
        chains = [labels[:, self._chain(name)] for name in self.table.tasks]
        return np.stack([(chain == 1).all(1) | (chain == 0).any(1) for chain in chains], 1)

    def _check_all_found(self) -> None:
        """Check that every value listed in a split by column occurs, and that every join has a match."""
        split = self.table.split
        if split.by == "column" and set(self.sources) != set(SPLITS):
            for key in ("validation", "test"):
                for value in getattr(split, key):
                    if value not in self._seen_values and not (key == "test" and "test" in self.sources):
                        near = difflib.get_close_matches(value, self._seen_values, 1)
                        hint = f"; did you mean {near[0]}?" if near else ""
                        raise UserError(f"{self.path}: split.{key}: {value!r} is in no row of {split.column}{hint}")
        for name, unmatched in self._unmatched.items():
            if unmatched == self._rows:
                join = self.table.joins[name]
                raise UserError(
                    f"{self.path}: joins.{name}: no row has a {join.by} that is a {join.key} of {self.joins[name][0]}"
                )

    def _check_tally(self, tally: Array) -> None:
        for split, counts in zip(SPLITS, tally, strict=True):
            if counts.sum() == 0:
                raise UserError(f"{self.path}: split: no rows are left for {split}")
            for name, (negatives, positives) in zip(self.table.tasks, counts, strict=True):
                if negatives and positives:
                    continue
                missing = "positives" if negatives else "negatives" if positives else "observed rows"
                if split == "train" or not self.table.split.allow_one_class:
                    raise UserError(
                        f"{self.path}: task {name} has no {missing} in {split} ({negatives + positives} rows): change "
                        "the split, drop the task" + (", or set split.allow_one_class" if split != "train" else "")
                    )

    def _tasks(self, tally: Array) -> tuple[Task, ...]:
        observed = tally[0]
        tasks = []
        for (name, spec), (negatives, positives) in zip(self.table.tasks.items(), observed, strict=True):
            rate = positives / (negatives + positives)
            if spec.train_on == "all" and spec.observed_where:
                rate = positives / self._joint_rows[list(self.table.tasks).index(name)]
            rules = (spec.observed_where, spec.train_on, spec.joint, spec.weight, spec.dislike)
            tasks.append(Task(name, float(rate), *rules))
        return tuple(tasks)

    def _encode(self, writer: StoreWriter, columns: list[TableColumn], schema: Schema) -> None:
        counts = {kind: len(schema.of_kind(kind)) for kind in Kind}
        splits = [writer.split(name, counts, len(schema.tasks)) for name in SPLITS]
        users = _Users(columns, schema)
        for chunk, path, file_split in self._numbered("writing the prepared store"):

            def read(frame: pl.DataFrame, path: Path, of: str = file_split) -> tuple[Array, Array, Columns]:
                where, labels = self._assign(frame, path, of), self._labels(frame, path)
                for column in columns if self.bad.allowed else ():
                    column.check(frame, path)
                return where, labels, _columns(frame, path, columns, schema)

            frame, (where, labels, encoded) = self._readable(chunk, path, read)
            whose = users.of(frame, path, encoded.ids)
            for number, split in enumerate(splits):
                _append(split, encoded, labels, where == number, whose)


class _Users:
    """Numbers of users, shared by all splits: 0 for no user, then users of the vocabulary, then new ones.

    A user not seen in training, or seen too rarely, has no embedding vector but still counts as a user.

    Args:
        columns: frozen columns of the table.
        schema: schema that defines the user field and the start of its ids.
    """

    def __init__(self, columns: list[TableColumn], schema: Schema) -> None:
        ids = [f.name for f in schema.of_kind(Kind.ID)]
        whose = (c for c in columns if isinstance(c, IdColumn) and c.name == schema.user)
        self.column = next((c for c in whose if c.name in ids), None)
        if self.column is not None:
            self._place, self._rows = ids.index(self.column.name), schema.rows(self.column.name)
        self._new: dict[str, int] = {}

    def of(self, frame: pl.DataFrame, path: Path, ids: Array) -> Array | None:
        """(n,) int32 user numbers of rows with these (n, S) ids. Python work is per distinct new user only."""
        if self.column is None:
            return None
        found: Array = ids[:, self._place] - self._rows.start
        unknown = found == 0
        if unknown.any():
            texts = id_text(frame[self.column.spec.column].filter(pl.Series(unknown)), path)
            distinct = texts.drop_nulls().unique(maintain_order=True)
            size = self._rows.stop - self._rows.start
            codes = [self._new.setdefault(value, size + len(self._new)) for value in distinct]
            numbered = pl.DataFrame({"text": distinct, "code": pl.Series(codes, dtype=pl.Int32)})
            joined = pl.DataFrame({"text": texts}).join(numbered, on="text", how="left", maintain_order="left")
            found[unknown] = joined["code"].fill_null(0).to_numpy()
        return found


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Files matching a path, pattern or folder, sorted. Without a match, the path itself, for the error message.

    An existing path is taken literally, whatever characters it contains. ``*`` matches any part of a name, and ``**``
    matches any folders.
    """
    path = folder / pattern
    if path.is_dir():
        found = [p for p in path.iterdir() if p.is_file() and p.name.lower().endswith(_ENDINGS)]
        return sorted(p for p in found if not p.name.startswith((".", "_"))) or [path]
    if path.exists() or "*" not in pattern:
        return [path]
    literal, parts = folder, list(Path(pattern).parts)
    while "*" not in parts[0]:
        literal /= parts.pop(0)
    escaped = "/".join(part.replace("[", "[[]").replace("?", "[?]") for part in parts)
    try:
        return sorted(p for p in literal.glob(escaped) if p.is_file()) or [path]
    except ValueError:
        raise UserError(f"{path}: ** stands for whole folders, as in logs/**/part-*.csv") from None


def _hint(column: str, found: list[str]) -> str:
    """Suggest which column a missing one may have been meant to be."""
    near = difflib.get_close_matches(column, found, 1)
    return f"did you mean {near[0]}?" if near else f"its columns are {', '.join(found)}"


def _append(split: SplitWriter, columns: Columns, labels: Array, mask: Array, users: Array | None) -> None:
    if mask.any():
        split.append(select_rows(columns, mask), labels[mask], users=None if users is None else users[mask])


def _columns(frame: pl.DataFrame, path: Path, columns: list[TableColumn], schema: Schema) -> Columns:
    """A chunk as row indices into the embedding table and scaled numbers."""
    n, offsets = len(frame), schema.offsets

    def stacked(values: list[Array], dtype: type) -> Array:
        return np.stack(values, 1).astype(dtype) if values else np.zeros((n, 0), dtype)

    singles: list[Field] = schema.of_kind(Kind.ID)
    codes = [code for column in columns for code in column.ids(frame, path)]
    ids = [code + offsets[field.name] for field, code in zip(singles, codes, strict=True)]
    scaled = [value for column in columns for value in column.numbers(frame, path)]
    bags = [(column, bag) for column in columns if (bag := column.bag(frame, path)) is not None]
    flat = [
        (row, np.full(len(row), number), code + offsets[column.name], weight)
        for number, (column, (row, code, weight)) in enumerate(bags)
    ]
    parts = [np.concatenate(part) for part in zip(*flat, strict=True)] or [np.zeros(0, np.int64)] * 4
    caps, keep = [c.spec.max_values for c, _ in bags], [Keep(c.spec.keep) for c, _ in bags]
    ragged = to_columns(Entries(n, *parts), [], range(len(bags)), caps, keep)
    return Columns(
        stacked(ids, np.int32),
        stacked(scaled, np.float32),
        ragged.bag_lengths,
        ragged.bag_ids,
        ragged.bag_weights,
    )


def _hash_texts(cells: pl.Series) -> NDArray[np.int64]:
    """A stable 63-bit hash of each text. Python work is per distinct text, not per row."""
    distinct = cells.unique()
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in distinct]
    values = np.frombuffer(b"".join(digests), np.uint64) >> np.uint64(1)
    codes = cells.cast(pl.Enum(distinct)).to_physical().to_numpy()
    return values.astype(np.int64)[codes]
