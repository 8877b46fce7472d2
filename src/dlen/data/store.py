"""The prepared store: one folder of flat binary columns, written once and memory-mapped afterwards.

A store has tables and splits. A split (train, validation, test) owns a table with one row per impression, its labels
and, if the log repeats user features, a group number per row that points into a table shared by all rows of that
user. Nothing is joined on disk: the join happens when a batch is made.

``store.json`` is written last, into a folder with a temporary name that is renamed when it is complete, so a folder
with the final name is complete. Opening a store checks the format version, and size and checksum of every file.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlen.batch import Batch
from dlen.errors import UserError
from dlen.files import check_regular, checksum
from dlen.schema import Kind, Schema

FORMAT = 4  # 2: checksums; 3: counts of ids; 4: users, missing labels
MISSING = 255  # a label that is not in the log
_PIECE = 1 << 22  # values counted at a time
Array = NDArray[Any]


@dataclass(slots=True)
class Columns:
    """Some rows of one table in memory, row-major: all bags of row 0, then all bags of row 1.

    Attributes:
        ids: (n, S) int32 row indices into the embedding table.
        numeric: (n, K) float32 numeric features.
        bag_lengths: (n, M) int16 number of values in each bag.
        bag_ids: (L,) int32 row indices into the embedding table.
        bag_weights: (L,) float32 weights.
    """

    ids: Array
    numeric: Array
    bag_lengths: Array
    bag_ids: Array
    bag_weights: Array


class _ArrayWriter:
    """Appends rows to one flat file and tracks their dtype and shape."""

    def __init__(self, path: Path, dtype: str, width: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file: BinaryIO = path.open("wb")
        self.dtype = np.dtype(dtype)
        self.width = width
        self.rows = 0
        self.checksum = 0

    def append(self, values: Array) -> None:
        expected = values.shape[1:] == (() if self.width is None else (self.width,))
        if not expected:
            raise ValueError(f"{self.file.name}: rows of shape {values.shape[1:]}, expected width {self.width}")
        content = np.ascontiguousarray(values, dtype=self.dtype).data
        self.file.write(content)
        self.checksum = zlib.crc32(content, self.checksum)
        self.rows += len(values)

    def close(self) -> dict[str, Any]:
        self.file.close()
        shape = [self.rows] if self.width is None else [self.rows, self.width]
        return {"dtype": self.dtype.str, "shape": shape, "crc32": self.checksum}


class TableWriter:
    """Writes one table in chunks. Its fields are a subset of the schema's fields."""

    def __init__(self, folder: Path, name: str, counts: Mapping[Kind, int]) -> None:
        def array(part: str, dtype: str, width: int | None) -> _ArrayWriter:
            return _ArrayWriter(folder / name / f"{part}.bin", dtype, width)

        self.name = name
        self.arrays = {
            "ids": array("ids", "<i4", counts[Kind.ID]),
            "numeric": array("numeric", "<f4", counts[Kind.NUMERIC]),
            "bag_lengths": array("bag_lengths", "<i2", counts[Kind.IDS]),
            "bag_start": array("bag_start", "<i8", None),
            "bag_ids": array("bag_ids", "<i4", None),
            "bag_weights": array("bag_weights", "<f4", None),
        }
        self.arrays["bag_start"].append(np.zeros(1, np.int64))

    def append(self, columns: Columns) -> None:
        """Append rows."""
        start = self.arrays["bag_ids"].rows
        per_row = columns.bag_lengths.sum(axis=1, dtype=np.int64)
        self.arrays["bag_start"].append(start + np.cumsum(per_row))
        for part in ("ids", "numeric", "bag_lengths", "bag_ids", "bag_weights"):
            self.arrays[part].append(getattr(columns, part))

    def close(self) -> dict[str, Any]:
        """Close the files and return the dtype and shape of each array."""
        return {f"{self.name}/{part}": writer.close() for part, writer in self.arrays.items()}


