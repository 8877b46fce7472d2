"""The prepared store: shards of flat binary columns, written once and memory-mapped afterwards as one.

A store has tables and splits. A split (train, validation, test) owns a table with one row per impression, its labels
and, if the log repeats user features, a group number per row that points into a table shared by all rows of that
user. Nothing is joined on disk: the join happens when a batch is made.

A shard is a folder with some rows of each split, and with what only these point to. It is written on its own and
never changes. What the rows of several shards point to, such as user groups, lies beside the shards. An array without
content has no file.

``store.json`` is written last, into a folder with a temporary name that is renamed when it is complete, so a folder
with the final name is complete. Opening a store checks the format version, and size and checksum of every file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from dlen.data.columns import FORMAT, PLACE_ARRAYS, SEQUENCE_ARRAYS, SPLIT_ARRAYS, TABLE_ARRAYS, Part
from dlen.data.mapped import Layout, map_files
from dlen.data.sequences import SplitSequences, StoredSequence
from dlen.data.shards import Codes, Shards
from dlen.data.split import Split, StoredTable
from dlen.data.vectors import SplitVectors
from dlen.errors import UserError
from dlen.files import check_regular, checksum, crc32_combine, is_intact
from dlen.label_scale import LabelScale
from dlen.schema import Kind, Schema


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a split.

    Attributes:
        split: name of the split in the shards.
        shards: numbers of the shards.
        first: first of their rows.
        end: row after the last one; None for all.
    """

    split: str
    shards: tuple[int, ...]
    first: int = 0
    end: int | None = None


