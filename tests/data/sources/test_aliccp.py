"""The Ali-CCP reader against a slow line-by-line reading of the same files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from dlen.data.prepare import prepare
from dlen.data.sources import aliccp_grammar, aliccp_passes
from dlen.data.sources.aliccp import AliCCP
from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.data.store import Store
from dlen.schema import Kind, Pooling
from tests.data.helpers import (
    COMMON_BAGS,
    COMMON_SINGLE,
    SKELETON_BAGS,
    SKELETON_SINGLE,
    Row,
    SlowPair,
    arrays,
    common_line,
    decode,
    impressions_with,
    only_known,
    read_pair,
    refusal,
    skeleton_line,
    slow_row,
    write_raw,
)

ROWS = 1200


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated pair, made harder: every seventh training line is impossible."""
    folder = tmp_path_factory.mktemp("demo") / "raw"
    AliCCPDemo(raw_dir=str(folder), rows=ROWS).files()
    path = folder / "sample_skeleton_train.csv"
    lines = path.read_text().split("\n")[:-1]
    for number in range(0, len(lines), 7):
        sample, _, _, rest = lines[number].split(",", 3)
        lines[number] = f"{sample},0,1,{rest}"
    path.write_text("\n".join(lines) + "\n")
    return folder


def held_out_users(store: Store, pair: SlowPair) -> set[int | None]:
    """Users of the validation split, by the group numbers of its rows."""
    return {pair.user(group) for group in store.split("validation").group.tolist()}


def check(store: Store, raw: Path, max_values: int, min_count: int) -> None:
    """Check that every row and field of the store equals the slow reading."""
    train, test = read_pair(raw, "train"), read_pair(raw, "test")
    out = held_out_users(store, train)
    expected: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in train.rows:
        split = "validation" if train.user(row[2]) in out else "train"
        expected[split].append(slow_row(train, row, max_values))
    expected["test"] = [slow_row(test, row, max_values) for row in test.rows]
    counts = impressions_with(expected["train"])
    for split, rows in expected.items():
        decoded = decode(store, split)
        assert len(decoded) == len(rows)
        for number, (a, b) in enumerate(zip(decoded, rows, strict=True)):
            compare(a, only_known(b, counts, min_count), f"{split} row {number}")
    assert store.content["notes"]["impossible_rows_dropped"] == {"train": train.impossible, "test": test.impossible}


def compare(actual: Row, expected: Row, where: str) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if not isinstance(value, list):
            assert actual[name] == value, f"{where}, field {name}"
            continue
        assert [i for i, _ in actual[name]] == [i for i, _ in value], f"{where}, field {name}"
        weights = [w for _, w in actual[name]]
        assert weights == pytest.approx([w for _, w in value], rel=1e-6), f"{where}, field {name}"


@pytest.mark.slow
@pytest.mark.parametrize(("max_values", "min_count"), list(product((1, 3, 20), (1, 5))))
def test_every_field_of_every_row(tmp_path: Path, raw: Path, max_values: int, min_count: int) -> None:
    source = AliCCP(str(raw), max_values=max_values, min_count=min_count, validation=0.3)
    store = prepare(source, tmp_path)
    assert all(len(store.split(name)) for name in ("train", "validation", "test"))
    check(store, raw, max_values, min_count)


def test_users_are_told_apart_by_their_own_ids(tmp_path: Path, raw: Path) -> None:
    """Also users who are unseen or rare in training and have no vector."""
    store, pair = prepare(AliCCP(str(raw), min_count=60), tmp_path), read_pair(raw, "test")
    split = store.split("test")
    users = [pair.user(group) for _, _, group, _ in pair.rows]
    wanted = [0 if user is None else user + 1 for user in users]
    assert split.batch(torch.arange(len(split))).users.tolist() == wanted
    known = {int(v) + 1 for v in store.vocabulary("101")["value"]}
    assert set(wanted) - known - {0}


def test_validation_is_made_of_whole_users(tmp_path: Path, raw: Path) -> None:
    store = prepare(AliCCP(str(raw), validation=0.4), tmp_path)
    pair = read_pair(raw, "train")
    trained = {pair.user(group) for group in store.split("train").group.tolist()}
    out = held_out_users(store, pair)
    assert trained
    assert out
    assert not trained & out
    assert len(store.split("train")) + len(store.split("validation")) == len(pair.rows)


