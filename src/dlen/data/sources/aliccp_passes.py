"""Converts the files of Ali-CCP to a prepared store in passes over their pieces, on which several processes may work.

The common features and the training skeleton are parsed into flat scratch arrays of raw ids, a table for each piece.
Ids are counted in these arrays, which are then encoded. The test skeleton is parsed and encoded in one pass.
Memory is bounded by the block size, the index of the common features and the vocabularies.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlen.data.bad_rows import BadRowError, BadRows
from dlen.data.columns import Array, Columns
from dlen.data.finished import FinishedShard
from dlen.data.parallel import Advance, Workers
from dlen.data.ragged import Entries, field_of_values, rows_of_values, select_rows, to_columns
from dlen.data.scratch import read_flat, read_scratch
from dlen.data.sources.aliccp_grammar import Block, Reader
from dlen.data.vocabulary import IdCounter, IdVocabulary
from dlen.data.writer import PartWriter, SplitWriter, StoreWriter, TableWriter, WrittenPart, shard_folder
from dlen.hashing import fraction
from dlen.progress import Stage
from dlen.schema import Kind, Pooling, first_rows

PIECE = 64 << 20  # bytes
HEAD = ["sample_id", "click", "conversion", "common_feature_index"]  # of a skeleton
_CHUNK = 1 << 18  # rows encoded at a time
_SPLITS = ("train", "test")
Counts = dict[str, tuple[Array, Array]]  # by field, distinct ids and their counts


@dataclass(frozen=True, slots=True)
class Side:
    """The fields of one of the two files: single-valued fields, then multi-valued ones."""

    single: dict[str, str]  # name -> side
    bags: dict[str, tuple[str, Pooling]]  # name -> side and pooling

    @property
    def names(self) -> list[str]:
        """All fields."""
        return [*self.single, *self.bags]

    @property
    def counts(self) -> dict[Kind, int]:
        """Number of fields by kind."""
        return {Kind.ID: len(self.single), Kind.IDS: len(self.bags), Kind.NUMERIC: 0}


# Values of past categories, shops, brands and intentions are counts, so they are weights of a mean. Values of cross
# features are match scores, and it matters whether there is a match at all, so they are weights of a sum.
SKELETON = Side(
    {**dict.fromkeys(("205", "206", "207", "216"), "item"), "301": "context"},
    {"210": ("item", Pooling.MEAN), **dict.fromkeys(("508", "509", "702", "853"), ("cross", Pooling.SUM))},
)
COMMON = Side(
    dict.fromkeys(("101", "121", "122", "124", "125", "126", "127", "128", "129"), "user"),
    dict.fromkeys(("109_14", "110_14", "127_14", "150_14"), ("user", Pooling.MEAN)),
)
USER = "101"


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines of a file.

    Attributes:
        number: number of the piece in its file.
        first: first byte.
        last: byte after the last one.
    """

    number: int
    path: Path
    split: str
    first: int
    last: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.last - self.first

    @property
    def name(self) -> str:
        """Name of its scratch table."""
        return f"{self.path.stem}_{self.number}"


@dataclass(frozen=True, slots=True)
class Pair:
    """The pieces whose impressions become one shard, if there are so many."""

    number: int
    train: Piece | None
    test: Piece | None

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(piece.size for piece in (self.train, self.test) if piece is not None)


Part = TypeVar("Part", Piece, Pair)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a worker has seen in the lines of pieces, whose numbers count from the start of the piece.

    Attributes:
        lines: number of lines by file.
        impossible: rows left out because of their labels, by split.
        bad: arguments of :class:`BadRowError` for lines that were left out.
    """

    lines: Mapping[Path, int]
    impossible: Mapping[str, int]
    bad: list[tuple[Path, list[int], str, str]]


@dataclass(frozen=True, slots=True)
class _Groups:
    """The n groups of a piece of common features: index, line in the piece and user of each, and the piece's lines."""

    index: pl.Series
    lines: Array
    users: Array
    count: int


class Source(Protocol):
    """The part of :class:`~dlen.data.sources.aliccp.AliCCP` that is used here."""

    bad: BadRows
    min_count: int
    max_values: int
    validation: float
    validation_by: str
    seed: int

    def path(self, kind: str, split: str) -> Path:
        """Path of a raw file."""


