"""Pieces of raw files: whole rows from places that are evenly spread over a file, without reading the rest of it."""

from __future__ import annotations

import csv
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from dlen.data.columns import Array
from dlen.data.sources.csv_text import opener_of, quote_of, separator_of
from dlen.data.sources.table_file import parquet_rows
from dlen.data.sources.table_spec import TableSpec

PIECE = 1 << 19  # bytes of text in a piece
_ROWS = (64, 4096)  # fewest and most rows of a piece of a Parquet file
_UNPACKED = 4  # guess of how much larger text is than its archive; only decides how many pieces a file gets
_SIP = 1 << 12
_WIDE = ("utf-16", "utf_16", "utf16", "utf-32", "utf_32", "utf32")  # encodings in which a line break is not one byte


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file that pieces are taken of.

    Attributes:
        path: path of the file.
        pieces: how many pieces it would have in all.
        rows: number of rows of a Parquet file; None for text.
    """

    path: Path
    pieces: float
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What a sample has of one file.

    Attributes:
        path: the file of the sample.
        share: share of the file's rows that are in it, about.
        starts: row number, counted from 1 with the header, of the first row of each piece.
    """

    path: Path
    share: float
    starts: Array


def measure(paths: Sequence[Path]) -> list[RawFile]:
    """How many pieces each file has. The rows of a Parquet file are in its metadata, the others are told by size."""
    sizes = [path.stat().st_size for path in paths]
    rows = [parquet_rows(path) for path in paths]
    of_parquet = [(n, size) for n, size in zip(rows, sizes, strict=True) if n is not None]
    all_rows, all_bytes = sum(n for n, _ in of_parquet), sum(size for _, size in of_parquet)
    step = min(max(PIECE * all_rows / max(all_bytes, 1), _ROWS[0]), _ROWS[1])
    return [
        RawFile(path, size * (_UNPACKED if opener_of(path) else 1) / PIECE if n is None else n / step, n)
        for path, size, n in zip(paths, sizes, rows, strict=True)
    ]


def spread(files: Sequence[RawFile], pieces: int) -> list[int]:
    """How many of ``pieces`` evenly spaced pieces are in each file."""
    ends = np.cumsum([file.pieces for file in files])
    places = (np.arange(pieces) + 0.5) / pieces * ends[-1]
    counts: list[int] = np.bincount(np.searchsorted(ends, places, "right"), minlength=len(files)).tolist()
    return counts


