"""Any table: CSV, TSV or Parquet files with a YAML that says what their columns are.

The files are streamed two or three times: once for the boundaries of a split by time, once for vocabularies,
statistics and labels of the training rows, once to encode. Memory is bounded by a chunk, the vocabularies and the
tables that are joined.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.ragged import Entries, select_rows, to_columns
from dlen.data.sample import Sample
from dlen.data.sources.table_columns import LINE, TableColumn, make_column, rising_numbers
from dlen.data.sources.table_rates import ROW, RateColumn, read_label
from dlen.data.sources.table_spec import TableSpec, expression, load_spec
from dlen.data.store import Columns, Split, SplitWriter, Store, StoreWriter, split_of
from dlen.errors import UserError
from dlen.hashing import fraction
from dlen.progress import Stage
from dlen.schema import Field, Kind, Schema, Task

Array = NDArray[Any]
T = TypeVar("T")
SPLITS = ("train", "validation", "test")
_CHUNK = 1 << 17
_BROKEN = (OSError, EOFError, zlib.error)  # what reading a broken archive may raise
_KEY = "__joined_by"


class Table:
    """A user's own table as a data source.

    Args:
        spec: the YAML that describes it.
        name: of the data set.
        files: overrides the spec's ``files``; relative to the working folder.
        folder: where the spec's ``files`` and ``joins`` lie, in place of the spec's own folder.
        content: what the YAML would hold, where there is none; ``spec`` then names it in messages.
        bad_rows: so many rows that cannot be read are left out, counted and shown; one more is an error.
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
        self._ragged: dict[Path, list[int]] = {}  # lines that are too long or too short, of files that may have some
        self._widths_known: dict[Path, bool] = {}  # of files that were opened, whether their rows' widths were checked
        self.path = Path(spec)
        self.folder = self.path.parent if folder is None else Path(folder)
        self.table: TableSpec = load_spec(self.path) if content is None else content
        self.joins = {name: _matches(self.folder, join.file)[0] for name, join in self.table.joins.items()}
        self._joined: dict[str, pl.DataFrame] = {}  # what is joined, by the name of the join
        self._unmatched = dict.fromkeys(self.joins, 0)
        self.labels = {task: expression(t, self.path, task) for task, t in self.table.tasks.items()}
        self.sources = self._sources(files)

    def _sources(self, override: Any) -> dict[str, list[Path]]:
        """Paths by split; ``all`` where one table is to be split."""
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
        return {
            name: [match for p in (paths if isinstance(paths, list) else [paths]) for match in _matches(folder, str(p))]
            for name, paths in by_split.items()
        }

    def settings(self) -> dict[str, Any]:
        """The spec's text."""
        files = {split: [str(p) for p in paths] for split, paths in self.sources.items()}
        files |= {f"joins.{name}": [str(path)] for name, path in self.joins.items()}
        tolerated = {"bad_rows": self.bad.allowed} if self.bad.allowed else {}
        return {"spec": self.path.read_text(), "files": files, **tolerated}

    def files(self) -> list[Path]:
        """The table's files, and those that are joined."""
        paths = [*self._own_files(), *self.joins.values()]
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
        """Split, learn from the training rows, encode."""
        self.files()
        self._joined = {name: self._read_join(name) for name in self.joins}
        for path in self._own_files():
            self._check_columns(path)
        self._boundaries = self._time_boundaries()
        columns = self._make_columns(writer.scratch)
        tally = self._learn(columns)
        for column in columns:
            column.freeze(writer)
        self._check_tally(tally)
        fields = [f for kind in Kind for c in columns for f in c.fields() if f.kind is kind]
        schema = Schema(tuple(fields), self._tasks(tally), user=self.table.user, position=self.table.position)
        self._unmatched = dict.fromkeys(self.joins, 0)
        self._encode(writer, columns, schema)
        writer.notes |= {f"rows_without_{name}": n for name, n in self._unmatched.items() if n}
        writer.notes |= {"bad_rows_left_out": len(self.bad)} if len(self.bad) else {}
        return schema

    def read(self, path: Path, store: Store, labels: bool = False) -> Iterator[Split]:
        """Rows of another file of the same columns, encoded as those of a store.

        Args:
            path: a table.
            store: written by a source with this spec.
            labels: read them as well; otherwise they may be missing, and are zero.

        Raises:
            UserError: a column is missing, or a cell cannot be read.
        """
        columns = self._make_columns()
        for column in columns:
            column.restore(store)
        self.sources, self.bad = {"all": [path]}, BadRows(0)  # every row has a line of output
        self._ragged, self._widths_known = {}, {}
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
        """Columns that fields are read from, each with the field's name; of rates those that make keys and times."""
        return [(column, field.name) for field in self._make_columns() for column in field.inputs]

    def _check_inputs(self, path: Path, labels: bool) -> None:
        """Every column that a field, or a label, needs exists."""
        found = self._found_columns(path)
        needed = [(column, f"field {name}") for column, name in self._columns_of_fields()]
        if labels:
            needed += [(c, f"task {name}") for name, parsed in self.labels.items() for c in parsed.columns]
        for column, whom in needed:
            if column not in found:
                raise UserError(f"{path}: no column {column!r}, which {whom} needs; {_hint(column, found)}")

    def _found_columns(self, path: Path) -> list[str]:
        """Of a file, and those that join it."""
        try:
            found = [c for c in self._scan(path).collect_schema().names() if c != LINE]
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
        return self._with_joined_columns(found, path)

    # Reading

    def _options(self, path: Path) -> dict[str, Any]:
        ending = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
        default = "\t" if ending.startswith((".tsv", ".tab")) else ","
        return {"separator": self.table.separator or default, "comment_prefix": self.table.comment or None}

    def _scan(self, path: Path) -> pl.LazyFrame:
        if path.suffix == ".parquet":
            return pl.scan_parquet(path).with_row_index(LINE, offset=1)
        frame = pl.scan_csv(
            path,
            has_header=self.table.header,
            new_columns=self.table.columns or None,
            infer_schema=False,
            encoding="utf8-lossy",
            truncate_ragged_lines=path in self._ragged,
            **self._options(path),
        )
        stripped = frame.with_columns(pl.all().str.strip_chars())
        return stripped.with_row_index(LINE, offset=2 if self.table.header else 1)

    def _frames(self, label: str) -> Iterator[tuple[pl.DataFrame, Path, str]]:
        """Chunks of all files, with their file and its split, without blank lines."""
        total = sum(p.stat().st_size for p in self._own_files())
        with Stage(label, total, "B") as stage:
            for split, paths in self.sources.items():
                for path in paths:
                    rows, left = 0, path.stat().st_size
                    for frame in self._chunks(path):
                        rows += len(frame)
                        yield frame, path, split
                        joined = [c for n, t in self._joined.items() for c in t.columns if c != self.table.joins[n].by]
                        size = min(_csv_bytes(frame.drop(joined)), left) if path.suffix != ".parquet" else 0
                        stage.advance(size)
                        left -= size
                    if rows == 0:
                        raise UserError(f"{path}: no rows")
                    stage.advance(left)

    def _numbered(self, label: str) -> Iterator[tuple[pl.DataFrame, Path, str]]:
        """As :meth:`_frames`, each row with its number in all files, which is the same in every pass."""
        rows = 0
        for frame, path, split in self._frames(label):
            yield frame.with_row_index(ROW, rows), path, split
            rows += len(frame)

    def _chunks(self, path: Path) -> Iterator[pl.DataFrame]:
        if path not in self._widths_known:  # files are read several times
            self._widths_known[path] = self._first_look(path)
        unread = self._unread_lines(path)
        try:
            for frame in self._scan(path).collect_batches(chunk_size=_CHUNK, maintain_order=True):
                cells = [c for c in frame.columns if c != LINE]
                if not self._widths_known[path] and frame[cells[-1]].null_count():
                    # A short row ends in a null, and so does a row whose last cell is empty: look which it is.
                    self._check_widths(path)
                    self._widths_known[path] = True
                if len(unread):
                    frame = frame.with_columns(_file_lines(frame[LINE], unread))
                if self._ragged.get(path):
                    frame = frame.filter(~pl.col(LINE).is_in(self._ragged[path]))
                blank = frame.select(pl.all_horizontal(pl.col(cells).is_null())).to_series()
                skipped = blank.any() and path.suffix != ".parquet"  # a row of nulls is a row, a blank line is none
                yield self._join(frame.filter(~blank) if skipped else frame)
        except pl.exceptions.PolarsError as error:
            if path.suffix != ".parquet":
                self._check_widths(path)
            raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None

    def _read_join(self, name: str) -> pl.DataFrame:
        """The columns of a joined table that a field names, and its key."""
        spec, path = self.table.joins[name], self.joins[name]
        wanted = {column for column, _ in self._columns_of_fields()}
        try:
            found = self._scan(path)
            columns = [c for c in found.collect_schema().names() if c != LINE]
            if spec.key not in columns:
                raise UserError(f"{path}: no column {spec.key!r}, the key of joins.{name} in {self.path}")
            chosen = [pl.col(c) for c in columns if c in wanted and c != spec.key]
            table = found.select(pl.col(spec.key).cast(pl.String).alias(spec.by), *chosen).drop_nulls(spec.by).collect()
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
        twice = table[spec.by].is_duplicated()
        if twice.any():
            value = table[spec.by].filter(twice)[0]
            raise UserError(f"{path}: {spec.key} {value} occurs more than once, so rows cannot be joined to it")
        return table

    def _join(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A chunk with the columns of the joined tables; a key that they do not have gives empty cells."""
        for name, table in self._joined.items():
            by = self.table.joins[name].by
            keys = frame[by].cast(pl.String)
            self._unmatched[name] += int((~keys.is_in(table[by].implode())).sum())
            side = table.rename({by: _KEY})
            frame = frame.with_columns(keys.alias(_KEY)).join(side, on=_KEY, how="left", maintain_order="left")
            frame = frame.drop(_KEY)
        return frame

    def _unread_lines(self, path: Path) -> Array:
        """Numbers of the lines that Polars leaves out when it counts rows: comments, and blanks before a header."""
        if path.suffix == ".parquet" or not (self.table.comment or self.table.header):
            return np.zeros(0, np.int64)
        unread, before = [], self.table.header
        with suppress(*_BROKEN), _open_text(path) as file:
            for number, line in enumerate(file, 1):
                before = before and not line.strip("\ufeff\r\n")
                if before or (self.table.comment and line.startswith(self.table.comment)):
                    unread.append(number)
                elif not self.table.comment:
                    break
        return np.array(unread, np.int64)

    def _first_look(self, path: Path) -> bool:
        """Before a file is read: whether the widths of its rows are known, as they had to be checked, or are equal."""
        if path.suffix == ".parquet":
            return True
        if self.bad.allowed:
            self._find_ragged(path)
            return True
        if _last_byte(path) == self._options(path)["separator"].encode()[-1:]:
            self._check_widths(path)  # Polars takes no notice of a cell too many that a file ends with
            return True
        return False

    def _find_ragged(self, path: Path) -> None:
        """Of a file that may have bad rows, those with too many or too few columns."""
        self._ragged[path] = []
        for error in self._wrong_widths(path):
            self.bad.add(error)
            self._ragged[path] += error.lines

    def _check_widths(self, path: Path) -> None:
        """Raise the error of the first row with too many or too few columns, if there is one."""
        for error in self._wrong_widths(path):
            raise error

    def _wrong_widths(self, path: Path) -> Iterator[BadRowError]:
        """Read a CSV file line by line for rows with too many or too few columns."""
        comment = self.table.comment
        with _open_text(path) as file:
            lines = (line.rstrip("\r\n").replace("\r", " ") for line in file)  # as Polars: a lone \r is in a cell
            rows = csv.reader(lines, delimiter=self._options(path)["separator"])
            width = before = within = 0  # lines before a row, and line breaks within cells so far
            try:
                for row in rows:
                    within += rows.line_num - before - 1
                    before = rows.line_num
                    if not row or row == [""] or (comment and row[0].startswith(comment)):
                        continue
                    width = width or len(self.table.columns) or len(row)
                    if len(row) != width:  # numbered as Polars counts, a row of several lines as one
                        yield BadRowError(path, [before - within], f"{len(row)} columns instead of {width}")
            except (csv.Error, *_BROKEN) as error:
                raise UserError(f"{path}, row {rows.line_num}: cannot be read ({error})") from None

    def _check_columns(self, path: Path) -> None:
        """Every column the spec names exists, and every column of the file is named or ignored."""
        found = self._found_columns(path)
        named = {column: f"fields.{name}" for column, name in self._columns_of_fields()}
        named |= {column: f"fields.{field.name}" for field in self._make_columns() for column in field.happened}
        named |= {c: f"tasks.{name}" for name, e in self.labels.items() for c in e.columns}
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
            raise UserError(
                f"{self.path}: columns of {path.name} that it does not name: {', '.join(unnamed)}; "
                "make them fields, or list them (or the word rest) under ignore"
            )

    def _with_joined_columns(self, columns: list[str], path: Path) -> list[str]:
        """The columns of a file and those that join it, each once."""
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
        """Where validation and test begin, for a split by time."""
        split = self.table.split
        if split.by != "time" or set(self.sources) == set(SPLITS):
            return None
        if split.test_from is not None:
            return np.array([float(split.validation_from), float(split.test_from)])
        sample = Sample()
        for frame, path, file_split in self._frames("finding the split by time"):
            if file_split != "test":
                sample.add(self._readable(frame, path, self._times)[1])
        times = sample.sorted()
        test = 0.0 if "test" in self.sources else split.test
        places = [round(len(times) * (1 - split.validation - test)), round(len(times) * (1 - test))]
        ends = [times[p] if p < len(times) else np.inf for p in places]
        return np.array(ends, np.float64)

    def _times(self, frame: pl.DataFrame, path: Path) -> Array:
        column = self.table.split.column
        values = rising_numbers(frame, column, path)
        if values.null_count():
            lines = frame.filter(values.is_null())[LINE].to_list()
            raise BadRowError(path, lines, f"column {column}: empty, but the split is by this time")
        return values.to_numpy()

    def _assign(self, frame: pl.DataFrame, path: Path, file_split: str) -> Array:
        """(n,) 0 for train, 1 for validation, 2 for test."""
        split = self.table.split
        if file_split == "test" or set(self.sources) == set(SPLITS):
            return np.full(len(frame), SPLITS.index(file_split))
        test = split.test if file_split == "all" else 0.0
        if split.by == "column":
            cells = frame[split.column].cast(pl.String)
            chosen = [cells.is_in(values).to_numpy() for values in (split.validation, split.test)]
            return np.where(chosen[1], 2, np.where(chosen[0], 1, 0))
        if split.by == "time":
            assert self._boundaries is not None
            place = np.searchsorted(self._boundaries, self._times(frame, path), side="right")
            return np.minimum(place, 2 if file_split == "all" else 1)
        if split.by == "hash":
            keys = _hash_texts(frame[split.column].cast(pl.String).fill_null(""))
        else:
            every = self._own_files()
            keys = frame[LINE].to_numpy().astype(np.int64) + (every.index(path) << 40)
        where = fraction(keys, split.seed)
        return np.where(where < test, 2, np.where(where < test + split.validation, 1, 0))

    # Labels

    def _labels(self, frame: pl.DataFrame, path: Path) -> Array:
        """(n, T) 0 or 1."""
        labels = [read_label(frame, path, f"task {name}", p, self.path) for name, p in self.labels.items()]
        return np.stack(labels, 1)

    # Passes

    def _learn(self, columns: list[TableColumn]) -> Array:
        """Show the training rows to every column; returns counts (split, task, label) of observed rows."""
        names = list(self.table.tasks)
        tally = np.zeros((len(SPLITS), len(names), 2), np.int64)
        for chunk, path, file_split in self._numbered("learning vocabularies and statistics"):

            def read(frame: pl.DataFrame, path: Path, of: str = file_split) -> tuple[Array, Array]:
                where, labels = self._assign(frame, path, of), self._labels(frame, path)
                for column in columns if self.bad.allowed else ():
                    column.check(frame, path)
                return where, labels

            frame, (where, labels) = self._readable(chunk, path, read)
            training = frame.filter(pl.Series(where == 0))
            observed = np.stack([self._observed(labels, name) for name in names], 1)
            for column in columns:
                column.observe(training, path)
                column.show(frame, path, where, labels, observed)
            for task in range(len(names)):
                for split in range(len(SPLITS)):
                    tally[split, task] += np.bincount(labels[(where == split) & observed[:, task], task], minlength=2)
        return tally

    def _readable(
        self, frame: pl.DataFrame, path: Path, read: Callable[[pl.DataFrame, Path], T]
    ) -> tuple[pl.DataFrame, T]:
        """What a chunk reads as, and the chunk without the rows that were left out for it."""
        while True:
            try:
                return frame, read(frame, path)
            except BadRowError as error:
                self.bad.add(error)
                frame = frame.filter(~pl.col(LINE).is_in(error.lines))

    def _observed(self, labels: Array, name: str) -> Array:
        """(n,) whether a row measures a task."""
        names = list(self.table.tasks)
        seen = np.ones(len(labels), bool)
        parent, walked = self.table.tasks[name].observed_where, {name}
        while parent is not None:
            if parent in walked:
                raise UserError(f"{self.path}: tasks.{name}.observed_where goes in a circle")
            walked.add(parent)
            seen &= labels[:, names.index(parent)] == 1
            parent = self.table.tasks[parent].observed_where
        return seen

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
                rate = positives / observed.sum(axis=1).max()
            rules = (spec.observed_where, spec.train_on, spec.joint, spec.weight, spec.dislike)
            tasks.append(Task(name, float(rate), *rules))
        return tuple(tasks)

    def _encode(self, writer: StoreWriter, columns: list[TableColumn], schema: Schema) -> None:
        counts = {kind: len(schema.of_kind(kind)) for kind in Kind}
        splits = [writer.split(name, counts, len(schema.tasks)) for name in SPLITS]
        for chunk, path, file_split in self._numbered("writing the prepared store"):

            def read(frame: pl.DataFrame, path: Path, of: str = file_split) -> tuple[Array, Array, Columns]:
                where, labels = self._assign(frame, path, of), self._labels(frame, path)
                for column in columns if self.bad.allowed else ():
                    column.check(frame, path)
                return where, labels, _columns(frame, path, columns, schema)

            _, (where, labels, encoded) = self._readable(chunk, path, read)
            for number, split in enumerate(splits):
                _append(split, encoded, labels, where == number)


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Files by a pattern, in order; the pattern itself where nothing matches, to be named in a message."""
    path = folder / pattern
    return (sorted(path.parent.glob(path.name)) or [path]) if "*" in path.name else [path]


def _hint(column: str, found: list[str]) -> str:
    """What a column that is not there may have been meant to be."""
    near = difflib.get_close_matches(column, found, 1)
    return f"did you mean {near[0]}?" if near else f"its columns are {', '.join(found)}"


def _open_text(path: Path) -> TextIO:
    """A CSV file as lines of text, compressed or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    return cast(TextIO, opener(path, "rt", newline="\n", encoding="utf-8", errors="replace"))


def _last_byte(path: Path) -> bytes:
    """Of a CSV file, compressed or not, as far as it can be read."""
    last = b""
    if path.suffix == ".gz":
        try:
            with gzip.open(path) as unpacked:
                while piece := unpacked.read(1 << 20):
                    last = piece[-1:]
            return last
        except gzip.BadGzipFile:  # Polars goes by the content
            pass
        except _BROKEN:
            return last
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        return file.read(1)


def _file_lines(rows: pl.Series, unread: Array) -> pl.Series:
    """Line numbers in the file from line numbers without those that Polars left out."""
    lines_before = unread - 1 - np.arange(len(unread))  # lines that were read before each of them
    return rows + pl.Series(np.searchsorted(lines_before, rows.to_numpy(), side="left"))


def _csv_bytes(frame: pl.DataFrame) -> int:
    """About how many bytes of the file a chunk took."""
    cells = frame.drop(LINE)
    lengths = cells.select(pl.all().str.len_bytes().sum()).row(0)
    return sum(n or 0 for n in lengths) + cells.width * cells.height


def _append(split: SplitWriter, columns: Columns, labels: Array, mask: Array) -> None:
    if mask.any():
        split.append(select_rows(columns, mask), labels[mask])


def _columns(frame: pl.DataFrame, path: Path, columns: list[TableColumn], schema: Schema) -> Columns:
    """A chunk as rows of the embedding table and scaled numbers."""
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
    caps = [column.spec.max_values for column, _ in bags]
    ragged = to_columns(Entries(n, *parts), [], range(len(bags)), caps)
    return Columns(
        stacked(ids, np.int32),
        stacked(scaled, np.float32),
        ragged.bag_lengths,
        ragged.bag_ids,
        ragged.bag_weights,
    )


def _hash_texts(cells: pl.Series) -> NDArray[np.int64]:
    """A stable 63-bit number for each text; the work in Python is for each distinct text, not for each row."""
    distinct = cells.unique()
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in distinct]
    values = np.frombuffer(b"".join(digests), np.uint64) >> np.uint64(1)
    codes = cells.cast(pl.Enum(distinct)).to_physical().to_numpy()
    return values.astype(np.int64)[codes]