class Store:
    """A prepared store opened for reading.

    Args:
        folder: its folder.
        verify: compare the checksum of every file.

    Attributes:
        schema: fields and tasks, with the ids that training knows, or those of :meth:`as_of`.
        selected: the rows of each split.

    Raises:
        UserError: the folder is not a store, has another format version, or one of its files is incomplete or modified.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = folder
        self.content = self._read_content(folder / "store.json")
        self.shards: list[Part] = self.content["shards"]
        self._beside: Part = {"folder": ".", "arrays": self.content["arrays"]}
        checksums: dict[Path, int] = {}
        for part in (self._beside, *self.shards):
            checksums |= self._checked_sizes(part)
        for part, content in ((self._beside, self.content), *((shard, shard) for shard in self.shards)):
            for key, folder_name in (("vocabularies", "vocabulary"), ("history_files", "history")):
                files = content.get(key, {}).items()
                checksums |= {self._parquet(part, folder_name, field): crc for field, crc in files}
        if verify:
            self._check_files(checksums)
        splits = dict.fromkeys(name for shard in self.shards for name in shard["splits"])
        self.selected = {
            name: Rows(name, tuple(n for n, shard in enumerate(self.shards) if name in shard["splits"]))
            for name in splits
        }
        self._known = 0  # shards whose new ids are known

    def _read_content(self, path: Path) -> dict[str, Any]:
        remedy = f"delete {self.folder} and run prepare.py"
        if path.exists():
            check_regular(path)
        try:
            content: Any = json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.folder}: not a prepared store (no store.json); run prepare.py") from None
        except (ValueError, OSError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
        version = content.get("format") if isinstance(content, dict) else None
        if version != FORMAT:
            raise UserError(
                f"{path}: has store format {version}, but this version of dlen reads format {FORMAT}; run prepare.py"
            )
        try:
            self.schema = Schema.from_dict(content["schema"])
            self.fingerprint: str = content["fingerprint"]
            _ = content["arrays"], content["shards"], content["vocabularies"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: has a missing or invalid entry ({error!r}); {remedy}") from None
        if not is_intact(content):
            raise UserError(f"{path}: checksum mismatch, the file was modified or is damaged; {remedy}")
        del content["crc32"]
        return dict(content)

    def as_of(self, number: int) -> None:
        """Take the ids that were known when a shard had been appended, instead of those of training.

        Ids that came later are unknown in every split.
        """
        self._known, self.schema = number + 1, self._schema_of(self.shards[number])

    def _schema_of(self, part: Part) -> Schema:
        """The schema by which the ids of a part are rows of the embedding table."""
        trained, sizes = Schema.from_dict(self.content["schema"]), part.get("sizes", {})
        fields = (replace(f, vocab_size=sizes.get(f.name, f.vocab_size)) for f in trained.fields)
        return replace(trained, fields=tuple(fields))

    def _parquet(self, part: Part, folder: str, field: str) -> Path:
        return self.folder / part["folder"] / folder / f"{field}.parquet"

    def histories(self, field: str) -> list[Path]:
        """The files with the history of a rate: that of training and of what was prepared with it, then of each day."""
        days = [shard for shard in self.shards if field in shard.get("history_files", {})]
        return [self._parquet(part, "history", field) for part in (self._beside, *days)]

    def events(self, name: str) -> tuple[StoredSequence, list[tuple[Path, int]]]:
        """The events of a history, and the files with their ranges, each with the place where its events start."""
        array = f"sequences/{name}/values"
        parts, _ = self._owners(array, self.shards)
        starts = zip(parts.entries, parts.layout(array).starts, strict=True)
        files = [(self._parquet(part, "history", name), start) for part, start in starts]
        return self._sequence(name, self.shards), files

    def _checked_sizes(self, part: Part) -> dict[Path, int]:
        """Verify the size of each array of a part. Returns the checksums of its files."""
        checksums: dict[Path, int] = {}
        for name, spec in part["arrays"].items():
            expected = array_size(spec)
            if not expected:
                continue
            path = _path(self.folder, part, name)
            size = path.stat().st_size if path.exists() else None
            if size != expected:
                state = "is missing" if size is None else f"has {size} bytes, expected {expected}"
                raise UserError(f"{path}: {state}; delete {self.folder} and run prepare.py")
            checksums[path] = spec["crc32"]
        return checksums

    def _check_files(self, checksums: Mapping[Path, int]) -> None:
        """Verify the checksum of every file, in several threads. Training reads all of them anyway."""
        with ThreadPoolExecutor() as pool:
            for (path, written), actual in zip(checksums.items(), pool.map(_checksum, checksums), strict=True):
                if written != actual:
                    state = "is missing" if actual is None else "checksum mismatch, the file is damaged"
                    raise UserError(f"{path}: {state}; delete {self.folder} and run prepare.py")

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows of each split."""
        return {name: self.count(rows) for name, rows in self.selected.items()}

    def count(self, rows: Rows) -> int:
        """The number of some rows."""
        end = self._all(rows) if rows.end is None else rows.end
        return end - rows.first

    def _all(self, rows: Rows) -> int:
        """Rows of the shards that some rows are of."""
        return sum(self.shards[number]["splits"][rows.split]["rows"] for number in rows.shards)

    def split(self, name: str, shards: Sequence[int] | None = None) -> Split:
        """Open a split.

        Args:
            name: name of the split.
            shards: numbers of the shards whose rows it has, in this order, at least one; by default all.

        Raises:
            UserError: the store has no split of this name.
        """
        if name not in self.selected:
            raise UserError(f"{self.folder}: has no split {name!r}; its splits are {', '.join(self.selected)}")
        rows = self.selected[name] if shards is None else Rows(name, tuple(shards))
        name, chosen = rows.split, [self.shards[number] for number in rows.shards]
        of_shards = [shard["splits"][name] for shard in chosen]
        own, group = _Parts(self.folder, chosen), of_shards[0]["group"]
        layout = own.layout(f"{name}/bag_start")
        arrays = {part: own.array(f"{name}/{part}", layout) for part in SPLIT_ARRAYS}
        if not len(arrays["truth"]):
            arrays["truth"] = torch.zeros(len(arrays["labels"]), 0)
        return Split(
            self.count(rows),
            own.table(name),
            None if group is None else self._owners(f"{group}/bag_start", chosen)[0].table(group),
            **arrays,
            sequences=self._split_sequences(name, own, layout),
            vectors=self._split_vectors(name, own, layout),
            scale=LabelScale(self.schema) if self.schema.regressions else None,
            complete=not any(any(shard["missing"]) for shard in of_shards),
            shards=self._shards(name, group, chosen) if len(chosen) > 1 else None,
            first=rows.first,
            codes=self._codes(chosen),
        )

    def _codes(self, shards: Sequence[Part]) -> Codes | None:
        """How ids of shards become those of the schema; None if they are."""
        before = [self._schema_of(shard) for shard in shards]
        if all(schema == self.schema for schema in before):
            return None
        return Codes.between(before, self.schema)

    def _owners(self, array: str, shards: Sequence[Part]) -> tuple[_Parts, list[int]]:
        """The parts with an array that rows of the shards point to, and the number of that of each shard."""
        owners = [shard if array in shard["arrays"] else self._beside for shard in shards]
        by_folder = {part["folder"]: part for part in owners}
        number = {folder: place for place, folder in enumerate(by_folder)}
        return _Parts(self.folder, list(by_folder.values())), [number[part["folder"]] for part in owners]

    def _shards(self, split: str, group: str | None, shards: Sequence[Part]) -> Shards:
        """Where the rows of each shard lie, and what they point to."""

        def starts(array: str) -> list[int]:
            parts, owner = self._owners(array, shards)
            first = parts.layout(array).starts
            return [first[number] for number in owner]

        def columns(arrays: Iterable[str]) -> Tensor:
            found = [starts(array) for array in arrays]
            return torch.tensor(found, dtype=torch.int64).reshape(len(found), len(shards)).T.contiguous()

        rows = [shard["splits"][split]["rows"] for shard in shards]
        tables = [f"{table}/{part}" for table in (split, group or split) for part in ("bag_start", "bag_ids")]
        first, values, groups, group_values = columns(tables).unbind(1)
        return Shards(
            torch.tensor([0, *rows[:-1]]).cumsum(0),
            first,
            values,
            groups,
            group_values,
            columns(f"sequences/{name}/values" for name in self.schema.sequences),
            columns(f"vectors/{field.name}/values" for field in self.schema.of_kind(Kind.VECTOR)),
        )

    def _split_sequences(self, split: str, own: _Parts, layout: Layout) -> SplitSequences | None:
        if not self.schema.sequences:
            return None
        tables = tuple(self._sequence(name, own.entries) for name in self.schema.sequences)
        return SplitSequences(tables, *(own.array(f"{split}/{part}", layout) for part in PLACE_ARRAYS))

    def _split_vectors(self, split: str, own: _Parts, layout: Layout) -> SplitVectors | None:
        arrays = [f"vectors/{f.name}/values" for f in self.schema.of_kind(Kind.VECTOR)]
        if not arrays:
            return None
        tables = tuple(self._owners(array, own.entries)[0].array(array) for array in arrays)
        return SplitVectors(tables, own.array(f"{split}/vectors", layout))

    def _sequence(self, name: str, shards: Sequence[Part]) -> StoredSequence:
        """The values of a sequence."""
        parts, lists = self._owners(f"sequences/{name}/values", shards)[0], self.schema.sequences[name]
        values, when = (parts.array(f"sequences/{name}/{part}") for part in SEQUENCE_ARRAYS)
        offsets = torch.tensor([self.schema.offsets[f.name] for f in lists], dtype=torch.int32)
        sizes = None
        if any(shard.get("sizes", {}).get(f.name, 0) > f.vocab_size for shard in shards for f in lists):
            sizes = torch.tensor([f.vocab_size for f in lists[: values.shape[1]]], dtype=torch.int32)
        return StoredSequence(values, when, offsets, len(lists) > values.shape[1], sizes)

    def labels_identity(self, split: str) -> str:
        """Identifies the rows of a split by their number and labels, independent of what was learned from other rows.

        Metrics of two runs are comparable if it is the same. It does not depend on the number of shards.
        """
        rows = self.selected[split]
        own, whole = _Parts(self.folder, [self.shards[n] for n in rows.shards]), self.count(rows) == self._all(rows)
        parts = ["labels", *(["values"] if self.schema.regressions else [])]
        crcs = [own.checksum(f"{rows.split}/{p}") if whole else self.split(split).checksum(p) for p in parts]
        return f"{self.count(rows)} rows, " + "".join(f"{crc:08x}" for crc in crcs)

    @property
    def counts(self) -> Tensor:
        """(num_embeddings,) int64: occurrences of each id in the training rows, and in days whose ids are known."""
        days = [shard for shard in self.shards[: self._known] if "sizes" in shard]
        if not days:
            return _Parts(self.folder, [self._beside]).array("counts")
        counts = torch.zeros(self.schema.num_embeddings, dtype=torch.int64)
        for part in (self._beside, *days):
            schema, stored = self._schema_of(part), _Parts(self.folder, [part]).array("counts")
            for field in schema.owners:
                start = self.schema.offsets[field.name]
                counts[start : start + field.vocab_size] += stored[schema.rows(field.name)]
        return counts

    @property
    def unknown(self) -> dict[str, dict[str, float]]:
        """By split and id field, the share of values that are absent or unknown because training has not seen them."""
        shares: dict[str, dict[str, float]] = self.content["unknown"]
        return shares

    def vocabulary(self, field: str) -> pl.DataFrame:
        """Raw values of an id field; row ``i`` has id ``i + 1``."""
        field = self.schema.owner(field)
        days = [shard for shard in self.shards[: self._known] if field in shard.get("vocabularies", {})]
        return pl.concat([pl.read_parquet(self._parquet(part, "vocabulary", field)) for part in (self._beside, *days)])