def many_users(folder: Path) -> Path:
    commons = [common_line(f"g{n}", [("101", 1000 + n % 400, "1.0")]) for n in range(800)]
    skeletons = [skeleton_line(n, n % 2, 0, f"g{n}", [("205", 1, "1.0")]) for n in range(800)]
    lines = {"common_features": commons, "sample_skeleton": skeletons}
    return write_raw(folder, {f"{k}_{s}": v for k, v in lines.items() for s in ("train", "test")})


@pytest.mark.parametrize("validation", [0.1, 0.5])
def test_validation_has_its_share_of_users_and_seed_changes_it(tmp_path: Path, validation: float) -> None:
    raw = many_users(tmp_path / "raw")
    pair = read_pair(raw, "train")
    chosen = []
    for seed in (0, 0, 1):
        source = AliCCP(str(raw), validation=validation, seed=seed, min_count=1)
        chosen.append(held_out_users(prepare(source, tmp_path / "data"), pair))
        assert len(chosen[-1]) / 400 == pytest.approx(validation, abs=0.08)
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize("block", [700, 20_000])
def test_small_blocks_give_the_same_store(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    source = AliCCP(str(raw), min_count=2, validation=0.3)
    whole = prepare(source, tmp_path / "whole")
    monkeypatch.setattr(aliccp_grammar, "BLOCK", block)
    monkeypatch.setattr(aliccp_passes, "_CHUNK", 37)
    small = prepare(source, tmp_path / "small")
    assert arrays(small) == arrays(whole)
    assert small.schema == whole.schema
    for name in (*SKELETON_SINGLE, *SKELETON_BAGS, *COMMON_SINGLE, *COMMON_BAGS):
        assert small.vocabulary(name).equals(whole.vocabulary(name))


def test_schema(tmp_path: Path, raw: Path) -> None:
    store = prepare(AliCCP(str(raw), min_count=1, validation=0.3), tmp_path)
    schema = store.schema
    kinds = {f.name: f.kind for f in schema.fields}
    assert {n for n, k in kinds.items() if k is Kind.ID} == {*SKELETON_SINGLE, *COMMON_SINGLE}
    assert {n for n, k in kinds.items() if k is Kind.IDS} == {*SKELETON_BAGS, *COMMON_BAGS}
    assert {f.name for f in schema.fields if f.pooling is Pooling.SUM} == {"508", "509", "702", "853"}
    sides = {f.name: f.side for f in schema.fields}
    assert {sides[n] for n in (*COMMON_SINGLE, *COMMON_BAGS)} == {"user"}
    assert [sides[n] for n in ("205", "210", "508", "301")] == ["item", "item", "cross", "context"]
    assert (schema.user, schema.position) == ("101", "301")


@pytest.mark.parametrize(("cvr_rows", "train_on"), [("clicks", "observed"), ("impressions", "all")])
def test_tasks_and_rates(tmp_path: Path, raw: Path, cvr_rows: str, train_on: str) -> None:
    store = prepare(AliCCP(str(raw), validation=0.3, cvr_rows=cvr_rows), tmp_path)
    rows = decode(store, "train")
    clicks, conversions = (sum(row[t] for row in rows) for t in ("ctr", "cvr"))
    ctr, cvr = store.schema.tasks
    assert ctr.rate == pytest.approx(clicks / len(rows))
    assert cvr.rate == pytest.approx(conversions / (clicks if train_on == "observed" else len(rows)))
    assert (cvr.observed_where, cvr.train_on, cvr.joint) == ("ctr", train_on, "ctcvr")


# Hand-written files

COMMONS = [
    common_line(
        "a1",
        [
            ("101", 11, "1.0"),
            ("109_14", 71, "0.5"),
            ("109_14", 72, "2.5"),
            ("109_14", 73, "2.5"),
            ("109_14", 74, "3"),
            ("127_14", 500, "0.25"),
            ("127", 600, "1.0"),
        ],
    ),
    common_line("b2", [("121", 21, "1.0"), ("101", 12, "1.0"), ("121", 22, "1.0"), ("127_14", 600, "1")]),
    common_line("c3", [("101", 13, "1.0")]),
    common_line("d4", [("101", 14, "1.0"), ("150_14", 500, "1e-3"), ("110_14", 2147483646, "-2.5")]),
    common_line("e5", []),
]
SKELETONS = [
    skeleton_line(1, 1, 1, "b2", [("205", 1, "1.0"), ("301", 3, "1.0"), ("853", 5, "0.1"), ("853", 6, "0.2")]),
    skeleton_line(2, 0, 0, "a1", [("210", 9, "1.0"), ("205", 2, "1.0"), ("210", 8, "1.0"), ("205", 3, "1.0")]),
    skeleton_line(3, 0, 1, "a1", [("205", 77, "1.0")]),
    skeleton_line(4, 0, 0, "d4", []),
    skeleton_line(5, 1, 0, "a1", [("210", 1, "1"), ("210", 2, "1"), ("210", 3, "1"), ("210", 0, "1.0")]),
    skeleton_line(6, 1, 0, "c3", [("508", 5, "0.75"), ("216", 1, "1.0"), ("206", 2147483646, "1.0")]),
    skeleton_line(7, 0, 0, "e5", [("702", 4, "0"), ("509", 3, "12.5"), ("207", 0, "1")]),
    skeleton_line(8, 0, 0, "b2", []),
]
FILLERS = range(900, 930)  # users with one row each, so that there is always someone to hold out
FILLER_COMMONS = [common_line(f"f{n}", [("101", n, "1.0")]) for n in FILLERS]
FILLER_SKELETONS = [skeleton_line(n, 0, 0, f"f{n}", [("205", n, "1.0")]) for n in FILLERS]
TEST_SKELETONS = [
    skeleton_line(1, 0, 0, "a1", [("205", 2, "1.0"), ("205", 1, "1.0"), ("853", 999, "1.0")]),
    skeleton_line(2, 0, 1, "z9", []),
    skeleton_line(3, 1, 1, "z9", [("205", 424242, "1.0"), ("210", 9, "0.5"), ("210", 4242, "0.5")]),
]
TEST_COMMONS = [
    common_line("z9", [("101", 4242, "1.0"), ("109_14", 71, "1.0"), ("109_14", 4242, "2.0")]),
    common_line("a1", [("101", 11, "1.0"), ("127", 600, "1.0"), ("127_14", 600, "1.0")]),
]


def by_hand(folder: Path, end: str = "\n", last: str = "\n") -> Path:
    lines: dict[str, Sequence[str]] = {
        "common_features_train": COMMONS + FILLER_COMMONS,
        "sample_skeleton_train": SKELETONS + FILLER_SKELETONS,
        "common_features_test": TEST_COMMONS,
        "sample_skeleton_test": TEST_SKELETONS,
    }
    return write_raw(folder, lines, end, last)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("max_values", [1, 2, 20])
def test_quirks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, finished: bool, block: int, max_values: int
) -> None:
    raw = by_hand(tmp_path / "raw", end, end if finished else "")
    monkeypatch.setattr(aliccp_grammar, "BLOCK", block)
    store = prepare(AliCCP(str(raw), min_count=1, max_values=max_values, validation=0.25), tmp_path / "data")
    check(store, raw, max_values, 1)
    assert len(store.split("train")) + len(store.split("validation")) == 7 + len(FILLERS)
    assert len(store.split("test")) == 2
    assert store.content["notes"]["impossible_rows_dropped"] == {"train": 1, "test": 1}


