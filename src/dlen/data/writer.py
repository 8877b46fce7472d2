"""Writes a prepared store: shards of flat binary columns, appended in chunks, and ``store.json`` last."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl

from dlen.data.columns import (
    FORMAT,
    MISSING,
    PLACE_ARRAYS,
    SEQUENCE_ARRAYS,
    SPLIT_ARRAYS,
    TABLE_ARRAYS,
    VECTOR_ARRAYS,
    Array,
    Columns,
    Part,
)
from dlen.data.id_counts import WrittenSplits, unknown_shares
from dlen.data.parallel import LocalPool, Pool
from dlen.files import checksum, content_checksum, write_text
from dlen.label_patterns import PatternCounter
from dlen.schema import Kind, Schema


class _ArrayWriter:
    """Appends rows to one flat file, which exists if they have content, and tracks their dtype and shape."""

    def __init__(self, path: Path, dtype: str, width: int | None) -> None:
        self.path = path
        self.file: BinaryIO | None = None
        self.dtype = np.dtype(dtype)
        self.width = width
        self.rows = 0
        self.checksum = 0

    def append(self, values: Array) -> None:
        if values.shape[1:] != (() if self.width is None else (self.width,)):
            raise ValueError(f"{self.path}: rows of shape {values.shape[1:]}, expected width {self.width}")
        self.rows += len(values)
        if not values.size:
            return
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("wb")
        content = np.ascontiguousarray(values, dtype=self.dtype).data
        self.file.write(content)
        self.checksum = zlib.crc32(content, self.checksum)

    def close(self) -> dict[str, Any]:
        if self.file is not None:
            self.file.close()
        shape = [self.rows] if self.width is None else [self.rows, self.width]
        return {"dtype": self.dtype.str, "shape": shape, "crc32": self.checksum}


class _ArraysWriter:
    """Writes arrays that lie in one folder of a store.

    Args:
        folder: folder of the store.
        name: the folder in it.
        types: type on disk of each array.
        widths: width of the rows of those that have more than one value per row.
    """

    def __init__(self, folder: Path, name: str, types: Mapping[str, str], widths: Mapping[str, int]) -> None:
        self.name = name
        self.arrays = {
            part: _ArrayWriter(folder / name / f"{part}.bin", dtype, widths.get(part)) for part, dtype in types.items()
        }

    def close(self) -> dict[str, Any]:
        """Close the files and return the dtype and shape of each array."""
        return {f"{self.name}/{part}": writer.close() for part, writer in self.arrays.items()}


class TableWriter(_ArraysWriter):
    """Writes one table in chunks. Its fields are a subset of the schema's fields."""

    def __init__(self, folder: Path, name: str, counts: Mapping[Kind, int]) -> None:
        types = {part: dtype for part, (dtype, _) in TABLE_ARRAYS.items()}
        widths = {part: counts[kind] for part, (_, kind) in TABLE_ARRAYS.items() if kind is not None}
        super().__init__(folder, name, types, widths)
        self.arrays["bag_start"].append(np.zeros(1, np.int64))

    def append(self, columns: Columns) -> None:
        """Append rows."""
        start = self.arrays["bag_ids"].rows
        self.arrays["bag_start"].append(start + np.cumsum(columns.values_per_row()))
        for part in ("ids", "numeric", "bag_lengths", "bag_ids", "bag_weights"):
            self.arrays[part].append(getattr(columns, part))


class SequenceWriter(_ArraysWriter):
    """Writes the values of one sequence.

    Args:
        name: name of the sequence.
        width: number of stored lists N, without the one that is computed from times.
    """

    def __init__(self, folder: Path, name: str, width: int) -> None:
        super().__init__(folder, f"sequences/{name}", SEQUENCE_ARRAYS, {"values": width})
        self.width = width

    def append(self, values: Array, when: Array | None = None) -> int:
        """Append (L, N) codes and, if the sequence has times, the (L,) time of each. Returns where the first one is."""
        first = self.arrays["values"].rows
        self.arrays["values"].append(values)
        if when is not None:
            self.arrays["when"].append(when)
        return first


