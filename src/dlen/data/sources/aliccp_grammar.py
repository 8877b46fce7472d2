r"""The raw grammar of Ali-CCP: blocks of lines to arrays, and the exact words for a line that breaks it.

A line is ``head,...,head,feature_num,feature_list``; the list is ``field \x02 id \x03 value`` joined by ``\x01``.
The fast path treats a block of lines as one array of bytes and leaves the parsing of numbers to Polars' CSV reader.
Only where its checks fail is the block read again line by line, to say what is wrong and where.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.ragged import Entries
from dlen.data.store import Columns
from dlen.errors import UserError

BLOCK = 8 << 20
_THREADS = min(4, len(os.sched_getaffinity(0)))  # each has one block in work and one done
MAX_ID = 2**31 - 2
_MAX_VALUE = float(np.finfo(np.float32).max)
_NEWLINE, _COMMA = ord("\n"), ord(",")
_TO_CSV = bytes.maketrans(b"\x01\x02\x03", b"\n,,")
Bytes = NDArray[np.uint8]


class _MalformedError(Exception):
    """The fast path met something it does not take; the slow path finds out what."""


@dataclass(slots=True)
class Block:
    """Some lines of one raw file.

    Attributes:
        lines: (n,) numbers of the lines, from 1.
        head: (n,) strings for each head column, without ``feature_num``.
        columns: the features, with raw ids.
        size: bytes of the lines.
        bad: lines that were left out.
    """

    lines: NDArray[np.int64]
    head: pl.DataFrame
    columns: Columns
    size: int
    bad: list[BadRowError]


class Reader:
    """Reads one raw file in blocks, checking every line.

    Args:
        path: the file.
        head: names of the columns before ``feature_num``.
        binary: those of them that are 0 or 1.
        fields: names of the fields the file may hold.
        convert: from the features, whose ``field`` counts in ``fields``, to columns.
        bad: what is done with lines that break the grammar.
    """

    def __init__(
        self,
        path: Path,
        head: Sequence[str],
        binary: Sequence[str],
        fields: Sequence[str],
        convert: Callable[[Entries], Columns],
        bad: BadRows,
    ) -> None:
        self.path, self.head, self.binary, self.fields = path, list(head), list(binary), list(fields)
        self.convert, self.bad = convert, bad
        self._names = pl.Enum(self.fields)

    def __iter__(self) -> Iterator[Block]:
        """Blocks in the file's order; the next ones are parsed meanwhile on other threads."""
        threads, ahead = ThreadPoolExecutor(_THREADS), deque[Future[Block]]()
        line = 1
        try:
            for raw in _blocks(self.path):
                ahead.append(threads.submit(self._checked, raw, line))
                line += raw.count(b"\n")
                if len(ahead) > _THREADS:
                    yield self._counted(ahead.popleft().result())
            while ahead:
                yield self._counted(ahead.popleft().result())
        finally:  # after an error the blocks that have not begun are left
            threads.shutdown(cancel_futures=True)

    def _counted(self, block: Block) -> Block:
        for error in block.bad:  # here, in the file's order, and not on the threads
            self.bad.add(error)
        return block

    def _checked(self, raw: bytes, line: int) -> Block:
        lines = np.arange(line, line + raw.count(b"\n"))
        try:
            return self._parse(raw, lines, [])
        except (_MalformedError, pl.exceptions.PolarsError):
            kept, bad = self._sort_out(raw, line)
            if len(bad) > self.bad.allowed:
                raise self.bad.too_many(bad[-1]) from None
            try:
                if not bad:
                    raise _MalformedError
                keep = np.ones(len(lines), bool)
                keep[[error.lines[0] - line for error in bad]] = False
                return self._parse(kept, lines[keep], bad)
            except (_MalformedError, pl.exceptions.PolarsError):
                raise UserError(f"{self.path}: lines {line} to {lines[-1]} cannot be read") from None

    def _parse(self, raw: bytes, lines: NDArray[np.int64], bad: list[BadRowError]) -> Block:
        if b"\r" in raw:  # Polars would take it for the end of a value
            raise _MalformedError
        heads, features, counts = self._split(raw)
        names = [*self.head, "feature_num"]
        head = pl.read_csv(heads, has_header=False, quote_char=None, schema=dict.fromkeys(names, pl.String))
        numbers = head["feature_num"].cast(pl.Int64, strict=False)
        if len(head) != len(counts) or any(head.null_count().row(0)) or numbers.null_count():
            raise _MalformedError
        if not (numbers == counts).all():
            raise _MalformedError
        if not all(head[name].is_in(["0", "1"]).all() for name in self.binary):
            raise _MalformedError
        row = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        columns = self.convert(self._entries(features, row, len(counts)))
        return Block(lines, head.drop("feature_num"), columns, len(raw), bad)

    def _split(self, raw: bytes) -> tuple[bytes, bytes, NDArray[np.int64]]:
        """A block of lines -> its head columns as CSV, its features as CSV, and the features of each line."""
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
        # Runs of bytes in turn: a head with its last comma, then a list with its newline; an empty list has none.
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
        """The features of each line, whose separators come in threes: before the id, before the value, after it."""
        separates = (text - 1) < 3  # 0 becomes 255
        separates |= is_newline
        separates[newline[empty]] = False
        found = text[separates]
        if len(found) % 3:
            raise _MalformedError
        before_id, before_value, after = found.reshape(-1, 3).T
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

    def _sort_out(self, raw: bytes, first_line: int) -> tuple[bytes, list[BadRowError]]:
        """The lines that keep the grammar, and the errors of the others: at most one more than are tolerated."""
        kept: list[bytes] = []
        bad: list[BadRowError] = []
        for number, line in enumerate(raw.split(b"\n")[:-1], first_line):
            problem = self._problem(line.decode("utf-8", "replace")) if len(bad) <= self.bad.allowed else None
            if problem is None:
                kept.append(line + b"\n")
            else:
                bad.append(BadRowError(self.path, [number], problem, "line"))
        return b"".join(kept), bad

    def _problem(self, line: str) -> str | None:
        if "\r" in line:
            return "a carriage return inside the line"
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
        entries = features.split("\x01") if features else []
        for entry in entries:
            problem = self._entry_problem(entry)
            if problem:
                return problem
        if number != str(len(entries)):
            return f"feature_num is {number!r}, but the list has {len(entries)} features (a truncated line?)"
        return None

    def _entry_problem(self, entry: str) -> str | None:
        name, _, rest = entry.partition("\x02")
        raw_id, found, value = rest.partition("\x03")
        shown = entry.replace("\x02", r"\x02").replace("\x03", r"\x03")
        if not found:
            return rf"feature {shown!r} is not field \x02 id \x03 value"
        if name not in self.fields:
            return f"unknown field {name!r} (this file may hold {', '.join(self.fields)})"
        if not raw_id.isascii() or not raw_id.isdigit() or int(raw_id) > MAX_ID:
            return f"field {name}: id {raw_id!r} is not a whole number from 0 to {MAX_ID}"
        try:
            fits = abs(float(value)) <= _MAX_VALUE  # false for nan
        except ValueError:
            fits = False
        return None if fits else f"field {name}: value {value!r} is not a finite 32-bit number"


def _blocks(path: Path) -> Iterator[bytes]:
    """Whole lines, about BLOCK bytes at a time; the last one gets the newline it may lack."""
    rest = b""
    with path.open("rb") as file:
        while chunk := file.read(BLOCK):
            chunk = rest + chunk
            end = chunk.rfind(b"\n") + 1
            rest = chunk[end:]
            if end:
                yield _unix(chunk[:end])
    if rest:
        yield _unix(rest + b"\n")


def _unix(lines: bytes) -> bytes:
    return lines.replace(b"\r\n", b"\n") if b"\r" in lines else lines