def fillers_held_out(raw: Path, folder: Path, **settings: Any) -> Store:
    """A store whose validation users are all fillers, found by trying seeds of the hash."""
    for seed in range(50):
        store = prepare(AliCCP(str(raw), validation=0.15, seed=seed, **settings), folder)
        if held_out_users(store, read_pair(raw, "train")) <= set(FILLERS):
            return store
    raise AssertionError("no seed leaves the other users alone")


def test_quirks_read_by_eye(tmp_path: Path) -> None:
    """The same file against expectations written by hand."""
    store = fillers_held_out(by_hand(tmp_path / "raw"), tmp_path / "data", min_count=1, max_values=2)
    rows = decode(store, "train")[:7]
    assert [(r["ctr"], r["cvr"]) for r in rows] == [(1, 1), (0, 0), (0, 0), (1, 0), (1, 0), (0, 0), (0, 0)]
    assert [r["101"] for r in rows] == [12, 11, 14, 11, 13, None, 12]
    assert [r["205"] for r in rows] == [1, 2, None, None, None, None, None]
    assert rows[0]["121"] == 21
    assert (rows[1]["127"], rows[1]["127_14"]) == (600, [(500, 0.25)])
    assert (rows[0]["127"], rows[0]["127_14"]) == (None, [(600, 1.0)])
    assert rows[1]["109_14"] == [(74, 3.0), (72, 2.5)]
    assert rows[1]["210"] == [(9, 1.0), (8, 1.0)]
    assert rows[3]["210"] == [(1, 1.0), (2, 1.0)]
    assert rows[2]["110_14"] == [(2147483646, -2.5)]
    test = decode(store, "test")
    assert [r["205"] for r in test] == [2, None]
    assert test[0]["853"] == [(None, 1.0)]
    assert (test[0]["127_14"], test[0]["127"]) == ([(600, 1.0)], 600)
    assert test[1]["109_14"] == [(None, 1.0), (None, 2.0)]  # 71 is truncated in every training row
    assert test[1]["101"] is None


