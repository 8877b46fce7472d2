"""Ali-CCP (Alimama, via Tianchi) from its raw two-file format, out of core.

Each pair of files consists of a skeleton (one line per impression, with item, cross and context features) and common
features (one line per user group, shared by about 58 impressions). The store keeps the two apart in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlen.data.bad_rows import BadRows
from dlen.data.columns import Array
from dlen.data.ragged import field_of_values, rows_of_values
from dlen.data.scratch import read_scratch
from dlen.data.sources.aliccp_grammar import Block, Reader
from dlen.data.sources.aliccp_passes import COMMON, SKELETON, USER, AliCCPPasses, distinct, encode, joined, reader_of
from dlen.data.sources.aliccp_sample import AliCCPSample
from dlen.data.sources.by_field import rows_by_field
from dlen.data.split import Split, split_of
from dlen.data.store import Store
from dlen.data.vocabulary import IdVocabulary
from dlen.data.writer import StoreWriter, TableWriter
from dlen.errors import UserError
from dlen.progress import Stage
from dlen.schema import Field, Kind, Schema, Task
from dlen.valid import INSIDE_0_1, OneOf, Range, check_source

POSITION = "301"
_WHERE = (
    "Ali-CCP is published by Alimama on Tianchi (https://tianchi.aliyun.com/dataset/408, free, needs a login): "
    "unpack both archives into one folder and set data.raw_dir=FOLDER, or try data=aliccp_demo"
)


@dataclass
class AliCCP:
    """Ali-CCP as a data source.

    Tasks: ``ctr`` (click) and ``cvr`` (conversion), with ``ctcvr`` measured over all impressions.

    Args:
        raw_dir: folder with ``sample_skeleton_{train,test}.csv`` and ``common_features_{train,test}.csv``.
        name: name of the data set.
        min_count: ids with fewer occurrences in the training impressions, after the ``max_values`` cap, are unknown.
        max_values: maximum number of values of a multi-valued field in one row; the heaviest are kept.
        validation: fraction of the training pair used as the validation split.
        validation_by: ``user`` holds out whole users by a hash of their id, ``row`` holds out single impressions.
        cvr_rows: ``clicks`` trains the conversion head on clicked rows only, ``impressions`` on all rows.
        seed: seed of the hash that selects validation rows.
        bad_rows: maximum number of unreadable lines to skip, count and report; one more raises an error.
    """

    raw_dir: str
    name: str = "aliccp"
    min_count: Annotated[int, Range(1)] = 10
    max_values: Annotated[int, Range(1, 2**15 - 1)] = 20
    validation: Annotated[float, INSIDE_0_1] = 0.1
    validation_by: Annotated[str, OneOf("user", "row")] = "user"
    cvr_rows: Annotated[str, OneOf("clicks", "impressions")] = "clicks"
    seed: Annotated[int, Range(0)] = 0
    bad_rows: int = 0

    def __post_init__(self) -> None:
        check_source(self)
        self.bad = BadRows(self.bad_rows)

    def settings(self) -> dict[str, Any]:
        """Settings that affect the store."""
        keys = ("min_count", "max_values", "validation", "validation_by", "cvr_rows", "seed")
        tolerated = {"bad_rows": self.bad_rows} if self.bad_rows else {}
        return {**{key: getattr(self, key) for key in keys}, **tolerated}

    def path(self, kind: str, split: str) -> Path:
        """Path of a raw file; ``kind`` is ``sample_skeleton`` or ``common_features``."""
        return Path(self.raw_dir) / f"{kind}_{split}.csv"

    def files(self) -> list[Path]:
        """The four raw files. Raises UserError with instructions if one is missing or empty."""
        paths = [self.path(k, s) for s in ("train", "test") for k in ("sample_skeleton", "common_features")]
        for path in paths:
            if not path.exists():
                raise UserError(f"{path}: no such file. {_WHERE}")
            if path.stat().st_size == 0:
                raise UserError(f"{path}: the file is empty; unpack the archive again")
        return paths

    def write(self, writer: StoreWriter) -> Schema:
        """Parse, count and encode."""
        passes = AliCCPPasses(self, writer)
        passes.run()
        writer.statistics |= {n: {"max_values": self.max_values} for n in (*SKELETON.bags, *COMMON.bags)}
        for name in ("train", "validation"):
            if passes.rows[name] == 0:
                raise UserError(
                    f"{self.path('sample_skeleton', 'train')}: no rows are left for {name} with data.validation="
                    f"{self.validation} by {self.validation_by}; change it, data.validation_by or data.seed"
                )
        writer.notes["impossible_rows_dropped"] = {name: passes.impossible[name] for name in ("train", "test")}
        writer.notes |= {"bad_rows_left_out": len(self.bad)} if len(self.bad) else {}
        return self._schema(passes)

    def sample(self, folder: Path, pieces: int) -> AliCCPSample:
        """Take some pieces of the files, of about half a megabyte each, for a dry run."""
        self.files()
        return AliCCPSample(self, replace(self, raw_dir=str(folder), min_count=1), pieces)

    def occurrences(self, kind: str) -> Iterator[tuple[NDArray[np.int64], dict[str, tuple[Array, Array]]]]:
        """Blocks of a training file: (n,) line numbers, and row (L,) and raw id (L,) of each value by field."""
        side = SKELETON if kind == "sample_skeleton" else COMMON
        for block in reader_of(self.path(kind, "train"), side, self.max_values, self.bad):
            ids, lengths = block.columns.ids, block.columns.bag_lengths
            of_fields = {name: (np.arange(len(ids)), ids[:, column]) for column, name in enumerate(side.single)}
            field, row = field_of_values(lengths), rows_of_values(lengths)
            for column, name in enumerate(side.bags):
                of_fields[name] = (row[field == column], block.columns.bag_ids[field == column])
            yield block.lines, of_fields

    def read(self, path: Path, store: Store, labels: bool = False) -> Iterator[Split]:
        """Read new rows: all rows of a skeleton next to its common features, or a table with one column per field.

        Common features are first encoded into a scratch folder, then joined to each row.

        Args:
            path: ``sample_skeleton_NAME.csv``, or a table with any other name.
            store: store written by this source.
            labels: read the labels; otherwise they are zero.

        Raises:
            UserError: a file is missing or a line cannot be read.
        """
        if self.bad.allowed:  # every input row must have an output row
            yield from replace(self, bad_rows=0).read(path, store, labels)
            return
        if not path.name.startswith("sample_skeleton"):
            yield from rows_by_field(path, store, self.max_values, labels)
            return
        common = path.with_name(path.name.replace("sample_skeleton", "common_features", 1))
        if not common.exists():
            raise UserError(f"{common}: no such file; a skeleton is joined with the common features in the same folder")
        vocabularies = {n: IdVocabulary(store.vocabulary(n)["value"].to_numpy()) for n in store.schema.offsets}
        with TemporaryDirectory(prefix="dlen-") as folder:
            writer = TableWriter(Path(folder), "common", COMMON.counts)
            seen, lines = [], []
            for block in _progress(reader_of(common, COMMON, self.max_values, self.bad)):
                writer.append(encode(block.columns, COMMON, vocabularies, store.schema.offsets))
                seen.append(block.head["common_feature_index"])
                lines.append(block.lines)
            writer.close()
            index = pl.Enum(distinct(common, pl.concat(seen), np.concatenate(lines), self.bad))
            groups = read_scratch(Path(folder), "common", COMMON.counts)
            table = split_of(groups.columns, np.zeros((len(groups.columns.ids), 0))).table
            blocks = _progress(reader_of(path, SKELETON, self.max_values, self.bad))
            for columns, happened, group in joined(blocks, path, index, common.name, self.bad):
                encoded = encode(columns, SKELETON, vocabularies, store.schema.offsets)
                yield split_of(encoded, happened if labels else np.zeros_like(happened), table, group)

    def _schema(self, passes: AliCCPPasses) -> Schema:
        fields, vocabularies, rows = [], passes.vocabularies, passes.rows["train"]
        for side in (SKELETON, COMMON):
            fields += [Field(n, Kind.ID, s, len(vocabularies[n])) for n, s in side.single.items()]
            fields += [Field(n, Kind.IDS, s, len(vocabularies[n]), p) for n, (s, p) in side.bags.items()]
        clicks, conversions = (int(p) for p in passes.positives)
        on_clicks = self.cvr_rows == "clicks"
        cvr_rate = conversions / max(clicks if on_clicks else rows, 1)
        ctr = Task("ctr", clicks / max(rows, 1))
        cvr = Task("cvr", cvr_rate, "ctr", "observed" if on_clicks else "all", joint="ctcvr")
        return Schema(tuple(fields), (ctr, cvr), user=USER, position=POSITION)


def _progress(reader: Reader) -> Iterator[Block]:
    """Blocks of a raw file, with a progress bar over its bytes."""
    with Stage(f"reading {reader.path.name}", reader.path.stat().st_size, "B") as stage:
        for block in reader:
            yield block
            stage.advance(block.size)
