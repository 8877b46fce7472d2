"""One raw file of a table, streamed in chunks of rows. Its type is detected from its content, and rows are verified.

A CSV file is scanned once before Polars reads it, to find bytes that are not valid in its encoding, to detect content
that is not CSV, and to count its lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.columns import Array
from dlen.data.sources.cells import LINE
from dlen.data.sources.csv_checks import (
    check_header,
    check_quotes,
    check_widths,
    quote_hint,
    undecodable_rows,
    wrong_widths,
)
from dlen.data.sources.csv_text import CsvText
from dlen.data.sources.table_partitions import partitions_of, with_partitions
from dlen.data.sources.table_spec import TableSpec
from dlen.errors import UserError

CHUNK = 1 << 17


class TableFile:
    """A CSV, TSV or Parquet file.

    Args:
        path: path of the file.
        spec: spec of the table; how CSV is written does not matter for Parquet.
        bad: counter of unreadable rows.
        scratch: folder for an unpacked copy.

    Attributes:
        names: columns of the file.
        partitions: columns and values of the folders it is in, unless the file has such a column itself.

    Raises:
        UserError: the file is not a table, or does not match ``spec``.
    """

    def __init__(self, path: Path, spec: TableSpec, bad: BadRows, scratch: Path) -> None:
        self.path, self.spec, self.bad = path, spec, bad
        self.parquet = is_parquet(path)
        self.size = path.stat().st_size
        self._left_out: list[int] = []  # skipped lines: undecodable or with the wrong number of columns
        self._widths_known = True
        self._empty_rows: list[int] | None = None  # lines of empty cells, computed when needed
        self._text = None if self.parquet else CsvText(path, spec, scratch)
        if self._text is not None:
            self._leave_out(undecodable_rows(self._text))
            check_header(self._text)
            self._widths_known = self._check_all_widths(self._text)
        self.names: list[str] = self._read_names()
        self.partitions = {name: v for name, v in partitions_of(path).items() if name not in self.names}

    def _leave_out(self, errors: Iterable[BadRowError]) -> None:
        """Skip bad rows."""
        for error in errors:
            if error.lines[0] not in self._left_out:
                self.bad.add(error)
                self._left_out += error.lines

    def _check_all_widths(self, text: CsvText) -> bool:
        """Check the widths of all rows if Polars might not notice wrong ones. Returns whether they were checked."""
        if self.bad.allowed:
            self._leave_out(wrong_widths(text))
            return True
        if text.last_byte == text.separator.encode()[-1:]:
            check_widths(text)  # Polars ignores an extra cell at the end of the file
            return True
        return False

    @property
    def most_rows(self) -> int:
        """An upper bound of the number of rows."""
        return (self._rows or 0) if self._text is None else self._text.lines

    @property
    def divisible(self) -> bool:
        """Whether rows in the middle are reached without reading those before them."""
        return self._text is None or not self._text.packed

    def scan(self, first: int = 0, rows: int | None = None) -> pl.LazyFrame:
        """All rows with their line number, or some; text is stripped, and all text types are strings."""
        if self._text is None:
            frame = pl.scan_parquet(self.path, glob=False)
            plain = [_plain(name, kind) for name, kind in frame.collect_schema().items()]
            plainer = frame.slice(first, rows).with_columns(p for p in plain if p is not None)
            return plainer.with_row_index(LINE, offset=1 + first)
        frame = pl.scan_csv(
            self._text.file,
            has_header=self.spec.header,
            new_columns=self.spec.columns or None,
            infer_schema=False,
            encoding="utf8-lossy",  # undecodable lines were found before, and are filtered out
            truncate_ragged_lines=bool(self._left_out),
            separator=self._text.separator,
            comment_prefix=self.spec.comment or None,
            quote_char=self._text.quote,
            glob=False,
        ).slice(first, rows)  # before all else, so that Polars skips what is before it
        padded = {name: name.strip() for name in frame.collect_schema().names() if name != name.strip()}
        stripped = frame.rename(padded).with_columns(pl.all().str.strip_chars())
        if self.spec.null_values:
            stripped = stripped.with_columns(pl.when(~pl.all().is_in(self.spec.null_values)).then(pl.all()).name.keep())
        return stripped.with_row_index(LINE, offset=first + (2 if self.spec.header else 1))

    def _read_names(self) -> list[str]:
        try:
            return [c for c in self.scan().collect_schema().names() if c != LINE]
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{self.path}: cannot be read ({str(error).splitlines()[0]})") from None

    def chunks(self, first: int = 0, rows: int | None = None) -> Iterator[pl.DataFrame]:
        """Rows except blank lines, in chunks.

        Args:
            first: number of the first row, counted with blank lines.
            rows: number of rows, counted in the same way; None up to the end.

        Raises:
            UserError: the file is damaged, or a row has too many or too few columns.
        """
        text, last = self._text, first
        unread = np.zeros(0, np.int64) if text is None else text.unread_lines()
        try:
            for frame in self.scan(first, rows).collect_batches(chunk_size=CHUNK, maintain_order=True):
                if text is not None and not self._widths_known and frame[self.names[-1]].null_count():
                    # A row that is too short and a row with an empty last cell both end in a null: check which it is.
                    check_widths(text)
                    self._widths_known = True
                if len(unread):
                    frame = frame.with_columns(_file_lines(frame[LINE], unread))
                last = frame[LINE][-1] if len(frame) else last
                if self._left_out:
                    frame = frame.filter(~pl.col(LINE).is_in(self._left_out))
                frame = frame if text is None else self._without_blank_lines(frame, text)
                yield with_partitions(frame, self.partitions)
        except pl.exceptions.PolarsError as error:
            if text is not None:
                check_widths(text)
            hint = quote_hint(text) if text is not None and "malformed" in str(error) else ""
            raise UserError(f"{self.path}: cannot be read ({str(error).splitlines()[0]}){hint}") from None
        if (
            text is not None and rows is None and last != text.lines
        ):  # line breaks in cells, or a quote that swallowed rows
            check_quotes(text)
            text.lines = last

    def bytes_of(self, frame: pl.DataFrame) -> float:
        """Approximate number of bytes that a chunk took in the file."""
        if self._text is None:
            return self.size * len(frame) / (self._rows or 1)
        cells = frame.select(self.names)
        lengths = cells.select(pl.all().cast(pl.String, strict=False).str.len_bytes().sum()).row(0)
        return sum(n or 0 for n in lengths) + cells.width * cells.height

    @cached_property
    def _rows(self) -> int | None:
        return parquet_rows(self.path)

    def _without_blank_lines(self, frame: pl.DataFrame, text: CsvText) -> pl.DataFrame:
        """Drop blank lines. A line with a separator is a row even if all of its cells are empty."""
        blank = frame.select(pl.all_horizontal(pl.col(self.names).is_null())).to_series()
        if not blank.any():
            return frame
        if self._empty_rows is None:
            self._empty_rows = [number for number, row in text.rows() if self._is_empty(row)]
        return frame.filter(~blank | pl.col(LINE).is_in(self._empty_rows))

    def _is_empty(self, row: list[str]) -> bool:
        """Whether a line has a separator and no content."""
        empty = {"", *self.spec.null_values}
        return (len(row) > 1 or row[0].strip() != "") and all(cell.strip() in empty for cell in row)


def is_parquet(path: Path) -> bool:
    """Whether a file begins like a Parquet file."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def parquet_rows(path: Path) -> int | None:
    """Number of rows of a Parquet file, by its footer; None for another file, or a damaged one."""
    if not is_parquet(path):
        return None
    try:
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError):
        return None


def _plain(name: str, kind: pl.DataType) -> pl.Expr | None:
    """Expression that converts a Parquet column to a type a CSV could have; None if no conversion is needed."""
    column = pl.col(name)
    if kind == pl.String:
        return column.str.strip_chars()
    if isinstance(kind, pl.Categorical | pl.Enum):
        return column.cast(pl.String).str.strip_chars()
    if isinstance(kind, pl.Array):
        return column.arr.to_list()
    return None


def _file_lines(rows: pl.Series, unread: Array) -> pl.Series:
    """Convert row numbers that skip uncounted lines to line numbers of the file."""
    lines_before = unread - 1 - np.arange(len(unread))  # counted lines before each of them
    return rows + pl.Series(np.searchsorted(lines_before, rows.to_numpy(), side="left"))
