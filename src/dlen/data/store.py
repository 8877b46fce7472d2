"""The prepared store: one folder of flat binary columns, written once and memory-mapped afterwards.

A store has tables and splits. A split (train, validation, test) owns a table with one row per impression, its labels
and, if the log repeats user features, a group number per row that points into a table shared by all rows of that
user. Nothing is joined on disk: the join happens when a batch is made.

``store.json`` is written last, into a folder with a temporary name that is renamed when it is complete, so a folder
with the final name is complete. Opening a store checks the format version, and size and checksum of every file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from dlen.data.columns import PLACE_ARRAYS, TABLE_ARRAYS
from dlen.data.sequences import SplitSequences, StoredSequence
from dlen.data.split import Split, StoredTable
from dlen.data.vectors import SplitVectors
from dlen.errors import UserError
from dlen.files import check_regular, checksum, is_intact
from dlen.label_scale import LabelScale
from dlen.schema import Kind, Schema

FORMAT = 7  # 4: users, missing labels; 5: sequences, vectors, weights; 6: label patterns; 7: rates without counts


class Store:
    """A prepared store opened for reading.

    Raises:
        UserError: the folder is not a store, has another format version, or one of its files is incomplete or modified.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = self._read_content(folder / "store.json")
        for name in self.content["arrays"]:
            self._check_size(name)
        checksums = {self._array_path(name): array["crc32"] for name, array in self.content["arrays"].items()}
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
            _ = content["arrays"], content["vocabularies"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: has a missing or invalid entry ({error!r}); {remedy}") from None
        if not is_intact(content):
            raise UserError(f"{path}: checksum mismatch, the file was modified or is damaged; {remedy}")
        del content["crc32"]
        return dict(content)

    def _array_path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def _vocabulary_path(self, field: str) -> Path:
        return self.folder / "vocabulary" / f"{field}.parquet"

    def history(self, field: str) -> Path:
        """The file with the history of a rate."""
        return self.folder / "history" / f"{field}.parquet"

    def _check_size(self, name: str) -> None:
        spec, path = self.content["arrays"][name], self._array_path(name)
        expected = int(np.prod(spec["shape"])) * np.dtype(spec["dtype"]).itemsize
        size = path.stat().st_size if path.exists() else None
        if size != expected:
            state = "is missing" if size is None else f"has {size} bytes, expected {expected}"
            raise UserError(f"{path}: {state}; delete {self.folder} and run prepare.py")

    def _check_files(self, checksums: Mapping[Path, int]) -> None:
        """Verify the checksum of every file, in several threads. Training reads all of them anyway."""
        with ThreadPoolExecutor() as pool:
            for (path, written), actual in zip(checksums.items(), pool.map(_checksum, checksums), strict=True):
                if written != actual:
                    state = "is missing" if actual is None else "checksum mismatch, the file is damaged"
                    raise UserError(f"{path}: {state}; delete {self.folder} and run prepare.py")

    def _array(self, name: str) -> Tensor:
        spec = self.content["arrays"][name]
        dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
        if 0 in shape:
            return torch.from_numpy(np.empty(shape, dtype))
        # Mode "c" (copy on write) never changes the file and avoids torch's warning about read-only arrays.
        return torch.from_numpy(np.memmap(self._array_path(name), dtype, "c", shape=shape))

    def _table(self, name: str) -> StoredTable:
        return StoredTable({part: self._array(f"{name}/{part}") for part in TABLE_ARRAYS})

    def split(self, name: str) -> Split:
        """Open a split. Raises :class:`UserError` if the store has no split of this name."""
        splits = self.content["splits"]
        if name not in splits:
            raise UserError(f"{self.folder}: has no split {name!r}; its splits are {', '.join(splits)}")
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
            self._array(f"{name}/weights"),
            self._array(f"{name}/values"),
            self._array(f"{name}/views"),
            sequences=self._split_sequences(name),
            vectors=self._split_vectors(name),
            scale=LabelScale(self.schema) if self.schema.regressions else None,
            complete=not any(self.content["missing_labels"][name]),
        )

    def _split_sequences(self, split: str) -> SplitSequences | None:
        if not self.schema.sequences:
            return None
        tables = tuple(self.sequence(name) for name in self.schema.sequences)
        start, length, when = (self._array(f"{split}/{part}") for part in PLACE_ARRAYS)
        return SplitSequences(tables, start, length, when)

    def _split_vectors(self, split: str) -> SplitVectors | None:
        fields = self.schema.of_kind(Kind.VECTOR)
        if not fields:
            return None
        return SplitVectors(
            tuple(self._array(f"vectors/{f.name}/values") for f in fields), self._array(f"{split}/vectors")
        )

    def sequence(self, name: str) -> StoredSequence:
        """The values of a sequence."""
        values, lists = self._array(f"sequences/{name}/values"), self.schema.sequences[name]
        offsets = torch.tensor([self.schema.offsets[f.name] for f in lists], dtype=torch.int32)
        gaps = len(lists) > values.shape[1]
        return StoredSequence(values, self._array(f"sequences/{name}/when"), offsets, gaps)

    def labels_identity(self, split: str) -> str:
        """Identifies the rows of a split by their number and labels, independent of what was learned from other rows.

        Metrics of two runs are comparable if it is the same.
        """
        labels = self.content["arrays"][f"{split}/labels"]
        identity = f"{labels['shape'][0]} rows, {labels['crc32']:08x}"
        return identity + f"{self.content['arrays'][f'{split}/values']['crc32']:08x}" * bool(self.schema.regressions)

    @property
    def counts(self) -> Tensor:
        """(num_embeddings,) int64: occurrences of each id in the training rows."""
        return self._array("counts")

    @property
    def unknown(self) -> dict[str, dict[str, float]]:
        """By split and id field, the share of values that are absent or unknown because training has not seen them."""
        shares: dict[str, dict[str, float]] = self.content["unknown"]
        return shares

    def vocabulary(self, field: str) -> pl.DataFrame:
        """Raw values of an id field; row ``i`` has id ``i + 1``."""
        return pl.read_parquet(self._vocabulary_path(self.schema.owner(field)))


def _checksum(path: Path) -> int | None:
    """Checksum of a file; None if it cannot be read."""
    try:
        return checksum(path)
    except OSError:
        return None