class SplitWriter:
    """Writes one split: a table plus labels, users, group numbers and a simulator's ground truth."""

    def __init__(self, folder: Path, name: str, counts: Mapping[Kind, int], num_tasks: int, num_truth: int) -> None:
        self.table = TableWriter(folder, name, counts)
        self.arrays = {
            "labels": _ArrayWriter(folder / name / "labels.bin", "u1", num_tasks),
            "group": _ArrayWriter(folder / name / "group.bin", "<i4", None),
            "truth": _ArrayWriter(folder / name / "truth.bin", "<f4", num_truth),
            "users": _ArrayWriter(folder / name / "users.bin", "<i4", None),
        }
        self.missing = np.zeros(num_tasks, np.int64)

    def append(
        self,
        columns: Columns,
        labels: Array,
        group: Array | None = None,
        truth: Array | None = None,
        users: Array | None = None,
    ) -> None:
        """Append rows.

        Args:
            columns: features of n rows.
            labels: (n, T) 0, 1 or :data:`MISSING`.
            group: (n,) row numbers in the group table.
            truth: (n, R) a simulator's probabilities.
            users: (n,) user number, the same for all rows of a user in all splits; 0 for no user. Without it, users are
                distinguished by their ids, so users not seen in training count as no user.
        """
        self.table.append(columns)
        self.arrays["labels"].append(labels)
        self.missing += (labels == MISSING).sum(axis=0)
        if users is not None:
            self.arrays["users"].append(users)
        if group is not None:
            self.arrays["group"].append(group)
        if truth is not None:
            self.arrays["truth"].append(truth)

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self.arrays["labels"].rows

    def close(self) -> dict[str, Any]:
        """Close the files and return the dtype and shape of each array."""
        closed = {f"{self.table.name}/{part}": writer.close() for part, writer in self.arrays.items()}
        return {**self.table.close(), **closed}


