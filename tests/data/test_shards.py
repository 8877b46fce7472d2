"""Stores of several shards: the same batches, order and identity as one shard with the same rows."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dlen.data import mapped
from dlen.data.columns import MISSING, Columns, Places
from dlen.data.loader import BatchLoader
from dlen.data.mapped import Layout, map_files
from dlen.data.ragged import select_rows
from dlen.data.store import Store
from dlen.data.writer import PartWriter, StoreWriter
from dlen.files import crc32_combine
from dlen.schema import Field, Kind, Schema, Task, View
from tests.data.helpers import check_resident_copy, no_bags, refusal, tensors_of

COUNTS = {Kind.ID: 1, Kind.IDS: 2, Kind.NUMERIC: 1, Kind.VECTOR: 1}
GROUP_COUNTS = {Kind.ID: 1, Kind.IDS: 1, Kind.NUMERIC: 1}
LISTS, SIZE, GROUPS = 2, 3, 4


@dataclass
class Log:
    """Rows in memory, whose bags, sequences and vectors are lists by row.

    Attributes:
        shared: whether groups and histories lie beside the shards.
    """

    rng: np.random.Generator
    rows: int
    shared: bool

    def __post_init__(self) -> None:
        draw, n = self.rng, self.rows
        self.groups = self.columns(GROUPS, 1)
        self.table = self.columns(n, 2)
        self.group = draw.integers(0, GROUPS, n)
        self.labels = draw.choice([0, 1, MISSING], (n, 2))
        self.labels[:, 1] = np.where(self.labels[:, 1] == MISSING, MISSING, 0)
        self.weights, self.truth = draw.random((n, 3), np.float32), draw.random((n, 1))
        self.values = np.where(self.labels[:, 1:] == MISSING, np.nan, draw.random((n, 1)))
        self.users, self.views = draw.integers(0, 9, n), draw.integers(0, 4, (n, 1))
        self.lists = [draw.integers(0, 5, (draw.integers(0, 4), LISTS)) for _ in range(n)]
        self.events, self.times = draw.integers(0, 5, (6, 1)), np.sort(draw.random(6) * 1e4)
        self.seen = draw.integers(0, 4, (n, 2))  # first event and number of events of each row
        self.vectors = [draw.random(SIZE) if draw.random() < 0.7 else None for _ in range(n)]

    def columns(self, n: int, bags: int) -> Columns:
        lengths = self.rng.integers(0, 4, (n, bags))
        total = int(lengths.sum())
        ids, values = self.rng.integers(0, 9, (n, 1)), self.rng.integers(0, 9, total)
        return Columns(ids, self.rng.random((n, 1)), lengths, values, self.rng.random(total))

    def write(self, folder: Path, sizes: Sequence[int]) -> Store:
        """Write shards with these numbers of rows, which are all those of the log."""
        writer = StoreWriter(folder)
        if self.shared:
            self.share(writer.beside)
        first = 0
        for number, size in enumerate(sizes):
            shard = writer.shard(f"shard {number}")
            if not self.shared:
                self.share(shard)
            self.append(shard, first, first + size)
            first += size
        assert first == self.rows
        writer.finish(SCHEMA, {"fingerprint": "abc", "name": "x"})
        return Store(folder)

    def share(self, part: PartWriter) -> None:
        part.table("users", GROUP_COUNTS).append(self.groups)
        part.sequence("seen", 1).append(self.events, self.times)

    def append(self, shard: PartWriter, first: int, last: int) -> None:
        """Write rows to the training split, and none to another one."""
        rows = slice(first, last)
        lists, vectors = shard.sequence("viewed", LISTS), shard.vectors("v", SIZE)
        split = partial(shard.split, num_truth=1, num_values=1, num_views=1, num_sequences=2, num_vectors=1)
        train, _ = (split(name, COUNTS, 2, group="users") for name in ("train", "test"))
        lengths = [len(values) for values in self.lists[rows]]
        stored = [np.zeros((0, LISTS), np.int64), *self.lists[rows]]
        start = lists.append(np.concatenate(stored)) + np.cumsum([0, *lengths])[:-1]
        present = [vector is not None for vector in self.vectors[rows]]
        place = vectors.append(np.array([v for v in self.vectors[rows] if v is not None]).reshape(-1, SIZE))
        index = np.where(present, place + np.cumsum(present) - 1, 0)[:, None]
        starts, lengths_of = np.stack([start, self.seen[rows, 0]], 1), np.stack([lengths, self.seen[rows, 1]], 1)
        when = np.stack([np.zeros(last - first), np.full(last - first, 1e5)], 1)
        places = Places(starts, lengths_of.astype(np.int16), when)
        among = (np.arange(self.rows) >= first) & (np.arange(self.rows) < last)
        columns = replace(select_rows(self.table, among), places=places, vectors=index.astype(np.int32))
        given = {name: getattr(self, name)[rows] for name in ("group", "truth", "users", "weights", "values", "views")}
        train.append(columns, self.labels[rows], **given)


SCHEMA = Schema(
    (
        *(Field(name, Kind.ID, vocab_size=9) for name in ("i", "u")),
        *(Field(name, Kind.IDS, vocab_size=9) for name in ("a", "b", "c")),
        *(Field(name, Kind.NUMERIC) for name in ("x", "y")),
        *(Field(name, Kind.SEQUENCE, vocab_size=5, sequence="viewed") for name in ("viewed", "how")),
        *(Field(name, Kind.SEQUENCE, vocab_size=33, sequence="seen") for name in ("seen", "gap")),
        Field("v", Kind.VECTOR, size=SIZE),
    ),
    (Task("click", 0.5), Task("stay", 0.0, loss="squared", mean=0.5, deviation=0.3)),
    truth=("up",),
    user="u",
    views=(View("watched", 4),),
)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", range(4))
def test_shards_give_what_one_shard_gives(tmp_path: Path, case: int, shared: bool) -> None:
    rng = np.random.default_rng(case)
    log = Log(rng, 40, shared)
    bounds = np.sort(rng.integers(0, 41, rng.integers(1, 6)))  # some shards are empty
    sizes = np.diff([0, *bounds, 40]).tolist()
    whole, parts = log.write(tmp_path / "one", [40]), log.write(tmp_path / "many", sizes)
    one, many = whole.split("train"), parts.split("train")
    assert (len(many), len(parts.split("test")), parts.rows) == (40, 0, {"train": 40, "test": 0})
    for size in (0, 1, 7, 100):
        index = torch.from_numpy(rng.integers(0, 40, size))
        wanted, found = tensors_of(one.batch(index)), tensors_of(many.batch(index))
        for name, values in wanted.items():
            assert torch.equal(values.nan_to_num(-1.0), found[name].nan_to_num(-1.0)), name
        assert one.count_values(index) == many.count_values(index)
        assert torch.equal(one.labels_of(index).nan_to_num(-1.0), many.labels_of(index).nan_to_num(-1.0))
        for mine, theirs in zip(one.values_of(index), many.values_of(index), strict=True):
            assert torch.equal(mine, theirs)
    for mine, theirs in zip(*(BatchLoader(split, 8, shuffle=True, seed=3) for split in (one, many)), strict=True):
        assert torch.equal(mine.ids, theirs.ids)
    assert whole.labels_identity("train") == parts.labels_identity("train")
    assert torch.equal(whole.counts, parts.counts)
    assert whole.schema == parts.schema
    assert whole.unknown == parts.unknown
    chosen = [n for n, size in enumerate(sizes) if size][-2:]
    rows = np.concatenate([np.arange(sum(sizes[:n]), sum(sizes[: n + 1])) for n in chosen])
    some = parts.split("train", chosen)
    wanted, found = tensors_of(one.batch(torch.from_numpy(rows))), tensors_of(some.batch(torch.arange(len(some))))
    for name, values in wanted.items():
        assert torch.equal(values.nan_to_num(-1.0), found[name].nan_to_num(-1.0)), name


def test_a_resident_copy_of_shards(tmp_path: Path) -> None:
    log = Log(np.random.default_rng(0), 40, shared=False)
    log.labels[:], log.values[:] = 0, 1.0  # nan is not equal to itself
    check_resident_copy(log.write(tmp_path, [3, 0, 37]).split("train"), torch.tensor([39, 2, 3, 3, 0]))


def test_a_damaged_shard_is_refused_by_its_file(tmp_path: Path) -> None:
    Log(np.random.default_rng(0), 40, shared=False).write(tmp_path, [10, 30])
    for path in sorted((tmp_path / "shards" / "00001").rglob("*.bin")):
        content = path.read_bytes()
        for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:]):
            path.write_bytes(damaged)
            assert str(path) in refusal(lambda: Store(tmp_path))
        path.write_bytes(content)
    Store(tmp_path)


def test_a_thousand_shards(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path)
    for number in range(1000):
        split = writer.shard().split("train", {Kind.ID: 1, Kind.IDS: 0, Kind.NUMERIC: 0}, 1)
        split.append(no_bags([number]), np.array([[number % 2]]))
    fields = (Field("f", Kind.ID, vocab_size=1000),)
    writer.finish(Schema(fields, (Task("click", 0.5),)), {"fingerprint": "abc", "name": "x"})
    batch = Store(tmp_path).split("train").batch(torch.arange(1000).flip(0))
    assert torch.equal(batch.ids[:, 0], torch.arange(1000, dtype=torch.int32).flip(0))
    assert torch.equal(batch.labels[:, 0], torch.arange(1000).flip(0) % 2)


@pytest.mark.parametrize("mapping", [True, False])
def test_files_in_one_range_of_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapping: bool) -> None:
    """Mapped, and read where a system maps nothing; in both cases writing leaves the files."""
    if not mapping:
        monkeypatch.setattr(mapped, "_NO_RESERVE", {})
    parts = [np.arange(n * 3, dtype="<f8").reshape(n, 3) + n for n in (5000, 0, 1, 4096)]
    files = [(tmp_path / str(number), len(part)) for number, part in enumerate(parts)]
    for (path, n), part in zip(files, parts, strict=True):
        if n:
            part.tofile(path)
    layout = Layout.of([len(part) for part in parts])
    found = map_files(files, layout, "<f8", (3,))
    unused = np.ones(len(found), bool)
    for start, part in zip(layout.starts, parts, strict=True):
        assert np.array_equal(found[start : start + len(part)], part)
        unused[start : start + len(part)] = False
    assert not found[unused].any()
    found[:] = 7
    assert np.array_equal(np.fromfile(files[0][0]).reshape(-1, 3), parts[0])


def test_checksums_of_parts_are_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    for first, second in ((0, 0), (0, 5), (7, 0), (1, 1), (1000, 100_001)):
        a, b = rng.bytes(first), rng.bytes(second)
        assert crc32_combine(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)
