"""Ali-CCP (Alimama, via Tianchi) from its raw two-file format, out of core.

Each pair of files consists of a skeleton (one line per impression, with item, cross and context features) and common
features (one line per user group, shared by about 58 impressions). The store keeps the two apart in the same way.

The training pair is parsed once into flat scratch arrays of raw ids. Vocabularies are counted from these arrays, which
are then encoded. Memory is bounded by the block size, the index of the common features and the vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.columns import Array, Columns
from dlen.data.ragged import ABSENT, Entries, field_of_values, rows_of_values, select_rows, to_columns
from dlen.data.scratch import read_flat, read_scratch
from dlen.data.sources.aliccp_grammar import Block, Reader
from dlen.data.sources.aliccp_sample import AliCCPSample
from dlen.data.sources.by_field import rows_by_field
from dlen.data.split import Split, split_of
from dlen.data.store import Store
from dlen.data.vocabulary import IdCounter, IdVocabulary
from dlen.data.writer import SplitWriter, StoreWriter, TableWriter
from dlen.errors import UserError
from dlen.hashing import fraction
from dlen.progress import Stage
from dlen.schema import Field, Kind, Pooling, Schema, Task
from dlen.valid import INSIDE_0_1, OneOf, Range, check_source

HeldOut = Callable[[Array, int], NDArray[np.bool_]]
_CHUNK = 1 << 18  # rows encoded at a time


@dataclass(frozen=True, slots=True)
class _Side:
    """The fields of one of the two files: single-valued fields, then multi-valued ones."""

    single: dict[str, str]  # name -> side
    bags: dict[str, tuple[str, Pooling]]  # name -> side and pooling

    @property
    def names(self) -> list[str]:
        return [*self.single, *self.bags]

    @property
    def counts(self) -> dict[Kind, int]:
        return {Kind.ID: len(self.single), Kind.IDS: len(self.bags), Kind.NUMERIC: 0}


# Values of past categories, shops, brands and intentions are counts, so they are weights of a mean. Values of cross
# features are match scores, and it matters whether there is a match at all, so they are weights of a sum.
SKELETON = _Side(
    {**dict.fromkeys(("205", "206", "207", "216"), "item"), "301": "context"},
    {"210": ("item", Pooling.MEAN), **dict.fromkeys(("508", "509", "702", "853"), ("cross", Pooling.SUM))},
)
COMMON = _Side(
    dict.fromkeys(("101", "121", "122", "124", "125", "126", "127", "128", "129"), "user"),
    dict.fromkeys(("109_14", "110_14", "127_14", "150_14"), ("user", Pooling.MEAN)),
)
USER, POSITION = "101", "301"
_HEAD = ["sample_id", "click", "conversion", "common_feature_index"]  # of a skeleton
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
        scratch = writer.scratch
        index = self._spill_common("train", scratch)
        impossible = {"train": self._spill_skeleton("train", scratch, index)}
        held_out = self._held_out(scratch)
        vocabularies = self._count(scratch, held_out, len(index.categories))
        offsets = _offsets(vocabularies)
        for name, vocabulary in vocabularies.items():
            writer.vocabulary(name, pl.Series(vocabulary.ids), pl.Series(vocabulary.counts))
        writer.statistics |= {n: {"max_values": self.max_values} for n in (*SKELETON.bags, *COMMON.bags)}
        table = writer.beside.table("common_train", COMMON.counts)
        for part, _ in _walk(scratch, "common_train", "encoding common features"):
            table.append(_encode(part, COMMON, vocabularies, offsets))
        shard = writer.shard()
        splits = {name: shard.split(name, SKELETON.counts, 2, group="common_train") for name in ("train", "validation")}
        positives = self._write_train(scratch, splits, held_out, vocabularies, offsets)
        table = writer.beside.table("common_test", COMMON.counts)
        split = shard.split("test", SKELETON.counts, 2, group="common_test")
        impossible["test"] = self._write_test(table, split, vocabularies, offsets)
        for name, split in splits.items():
            if split.rows == 0:
                raise UserError(
                    f"{self.path('sample_skeleton', 'train')}: no rows are left for {name} with data.validation="
                    f"{self.validation} by {self.validation_by}; change it, data.validation_by or data.seed"
                )
        writer.notes["impossible_rows_dropped"] = impossible
        writer.notes |= {"bad_rows_left_out": len(self.bad)} if len(self.bad) else {}
        return self._schema(vocabularies, positives, splits["train"].rows)

    def sample(self, folder: Path, pieces: int) -> AliCCPSample:
        """Take some pieces of the files, of about a megabyte each, for a dry run."""
        self.files()
        return AliCCPSample(self, replace(self, raw_dir=str(folder), min_count=1), pieces)

    def occurrences(self, kind: str) -> Iterator[tuple[NDArray[np.int64], dict[str, tuple[Array, Array]]]]:
        """Blocks of a training file: (n,) line numbers, and row (L,) and raw id (L,) of each value by field."""
        side = SKELETON if kind == "sample_skeleton" else COMMON
        head = _HEAD if kind == "sample_skeleton" else ["common_feature_index"]
        reader = Reader(self.path(kind, "train"), head, [], side.names, partial(self._columns, side), self.bad)
        for block in reader:
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
        vocabularies = {n: IdVocabulary.restored(store.vocabulary(n)["value"].to_numpy()) for n in store.schema.offsets}
        with TemporaryDirectory(prefix="dlen-") as folder:
            writer = TableWriter(Path(folder), "common", COMMON.counts)
            index = self._write_common(
                common, writer, lambda columns: _encode(columns, COMMON, vocabularies, store.schema.offsets)
            )
            writer.close()
            groups = read_scratch(Path(folder), "common", COMMON.counts)
            table = split_of(groups.columns, np.zeros((len(groups.columns.ids), 0))).table
            for columns, happened, group in self._skeleton_blocks(path, common, index):
                encoded = _encode(columns, SKELETON, vocabularies, store.schema.offsets)
                yield split_of(encoded, happened if labels else np.zeros_like(happened), table, group)

    # Training pair: raw text -> scratch arrays of raw ids

    def _write_common(self, path: Path, table: TableWriter, encode: Callable[[Columns], Columns]) -> pl.Enum:
        """Write common features as a table and return the index of its rows."""
        seen: list[pl.Series] = []
        lines: list[Array] = []
        for block in _progress(
            Reader(path, ["common_feature_index"], [], COMMON.names, partial(self._columns, COMMON), self.bad)
        ):
            table.append(encode(block.columns))
            seen.append(block.head["common_feature_index"])
            lines.append(block.lines)
        return self._index(path, pl.concat(seen), np.concatenate(lines))

    def _index(self, path: Path, values: pl.Series, lines: Array) -> pl.Enum:
        """The order of the common features' rows by index. If an index is repeated, the first row is used."""
        again = ~values.is_first_distinct()
        if again.any():
            for value, line in zip(values.filter(again), lines[again.to_numpy()].tolist(), strict=True):
                problem = f"common_feature_index {value!r} repeats that of an earlier line"
                self.bad.add(BadRowError(path, [line], problem, "line"))
            # The later row stays in the table, under a name that cannot occur in a line.
            placeholders = "\n" + pl.int_range(len(values), eager=True).cast(pl.String)
            values = values.zip_with(~again, placeholders)
        return pl.Enum(values)

    def _spill_common(self, split: str, folder: Path) -> pl.Enum:
        """Write common features with raw ids to scratch and return the index of their rows."""
        table = TableWriter(folder, f"common_{split}", COMMON.counts)
        index = self._write_common(self.path("common_features", split), table, lambda columns: columns)
        table.close()
        return index

    def _possible_blocks(
        self, split: str, index: pl.Enum
    ) -> Iterator[tuple[Columns, NDArray[np.uint8], NDArray[np.int32], int]]:
        """Columns, labels (n, 2), group rows (n,) and the number of dropped rows with impossible labels."""
        skeleton, common = self.path("sample_skeleton", split), self.path("common_features", split)
        for columns, labels, group in self._skeleton_blocks(skeleton, common, index):
            possible = labels[:, 0] >= labels[:, 1]
            yield select_rows(columns, possible), labels[possible], group[possible], int((~possible).sum())

    def _skeleton_blocks(
        self, path: Path, common: Path, index: pl.Enum
    ) -> Iterator[tuple[Columns, NDArray[np.uint8], NDArray[np.int32]]]:
        """Columns, labels (n, 2) and group rows (n,) of all rows of a skeleton."""
        convert = partial(self._columns, SKELETON)
        for block in _progress(Reader(path, _HEAD, ["click", "conversion"], SKELETON.names, convert, self.bad)):
            group = block.head["common_feature_index"].cast(index, strict=False).to_physical()
            labels = block.head.select((pl.col("click", "conversion") == "1").cast(pl.UInt8)).to_numpy()
            columns = block.columns
            if group.null_count():
                lost = group.is_null().to_numpy()
                index_of = block.head["common_feature_index"][int(lost.argmax())]
                problem = f"common_feature_index {index_of!r} is not in {common.name}; use files of the same archive"
                self.bad.add(BadRowError(path, block.lines[lost].tolist(), problem, "line"))
                columns, labels, group = select_rows(columns, ~lost), labels[~lost], group.drop_nulls()
            yield columns, labels, group.to_numpy().astype(np.int32)

    def _columns(self, side: _Side, entries: Entries) -> Columns:
        single, bags = range(len(side.single)), range(len(side.single), len(side.names))
        return to_columns(entries, single, bags, [self.max_values] * len(bags))

    def _spill_skeleton(self, split: str, folder: Path, index: pl.Enum) -> int:
        writer = SplitWriter(folder, split, SKELETON.counts, 2, 0)
        dropped = 0
        for columns, labels, group, impossible in self._possible_blocks(split, index):
            writer.append(columns, labels, group)
            dropped += impossible
        writer.close()
        return dropped

    # Scratch arrays -> vocabularies

    def _held_out(self, scratch: Path) -> HeldOut:
        """A function from group rows (n,) and the number of their first impression to an (n,) validation mask."""
        if self.validation_by == "row":
            return lambda group, first: fraction(np.arange(first, first + len(group)), self.seed) < self.validation
        users = read_scratch(scratch, "common_train", COMMON.counts).columns.ids[:, COMMON.names.index(USER)]
        keys = np.where(users == ABSENT, -2 - np.arange(len(users)), users)  # rows without a user do not form a group
        of_group = fraction(keys, self.seed) < self.validation
        return lambda group, first: of_group[group]

    def _count(self, scratch: Path, held_out: HeldOut, groups: int) -> dict[str, IdVocabulary]:
        """Count every field over the training impressions. Values dropped by the cap are not counted."""
        counters = {name: IdCounter() for name in (*SKELETON.names, *COMMON.names)}
        group = read_flat(scratch, "train", "group")
        uses = np.zeros(groups, np.int64)  # training impressions of each group
        for part, start in _walk(scratch, "train", "counting item ids"):
            rows = group[start : start + len(part.ids)]
            trained = ~held_out(rows, start)
            uses += np.bincount(rows[trained], minlength=groups)
            _count_columns(counters, part, SKELETON, trained.astype(np.int64))
        for part, start in _walk(scratch, "common_train", "counting user ids"):
            _count_columns(counters, part, COMMON, uses[start : start + len(part.ids)])
        return {name: IdVocabulary(*counter.result(), self.min_count) for name, counter in counters.items()}

    # Scratch arrays and the test pair -> store

    def _write_train(
        self,
        scratch: Path,
        splits: Mapping[str, SplitWriter],
        held_out: HeldOut,
        vocabularies: Mapping[str, IdVocabulary],
        offsets: Mapping[str, int],
    ) -> NDArray[np.int64]:
        """Write train and validation, and return the number of training positives of both labels."""
        group = read_flat(scratch, "train", "group")
        labels = read_flat(scratch, "train", "labels").reshape(-1, 2)
        users = _users(read_scratch(scratch, "common_train", COMMON.counts).columns)
        positives = np.zeros(2, np.int64)
        for part, start in _walk(scratch, "train", "encoding training rows"):
            encoded = _encode(part, SKELETON, vocabularies, offsets)
            rows = slice(start, start + len(part.ids))
            out = held_out(group[rows], start)
            for name, mask in (("train", ~out), ("validation", out)):
                groups = group[rows][mask]
                splits[name].append(select_rows(encoded, mask), labels[rows][mask], groups, users=users[groups])
            positives += labels[rows][~out].sum(axis=0, dtype=np.int64)
        return positives

    def _write_test(
        self,
        table: TableWriter,
        split: SplitWriter,
        vocabularies: Mapping[str, IdVocabulary],
        offsets: Mapping[str, int],
    ) -> int:
        """Write the test pair, and return the number of its impossible rows."""
        path = self.path("common_features", "test")
        seen: list[NDArray[np.int32]] = []

        def encode(columns: Columns) -> Columns:
            seen.append(_users(columns))
            return _encode(columns, COMMON, vocabularies, offsets)

        index = self._write_common(path, table, encode)
        users = np.concatenate(seen)
        dropped = 0
        for columns, labels, group, impossible in self._possible_blocks("test", index):
            split.append(_encode(columns, SKELETON, vocabularies, offsets), labels, group, users=users[group])
            dropped += impossible
        return dropped

    def _schema(self, vocabularies: Mapping[str, IdVocabulary], positives: NDArray[np.int64], rows: int) -> Schema:
        fields = []
        for side in (SKELETON, COMMON):
            fields += [Field(n, Kind.ID, s, len(vocabularies[n])) for n, s in side.single.items()]
            fields += [Field(n, Kind.IDS, s, len(vocabularies[n]), p) for n, (s, p) in side.bags.items()]
        clicks, conversions = (int(p) for p in positives)
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


