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
from dataclasses import dataclass
from functools import reduce
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from dlen.data.columns import PLACE_ARRAYS, SEQUENCE_ARRAYS, SPLIT_ARRAYS, TABLE_ARRAYS
from dlen.data.mapped import Layout, map_files
from dlen.data.sequences import SplitSequences, StoredSequence
from dlen.data.shards import Shards
from dlen.data.split import Split, StoredTable
from dlen.data.vectors import SplitVectors
from dlen.errors import UserError
from dlen.files import check_regular, checksum, crc32_combine, is_intact
from dlen.label_scale import LabelScale
from dlen.schema import Kind, Schema

FORMAT = 8  # 5: sequences, vectors, weights; 6: label patterns; 7: rates without counts; 8: shards

Part = dict[str, Any]  # an entry of "shards" in store.json, or one like it for what lies beside them


class Store:
    """A prepared store opened for reading.

    Raises:
        UserError: the folder is not a store, has another format version, or one of its files is incomplete or modified.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = self._read_content(folder / "store.json")
        self.shards: list[Part] = self.content["shards"]
        self._beside: Part = {"folder": ".", "arrays": self.content["arrays"]}
        checksums: dict[Path, int] = {}
        for part in (self._beside, *self.shards):
            checksums |= self._checked_sizes(part)
        checksums |= {self._vocabulary_path(field): crc for field, crc in self.content["vocabularies"].items()}
        checksums |= {self.history(field): crc for field, crc in self.content["history_files"].items()}
        self._check_files(checksums)

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

    def _vocabulary_path(self, field: str) -> Path:
        return self.folder / "vocabulary" / f"{field}.parquet"

    def history(self, field: str) -> Path:
        """The file with the history of a rate."""
        return self.folder / "history" / f"{field}.parquet"

    def _checked_sizes(self, part: Part) -> dict[Path, int]:
        """Verify the size of each array of a part. Returns the checksums of its files."""
        checksums: dict[Path, int] = {}
        for name, spec in part["arrays"].items():
            expected = _size(spec)
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
        names = self.shards[0]["splits"]
        return {name: sum(shard["splits"][name]["rows"] for shard in self.shards) for name in names}

    def split(self, name: str, shards: Sequence[int] | None = None) -> Split:
        """Open a split.

        Args:
            name: name of the split.
            shards: numbers of the shards whose rows it has, in this order, at least one; by default all.

        Raises:
            UserError: the store has no split of this name.
        """
        if name not in self.rows:
            raise UserError(f"{self.folder}: has no split {name!r}; its splits are {', '.join(self.rows)}")
        chosen = self.shards if shards is None else [self.shards[number] for number in shards]
        of_shards = [shard["splits"][name] for shard in chosen]
        own, group = _Parts(self.folder, chosen), of_shards[0]["group"]
        layout = own.layout(f"{name}/bag_start")
        arrays = {part: own.array(f"{name}/{part}", layout) for part in SPLIT_ARRAYS}
        if not len(arrays["truth"]):
            arrays["truth"] = torch.zeros(len(arrays["labels"]), 0)
        return Split(
            sum(shard["rows"] for shard in of_shards),
            own.table(name),
            None if group is None else self._owners(f"{group}/bag_start", chosen)[0].table(group),
            **arrays,
            sequences=self._split_sequences(name, own, layout),
            vectors=self._split_vectors(name, own, layout),
            scale=LabelScale(self.schema) if self.schema.regressions else None,
            complete=not any(any(shard["missing"]) for shard in of_shards),
            shards=self._shards(name, group, chosen) if len(chosen) > 1 else None,
        )

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

    def sequence(self, name: str) -> StoredSequence:
        """The values of a sequence."""
        return self._sequence(name, self.shards)

    def _sequence(self, name: str, shards: Sequence[Part]) -> StoredSequence:
        parts, lists = self._owners(f"sequences/{name}/values", shards)[0], self.schema.sequences[name]
        values, when = (parts.array(f"sequences/{name}/{part}") for part in SEQUENCE_ARRAYS)
        offsets = torch.tensor([self.schema.offsets[f.name] for f in lists], dtype=torch.int32)
        return StoredSequence(values, when, offsets, len(lists) > values.shape[1])

    def labels_identity(self, split: str) -> str:
        """Identifies the rows of a split by their number and labels, independent of what was learned from other rows.

        Metrics of two runs are comparable if it is the same. It does not depend on the number of shards.
        """
        own = _Parts(self.folder, self.shards)
        identity = f"{self.rows[split]} rows, {own.checksum(f'{split}/labels'):08x}"
        return identity + f"{own.checksum(f'{split}/values'):08x}" * bool(self.schema.regressions)

    @property
    def counts(self) -> Tensor:
        """(num_embeddings,) int64: occurrences of each id in the training rows."""
        return _Parts(self.folder, [self._beside]).array("counts")

    @property
    def unknown(self) -> dict[str, dict[str, float]]:
        """By split and id field, the share of values that are absent or unknown because training has not seen them."""
        shares: dict[str, dict[str, float]] = self.content["unknown"]
        return shares

    def vocabulary(self, field: str) -> pl.DataFrame:
        """Raw values of an id field; row ``i`` has id ``i + 1``."""
        return pl.read_parquet(self._vocabulary_path(self.schema.owner(field)))


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
        return StoredTable({part: self.array(f"{name}/{part}", layout) for part, layout in layouts.items()})

    def checksum(self, name: str) -> int:
        """CRC-32 of the rows of all parts one after the other."""
        specs = [part["arrays"][name] for part in self.entries]
        return reduce(lambda crc, spec: crc32_combine(crc, spec["crc32"], _size(spec)), specs, 0)


def _path(folder: Path, part: Part, name: str) -> Path:
    return folder / part["folder"] / f"{name}.bin"


def _size(spec: Mapping[str, Any]) -> int:
    """Bytes of an array."""
    return prod(spec["shape"]) * np.dtype(spec["dtype"]).itemsize


def _checksum(path: Path) -> int | None:
    """Checksum of a file; None if it cannot be read."""
    try:
        return checksum(path)
    except OSError:
        return None