def test_min_count_counts_every_occurrence(tmp_path: Path) -> None:
    """An id twice in one impression occurs twice; a user's ids occur in every impression of the group."""
    twice = [("210", 5, "1.0"), ("210", 5, "1.0"), ("210", 6, "1.0"), ("205", 1, "1.0")]
    lines = [skeleton_line(1, 0, 0, "g", twice), skeleton_line(2, 1, 0, "g", [("210", 6, "1.0")])]
    common = [common_line("g", [("101", 3, "1.0"), ("109_14", 8, "1.0")])]
    files = {"common_features": common + FILLER_COMMONS, "sample_skeleton": lines + FILLER_SKELETONS}
    raw = write_raw(tmp_path / "raw", {f"{k}_{s}": v for k, v in files.items() for s in ("train", "test")})
    store = fillers_held_out(raw, tmp_path / "data", min_count=2)
    assert store.vocabulary("109_14")["value"].to_list() == [8]  # two impressions use its group
    assert store.vocabulary("205")["value"].to_list() == []
    assert store.vocabulary("210")["value"].to_list() == [5, 6]


def test_impressions_of_validation_and_impossible_ones_do_not_count(tmp_path: Path) -> None:
    raw = by_hand(tmp_path / "raw")
    store = fillers_held_out(raw, tmp_path / "data", min_count=1)
    assert 77 not in store.vocabulary("205")["value"].to_list()
    half = prepare(AliCCP(str(raw), min_count=1, validation=0.5), tmp_path / "half")
    users = {row["101"] for row in decode(half, "train")} - {None}
    assert half.vocabulary("101")["value"].to_list() == sorted(users)


def test_demo_is_drawn_once_and_never_replaced(tmp_path: Path) -> None:
    """Stores and runs record the files that they were made from."""

    def content(rows: int, seed: int = 0, folder: str = "raw") -> dict[str, bytes]:
        paths = AliCCPDemo(raw_dir=str(tmp_path / folder), rows=rows, demo_seed=seed).files()
        return {p.name: p.read_bytes() for p in paths}

    first = content(200)
    stamp = (tmp_path / "raw" / "demo.json").stat().st_mtime_ns
    assert content(200) == first
    assert (tmp_path / "raw" / "demo.json").stat().st_mtime_ns == stamp
    for rows, seed in ((300, 0), (200, 1)):
        assert "raw_dir" in refusal(partial(content, rows, seed))
        assert content(rows, seed, f"{rows}-{seed}") != first
    assert content(200) == first
    assert first["sample_skeleton_train.csv"].count(b"\n") == 200
    assert first["common_features_train.csv"].count(b"\n") == 3
