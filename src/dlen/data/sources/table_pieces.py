"""Cuts the files of a table into pieces of about a million rows, each of which becomes a shard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dlen.data.sources.table_file import CHUNK, TableFile

ROWS = 1 << 20  # fewest rows of a piece
_MOST = 256  # pieces: finding the first row of one takes some time


@dataclass(frozen=True, slots=True)
class Range:
    """Some rows of a file.

    Attributes:
        split: split of the file, or ``all``.
        first: number of the first row, counted with blank lines.
        rows: number of rows, counted in the same way; None up to the end of the file.
        size: bytes, about.
    """

    path: Path
    split: str
    first: int
    rows: int | None
    size: float


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows that follow each other in the files of a table."""

    number: int
    ranges: tuple[Range, ...]

    @property
    def size(self) -> float:
        """Bytes, about."""
        return sum(part.size for part in self.ranges)


def cut(files: Iterable[tuple[TableFile, str]]) -> list[Piece]:
    """Pieces of files with their splits, in order. They depend on the files alone."""
    files = list(files)
    most = sum(file.most_rows for file, _ in files) // _MOST
    rows = ROWS if most <= ROWS else -(-most // CHUNK) * CHUNK
    pieces: list[Piece] = []
    held: list[Range] = []
    waiting = 0
    for file, split in files:
        step = rows if file.divisible else max(file.most_rows, 1)
        for first in range(0, max(file.most_rows, 1), step):
            count = min(step, file.most_rows - first)
            is_last = first + step >= file.most_rows
            share = file.size * count / max(file.most_rows, 1)
            held.append(Range(file.path, split, first, None if is_last else step, share))
            waiting += count
            if waiting >= rows:
                pieces.append(Piece(len(pieces), tuple(held)))
                held, waiting = [], 0
    return [*pieces, Piece(len(pieces), tuple(held))] if held else pieces
