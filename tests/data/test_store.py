"""The prepared store: rows joined with groups and bags as in a slow loop, and torn stores refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from dlen.data import id_counts
from dlen.data.columns import FORMAT, Columns
from dlen.data.prepare import prepare, replacing
from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.data.store import Store
from dlen.data.writer import StoreWriter
from dlen.errors import UserError
from dlen.schema import Field, Kind, Pooling, Schema, Task
from tests.data.helpers import bags_of, check_resident_copy, refusal, whole

Bag = list[tuple[int, float]]


@dataclass
class SlowRow:
    ids: list[int]
    numeric: list[float]
    bags: list[Bag]


def draw(rng: random.Random, singles: int, numbers: int, bags: int) -> SlowRow:
    def bag() -> Bag:
        return [(rng.randrange(1000), float(np.float32(rng.random()))) for _ in range(rng.choice([0, 0, 1, 2, 5]))]

    return SlowRow(
        [rng.randrange(1000) for _ in range(singles)],
        [float(np.float32(rng.gauss(0, 1))) for _ in range(numbers)],
        [bag() for _ in range(bags)],
    )


def columns(rows: list[SlowRow], singles: int, numbers: int, bags: int) -> Columns:
    values = [value for row in rows for bag in row.bags for value in bag]
    return Columns(
        np.array([r.ids for r in rows], np.int32).reshape(len(rows), singles),
        np.array([r.numeric for r in rows], np.float32).reshape(len(rows), numbers),
        np.array([[len(b) for b in r.bags] for r in rows], np.int16).reshape(len(rows), bags),
        np.array([i for i, _ in values], np.int32),
        np.array([w for _, w in values], np.float32),
    )


SHAPE, GROUP_SHAPE = (2, 1, 2), (1, 2, 1)


def counts(shape: tuple[int, int, int]) -> dict[Kind, int]:
    return dict(zip((Kind.ID, Kind.NUMERIC, Kind.IDS), shape, strict=True))


def schema() -> Schema:
    fields = [Field(f"i{n}", Kind.ID, vocab_size=400) for n in range(3)]
    fields += [Field(f"b{n}", Kind.IDS, vocab_size=400, pooling=Pooling.SUM) for n in range(3)]
    fields += [Field(f"x{n}", Kind.NUMERIC) for n in range(3)]
    tasks = (Task("ctr", 0.5), Task("cvr", 0.25, "ctr", "all", "ctcvr", 2.0))
    return Schema(tuple(fields), tasks, truth=("up",), user="i0", position="i1")


@dataclass
class World:
    store: Store
    rows: list[SlowRow]
    groups: list[SlowRow]
    group: list[int]
    labels: list[list[int]]
    truth: list[float]


def write(folder: Path, world_rows: int, grouped: bool) -> World:
    rng = random.Random(3)
    rows = [draw(rng, *SHAPE) for _ in range(world_rows)]
    groups = [draw(rng, *GROUP_SHAPE) for _ in range(5)]
    group = [rng.randrange(5) for _ in rows]
    labels = [[rng.randrange(2), rng.randrange(2)] for _ in rows]
    truth = [float(np.float32(rng.random())) for _ in rows]
    writer = StoreWriter(folder)
    if grouped:
        table = writer.beside.table("users", counts(GROUP_SHAPE))
        table.append(columns(groups[:2], *GROUP_SHAPE))
        table.append(columns(groups[2:], *GROUP_SHAPE))
    split = writer.shard().split("train", counts(SHAPE), 2, group="users" if grouped else None, num_truth=1)
    for part in (slice(0, 0), slice(0, 7), slice(7, 8), slice(8, None)):
        split.append(
            columns(rows[part], *SHAPE),
            np.array(labels[part], np.uint8).reshape(-1, 2),
            np.array(group[part], np.int32) if grouped else None,
            np.array(truth[part], np.float32).reshape(-1, 1),
        )
    writer.vocabulary("i0", pl.Series(["a", "b"]))
    writer.finish(schema(), {"fingerprint": "abc", "name": "x"})
    return World(Store(folder), rows, groups, group, labels, truth)


def joined(world: World, index: int, grouped: bool) -> SlowRow:
    row = world.rows[index]
    if not grouped:
        return row
    group = world.groups[world.group[index]]
    return SlowRow(row.ids + group.ids, row.numeric + group.numeric, row.bags + group.bags)


def check(world: World, index: list[int], grouped: bool) -> None:
    batch = world.store.split("train").batch(torch.tensor(index, dtype=torch.int64))
    expected = [joined(world, i, grouped) for i in index]
    assert batch.ids.tolist() == [r.ids for r in expected]
    assert batch.numeric.tolist() == [r.numeric for r in expected]
    assert bags_of(batch) == [[r.bags[m] for r in expected] for m in range(3 if grouped else 2)]
    assert batch.labels.tolist() == [world.labels[i] for i in index]
    assert batch.truth.tolist() == [[world.truth[i]] for i in index]
    types = (batch.ids, batch.numeric, batch.bag_lengths, batch.bag_ids, batch.bag_weights, batch.labels, batch.truth)
    f32, i32 = torch.float32, torch.int32
    assert [t.dtype for t in types] == [i32, f32, torch.int64, i32, f32, f32, f32]


@pytest.mark.parametrize("grouped", [True, False])
def test_batch_equals_a_slow_loop(tmp_path: Path, grouped: bool) -> None:
    world = write(tmp_path, 40, grouped)
    rng = random.Random(0)
    for size in (1, 2, 17, 100):
        check(world, [rng.randrange(40) for _ in range(size)], grouped)
    check(world, list(range(40)), grouped)
    check(world, [39, 39, 0, 39], grouped)


def test_batch_of_rows_with_empty_bags_only(tmp_path: Path) -> None:
    world = write(tmp_path, 60, grouped=False)
    empty = [i for i, row in enumerate(world.rows) if not any(row.bags)]
    assert len(empty) > 2
    check(world, empty, grouped=False)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_resident_copy_gives_the_same_batches_and_asks_its_device_for_no_value(tmp_path: Path, grouped: bool) -> None:
    split = write(tmp_path, 40, grouped).store.split("train")
    assert len(split) == 40
    check_resident_copy(split, torch.tensor([39, 3, 3, 0, 17]))


def test_size_of_a_split_counts_every_array(tmp_path: Path) -> None:
    store = write(tmp_path, 40, grouped=True).store
    assert store.split("train").bytes == sum(
        f.stat().st_size for f in tmp_path.rglob("*.bin") if f.name != "counts.bin"
    )


def test_schema_comes_back_whole(tmp_path: Path) -> None:
    read = write(tmp_path, 10, grouped=True).store.schema
    assert replace(read, patterns=()) == schema()
    assert sum(weight for _, weight in read.patterns) == 10


def test_row_counts_and_unknown_split(tmp_path: Path) -> None:
    store = write(tmp_path, 10, grouped=True).store
    assert len(store.split("train")) == store.split("train").rows == 10
    message = refusal(lambda: store.split("tset"))
    assert "tset" in message
    assert "train" in message


def test_reading_never_changes_the_files(tmp_path: Path) -> None:
    store = write(tmp_path, 10, grouped=True).store
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.bin")}
    split = store.split("train")
    split.labels[:] = 7
    split.table.ids[:] = 7
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.bin")} == before


def test_every_torn_array_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 10, grouped=True)
    for path in sorted(tmp_path.rglob("*.bin")):
        content = path.read_bytes()
        if not content:
            continue
        for torn in (content[:-1], content + b"\0", b""):
            path.write_bytes(torn)
            assert str(path) in refusal(lambda: Store(tmp_path))
        path.unlink()
        assert str(path) in refusal(lambda: Store(tmp_path))
        path.write_bytes(content)
    Store(tmp_path)


def test_a_flipped_bit_in_any_file_is_refused_by_its_name(tmp_path: Path) -> None:
    content = write(tmp_path, 10, grouped=True).store.content
    rng, said = random.Random(0), []
    files = [p for p in sorted(tmp_path.rglob("*")) if p.is_file() and p.stat().st_size]
    assert {p.suffix for p in files} == {".bin", ".json", ".parquet"}
    for path in files:
        whole = path.read_bytes()
        for _ in range(40 if path.suffix == ".json" else 5):
            place = rng.randrange(len(whole))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
            try:
                assert Store(tmp_path).content == content
            except UserError as error:
                said.append((path, str(error)))
        path.write_bytes(whole)
    assert all(str(path) in message for path, message in said)
    assert len(said) > 5 * (len(files) - 1) + 30  # white space of store.json may change


def edit(folder: Path, **changes: object) -> None:
    path = folder / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 10, grouped=True)
    edit(tmp_path, format=FORMAT + 1)
    message = refusal(lambda: Store(tmp_path))
    assert str(tmp_path / "store.json") in message
    assert str(FORMAT + 1) in message


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}'])
def test_a_broken_store_json_is_refused(tmp_path: Path, content: str) -> None:
    write(tmp_path, 10, grouped=True)
    (tmp_path / "store.json").write_text(content)
    assert str(tmp_path / "store.json") in refusal(lambda: Store(tmp_path))


def test_a_folder_without_store_json_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(lambda: Store(tmp_path))


def test_rows_of_a_wrong_width_are_not_written(tmp_path: Path) -> None:
    split = StoreWriter(tmp_path).shard().split("train", counts(SHAPE), 2)
    with pytest.raises(ValueError, match=r"labels\.bin"):
        split.append(columns([draw(random.Random(0), *SHAPE)], *SHAPE), np.zeros((1, 3), np.uint8))


def test_replacing_takes_the_name_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "store"
    with replacing(target) as temporary:
        (temporary / "a").write_text("new")
        assert not target.exists()
    assert [p.name for p in tmp_path.rglob("*")] == ["store", "a"]


def test_replacing_leaves_the_old_one_after_a_failure(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(target) as temporary:
        (temporary / "a").rename(temporary / "none" / "b")
    assert [p.name for p in tmp_path.rglob("*")] == ["store", "a"]
    assert (target / "a").read_text() == "old"


def counted(store: Store, split: str) -> list[int]:
    """Occurrences of each table row in a split as models see it, value by value."""
    batch = whole(store.split(split))
    counts = Counter(batch.ids.flatten().tolist()) + Counter(batch.bag_ids.tolist())
    return [counts[i] for i in range(store.schema.num_embeddings)]


@pytest.mark.parametrize("piece", [3, 1 << 22])
def test_counts_of_ids_are_those_of_the_training_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """With user groups, whose ids count once per row, and long lists."""
    monkeypatch.setattr(id_counts, "_PIECE", piece)
    store = prepare(AliCCPDemo(raw_dir=str(tmp_path / "raw"), rows=2000, min_count=3), tmp_path / "data")
    assert store.counts.tolist() == counted(store, "train")
    for split, shares in store.unknown.items():
        occurrences = counted(store, split)
        for field in (f for f in store.schema.fields if f.vocab_size):
            own = occurrences[store.schema.offsets[field.name] :][: field.vocab_size]
            assert shares[field.name] == pytest.approx(own[0] / max(sum(own), 1))
    assert any(share > 0 for share in store.unknown["validation"].values())