def whole(file: RawFile, path: Path) -> Taken:
    """Make ``path`` a link to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(file.path.absolute())
    return Taken(path, 1.0, np.ones(1, np.int64))


def take(file: RawFile, path: Path, pieces: int, spec: TableSpec) -> Taken:
    """Write some pieces of a file to ``path``. One that cannot be cut is linked, so that its reader tells why."""
    if pieces >= file.pieces:
        return whole(file, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.rows is not None:
        return _take_rows(file, path, pieces)
    try:
        return _take_text(file, path, pieces, spec)
    except (OSError, EOFError, ValueError, lzma.LZMAError, csv.Error):
        return whole(file, path)


def _take_rows(file: RawFile, path: Path, pieces: int) -> Taken:
    assert file.rows is not None
    step = min(round(file.rows / file.pieces), file.rows // pieces)
    firsts = [int((place + 0.5) / pieces * file.rows - step / 2) for place in range(pieces)]
    scan = pl.scan_parquet(file.path, glob=False)
    try:
        pl.concat([scan.slice(first, step) for first in firsts]).collect().write_parquet(path)
    except (pl.exceptions.PolarsError, OSError):
        return whole(file, path)
    return Taken(path, step * pieces / file.rows, 1 + step * np.arange(pieces))


def _quote(spec: TableSpec) -> bytes:
    """The quote character of cells; empty for none."""
    return (quote_of(spec) or "").encode()


def _take_text(file: RawFile, path: Path, pieces: int, spec: TableSpec) -> Taken:
    opener, wide = opener_of(file.path), spec.encoding.lower().startswith(_WIDE)
    size = file.path.stat().st_size
    if not opener and not wide:
        with file.path.open("rb") as raw:
            head = _head(raw, spec)
            if b"\0" in head:
                return whole(file, path)
            parts = text_pieces(raw, len(head), size, pieces, PIECE)
        if _are_rows(head, parts, spec, separator_of(file.path, spec)):
            return _write(path, head, parts, sum(map(len, parts)) / max(size - len(head), 1))
    with file.path.open("rb") as raw:
        unpacked: BinaryIO = opener(_Sipped(raw)) if opener else raw
        text = unpacked.read(pieces * PIECE)
        share, ended = min(raw.tell() / size, 1.0), not unpacked.read(1)
    if wide:
        decoded = text.decode(spec.encoding, "ignore")
        lines = decoded[: decoded.rfind("\n") + 1]
        path.write_bytes(lines.encode(spec.encoding))
        number = lines.count("\n")
        return Taken(path, share, 1 + np.arange(pieces) * number // pieces)
    rows = text if ended else _whole_rows(text, _quote(spec))
    return _write(path, b"", _cut(rows, pieces), 1.0 if ended else share * len(rows) / len(text))


class _Sipped:
    """A file read in small steps, so that its place tells how much of an archive has been unpacked."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        """Read fewer bytes than asked for."""
        return self.file.read(min(size, _SIP) if size >= 0 else _SIP)


def text_pieces(raw: BinaryIO, begin: int, end: int, pieces: int, size: int) -> list[bytes]:
    """Evenly spaced pieces of a text between two places.

    Args:
        raw: the text.
        begin: place of its first line.
        end: its end.
        pieces: number of pieces. If they cover all of it, each line is in one of them.
        size: a piece has the lines that begin in this many bytes.
    """
    parts = []
    borders = [begin + (end - begin) * place // pieces for place in range(pieces + 1)]
    for low, high in pairwise(borders):
        first = low + max(high - low - size, 0) // 2
        raw.seek(max(first - 1, begin))
        if first > begin:
            raw.readline()  # the rest of a line that begins before the piece
        left = min(first + size, high) - raw.tell()
        if left > 0:
            part = raw.read(left)
            part += b"" if part.endswith(b"\n") else raw.readline()
            parts.append(part if part.endswith(b"\n") else part + b"\n")
    return parts


def _head(raw: BinaryIO, spec: TableSpec) -> bytes:
    """The beginning of a file to the end of its header, if it has one."""
    head, quote, comment = b"", _quote(spec), spec.comment.encode()
    while spec.header and (line := raw.readline(PIECE)):
        head += line
        text = line.removeprefix("\ufeff".encode()).strip()
        if text and not (comment and text.startswith(comment)) and not (quote and head.count(quote) % 2):
            break
    return head


def _are_rows(head: bytes, parts: Sequence[bytes], spec: TableSpec, separator: str) -> bool:
    """Whether pieces of a file begin and end between rows, and not in a quoted cell with line breaks."""
    quote = _quote(spec)
    if not quote or not any(quote in part for part in parts):
        return True
    if any(part.count(quote) % 2 for part in parts):
        return False
    width = 0
    for part in [head, *parts]:
        lines = part.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", " ").split("\n")
        if spec.comment:
            lines = [line for line in lines if not line.startswith(spec.comment)]
        for row in csv.reader(lines, delimiter=separator, quotechar=quote_of(spec)):
            width = width or len(row)
            if row and len(row) != width:
                return False
    return True


def _whole_rows(text: bytes, quote: bytes) -> bytes:
    """A text to the end of its last complete row."""
    end = text.rfind(b"\n")
    quotes = text.count(quote, 0, max(end, 0)) if quote else 0
    while end > 0 and quotes % 2:
        before = text.rfind(b"\n", 0, end)
        quotes -= text.count(quote, max(before, 0), end)
        end = before
    return text[: end + 1] if end >= 0 else text


def _cut(text: bytes, pieces: int) -> list[bytes]:
    """Cut a text into about equal pieces at line breaks."""
    ends = [text.find(b"\n", len(text) * place // pieces) + 1 for place in range(1, pieces)]
    return [text[first:last] for first, last in pairwise(sorted({0, *(e for e in ends if e), len(text)}))]


def _write(path: Path, head: bytes, parts: Sequence[bytes], share: float) -> Taken:
    path.write_bytes(b"".join([head, *parts]))
    before = np.cumsum([head.count(b"\n"), *(part.count(b"\n") for part in parts)])
    return Taken(path, share, 1 + before[:-1])
