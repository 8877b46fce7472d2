"""A CSV file as text in UTF-8: its encoding and compression are detected, and its rows are numbered as in the file.

A file in another encoding, or with a compression that Polars does not read, is unpacked into a scratch folder.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import numpy as np

from dlen.data.columns import Array
from dlen.data.sources.table_spec import TableSpec
from dlen.errors import UserError

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


def separator_of(path: Path, spec: TableSpec) -> str:
    """The separator of cells in a file."""
    suffixes = [s for s in path.name.lower().split(".")[1:] if s not in ("gz", "bz2", "xz")]
    return spec.separator or ("\t" if suffixes and suffixes[-1] in ("tsv", "tab") else ",")


def quote_of(spec: TableSpec) -> str | None:
    """The quote character of cells; None for none."""
    return '"' if spec.quote is None else spec.quote or None


def opener_of(path: Path) -> Any:
    """What opens a compressed file; None for another one."""
    with path.open("rb") as file:
        start = file.read(8)
    return next((opener for magic, opener in _PACKED.items() if start.startswith(magic)), None)


class CsvText:
    """A CSV file that Polars can read.

    Args:
        path: path of the file.
        spec: how it is written.
        scratch: folder for an unpacked copy.

    Attributes:
        separator: separator of cells.
        quote: quote character of cells; None for none.
        file: the file in UTF-8, optionally compressed with gzip; a copy if ``path`` is not.
        lines: number of lines.
        last_byte: the last byte; a line break for an empty file.
        decodable: whether all lines are valid UTF-8.

    Raises:
        UserError: the file is not text, or cannot be decompressed or decoded.
    """

    def __init__(self, path: Path, spec: TableSpec, scratch: Path) -> None:
        self.path, self.spec = path, spec
        self.separator, self.quote = separator_of(path, spec), quote_of(spec)
        self.file = self._as_text(scratch)
        self._look_through()

    def _as_text(self, scratch: Path) -> Path:
        """The file as Polars can read it: UTF-8, optionally gzip. Other files are copied."""
        with self.path.open("rb") as file:
            start = file.read(1 << 16)
        for magic, what in _NO_TABLE.items():
            if start.startswith(magic):
                raise UserError(f"{self.path}: is {what}")
        opener = opener_of(self.path) or open
        with self._unpacking(), opener(self.path, "rb") as file:
            begin: bytes = file.read(1 << 16)
        marked = next((name for mark, name in _MARKS.items() if begin.startswith(mark)), "")
        encoding = self.spec.encoding
        if not encoding:
            if marked:
                raise UserError(f"{self.path}: is text in UTF-16; set encoding: {marked} in {self.spec.path}")
            if b"\0" in begin:
                raise UserError(
                    f"{self.path}: contains zero bytes, so it is not a CSV file; for text in UTF-16, set encoding: "
                    f"utf-16-le or utf-16-be in {self.spec.path}"
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
            raise UserError(f"{self.path}, after line {lines}: {reason}; set encoding in {self.spec.path}") from None
        return copy

    @property
    def packed(self) -> bool:
        """Whether the file is compressed."""
        with self.file.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"

    def _open(self) -> BinaryIO:
        return cast(BinaryIO, gzip.open(self.file) if self.packed else self.file.open("rb"))

    def open_text(self, errors: str = "replace") -> TextIO:
        """Open the text; ``errors`` is what happens to bytes that are not UTF-8."""
        return io.TextIOWrapper(self._open(), encoding="utf-8", errors=errors, newline="\n")

    def _look_through(self) -> None:
        """Count the lines, and find out whether they are UTF-8."""
        decoder: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder("utf-8")()
        lines, last = 0, b"\n"
        with self._unpacking(), self._open() as file:
            while block := file.read(_BLOCK):
                decoder = _decoded(decoder, block)
                lines += block.count(b"\n")
                last = block[-1:]
        self.lines, self.last_byte = lines + (last != b"\n"), last
        self.decodable = _decoded(decoder, b"", final=True) is not None

    def rows(self, errors: str = "replace") -> Iterator[tuple[int, list[str]]]:
        """Cells of each row that is neither blank nor a comment, numbered like Polars: a multi-line row counts once."""
        before = within = 0  # lines before a row, and line breaks within cells so far
        with self.open_text(errors) as file:
            lines = (line.rstrip("\r\n").replace("\r", " ") for line in file)  # as in Polars, a lone \r is kept
            rows = csv.reader(_without_mark(lines), **self.dialect())
            try:
                for row in rows:
                    within += rows.line_num - before - 1
                    before = rows.line_num
                    if row and row != [""] and not (self.spec.comment and row[0].startswith(self.spec.comment)):
                        yield before - within, row
            except (csv.Error, *_BROKEN) as error:
                raise UserError(f"{self.path}, row {rows.line_num}: cannot be read ({error})") from None

    def dialect(self) -> dict[str, Any]:
        """Arguments of :func:`csv.reader`."""
        if self.quote is None:
            return {"delimiter": self.separator, "quoting": csv.QUOTE_NONE, "quotechar": None}
        return {"delimiter": self.separator, "quotechar": self.quote}

    def unread_lines(self) -> Array:
        """Numbers of the lines that Polars does not count as rows: comments, and blank lines before a header."""
        if not (self.spec.comment or self.spec.header):
            return np.zeros(0, np.int64)
        unread, before = [], self.spec.header
        with suppress(*_BROKEN), self.open_text() as file:
            for number, line in enumerate(file, 1):
                before = before and not line.strip("\ufeff\r\n")
                if before or (self.spec.comment and line.startswith(self.spec.comment)):
                    unread.append(number)
                elif not self.spec.comment:
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


def _without_mark(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix("\ufeff")