class StoreWriter:
    """Receives everything a source writes: tables, splits, vocabularies, and finally the schema.

    Args:
        folder: a temporary folder, renamed by the caller after :meth:`finish` returns.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: list[TableWriter | SplitWriter] = []
        self._splits: dict[str, tuple[SplitWriter, str | None]] = {}
        self.notes: dict[str, Any] = {}  # shown to the user after preparing
        self.statistics: dict[str, Any] = {}  # by field: scale, buckets, range or cap, for encoding new values
        self.histories: dict[str, Any] = {}  # by field: what rates of new rows need besides their files

    @property
    def scratch(self) -> Path:
        """A folder for intermediate files, deleted by :meth:`finish`."""
        path = self.folder / "scratch"
        path.mkdir(exist_ok=True)
        return path

    def table(self, name: str, counts: Mapping[Kind, int]) -> TableWriter:
        """Start a table of user groups."""
        self._writers.append(TableWriter(self.folder, name, counts))
        return self._writers[-1]  # type: ignore[return-value]

    def split(
        self,
        name: str,
        counts: Mapping[Kind, int],
        num_tasks: int,
        *,
        group: str | None = None,
        num_truth: int = 0,
    ) -> SplitWriter:
        """Start a split; ``group`` names the table that its rows are joined with."""
        writer = SplitWriter(self.folder, name, counts, num_tasks, num_truth)
        self._writers.append(writer)
        self._splits[name] = (writer, group)
        return writer

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
        arrays: dict[str, Any] = {}
        for writer in self._writers:
            arrays |= writer.close()
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        splits = {name: {"rows": w.rows, "group": group} for name, (w, group) in self._splits.items()}
        occurrences = {
            name: self._occurrences(name, arrays, group, schema) for name, (_, group) in self._splits.items()
        }
        counts = _ArrayWriter(self.folder / "counts.bin", "<i8", None)
        counts.append(occurrences["train"] if "train" in occurrences else np.zeros(schema.num_embeddings, np.int64))
        arrays["counts"] = counts.close()
        content = {
            "format": FORMAT,
            **identity,
            "schema": schema.to_dict(),
            "splits": splits,
            "notes": self.notes,
            "missing_labels": {name: w.missing.tolist() for name, (w, _) in self._splits.items()},
            "unknown": {name: _unknown_shares(found, schema) for name, found in occurrences.items()},
            "statistics": self.statistics,
            "histories": self.histories,
            "arrays": arrays,
            "vocabularies": self._checksums("vocabulary"),
            "history_files": self._checksums("history"),
        }
        (self.folder / "store.json").write_text(json.dumps({**content, "crc32": _checksum_of(content)}, indent=1))

    def _checksums(self, folder: str) -> dict[str, int]:
        return {p.stem: checksum(p) for p in sorted((self.folder / folder).glob("*.parquet"))}

    def _occurrences(self, split: str, arrays: Mapping[str, Any], group: str | None, schema: Schema) -> Array:
        """(num_embeddings,) occurrences of each id in the rows of a split, including their user groups."""
        found = np.zeros(schema.num_embeddings, np.int64)
        self._count_table(found, split, arrays)
        if group is not None:
            rows_of_groups = np.zeros(arrays[f"{group}/bag_lengths"]["shape"][0], np.int64)
            _add_counts(rows_of_groups, read_vectors(self.folder, split, "group", "<i4"))
            self._count_table(found, group, arrays, rows_of_groups)
        return found

    def _count_table(self, into: Array, table: str, arrays: Mapping[str, Any], times: Array | None = None) -> None:
        """Add the ids of a table's rows to ``into``, weighting each row by ``times``."""
        singles = arrays[f"{table}/ids"]["shape"][1]
        ids = read_vectors(self.folder, table, "ids", "<i4")
        _add_counts(into, ids, None if times is None else lambda place: times[place // singles])
        starts = read_vectors(self.folder, table, "bag_start", "<i8")
        bag_ids = read_vectors(self.folder, table, "bag_ids", "<i4")
        _add_counts(
            into, bag_ids, None if times is None else lambda place: times[np.searchsorted(starts, place, "right") - 1]
        )


def _add_counts(into: Array, ids: Array, times: Callable[[Array], Array] | None = None) -> None:
    """Count each id, weighted by ``times`` of its position. Runs in pieces because ``ids`` may not fit into memory."""
    step = max(len(into), _PIECE)
    for start in range(0, len(ids), step):
        piece = ids[start : start + step]
        weights = None if times is None else times(np.arange(start, start + len(piece)))
        into += np.bincount(piece, weights, len(into)).astype(np.int64)


def _unknown_shares(occurrences: Array, schema: Schema) -> dict[str, float]:
    """For each id field, the share of values that are unknown or absent."""
    shares = {}
    for field in schema.fields:
        if field.vocab_size:
            own = occurrences[schema.rows(field.name)]
            shares[field.name] = float(own[0] / max(own.sum(), 1))
    return shares


def _checksum_of(content: Mapping[str, Any]) -> int:
    """Checksum of the content of ``store.json``, independent of its formatting."""
    plain = json.loads(json.dumps(content))  # same types as after reading the file
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


@dataclass(slots=True)
class ScratchTable:
    """A memory-mapped table as numpy arrays, from a folder without ``store.json``."""

    columns: Columns
    bag_start: Array

    def rows(self, first: int, last: int) -> Columns:
        """Rows ``first`` to ``last`` - 1."""
        start, end = self.bag_start[first], self.bag_start[last]
        c = self.columns
        return Columns(
            c.ids[first:last],
            c.numeric[first:last],
            c.bag_lengths[first:last],
            c.bag_ids[start:end],
            c.bag_weights[start:end],
        )


def read_vectors(folder: Path, table: str, part: str, dtype: str) -> Array:
    """One flat scratch array, memory-mapped; empty if nothing was written."""
    path = folder / table / f"{part}.bin"
    return np.memmap(path, dtype, "c") if path.stat().st_size else np.zeros(0, dtype)


def read_scratch(folder: Path, table: str, counts: Mapping[Kind, int]) -> ScratchTable:
    """Open the table of a closed :class:`TableWriter` or :class:`SplitWriter`."""
    start = read_vectors(folder, table, "bag_start", "<i8")
    rows = len(start) - 1
    columns = Columns(
        read_vectors(folder, table, "ids", "<i4").reshape(rows, counts[Kind.ID]),
        read_vectors(folder, table, "numeric", "<f4").reshape(rows, counts[Kind.NUMERIC]),
        read_vectors(folder, table, "bag_lengths", "<i2").reshape(rows, counts[Kind.IDS]),
        read_vectors(folder, table, "bag_ids", "<i4"),
        read_vectors(folder, table, "bag_weights", "<f4"),
    )
    return ScratchTable(columns, start)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder next to ``folder`` that is renamed to it on success and removed on failure."""
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Table:
    """A memory-mapped table that gathers arbitrary rows without per-row Python work."""

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        self.ids = arrays["ids"]
        self.numeric = arrays["numeric"]
        self.bag_lengths = arrays["bag_lengths"]
        self.bag_start = arrays["bag_start"]
        self.bag_ids = arrays["bag_ids"]
        self.bag_weights = arrays["bag_weights"]

    def count_values(self, index: Tensor) -> int:
        """L, the total number of ragged values in rows ``index`` (B,)."""
        return int((self.bag_start.index_select(0, index + 1) - self.bag_start.index_select(0, index)).sum())

    def gather_bags(self, index: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ragged values of rows ``index`` (B,): lengths (M, B), ids (L,) and weights (L,), field-major.

        ``total`` is L. The caller passes it so that the device is not synchronised to compute it.
        """
        rows = self.bag_lengths.index_select(0, index).long()  # (B, M)
        if rows.shape[1] == 0:
            return rows.T, self.bag_ids[:0], self.bag_weights[:0]
        starts = self.bag_start.index_select(0, index)[:, None] + rows.cumsum(1) - rows
        lengths = rows.T.contiguous()  # (M, B)
        flat = lengths.flatten()
        ends = flat.cumsum(0)
        shift = starts.T.flatten() - (ends - flat)
        where = torch.repeat_interleave(shift, flat, output_size=total) + torch.arange(total, device=flat.device)
        return lengths, self.bag_ids.index_select(0, where), self.bag_weights.index_select(0, where)

    def to(self, device: torch.device) -> Table:
        """Copy the table to a device."""
        return Table({name: array.to(device) for name, array in vars(self).items()})


class Split:
    """A memory-mapped split; ``split.batch(index)`` joins rows with their user groups."""

    def __init__(
        self,
        rows: int,
        table: Table,
        groups: Table | None,
        labels: Tensor,
        group: Tensor,
        truth: Tensor,
        users: Tensor,
        *,
        complete: bool,
    ) -> None:
        self.complete = complete  # whether no label is missing
        self.users = users
        self.rows = rows
        self.table = table
        self.groups = groups
        self.labels = labels
        self.group = group
        self.truth = truth

    def __len__(self) -> int:
        return self.rows

    def count_values(self, index: Tensor) -> tuple[int, int]:
        """Number of ragged values in rows ``index`` (B,), from the rows themselves and from their user groups."""
        own = self.table.count_values(index)
        return own, 0 if self.groups is None else self.groups.count_values(self.group.index_select(0, index).long())

    def batch(self, index: Tensor, totals: tuple[int, int] | None = None) -> Batch:
        """Rows ``index`` (B,) int64 as one batch; ``totals`` is the result of :meth:`count_values`, if known."""
        own, of_groups = self.count_values(index) if totals is None else totals
        ids = self.table.ids.index_select(0, index)
        numeric = self.table.numeric.index_select(0, index)
        bags = self.table.gather_bags(index, own)
        if self.groups is not None:
            group = self.group.index_select(0, index).long()
            ids = torch.cat([ids, self.groups.ids.index_select(0, group)], 1)
            numeric = torch.cat([numeric, self.groups.numeric.index_select(0, group)], 1)
            joined = zip(bags, self.groups.gather_bags(group, of_groups), strict=True)
            bags = tuple(torch.cat(pair) for pair in joined)  # type: ignore[assignment]
        return Batch(
            ids,
            numeric,
            *bags,
            self.logged(self.labels.index_select(0, index)),
            self.truth.index_select(0, index),
            self.users.index_select(0, index) if len(self.users) else self.users,
        )

    def logged(self, labels: Tensor) -> Tensor:
        """Stored labels as float32, with NaN for missing ones."""
        return labels.float() if self.complete else torch.where(labels == MISSING, torch.nan, labels.float())

    @property
    def bytes(self) -> int:
        """Size of all arrays in bytes, including user groups."""
        tables = [self.table] if self.groups is None else [self.table, self.groups]
        arrays = [self.labels, self.group, self.truth, self.users, *(a for t in tables for a in vars(t).values())]
        return sum(a.nbytes for a in arrays)


def split_of(columns: Columns, labels: Array, groups: Table | None = None, group: Array | None = None) -> Split:
    """Wrap rows in memory as a split.

    Args:
        columns: features of n rows.
        labels: (n, T) 0, 1 or :data:`MISSING`.
        groups: table that the rows are joined with.
        group: (n,) row numbers in ``groups``.
    """
    n = len(columns.ids)
    starts = np.append(0, columns.bag_lengths.sum(axis=1, dtype=np.int64).cumsum())
    arrays = {
        "ids": np.ascontiguousarray(columns.ids, np.int32),
        "numeric": np.ascontiguousarray(columns.numeric, np.float32),
        "bag_lengths": np.ascontiguousarray(columns.bag_lengths, np.int16),
        "bag_start": starts,
        "bag_ids": np.ascontiguousarray(columns.bag_ids, np.int32),
        "bag_weights": np.ascontiguousarray(columns.bag_weights, np.float32),
    }
    table = Table({name: torch.from_numpy(values) for name, values in arrays.items()})
    of_group = torch.zeros(0, dtype=torch.int32) if group is None else torch.from_numpy(group.astype(np.int32))
    logged, nobody = torch.from_numpy(labels.astype(np.uint8)), torch.zeros(0, dtype=torch.int32)
    complete = not bool((labels == MISSING).any())
    return Split(n, table, groups, logged, of_group, torch.zeros(n, 0), nobody, complete=complete)


class ResidentSplit:
    """A split in device memory. Making a batch transfers only the row numbers.

    The row numbers of a batch and its number of ragged values are computed on the host, so no step waits for the
    device.

    Args:
        split: the memory-mapped split.
        device: target device.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.host = split
        self.device = device
        groups = None if split.groups is None else split.groups.to(device)
        arrays = (a.to(device) for a in (split.labels, split.group, split.truth, split.users))
        self.copy = Split(split.rows, split.table.to(device), groups, *arrays, complete=split.complete)

    def __len__(self) -> int:
        return self.host.rows

    def batch(self, index: Tensor) -> Batch:
        """Rows ``index`` (B,) int64, a host tensor, as one batch on the device."""
        totals = self.host.count_values(index)
        if self.device.type == "cuda":
            index = index.pin_memory()
        return self.copy.batch(index.to(self.device, non_blocking=True), totals)


class Store:
    """A prepared store opened for reading.

    Raises:
        UserError: the folder is not a store, has another format version, or one of its files is incomplete or modified.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "store.json"
        if path.exists():
            check_regular(path)
        try:
            self.content: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{folder}: not a prepared store (no store.json); run prepare.py") from None
        except (ValueError, OSError, RecursionError) as error:
            raise UserError(f"{path}: unreadable ({error}); delete {folder} and run prepare.py") from None
        found = self.content.get("format") if isinstance(self.content, dict) else None
        if found != FORMAT:
            raise UserError(f"{path}: store format {found}, this version reads {FORMAT}; run prepare.py again")
        stated = self.content.pop("crc32", None)
        try:
            self.schema = Schema.from_dict(self.content["schema"])
            self.fingerprint: str = self.content["fingerprint"]
            arrays, vocabularies = self.content["arrays"], self.content["vocabularies"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: incomplete ({error!r}); delete {folder} and run prepare.py") from None
        if _checksum_of(self.content) != stated:
            raise UserError(f"{path}: was changed, or is damaged (checksum); delete {folder} and run prepare.py")
        for name in arrays:
            self._check_size(name)
        wanted = {self._path(name): array["crc32"] for name, array in arrays.items()}
        wanted |= {self._vocabulary(field): crc for field, crc in vocabularies.items()}
        wanted |= {self.history(field): crc for field, crc in self.content["history_files"].items()}
        self._check_content(wanted)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def history(self, field: str) -> Path:
        """The file with the history of a rate."""
        return self.folder / "history" / f"{field}.parquet"

    def _vocabulary(self, field: str) -> Path:
        return self.folder / "vocabulary" / f"{field}.parquet"

    def _check_size(self, name: str) -> None:
        spec = self.content["arrays"][name]
        expected = int(np.prod(spec["shape"])) * np.dtype(spec["dtype"]).itemsize
        found = self._path(name).stat().st_size if self._path(name).exists() else -1
        if found != expected:
            state = "missing" if found < 0 else f"{found} bytes instead of {expected}"
            raise UserError(f"{self._path(name)}: {state}, the store is torn; delete {self.folder} and prepare again")

    def _check_content(self, wanted: Mapping[Path, int]) -> None:
        """Verify the checksum of every file, in several threads. Training reads all of them anyway."""
        with ThreadPoolExecutor() as pool:
            for path, (stated, found) in zip(wanted, pool.map(_compared, wanted.items()), strict=True):
                if stated != found:
                    state = "missing" if found is None else "damaged (its checksum is not that of its writing)"
                    raise UserError(f"{path}: {state}; delete {self.folder} and prepare again")

    def _array(self, name: str) -> Tensor:
        spec = self.content["arrays"][name]
        dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
        if 0 in shape:
            return torch.from_numpy(np.empty(shape, dtype))
        # Mode "c" (copy on write) never changes the file and avoids torch's warning about read-only arrays.
        return torch.from_numpy(np.memmap(self._path(name), dtype, "c", shape=shape))

    def _table(self, name: str) -> Table:
        parts = ("ids", "numeric", "bag_lengths", "bag_start", "bag_ids", "bag_weights")
        return Table({part: self._array(f"{name}/{part}") for part in parts})

    def split(self, name: str) -> Split:
        """Open a split. Raises :class:`UserError` if the store has no split of this name."""
        splits = self.content["splits"]
        if name not in splits:
            raise UserError(f"split {name!r} is not in {self.folder}; it has {', '.join(splits)}")
        rows, group = splits[name]["rows"], splits[name]["group"]
        truth = self._array(f"{name}/truth")
        return Split(
            rows,
            self._table(name),
            None if group is None else self._table(group),
            self._array(f"{name}/labels"),
            self._array(f"{name}/group"),
            truth if len(truth) else torch.zeros(rows, 0),
            self._array(f"{name}/users"),
            complete=not any(self.content["missing_labels"][name]),
        )

    def labels_identity(self, split: str) -> str:
        """Identifies the rows of a split by their number and labels, independent of what was learned from other rows.

        Metrics of two runs are comparable if it is the same.
        """
        found = self.content["arrays"][f"{split}/labels"]
        return f"{found['shape'][0]} rows, {found['crc32']:08x}"

    @property
    def counts(self) -> Tensor:
        """(num_embeddings,) int64: occurrences of each id in the training rows."""
        return self._array("counts")

    @property
    def unknown(self) -> dict[str, dict[str, float]]:
        """By split and id field, the share of values that are absent or unknown because training has not seen them."""
        found: dict[str, dict[str, float]] = self.content["unknown"]
        return found

    def vocabulary(self, field: str) -> pl.DataFrame:
        """Raw values of an id field; row ``i`` has id ``i + 1``."""
        return pl.read_parquet(self._vocabulary(field))


def _compared(item: tuple[Path, int]) -> tuple[int, int | None]:
    """The stored and the actual checksum of a file; None if it cannot be read."""
    try:
        return item[1], checksum(item[0])
    except OSError:
        return item[1], None
