"""Partitions rows by key on disk, so that all rows of a key can be read together in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import polars as pl

from dlen.data.columns import Array
from dlen.progress import Stage

BETWEEN = "\x1f"  # separates the parts of a key of several columns
PENDING = 1 << 21  # rows buffered before they are partitioned on disk
_PARTS = 32


class KeyPartitions:
    """Rows in partitions; all rows of a key are in the same one.

    Args:
        scratch: a folder that does not exist yet.
        label: what is done with the partitions, for the progress bar.
    """

    def __init__(self, scratch: Path, label: str) -> None:
        self.scratch, self.label = scratch, label
        self._pending: list[pl.DataFrame] = []
        self._held = self._flushed = self._parts = self._piece = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows with a text column ``key`` that has no nulls."""
        self._pending.append(frame)
        self._held += len(frame)
        if self._held >= PENDING:
            self._flush(_PARTS)

    def _flush(self, parts: int) -> None:
        frame, self._parts = pl.concat(self._pending), max(self._parts, parts)
        # Any hash works: all partitions of a scratch folder are written by the same version of Polars.
        place = frame["key"].hash(0) % self._parts if self._parts > 1 else pl.repeat(0, len(frame), eager=True)
        for (part,), rows in frame.group_by(place.alias("part"), maintain_order=True):
            folder = self.scratch / f"{part}"
            folder.mkdir(parents=True, exist_ok=True)
            rows.write_ipc(folder / f"{self._piece:06d}-{self._flushed:06d}.arrow")
        self._flushed += 1
        self._pending, self._held = [], 0

    def begin(self, piece: int) -> None:
        """Begin with the rows of a piece of the log, without what an earlier attempt has left."""
        self._piece, self._flushed = piece, 0
        for path in self.scratch.glob(f"*/{piece:06d}-*.arrow"):
            path.unlink()

    def pack(self) -> None:
        """Write the rows of the piece, so that partitions of all pieces add up."""
        if self._pending:
            self._flush(_PARTS)

    def merge(self, other: KeyPartitions) -> None:
        """Add the rows that another one has packed in the same folder."""
        self._parts = max(self._parts, other._parts)

    def finish(self) -> list[Path]:
        """Write the remaining rows. Returns the partitions, each for :func:`read_partition`."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        if self._pending:
            self._flush(max(self._parts, 1))
        return [p for p in (self.scratch / f"{n}" for n in range(self._parts)) if p.exists()]

    def with_progress(self, parts: list[Path]) -> Iterator[pl.DataFrame]:
        """The rows of each partition, with a progress bar if there are several."""
        with Stage(self.label, len(parts), "parts") if len(parts) > 1 else nullcontext() as stage:
            for part in parts:
                yield read_partition(part)
                if stage is not None:
                    stage.advance(1)


def read_partition(folder: Path) -> pl.DataFrame:
    """The rows of one partition."""
    return pl.concat([pl.read_ipc(path) for path in sorted(folder.glob("*.arrow"))])


def key_codes(keys: pl.Series) -> tuple[Array, pl.Series]:
    """(n,) integer code of each text, and the texts in order of their codes."""
    distinct = keys.unique(maintain_order=True)  # so that a history has the same bytes whenever it is written
    return keys.cast(pl.Enum(distinct)).to_physical().to_numpy().astype("int64"), distinct