class AliCCPPasses:
    """One conversion of the four files.

    Args:
        source: settings and paths.
        writer: the store to write.

    Attributes:
        vocabularies: vocabulary of each field, after :meth:`run`.
        impossible: rows left out because of their labels, by split.
        rows: rows written of train and validation.
        positives: (2,) training rows with each label.
    """

    def __init__(self, source: Source, writer: StoreWriter) -> None:
        self.source, self.writer, self.bad, self.max_values = source, writer, source.bad, source.max_values
        self.validation, self.seed = source.validation, source.seed
        self.folder, self.scratch = writer.folder, writer.scratch
        self.commons, skeletons = (
            {split: cut(source.path(kind, split), split) for split in _SPLITS}
            for kind in ("common_features", "sample_skeleton")
        )
        self.skeletons = skeletons["train"]
        pairs = enumerate(zip_longest(skeletons["train"], skeletons["test"]))
        self.pairs = [Pair(number, *pieces) for number, pieces in pairs]
        self.common_names = {split: source.path("common_features", split).name for split in _SPLITS}
        self.lines = Counter[Path]()  # read of each file
        self.row_starts, self.group_starts = [0], [0]  # training rows, and their groups, before each piece
        self.users: dict[str, Array] = {}  # by split, the user of each group
        self.impossible, self.rows, self.positives = Counter[str](), Counter[str](), np.zeros(2, np.int64)
        self.held_out: Array | None = None  # (G,) training groups held out for validation; None for single impressions
        self.uses: Array  # training impressions of each group
        self.vocabularies: dict[str, IdVocabulary] = {}
        self.offsets: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A worker writes no more of the store than shards, and has no workers."""
        return {name: value for name, value in vars(self).items() if name not in ("source", "writer", "workers")}

    def run(self) -> None:
        """Write the splits and vocabularies."""
        with Workers(self.writer.pool, len(self.pairs)) as self.workers:
            for pieces in self.commons.values():
                found: list[_Groups] = []
                self._pass(f"reading {pieces[0].path.name}", pieces, AliCCPPasses.read_common, found.append)
                self._index(found, pieces[0])
            self._choose()
            label = f"reading {self.skeletons[0].path.name}"
            self._pass(label, self.skeletons, AliCCPPasses.read_skeleton, self._add_rows)
            self._count()
            self._encode_common()
            label, write = "writing the prepared store", AliCCPPasses.write_shard
            self._pass(label, self.pairs, write, self._add_shard, _shard_in_copy)

    def _pass(
        self,
        label: str,
        pieces: Sequence[Part],
        work: Callable[[AliCCPPasses, Part, Advance], Result],
        merge: Callable[[Result], None],
        in_copy: Callable[[AliCCPPasses, Part, Advance], tuple[Result, _Seen]] | None = None,
    ) -> None:
        """Work on all pieces, and add the result of each to this object; ``in_copy`` does the work in a copy of it."""

        def add(found: tuple[Result, _Seen]) -> bool:
            result, seen = found
            for path, lines, problem, where in seen.bad:
                self.bad.add(BadRowError(path, [self.lines[path] + line for line in lines], problem, where))
            self.lines.update(seen.lines)
            self.impossible.update(seen.impossible)
            merge(result)
            return True

        def alone(piece: Part, advance: Advance) -> None:
            merge(work(self, piece, advance))

        in_copy = in_copy or partial(_in_copy, work)
        with Stage(label, sum(piece.size for piece in pieces), "B") as stage:
            for _ in self.workers.merged(in_copy, self, self.scratch, pieces, stage, add, alone):
                pass

    def _index(self, found: list[_Groups], piece: Piece) -> None:
        """Fix the order of the common features' rows by index. If an index is repeated, the first row is used."""
        starts = np.cumsum([0, *(groups.count for groups in found)])
        lines = np.concatenate([groups.lines + start for groups, start in zip(found, starts, strict=False)])
        index = distinct(piece.path, pl.concat([groups.index for groups in found]), lines, self.bad)
        index.to_frame("index").write_parquet(self._index_file(piece.split))
        self.users[piece.split] = np.concatenate([groups.users for groups in found])
        if piece.split == "train":
            self.group_starts = np.cumsum([0, *(len(groups.users) for groups in found)]).tolist()

    def _index_file(self, split: str) -> Path:
        return self.scratch / f"index_{split}.parquet"

    def _choose(self) -> None:
        """Choose who is held out for validation."""
        if self.source.validation_by == "user":
            users = self.users["train"].astype(np.int64)
            keys = np.where(users == 0, -2 - np.arange(len(users)), users - 1)  # those without a user form no group
            self.held_out = fraction(keys, self.seed) < self.validation

    def _add_rows(self, rows: int) -> None:
        self.row_starts.append(self.row_starts[-1] + rows)

    def _count(self) -> None:
        """Fix the vocabularies. Only training impressions count, and only values within the cap."""
        counters = {name: IdCounter() for name in (*SKELETON.names, *COMMON.names)}
        self.uses = np.zeros(len(self.users["train"]), np.int64)

        def add(found: Counts) -> None:
            for name, counted in found.items():
                counters[name].add(*counted)

        def add_uses(found: tuple[Counts, tuple[Array, Array]]) -> None:
            counts, (groups, uses) = found
            self.uses[groups] += uses
            add(counts)

        self._pass("counting item ids", self.skeletons, AliCCPPasses.count_items, add_uses)
        self._pass("counting user ids", self.commons["train"], AliCCPPasses.count_users, add)
        for name, counter in counters.items():
            ids, counts = counter.result()
            known = counts >= self.source.min_count
            self.vocabularies[name] = IdVocabulary(ids[known])
            self.writer.vocabulary(name, pl.Series(ids[known]), pl.Series(counts[known]))
        self.offsets = first_rows({name: len(ids) for name, ids in self.vocabularies.items()})  # as in the schema

    def _encode_common(self) -> None:
        """Write the groups that rows of several shards point to."""
        for split, pieces in self.commons.items():
            table = self.writer.beside.table(f"common_{split}", COMMON.counts)

            def add(name: str, table: TableWriter = table) -> None:
                for _, columns in self._chunks(name, COMMON):
                    table.append(columns)
                shutil.rmtree(self.scratch / name)

            self._pass(f"encoding {pieces[0].path.name}", pieces, AliCCPPasses.encode_common, add)

    def _add_shard(self, found: tuple[WrittenPart, Array]) -> None:
        shard, positives = found
        self.writer.add(shard)
        self.rows.update({name: split["rows"] for name, split in shard.entry["splits"].items()})
        self.positives += positives

    # Work on a piece, whose result depends on this object and the piece alone

    def in_worker(self) -> None:
        """Begin with a piece in a copy of this object."""
        self.bad, self.lines, self.impossible = BadRows(self.bad.allowed), Counter(), Counter()
        self.bad.kept = []

    def seen(self) -> _Seen:
        """What has been seen since :meth:`in_worker`."""
        return _Seen(self.lines, self.impossible, self.bad.kept or [])

    def _blocks(self, piece: Piece, side: Side, advance: Advance) -> Iterator[Block]:
        """Blocks of lines of a piece, which follow the lines that have been read."""
        where = {"first": piece.first, "last": piece.last, "line": self.lines[piece.path] + 1}
        for block in reader_of(piece.path, side, self.max_values, self.bad, **where):
            yield block
            self.lines[piece.path] += len(block.lines) + len(block.bad)
            advance(block.size)

    def read_common(self, piece: Piece, advance: Advance) -> _Groups:
        """Write the raw ids of common features to a scratch table."""
        table, before = TableWriter(self.scratch, piece.name, COMMON.counts), self.lines[piece.path]
        index, lines, users = [pl.Series(dtype=pl.String)], [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        for block in self._blocks(piece, COMMON, advance):
            table.append(block.columns)
            index.append(block.head["common_feature_index"])
            lines.append(block.lines - before)
            users.append(block.columns.ids[:, COMMON.names.index(USER)] + 1)
        table.close()
        count = self.lines[piece.path] - before
        return _Groups(pl.concat(index), np.concatenate(lines), np.concatenate(users), count)

    def _impressions(self, piece: Piece, advance: Advance) -> Iterator[tuple[Columns, Array, Array]]:
        """Columns, labels (n, 2) and group rows (n,) of the rows whose labels are possible."""
        index = pl.Enum(pl.read_parquet(self._index_file(piece.split))["index"])
        blocks, common = self._blocks(piece, SKELETON, advance), self.common_names[piece.split]
        for columns, labels, group in joined(blocks, piece.path, index, common, self.bad):
            possible = labels[:, 0] >= labels[:, 1]
            self.impossible[piece.split] += int((~possible).sum())
            yield select_rows(columns, possible), labels[possible], group[possible]

    def read_skeleton(self, piece: Piece, advance: Advance) -> int:
        """Write the raw ids of training impressions to a scratch table, and return their number."""
        table = SplitWriter(self.scratch, piece.name, SKELETON.counts, 2)
        for columns, labels, group in self._impressions(piece, advance):
            table.append(columns, labels, group)
        table.close()
        return table.rows

    def _chunks(self, name: str, side: Side) -> Iterator[tuple[slice, Columns]]:
        """The rows of a scratch table in chunks."""
        table = read_scratch(self.scratch, name, side.counts)
        rows = len(table.columns.ids)
        for first in range(0, rows, _CHUNK):
            last = min(first + _CHUNK, rows)
            yield slice(first, last), table.rows(first, last)

    def _impressions_read(self, piece: Piece, advance: Advance) -> Iterator[tuple[slice, Columns, Array, Array]]:
        """Training impressions of a piece in chunks, with (n,) group rows and the mask (n,) of those held out."""
        group = read_flat(self.scratch, piece.name, "group")
        for part, columns in self._chunks(piece.name, SKELETON):
            groups = group[part]
            yield part, columns, groups, self._is_held_out(groups, self.row_starts[piece.number] + part.start)
            advance(piece.size * len(groups) / len(group))

    def _is_held_out(self, group: Array, first: int) -> NDArray[np.bool_]:
        """A mask (n,) of impressions with (n,) group rows, of which the first one has the number ``first``."""
        if self.held_out is not None:
            return np.asarray(self.held_out[group])
        return fraction(np.arange(first, first + len(group)), self.seed) < self.validation

    def count_items(self, piece: Piece, advance: Advance) -> tuple[Counts, tuple[Array, Array]]:
        """Counts of the ids of training impressions, and of their groups."""
        counters, uses = {name: IdCounter() for name in SKELETON.names}, IdCounter()
        for _, columns, group, out in self._impressions_read(piece, advance):
            uses.add(group[~out])
            _add_counts(counters, columns, SKELETON, (~out).astype(np.int64))
        return _results(counters), uses.result()

    def count_users(self, piece: Piece, advance: Advance) -> Counts:
        """Counts of the ids of groups, once for each of their training impressions."""
        counters, before = {name: IdCounter() for name in COMMON.names}, self.group_starts[piece.number]
        for part, columns in self._chunks(piece.name, COMMON):
            _add_counts(counters, columns, COMMON, self.uses[before + part.start : before + part.stop])
        advance(piece.size)
        return _results(counters)

    def _encoded(self, columns: Columns, side: Side) -> Columns:
        return encode(columns, side, self.vocabularies, self.offsets)

    def encode_common(self, piece: Piece, advance: Advance) -> str:
        """Write encoded groups to a scratch table, and return its name."""
        table = TableWriter(self.scratch, f"encoded_{piece.name}", COMMON.counts)
        for _, columns in self._chunks(piece.name, COMMON):
            table.append(self._encoded(columns, COMMON))
        table.close()
        advance(piece.size)
        return table.name

    def write_shard(self, pair: Pair, advance: Advance) -> tuple[WrittenPart, Array]:
        """Write encoded impressions to a shard. Returns it, and the (2,) training positives of both labels."""
        shard, positives = PartWriter(self.folder, shard_folder(pair.number)), np.zeros(2, np.int64)
        groups = {"train": "common_train", "validation": "common_train", "test": "common_test"}
        splits = {name: shard.split(name, SKELETON.counts, 2, group=group) for name, group in groups.items()}
        if pair.train is not None:
            happened = read_flat(self.scratch, pair.train.name, "labels").reshape(-1, 2)
            for part, columns, group, out in self._impressions_read(pair.train, advance):
                encoded, labels, users = self._encoded(columns, SKELETON), happened[part], self.users["train"][group]
                for name, mask in (("train", ~out), ("validation", out)):
                    splits[name].append(select_rows(encoded, mask), labels[mask], group[mask], users=users[mask])
                positives += labels[~out].sum(axis=0, dtype=np.int64)
        if pair.test is not None:
            for columns, labels, group in self._impressions(pair.test, advance):
                users = self.users["test"][group]
                splits["test"].append(self._encoded(columns, SKELETON), labels, group, users=users)
        return shard.close(), positives


def _in_copy(
    work: Callable[[AliCCPPasses, Part, Advance], Result], passes: AliCCPPasses, piece: Part, advance: Advance
) -> tuple[Result, _Seen]:
    passes.in_worker()
    return work(passes, piece, advance), passes.seen()


def _shard_in_copy(passes: AliCCPPasses, pair: Pair, advance: Advance) -> tuple[tuple[WrittenPart, Array], _Seen]:
    """Write a shard, unless an interrupted preparation has finished it."""
    if (before := FinishedShard.of(passes.folder, pair.number)) is not None:
        advance(pair.size)
        found = before.content
        lines = {Path(path): count for path, count in found["lines"].items()}
        return (before.shard, np.array(found["positives"], np.int64)), _Seen(lines, found["impossible"], [*before.bad])
    (shard, positives), seen = _in_copy(AliCCPPasses.write_shard, passes, pair, advance)
    lines_by_name = {str(path): count for path, count in seen.lines.items()}
    content = {"positives": positives.tolist(), "lines": lines_by_name, "impossible": seen.impossible}
    FinishedShard(shard, content, seen.bad).save(passes.folder, pair.number)
    return (shard, positives), seen


def cut(path: Path, split: str) -> list[Piece]:
    """The lines of a file in pieces of about PIECE bytes."""
    size, starts = path.stat().st_size, [0]
    with path.open("rb") as file:
        for place in range(PIECE, size, PIECE):
            file.seek(place - 1)
            file.readline()  # the line that begins before the piece
            starts += [file.tell()] if starts[-1] < file.tell() < size else []
    return [Piece(n, path, split, *ends) for n, ends in enumerate(pairwise([*starts, size]))]


def reader_of(path: Path, side: Side, max_values: int, bad: BadRows, **where: int) -> Reader:
    """A reader of a skeleton or of common features; ``where`` has the bytes and the first line of a piece."""
    is_skeleton = side is SKELETON
    head, binary = (HEAD, ["click", "conversion"]) if is_skeleton else (["common_feature_index"], [])
    return Reader(path, head, binary, side.names, partial(_columns, side, max_values), bad, **where)


def _columns(side: Side, max_values: int, entries: Entries) -> Columns:
    single, bags = range(len(side.single)), range(len(side.single), len(side.names))
    return to_columns(entries, single, bags, [max_values] * len(bags))


def distinct(path: Path, index: pl.Series, lines: Array, bad: BadRows) -> pl.Series:
    """The index (n,) of common features, of which repeated ones are bad lines, each replaced by a unique text."""
    again = ~index.is_first_distinct()
    if again.any():
        for value, line in zip(index.filter(again), lines[again.to_numpy()].tolist(), strict=True):
            problem = f"common_feature_index {value!r} repeats that of an earlier line"
            bad.add(BadRowError(path, [line], problem, "line"))
        # The later row stays in the table, under a name that cannot occur in a line.
        placeholders = "\n" + pl.int_range(len(index), eager=True).cast(pl.String)
        index = index.zip_with(~again, placeholders)
    return index


def joined(
    blocks: Iterable[Block], path: Path, index: pl.Enum, common: str, bad: BadRows
) -> Iterator[tuple[Columns, NDArray[np.uint8], NDArray[np.int32]]]:
    """Columns, labels (n, 2) and group rows (n,) of blocks of a skeleton; ``common`` names the file of the groups."""
    for block in blocks:
        group = block.head["common_feature_index"].cast(index, strict=False).to_physical()
        labels = block.head.select((pl.col("click", "conversion") == "1").cast(pl.UInt8)).to_numpy()
        columns = block.columns
        if group.null_count():
            lost = group.is_null().to_numpy()
            index_of = block.head["common_feature_index"][int(lost.argmax())]
            problem = f"common_feature_index {index_of!r} is not in {common}; use files of the same archive"
            bad.add(BadRowError(path, block.lines[lost].tolist(), problem, "line"))
            columns, labels, group = select_rows(columns, ~lost), labels[~lost], group.drop_nulls()
        yield columns, labels, group.to_numpy().astype(np.int32)


def _add_counts(counters: Mapping[str, IdCounter], part: Columns, side: Side, weights: NDArray[np.int64]) -> None:
    used = weights > 0
    for column, name in enumerate(side.single):
        counters[name].add(part.ids[used, column], weights[used])
    field, row = field_of_values(part.bag_lengths), rows_of_values(part.bag_lengths)
    for column, name in enumerate(side.bags):
        where = (field == column) & used[row]
        counters[name].add(part.bag_ids[where], weights[row[where]])


def _results(counters: Mapping[str, IdCounter]) -> Counts:
    return {name: counter.result() for name, counter in counters.items()}


def encode(part: Columns, side: Side, vocabularies: Mapping[str, IdVocabulary], offsets: Mapping[str, int]) -> Columns:
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