class VectorWriter(_ArraysWriter):
    """Writes the scaled vectors of one field, after a row of zeros for a missing vector.

    Args:
        folder: folder of the store.
        name: name of the field.
        size: length d of a vector.
    """

    def __init__(self, folder: Path, name: str, size: int) -> None:
        super().__init__(folder, f"vectors/{name}", {"values": "<f4"}, {"values": size})
        self.append(np.zeros((1, size), np.float32))

    def append(self, vectors: Array) -> int:
        """Append (m, d) vectors. Returns the row of the first one."""
        first = self.arrays["values"].rows
        self.arrays["values"].append(vectors)
        return first


class SplitWriter(_ArraysWriter):
    """Writes one split: a table plus labels, users, weights, groups, places of sequences, vectors and a truth."""

    def __init__(
        self,
        folder: Path,
        name: str,
        counts: Mapping[Kind, int],
        num_tasks: int,
        *,
        num_truth: int = 0,
        num_values: int = 0,
        num_sequences: int = 0,
        num_vectors: int = 0,
        num_views: int = 0,
    ) -> None:
        self.table = TableWriter(folder, name, counts)
        widths = {"labels": num_tasks, "truth": num_truth, "weights": 1 + num_tasks}
        widths |= {"values": num_values, "views": num_views}
        widths |= dict.fromkeys(PLACE_ARRAYS, num_sequences)
        widths |= dict.fromkeys(VECTOR_ARRAYS, num_vectors)
        types = SPLIT_ARRAYS | (PLACE_ARRAYS if num_sequences else {}) | (VECTOR_ARRAYS if num_vectors else {})
        super().__init__(folder, name, types, widths)
        self.missing = np.zeros(num_tasks, np.int64)
        self.patterns = PatternCounter(num_tasks)

    def append(
        self,
        columns: Columns,
        labels: Array,
        group: Array | None = None,
        truth: Array | None = None,
        users: Array | None = None,
        weights: Array | None = None,
        values: Array | None = None,
        views: Array | None = None,
    ) -> None:
        """Append rows.

        Args:
            columns: features of n rows.
            labels: (n, T) 0, 1 or :data:`MISSING`; 0 or :data:`MISSING` of a regression task.
            group: (n,) row numbers in the group table.
            truth: (n, R) a simulator's probabilities.
            users: (n,) user number, the same for all rows of a user in all splits; 0 for no user. Without it, users are
                distinguished by their ids, so users not seen in training count as no user.
            weights: (n, 1 + T) weight of each row in training, then that of each task's label in it.
            values: (n, R) labels of the regression tasks in their own unit; nan where missing.
            views: (n, V) bin of each of :attr:`Schema.views`, or :data:`MISSING`.
        """
        self.table.append(columns)
        given = {"labels": labels, "group": group, "truth": truth, "users": users, "weights": weights}
        if columns.places is not None:
            given |= {part: getattr(columns.places, part.removeprefix("sequence_")) for part in PLACE_ARRAYS}
        for part, rows in {**given, "values": values, "views": views, "vectors": columns.vectors}.items():
            if rows is not None:
                self.arrays[part].append(rows)
        self.missing += (labels == MISSING).sum(axis=0)
        if self.name == "train":
            self.patterns.add(labels, None if weights is None else weights[:, 0])

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self.arrays["labels"].rows

    def close(self) -> dict[str, Any]:
        """Close the files and return the dtype and shape of each array."""
        return {**self.table.close(), **super().close()}


@dataclass(slots=True)
class WrittenPart:
    """A part whose files are complete.

    Attributes:
        entry: the entry of ``store.json``.
        patterns: label patterns of its training rows, see :class:`PatternCounter`.
    """

    entry: Part
    patterns: Mapping[int, float]


