"""One raw file of a table, streamed in chunks of rows. Its type is detected from its content, and rows are verified.

A CSV file is scanned once before Polars reads it, to find bytes that are not valid in its encoding, to detect content
that is not CSV, and to count its lines. A file in another encoding, or with a compression that Polars does not read, is
unpacked into a scratch folder.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.sources.cells import LINE
from dlen.errors import UserError

Array = NDArray[Any]
CHUNK = 1 << 17
_BLOCK = 1 << 22
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what reading a broken archive may raise
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_NO_TABLE = {  # start of file -> what it is and what to do
    b"PK\x03\x04": "a zip archive (or an Excel file); unpack it, or write it as CSV or Parquet",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard; unpack it, or compress it with gzip",
    b"ARROW1": "an Arrow or Feather file; write it as Parquet",
    b"ORC": "an ORC file; write it as Parquet",
    b"Obj\x01": "an Avro file; write it as Parquet",
    b"\x89HDF": "an HDF5 file; write it as Parquet",
    b"SQLite format 3": "a SQLite database; write the table as CSV or Parquet",
    b"\x80\x04": "a pickle, which is not opened as it may run code; write it as Parquet",
    b"\x80\x05": "a pickle, which is not opened as it may run code; write it as Parquet",
    b"{\\rtf": "a text document; write it as CSV",
    b"%PDF": "a PDF; write the table as CSV",
}
csv.field_size_limit(sys.maxsize)  # unlimited cell size, as in Polars
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True, slots=True)
class Form:
    """The CSV settings of a table's YAML.

    Attributes:
        separator: column separator; empty to infer it from the file extension.
        header: whether the first line contains the column names.
        columns: column names of a file without a header.
        comment: lines starting with this are skipped.
        encoding: text encoding; empty for UTF-8.
        quote: quote character of cells; empty for none, None for ``"`` unless it swallows rows.
        null_values: texts that mean an empty cell.
        spec: path of the YAML, for messages.
    """

    separator: str
    header: bool
    columns: tuple[str, ...]
    comment: str
    encoding: str
    quote: str | None
    null_values: tuple[str, ...]
    spec: Path


class TableFile:
    """A CSV, TSV or Parquet file.

    Args:
        path: path of the file.
        form: CSV settings, ignored for Parquet.
        bad: counter of unreadable rows.
        scratch: folder for an unpacked copy.

    Raises:
        UserError: the file is not a table, or does not match ``form``.
    """

    def __init__(self, path: Path, form: Form, bad: BadRows, scratch: Path) -> None:
        self.path, self.form, self.bad = path, form, bad
        with path.open("rb") as file:
            start = file.read(1 << 16)
        self.parquet = start[:4] == b"PAR1"
        self.size = path.stat().st_size
        self._left_out: list[int] = []  # skipped lines: undecodable or with the wrong number of columns
        self._widths_known = True
        self._empty_rows: list[int] | None = None  # lines of empty cells, computed when needed
        self._lines, self._last_byte = -1, b""
        self._text = path
        if not self.parquet:
            self._text = self._as_text(start, scratch)
            self._look_through()
            self._check_header()
            self._widths_known = self._first_look()
        self.names: list[str] = self._read_names()

    # What Polars reads

    @property
    def _separator(self) -> str:
        suffixes = [s for s in self.path.name.lower().split(".")[1:] if s not in ("gz", "bz2", "xz")]
        default = "\t" if suffixes and suffixes[-1] in ("tsv", "tab") else ","
        return self.form.separator or default

    @property
    def _quote(self) -> str | None:
        return '"' if self.form.quote is None else self.form.quote or None

    def scan(self) -> pl.LazyFrame:
        """All rows with their line number; text is stripped, and all text types are strings."""
        if self.parquet:
            frame = pl.scan_parquet(self.path, glob=False)
            plain = [_plain(name, kind) for name, kind in frame.collect_schema().items()]
            return frame.with_columns(p for p in plain if p is not None).with_row_index(LINE, offset=1)
        frame = pl.scan_csv(
            self._text,
            has_header=self.form.header,
            new_columns=list(self.form.columns) or None,
            infer_schema=False,
            encoding="utf8-lossy",  # undecodable lines were found before, and are filtered out
            truncate_ragged_lines=bool(self._left_out),
            separator=self._separator,
            comment_prefix=self.form.comment or None,
            quote_char=self._quote,
            glob=False,
        )
        padded = {name: name.strip() for name in frame.collect_schema().names() if name != name.strip()}
        stripped = frame.rename(padded).with_columns(pl.all().str.strip_chars())
        if self.form.null_values:
            absent = list(self.form.null_values)
            stripped = stripped.with_columns(pl.when(~pl.all().is_in(absent)).then(pl.all()).name.keep())
        return stripped.with_row_index(LINE, offset=2 if self.form.header else 1)

    def _read_names(self) -> list[str]:
        try:
            return [c for c in self.scan().collect_schema().names() if c != LINE]
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{self.path}: cannot be read ({str(error).splitlines()[0]})") from None

    def chunks(self) -> Iterator[pl.DataFrame]:
        """All rows except blank lines, in chunks.

        Raises:
            UserError: the file is damaged, or a row has too many or too few columns.
        """
        unread = self._unread_lines()
        last = 0
        try:
            for frame in self.scan().collect_batches(chunk_size=CHUNK, maintain_order=True):
                if not self._widths_known and frame[self.names[-1]].null_count():
                    # A row that is too short and a row with an empty last cell both end in a null: check which it is.
                    self._check_widths()
                    self._widths_known = True
                if len(unread):
                    frame = frame.with_columns(_file_lines(frame[LINE], unread))
                last = frame[LINE][-1] if len(frame) else last
                if self._left_out:
                    frame = frame.filter(~pl.col(LINE).is_in(self._left_out))
                yield frame if self.parquet else self._without_blank_lines(frame)
        except pl.exceptions.PolarsError as error:
            if not self.parquet:
                self._check_widths()
            hint = self._quote_hint() if "malformed" in str(error) else ""
            raise UserError(f"{self.path}: cannot be read ({str(error).splitlines()[0]}){hint}") from None
        if not self.parquet and last != self._lines:  # line breaks in cells, or a quote that swallowed rows
            self._check_quotes()
            self._lines = last

    def _without_blank_lines(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Drop blank lines. A line with a separator is a row even if all of its cells are empty."""
        blank = frame.select(pl.all_horizontal(pl.col(self.names).is_null())).to_series()
        if not blank.any():
            return frame
        if self._empty_rows is None:
            self._empty_rows = [number for number, row in self._rows() if self._says_nothing(row)]
        return frame.filter(~blank | pl.col(LINE).is_in(self._empty_rows))

    def _says_nothing(self, row: list[str]) -> bool:
        empty = {"", *self.form.null_values}
        return (len(row) > 1 or row[0].strip() != "") and all(cell.strip() in empty for cell in row)

    # Scanning the text

    def _as_text(self, start: bytes, scratch: Path) -> Path:
        """The file as Polars can read it: UTF-8, optionally gzip. Other files are copied."""
        for magic, what in _NO_TABLE.items():
            if start.startswith(magic):
                raise UserError(f"{self.path}: is {what}")
        opener = next((o for magic, o in _PACKED.items() if start.startswith(magic)), open)
        with self._unpacking(), opener(self.path, "rb") as file:
            begin: bytes = file.read(1 << 16)
        marked = next((name for mark, name in _MARKS.items() if begin.startswith(mark)), "")
        encoding = self.form.encoding
        if not encoding:
            if marked:
                raise UserError(f"{self.path}: is text in UTF-16; set encoding: {marked} in {self.form.spec}")
            if b"\0" in begin:
                raise UserError(
                    f"{self.path}: contains zero bytes, so it is not a CSV file; for text in UTF-16, set encoding: "
                    f"utf-16-le or utf-16-be in {self.form.spec}"
                )
        elif codecs.lookup(encoding).name != "utf-8":
            return self._recoded(opener, encoding, scratch)
        return self.path if opener in (open, gzip.open) else self._unpacked(opener, scratch)

    @contextmanager
    def _unpacking(self) -> Iterator[None]:
        """Report errors from a broken archive in one line."""
        try:
            yield
        except _BROKEN as error:
            raise UserError(f"{self.path}: cannot be decompressed ({error}); fetch the file again") from None

    @staticmethod
    def _copy(scratch: Path) -> Path:
        return scratch / f"text-{len(list(scratch.glob('text-*')))}"

    def _unpacked(self, opener: Any, scratch: Path) -> Path:
        copy = self._copy(scratch)
        with self._unpacking(), opener(self.path, "rb") as file, copy.open("wb") as out:
            shutil.copyfileobj(file, out, _BLOCK)
        return copy

    def _recoded(self, opener: Any, encoding: str, scratch: Path) -> Path:
        copy = self._copy(scratch)
        lines = 1
        try:
            opened = opener(self.path, "rt", encoding=encoding, newline="")
            with self._unpacking(), opened as file, copy.open("wb") as out:
                while text := file.read(_BLOCK):
                    out.write(text.removeprefix("\ufeff").encode() if lines == 1 else text.encode())
                    lines += text.count("\n")
        except UnicodeError as error:
            reason = f"cannot be decoded as {encoding} ({error.args[-1]})"
            raise UserError(f"{self.path}, after line {lines}: {reason}; set encoding in {self.form.spec}") from None
        return copy

    def _open(self) -> BinaryIO:
        with self._text.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return cast(BinaryIO, gzip.open(self._text) if packed else self._text.open("rb"))

    def _open_text(self, errors: str = "replace") -> TextIO:
        return io.TextIOWrapper(self._open(), encoding="utf-8", errors=errors, newline="\n")

    def _look_through(self) -> None:
        """Count the lines and find those that are not UTF-8."""
        decoder: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder("utf-8")()
        lines, last = 0, b"\n"
        with self._unpacking(), self._open() as file:
            while block := file.read(_BLOCK):
                decoder = _decoded(decoder, block)
                lines += block.count(b"\n")
                last = block[-1:]
        self._lines, self._last_byte = lines + (last != b"\n"), last
        if _decoded(decoder, b"", final=True) is None:
            self._find_undecodable()

    def _find_undecodable(self) -> None:
        """Register rows that are not UTF-8 as bad rows."""
        first = self.form.header
        for number, row in self._rows("surrogateescape"):
            escaped = next((c for cell in row for c in cell if "\udc80" <= c <= "\udcff"), None)
            if escaped is not None:
                problem = (
                    f"byte 0x{ord(escaped) - 0xDC00:02x} is not valid UTF-8; set encoding in {self.form.spec}, such as "
                    "gb18030, latin-1 or cp1252"
                )
                if first:
                    raise UserError(f"{self.path}, row {number}: {problem}")
                self.bad.add(BadRowError(self.path, [number], problem))
                self._left_out.append(number)
            first = False

    def _check_header(self) -> None:
        """Reject duplicate column names: one column would be read as the other."""
        names = list(self.form.columns)
        if self.form.header:
            names = next((row for _, row in self._rows()), [])
            names = [name.strip() for name in names]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{self.path}: two columns are called {name!r}; rename or drop one")

    def _first_look(self) -> bool:
        """Whether every row is known to have the right number of columns, because all rows had to be checked here."""
        if self.bad.allowed:
            for error in self._wrong_widths():
                if not set(error.lines) <= set(self._left_out):
                    self.bad.add(error)
                    self._left_out += error.lines
            return True
        if self._last_byte == self._separator.encode()[-1:]:
            self._check_widths()  # Polars ignores an extra cell at the end of the file
            return True
        return False

    def _check_widths(self) -> None:
        """Raise an error for the first row with too many or too few columns, if any."""
        for error in self._wrong_widths():
            raise error

    def _wrong_widths(self) -> Iterator[BadRowError]:
        """Rows with too many or too few columns."""
        width = len(self.form.columns)
        for number, row in self._rows():
            width = width or len(row)
            if len(row) != width:
                yield BadRowError(self.path, [number], f"{len(row)} columns instead of {width}")

    def _rows(self, errors: str = "replace") -> Iterator[tuple[int, list[str]]]:
        """Cells of each row that is neither blank nor a comment, numbered like Polars: a multi-line row counts once."""
        before = within = 0  # lines before a row, and line breaks within cells so far
        with self._open_text(errors) as file:
            lines = (line.rstrip("\r\n").replace("\r", " ") for line in file)  # as in Polars, a lone \r is kept
            rows = csv.reader(_without_mark(lines), **self._dialect())
            try:
                for row in rows:
                    within += rows.line_num - before - 1
                    before = rows.line_num
                    if row and row != [""] and not (self.form.comment and row[0].startswith(self.form.comment)):
                        yield before - within, row
            except (csv.Error, *_BROKEN) as error:
                raise UserError(f"{self.path}, row {rows.line_num}: cannot be read ({error})") from None

    def _dialect(self) -> dict[str, Any]:
        if self._quote is None:
            return {"delimiter": self._separator, "quoting": csv.QUOTE_NONE, "quotechar": None}
        return {"delimiter": self._separator, "quotechar": self._quote}

    def _check_quotes(self) -> None:
        """Reject a multi-line row whose lines would each be a row: the quote closes in the cell of another row."""
        if self.form.quote is not None:  # set explicitly, so intended
            return
        lines: list[str] = []  # lines of a row

        def kept(file: TextIO) -> Iterator[str]:
            for line in file:
                lines.append(line.rstrip("\r\n"))
                yield lines[-1].replace("\r", " ")

        with self._open_text() as file, suppress(csv.Error):
            rows, width, before = csv.reader(kept(file), **self._dialect()), len(self.form.columns), 0
            for row in rows:
                width = width or len(row)
                if len(lines) > 1 and width > 1 and all(line.count(self._separator) == width - 1 for line in lines):
                    raise UserError(
                        f"{self.path}, row {before + 1}: a quote opens here and closes in row {rows.line_num}: "
                        f"{len(lines)} rows become one; set quote: '' in {self.form.spec} if quotes are text, or "
                        "quote: '\"' if cells contain line breaks"
                    )
                lines.clear()
                before = rows.line_num

    def _quote_hint(self) -> str:
        """Hint at the first row with a quote inside a cell, neither at its start nor at its end."""
        if self.parquet or not self._quote:
            return ""
        inside = re.compile(f"[^{re.escape(self._separator)}{self._quote}]{self._quote}[^{re.escape(self._separator)}]")
        with self._open_text() as file:
            number = next((n for n, line in enumerate(file, 1) if inside.search(line.rstrip("\r\n"))), None)
        where = "" if number is None else f" (row {number} has one within a cell)"
        return f"; set quote: '' in {self.form.spec} if quotes are part of the text{where}"

    def _unread_lines(self) -> Array:
        """Numbers of the lines that Polars does not count as rows: comments, and blank lines before a header."""
        if self.parquet or not (self.form.comment or self.form.header):
            return np.zeros(0, np.int64)
        unread, before = [], self.form.header
        with suppress(*_BROKEN), self._open_text() as file:
            for number, line in enumerate(file, 1):
                before = before and not line.strip("\ufeff\r\n")
                if before or (self.form.comment and line.startswith(self.form.comment)):
                    unread.append(number)
                elif not self.form.comment:
                    break
        return np.array(unread, np.int64)


def _decoded(
    decoder: codecs.IncrementalDecoder | None, block: bytes, *, final: bool = False
) -> codecs.IncrementalDecoder | None:
    """The decoder after a block; None if the text was not valid in its encoding."""
    try:
        if decoder is not None:
            decoder.decode(block, final)
        return decoder
    except UnicodeDecodeError:
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


def _without_mark(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix("\ufeff")


def _file_lines(rows: pl.Series, unread: Array) -> pl.Series:
    """Convert row numbers that skip uncounted lines to line numbers of the file."""
    lines_before = unread - 1 - np.arange(len(unread))  # counted lines before each of them
    return rows + pl.Series(np.searchsorted(lines_before, rows.to_numpy(), side="left"))


def csv_bytes(frame: pl.DataFrame) -> int:
    """Approximate number of bytes that a chunk took in the file."""
    cells = frame.drop(LINE)
    lengths = cells.select(pl.all().cast(pl.String, strict=False).str.len_bytes().sum()).row(0)
    return sum(n or 0 for n in lengths) + cells.width * cells.height