@dataclass(frozen=True, slots=True)
class _Parts:
    """Parts of the store in ``folder``, whose arrays of one name are one array."""

    folder: Path
    entries: Sequence[Part]

    def layout(self, name: str) -> Layout:
        """Where the rows of each part lie in an array."""
        return Layout.of([part["arrays"][name]["shape"][0] for part in self.entries])

    def array(self, name: str, layout: Layout | None = None) -> Tensor:
        """An array; ``layout`` is that of the rows of a table, if it is part of one."""
        specs = [part["arrays"][name] for part in self.entries]
        paths = [_path(self.folder, part, name) for part in self.entries]
        files = [(path, spec["shape"][0]) for path, spec in zip(paths, specs, strict=True)]
        _, *width = specs[0]["shape"]
        return torch.from_numpy(map_files(files, layout or self.layout(name), specs[0]["dtype"], tuple(width)))

    def table(self, name: str) -> StoredTable:
        """A table."""
        rows = self.layout(f"{name}/bag_start")
        layouts = dict.fromkeys(TABLE_ARRAYS, rows) | dict.fromkeys(("bag_ids", "bag_weights"))
        return StoredTable(**{part: self.array(f"{name}/{part}", layout) for part, layout in layouts.items()})

    def checksum(self, name: str) -> int:
        """CRC-32 of the rows of all parts one after the other, from those of their files."""
        specs = [part["arrays"][name] for part in self.entries]
        return reduce(lambda crc, spec: crc32_combine(crc, spec["crc32"], array_size(spec)), specs, 0)


def _path(folder: Path, part: Part, name: str) -> Path:
    return folder / part["folder"] / f"{name}.bin"


def array_size(spec: Mapping[str, Any]) -> int:
    """Bytes of an array, from its entry in ``store.json``."""
    return prod(spec["shape"]) * np.dtype(spec["dtype"]).itemsize


def _checksum(path: Path) -> int | None:
    """Checksum of a file; None if it cannot be read."""
    try:
        return checksum(path)
    except OSError:
        return None
