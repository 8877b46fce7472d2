r"""The raw grammar of Ali-CCP: parses blocks of lines into arrays, and describes what is wrong with an invalid line.

A line is ``head,...,head,feature_num,feature_list``; the list is ``field \x02 id \x03 value`` joined by ``\x01``.
A block of lines is processed as one array of bytes, and Polars' CSV reader parses the numbers. A block that fails is
halved until the invalid lines are isolated. There is one parser for blocks of any size, and the error messages are
produced only for lines it rejects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.columns import Columns
from dlen.data.ragged import Entries

BLOCK = 8 << 20
_THREADS = min(4, pl.thread_pool_size())  # each has one block in progress and one finished
MAX_ID = 2**31 - 2
_MAX_VALUE = float(np.finfo(np.float32).max)
_NEWLINE, _COMMA = ord("\n"), ord(",")
_MARK = "\ufeff".encode()  # byte order mark
_TO_CSV = bytes.maketrans(b"\x01\x02\x03", b"\n,,")
Bytes = NDArray[np.uint8]


class _MalformedError(Exception):
    """A line of the block is invalid; halving finds out which."""


@dataclass(slots=True)
class Block:
    """Some lines of one raw file.

    Attributes:
        lines: (n,) line numbers, starting at 1.
        head: (n,) strings for each head column, without ``feature_num``.
        columns: features with raw ids.
        size: size of the lines in bytes.
        bad: errors of the skipped lines.
    """

    lines: NDArray[np.int64]
    head: pl.DataFrame
    columns: Columns
    size: int
    bad: list[BadRowError]


class Reader:
    """Reads one raw file in blocks and validates every line.

    Args:
        path: path of the file.
        head: names of the columns before ``feature_num``.
        binary: head columns that must be 0 or 1.
        fields: names of the fields that the file may contain.
        convert: function from entries, whose ``field`` is an index into ``fields``, to columns.
        bad: counter of lines that violate the grammar.
        first: first byte that is read, at the start of a line.
        last: byte after the last one; None for the end of the file.
        line: number of the first line.
    """

    def __init__(
        self,
        path: Path,
        head: Sequence[str],
        binary: Sequence[str],
        fields: Sequence[str],
        convert: Callable[[Entries], Columns],
        bad: BadRows,
        *,
        first: int = 0,
        last: int | None = None,
        line: int = 1,
    ) -> None:
        self.path, self.head, self.binary, self.fields = path, list(head), list(binary), list(fields)
        self.convert, self.bad, self.first, self.last, self.line = convert, bad, first, last, line
        self._names = pl.Enum(self.fields)

    def __iter__(self) -> Iterator[Block]:
        """Yield blocks in file order, while other threads parse the next ones."""
        threads, ahead = ThreadPoolExecutor(_THREADS), deque[Future[Block]]()
        line = self.line
        try:
            for raw in _blocks(self.path, self.first, self.last):
                ahead.append(threads.submit(self._checked, raw, line))
                line += raw.count(b"\n")
                if len(ahead) > _THREADS:
                    yield self._counted(ahead.popleft().result())
            while ahead:
                yield self._counted(ahead.popleft().result())
        finally:  # after an error, do not start the remaining blocks
            threads.shutdown(cancel_futures=True)

    def _counted(self, block: Block) -> Block:
        for error in block.bad:  # here and not in the threads, to keep file order
            self.bad.add(error)
        return block

    def _checked(self, raw: bytes, line: int) -> Block:
        lines = np.arange(line, line + raw.count(b"\n"))
        block = self._try(raw, lines)
        if block is not None:
            return block
        kept: list[bytes] = []
        bad: list[BadRowError] = []
        self._sort_out([part + b"\n" for part in raw.split(b"\n")[:-1]], line, kept, bad)
        if len(bad) > self.bad.allowed:
            raise self.bad.too_many(bad[-1])
        keep = np.ones(len(lines), bool)
        keep[[error.lines[0] - line for error in bad]] = False
        return replace(self._parse(b"".join(kept), lines[keep]), bad=bad)

    def _try(self, raw: bytes, lines: NDArray[np.int64]) -> Block | None:
        try:
            return self._parse(raw, lines)
        except (_MalformedError, UnicodeDecodeError, pl.exceptions.PolarsError):
            return None

    def _parse(self, raw: bytes, lines: NDArray[np.int64]) -> Block:
        # Polars treats a carriage return as the end of a value, and drops a byte order mark at the start of a block.
        if b"\r" in raw or _MARK in raw:
            raise _MalformedError
        if not raw.isascii():
            raw.decode()
        heads, features, counts = self._split(raw)
        schema = dict.fromkeys([*self.head, "feature_num"], pl.String)
        head = (
            pl.read_csv(heads, has_header=False, quote_char=None, schema=schema) if heads else pl.DataFrame({}, schema)
        )
        numbers = head["feature_num"].cast(pl.Int64, strict=False)
        if len(head) != len(counts) or any(head.null_count().row(0)) or numbers.null_count():
            raise _MalformedError
        if not (numbers == counts).all():
            raise _MalformedError
        if not all(head[name].is_in(["0", "1"]).all() for name in self.binary):
            raise _MalformedError
        row = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        columns = self.convert(self._entries(features, row, len(counts)))
        return Block(lines, head.drop("feature_num"), columns, len(raw), [])

    def _split(self, raw: bytes) -> tuple[bytes, bytes, NDArray[np.int64]]:
        """A block of lines -> head columns as CSV, features as CSV, and the number of features in each line."""
        text = np.frombuffer(raw, np.uint8)
        is_newline = text == _NEWLINE
        newline, commas = np.flatnonzero(is_newline), np.flatnonzero(text == _COMMA)
        columns = len(self.head) + 1
        if len(commas) != columns * len(newline):
            raise _MalformedError
        comma = commas.reshape(-1, columns)
        last = comma[:, -1]
        if (last > newline).any() or (comma[1:, 0] < newline[:-1]).any():
            raise _MalformedError
        empty = last + 1 == newline
        # Alternating runs of bytes: a head with its last comma, then a list with its newline. An empty list has none.
        runs = np.stack([last + 1 - np.append(0, newline[:-1] + 1) + empty, newline - last - empty], 1)
        listed = np.repeat(np.tile([False, True], len(runs)), runs.ravel())
        features = np.frombuffer(raw.translate(_TO_CSV), np.uint8)[listed].tobytes()
        in_head = ~listed
        in_head[newline[empty]] = False
        heads = text[in_head]
        heads[np.cumsum(runs[:, 0] - empty) - 1] = _NEWLINE
        return heads.tobytes(), features, self._count(text, is_newline, newline, empty)

    def _count(
        self, text: Bytes, is_newline: NDArray[np.bool_], newline: NDArray[np.int64], empty: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """The number of features in each line. Separators come in threes: before the id, before the value, after it."""
        separates = (text - 1) < 3  # 0 becomes 255
        separates |= is_newline
        separates[newline[empty]] = False
        separators = text[separates]
        if len(separators) % 3:
            raise _MalformedError
        before_id, before_value, after = separators.reshape(-1, 3).T
        ends = after == _NEWLINE
        if not ((before_id == 2).all() and (before_value == 3).all() and ((after == 1) | ends).all()):
            raise _MalformedError
        counts = np.zeros(len(newline), np.int64)
        counts[~empty] = np.diff(np.flatnonzero(ends), prepend=-1)
        return counts

    def _entries(self, features: bytes, row: NDArray[np.int32], rows: int) -> Entries:
        schema = {"field": pl.String, "id": pl.Int64, "value": pl.Float32}
        if not features:
            return Entries(rows, row, np.zeros(0, np.uint8), np.zeros(0, np.int32), np.zeros(0, np.float32))
        frame = pl.read_csv(features, has_header=False, quote_char=None, schema=schema)
        field = frame["field"].cast(self._names, strict=False).to_physical()
        ids, values = frame["id"], frame["value"]
        if len(frame) != len(row) or field.null_count() or ids.null_count() or values.null_count():
            raise _MalformedError
        if len(ids) and (ids.min() < 0 or ids.max() > MAX_ID or not values.is_finite().all()):  # type: ignore[operator]
            raise _MalformedError
        return Entries(rows, row, field.to_numpy(), ids.cast(pl.Int32).to_numpy(), values.to_numpy())

    def _sort_out(self, lines: list[bytes], first: int, kept: list[bytes], bad: list[BadRowError]) -> None:
        """Sort lines, at least one of them unreadable, into ``kept`` and ``bad``. Stop once too many are bad."""
        if len(lines) == 1:
            bad.append(BadRowError(self.path, [first], self._problem(lines[0][:-1]), "line"))
            return
        half = len(lines) // 2
        for part, number in ((lines[:half], first), (lines[half:], first + half)):
            if len(bad) > self.bad.allowed:
                return
            if self._try(b"".join(part), np.arange(number, number + len(part))) is not None:
                kept += part
            else:
                self._sort_out(part, number, kept, bad)

    def _problem(self, raw: bytes) -> str:
        """Describe what is wrong with an unreadable line."""
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            line = raw.decode("utf-8", "replace")
            return self._problem_of(line) or "bytes that are not UTF-8"
        return self._problem_of(line) or "a number that cannot be parsed"

    def _problem_of(self, line: str) -> str | None:
        if "\r" in line:
            return "a carriage return inside the line"
        if "\ufeff" in line:
            return "a byte order mark inside the line"
        expected = f"{', '.join(self.head)}, feature_num, feature_list separated by commas"
        columns = line.split(",")
        if len(columns) != len(self.head) + 2:
            return f"{len(columns)} columns instead of {len(self.head) + 2} ({expected})"
        *head, number, features = columns
        for name, value in zip(self.head, head, strict=True):
            if name in self.binary and value not in ("0", "1"):
                return f"{name} is {value!r}, not 0 or 1"
            if not value:
                return f"{name} is empty"
            if {"\x01", "\x02", "\x03"} & set(value):
                return f"{name} contains a separator of features"
        entries = features.split("\x01") if features else []
        for entry in entries:
            problem = self._entry_problem(entry)
            if problem:
                return problem
        if number != str(len(entries)):
            return f"feature_num is {number!r}, but the list has {len(entries)} features (a truncated line?)"
        return None

    def _entry_problem(self, entry: str) -> str | None:
        name, _, id_and_value = entry.partition("\x02")
        raw_id, separator, value = id_and_value.partition("\x03")
        shown = entry.replace("\x02", r"\x02").replace("\x03", r"\x03")
        if not separator:
            return rf"feature {shown!r} is not field \x02 id \x03 value"
        if name not in self.fields:
            return f"unknown field {name!r} (this file may hold {', '.join(self.fields)})"
        if not raw_id.isascii() or not raw_id.isdigit() or int(raw_id) > MAX_ID:
            return f"field {name}: id {raw_id!r} is not a whole number from 0 to {MAX_ID}"
        try:
            fits = abs(float(value)) <= _MAX_VALUE  # false for NaN
        except ValueError:
            fits = False
        return None if fits else f"field {name}: value {value!r} is not a finite 32-bit number"


def _blocks(path: Path, first: int, last: int | None) -> Iterator[bytes]:
    """Blocks of whole lines, about BLOCK bytes each. Adds a missing final newline and removes a byte order mark."""
    partial, mark = b"", b"" if first else _MARK  # the beginning of a line whose end is in the next chunk
    with path.open("rb") as file:
        left = (path.stat().st_size if last is None else last) - file.seek(first)
        while chunk := file.read(min(BLOCK, left)):
            left -= len(chunk)
            chunk = partial + chunk
            end = chunk.rfind(b"\n") + 1
            partial = chunk[end:]
            if end:
                yield _unix(chunk[:end].removeprefix(mark))
                mark = b""
    if partial:
        yield _unix(partial.removeprefix(mark) + b"\n")


def _unix(lines: bytes) -> bytes:
    return lines.replace(b"\r\n", b"\n") if b"\r" in lines else lines
