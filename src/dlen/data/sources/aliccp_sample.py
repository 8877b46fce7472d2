"""A sample of Ali-CCP: pieces of its four files, whose impressions are joined with the user groups in the pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from dlen.data.columns import Array
from dlen.data.raw_sample import IdCounts, RawSample
from dlen.data.sources.raw_pieces import PIECE, text_pieces
from dlen.data.writer import StoreWriter
from dlen.schema import Schema

_KINDS, _SPLITS = ("sample_skeleton", "common_features"), ("train", "test")


class _Pairs(Protocol):
    """The part of :class:`~dlen.data.sources.aliccp.AliCCP` that is used here."""

    min_count: int
    validation: float

    def path(self, kind: str, split: str) -> Path: ...

    def write(self, writer: StoreWriter) -> Schema: ...

    def occurrences(self, kind: str) -> Iterator[tuple[Array, dict[str, tuple[Array, Array]]]]: ...


class AliCCPSample:
    """The same share of all four files.

    The group of an impression is hardly ever among those of the sample, and finding it would take a pass over the file,
    so each group that occurs in the sampled impressions is replaced by one of the sampled groups.

    Args:
        log: the source of the files.
        sampled: a source of the sampled files, which are written to its folder.
        pieces: about how many half megabytes are taken.
        times: how many times as many rows the whole log has as the files of ``log``.
    """

    def __init__(self, log: _Pairs, sampled: _Pairs, pieces: int, times: float = 1.0) -> None:
        self.source, self.min_count, self.times = sampled, log.min_count, times
        files = [(kind, split) for split in _SPLITS for kind in _KINDS]
        sizes = {file: log.path(*file).stat().st_size for file in files}
        share = min(pieces * PIECE / sum(sizes.values()), 1.0)
        self.exact = share == times == 1
        self.originals: Mapping[Path, Path] = {sampled.path(*file): log.path(*file) for file in files}
        parts, self.factors, self.starts = {}, {}, {}
        for file in files:
            with log.path(*file).open("rb") as raw:
                parts[file] = text_pieces(raw, 0, sizes[file], pieces, round(share * sizes[file] / pieces) + 1)
            self.factors[file] = times * max(sizes[file] / max(sum(map(len, parts[file])), 1), 1.0)
            self.starts[file] = 1 + np.cumsum([0, *(part.count(b"\n") for part in parts[file])])[:-1]
        for split in _SPLITS:
            skeleton, common = (b"".join(parts[kind, split]) for kind in _KINDS)
            sampled.path("common_features", split).parent.mkdir(parents=True, exist_ok=True)
            sampled.path("common_features", split).write_bytes(common)
            skeleton = skeleton if share == 1 else _regrouped(skeleton, common)
            sampled.path("sample_skeleton", split).write_bytes(skeleton)

    def write(self, writer: StoreWriter) -> tuple[Schema, RawSample]:
        """Prepare the sample, with every id that occurs in it."""
        schema = self.source.write(writer)
        rows = {split: self.factors["sample_skeleton", split] for split in _SPLITS}
        rows |= {"validation": rows["train"]}
        rows |= {f"common_{split}": self.factors["common_features", split] for split in _SPLITS}
        return schema, RawSample(rows, self._count)

    def _count(self) -> IdCounts:
        """Count the ids of the impressions, and those of groups once for each of their impressions."""
        counts, factors = {}, {}
        uses = self._uses()
        for kind in _KINDS:
            starts = self.starts[kind, "train"]
            parts: dict[str, list[pl.DataFrame]] = {}
            for lines, of_fields in self.source.occurrences(kind):
                block = np.searchsorted(starts, lines, "right")
                times = np.ones(len(lines), np.int64) if kind == "sample_skeleton" else uses[lines - 1]
                for name, (row, ids) in of_fields.items():
                    frame = pl.DataFrame({"value": ids, "block": block[row], "count": times[row]})
                    used = frame.filter((pl.col("value") >= 0) & (pl.col("count") > 0))
                    parts.setdefault(name, []).append(used.group_by("value", "block").agg(pl.col("count").sum()))
            for name, frames in parts.items():
                counts[name] = pl.concat(frames).group_by("value", "block").agg(pl.col("count").sum())
                factors[name] = self.factors[kind, "train"] * (1 - self.source.validation)
        return IdCounts(counts, factors, dict.fromkeys(counts, self.min_count))

    def _uses(self) -> Array:
        """(n,) impressions of the group in each line of the sampled common features."""
        skeleton, common = (self.source.path(kind, "train").read_bytes() for kind in _KINDS)
        lines = _lines(common)
        place = {line.split(b",", 1)[0]: number for number, line in enumerate(lines, 1)}
        groups = [place.get(index, 0) for index in map(_group_of, _lines(skeleton))]
        return np.bincount(groups, minlength=len(lines) + 1)[1:]


def _lines(content: bytes) -> list[bytes]:
    """The lines as the reader counts them, which end in no other way."""
    return content.removesuffix(b"\n").split(b"\n") if content else []


def _group_of(line: bytes) -> bytes:
    """The index of a skeleton's line into the common features; empty if the line is broken."""
    cells = line.split(b",", 4)
    return cells[3] if len(cells) == 5 else b""


def _regrouped(skeleton: bytes, common: bytes) -> bytes:
    """The skeleton with its groups, in order, replaced by those of the common features, in order and again."""
    known = [line.split(b",", 1)[0] for line in _lines(common)]
    new: dict[bytes, bytes] = {}
    lines = []
    for line in _lines(skeleton):
        index = _group_of(line)
        if index and known:
            chosen = new.setdefault(index, known[len(new) % len(known)])
            cells = line.split(b",", 4)
            line = b",".join([*cells[:3], chosen, cells[4]])
        lines.append(line)
    return b"".join(line + b"\n" for line in lines)