def _walk(scratch: Path, table: str, label: str) -> Iterator[tuple[Columns, int]]:
    """Chunks of a scratch table, each with the number of its first row."""
    arrays = read_scratch(scratch, table, SKELETON.counts if table == "train" else COMMON.counts)
    rows = len(arrays.columns.ids)
    with Stage(label, rows, "rows") as stage:
        for first in range(0, rows, _CHUNK):
            yield arrays.rows(first, min(first + _CHUNK, rows)), first
            stage.advance(min(_CHUNK, rows - first))


def _count_columns(counters: Mapping[str, IdCounter], part: Columns, side: _Side, weights: NDArray[np.int64]) -> None:
    used = weights > 0
    for column, name in enumerate(side.single):
        counters[name].add(part.ids[used, column], weights[used])
    field, row = field_of_values(part.bag_lengths), rows_of_values(part.bag_lengths)
    for column, name in enumerate(side.bags):
        where = (field == column) & used[row]
        counters[name].add(part.bag_ids[where], weights[row[where]])


def _users(common: Columns) -> NDArray[np.int32]:
    """(n,) user of each group of raw ids: the user's id + 1, which all splits share, or 0 for no user."""
    users: NDArray[np.int32] = common.ids[:, COMMON.names.index(USER)] + 1
    return users


def _offsets(vocabularies: Mapping[str, IdVocabulary]) -> dict[str, int]:
    """First embedding row of each field, in the order of the schema."""
    starts = np.cumsum([0, *(len(vocabularies[n]) for n in (*SKELETON.names, *COMMON.names))])
    return dict(zip((*SKELETON.names, *COMMON.names), map(int, starts), strict=False))


def _encode(
    part: Columns, side: _Side, vocabularies: Mapping[str, IdVocabulary], offsets: Mapping[str, int]
) -> Columns:
    """Raw ids -> row indices into the embedding table."""
    ids = np.empty_like(part.ids)
    for column, name in enumerate(side.single):
        ids[:, column] = vocabularies[name].encode(part.ids[:, column]) + offsets[name]
    bag_ids = np.empty_like(part.bag_ids)
    field = field_of_values(part.bag_lengths)
    for column, name in enumerate(side.bags):
        where = np.flatnonzero(field == column)
        bag_ids[where] = vocabularies[name].encode(part.bag_ids[where]) + offsets[name]
    return Columns(ids, part.numeric, part.bag_lengths, bag_ids, part.bag_weights)