class PartWriter:
    """Writes the arrays of one folder of a store: of a shard, or of what the rows of several shards point to.

    Args:
        folder: folder of the store.
        name: the folder of the arrays in it.
        label: what a shard holds, for whoever chooses some of the shards.
    """

    def __init__(self, folder: Path, name: str, label: str = "") -> None:
        self.folder, self.name, self.label = folder / name, name, label
        self._writers: list[_ArraysWriter] = []
        self.splits: dict[str, tuple[SplitWriter, str | None]] = {}  # with the name of its group table

    def table(self, name: str, counts: Mapping[Kind, int]) -> TableWriter:
        """Start a table of user groups."""
        self._writers.append(writer := TableWriter(self.folder, name, counts))
        return writer

    def sequence(self, name: str, width: int) -> SequenceWriter:
        """Start a sequence of ``width`` stored lists."""
        self._writers.append(writer := SequenceWriter(self.folder, name, width))
        return writer

    def vectors(self, field: str, size: int) -> VectorWriter:
        """Start the vectors of a field, ``size`` numbers each."""
        self._writers.append(writer := VectorWriter(self.folder, field, size))
        return writer

    def split(
        self, name: str, counts: Mapping[Kind, int], num_tasks: int, *, group: str | None = None, **numbers: int
    ) -> SplitWriter:
        """Start a split; ``group`` names the table that its rows are joined with. Every shard has the same splits.

        The others are the arguments of :class:`SplitWriter`.
        """
        self._writers.append(writer := SplitWriter(self.folder, name, counts, num_tasks, **numbers))
        self.splits[name] = writer, group
        return writer

    def close(self) -> WrittenPart:
        """Close every file."""
        arrays: dict[str, Any] = {}
        for writer in self._writers:
            arrays |= writer.close()
        splits = {
            name: {"rows": split.rows, "group": group, "missing": split.missing.tolist()}
            for name, (split, group) in self.splits.items()
        }
        entry = {"folder": self.name, "label": self.label, "splits": splits, "arrays": arrays}
        train = self.splits.get("train")
        return WrittenPart(entry, {} if train is None else dict(train[0].patterns.counts))


FINISHED = "finished/record.json"  # in the folder of a shard, once it is complete, until the store is


def shard_folder(number: int) -> str:
    """Folder of a shard in a store."""
    return f"shards/{number:05d}"


class StoreWriter:
    """Receives everything a source writes: shards, what they share, vocabularies, and finally the schema.

    Args:
        folder: a temporary folder, renamed by the caller after :meth:`finish` returns.
        pool: where shards may be written; None for this process alone.

    Attributes:
        beside: what rows of several shards point to, such as user groups.
    """

    def __init__(self, folder: Path, pool: Pool | None = None) -> None:
        self.folder, self.pool = folder, pool or LocalPool(1)
        self.beside = PartWriter(folder, ".")
        self._shards: list[PartWriter] = []
        self._written: list[WrittenPart] = []
        self.notes: dict[str, Any] = {}  # shown to the user after preparing
        self.statistics: dict[str, Any] = {}  # by field: scale, buckets, range or cap, for encoding new values
        self.histories: dict[str, Any] = {}  # by field: what rates and sequences of new rows need besides their files
        self.counts: dict[str, Array] = {}  # by list of a sequence with its own ids: (vocab_size,) occurrences

    @property
    def scratch(self) -> Path:
        """A folder for intermediate files, deleted by :meth:`finish`."""
        path = self.folder / "scratch"
        path.mkdir(exist_ok=True)
        return path

    def shard(self, label: str = "") -> PartWriter:
        """Start a shard; its rows follow those of the shards before it."""
        self._shards.append(PartWriter(self.folder, shard_folder(len(self._shards)), label))
        return self._shards[-1]

    def add(self, shard: WrittenPart) -> None:
        """Add a shard of another writer; its rows follow those of the shards before it."""
        self._written.append(shard)

    def vocabulary(self, field: str, values: pl.Series, counts: pl.Series | None = None) -> None:
        """Store a field's raw values: ``values[i]`` has id ``i + 1``; id 0 is unknown."""
        path = self.folder / "vocabulary" / f"{field}.parquet"
        path.parent.mkdir(exist_ok=True)
        frame = pl.DataFrame({"value": values})
        (frame if counts is None else frame.with_columns(count=counts)).write_parquet(path)

    def history(self, field: str) -> Path:
        """The file for the history of a rate, which becomes part of the store."""
        path = self.folder / "history" / f"{field}.parquet"
        path.parent.mkdir(exist_ok=True)
        return path

    def finish(self, schema: Schema, identity: Mapping[str, Any]) -> None:
        """Close every file and write ``store.json``; ``identity`` holds the fingerprint and the settings behind it."""
        written = [*self._written, *(shard.close() for shard in self._shards)]
        patterns = PatternCounter(len(schema.tasks))
        for shard in written:
            patterns.merge(shard.patterns)
        schema = replace(schema, patterns=patterns.patterns(schema.regressions))
        shards, beside = [shard.entry for shard in written], self.beside.close().entry
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        for record in self.folder.glob(f"shards/*/{FINISHED}"):
            shutil.rmtree(record.parent)
        splits = WrittenSplits(self.folder, shards, beside, schema)
        occurrences = {name: splits.count_ids(name) for name in shards[0]["splits"]}
        unknown = {
            name: unknown_shares(of_split) | splits.unknown_in_sequences(name) for name, of_split in occurrences.items()
        }
        content = {
            "format": FORMAT,
            **identity,
            "schema": schema.to_dict(),
            "notes": self.notes,
            "unknown": unknown,
            "statistics": self.statistics,
            "histories": self.histories,
            "arrays": {**beside["arrays"], "counts": self._counts(schema, occurrences.get("train", {}))},
            "shards": shards,
            "vocabularies": self._checksums("vocabulary"),
            "history_files": self._checksums("history"),
        }
        write_content(self.folder, content)

    def _counts(self, schema: Schema, occurrences: Mapping[str, Array]) -> dict[str, Any]:
        """Write the occurrences of each id, by field, and return the entry of the array."""
        counts, found = _ArrayWriter(self.folder / "counts.bin", "<i8", None), {**occurrences, **self.counts}
        for field in schema.owners:
            counts.append(found.get(field.name, np.zeros(field.vocab_size, np.int64)))
        return counts.close()

    def _checksums(self, folder: str) -> dict[str, int]:
        return {p.stem: checksum(p) for p in sorted((self.folder / folder).glob("*.parquet"))}


class DayWriter(StoreWriter):
    """Writes an appended day as one more shard, which has its own vocabularies and histories: what the day adds.

    Args:
        folder: folder of the store.
        number: number of the shard.
        label: the day.
    """

    def __init__(self, folder: Path, number: int, label: str) -> None:
        name = shard_folder(number)
        super().__init__(folder / name)
        self.store, self.beside = folder, PartWriter(folder, name, label)
        self.folder.mkdir(parents=True)

    def shard(self, label: str = "") -> PartWriter:
        """The shard itself."""
        return self.beside

    def extend(self, content: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
        """Close every file. Returns the content of ``store.json`` with the shard, whose ids are those of ``schema``."""
        part = self.beside.close().entry
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        splits = WrittenSplits(self.store, [part], part, schema)
        (name,) = part["splits"]
        part["arrays"]["counts"] = self._counts(schema, splits.count_ids(name))
        part["sizes"] = {field.name: field.vocab_size for field in schema.fields if field.has_ids}
        part |= {"vocabularies": self._checksums("vocabulary"), "history_files": self._checksums("history")}
        histories = {**content["histories"], **self.histories}
        return {**content, "histories": histories, "shards": [*content["shards"], part]}


def write_content(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the ``store.json`` of a store."""
    write_text(folder / "store.json", json.dumps({**content, "crc32": content_checksum(content)}, indent=1))
