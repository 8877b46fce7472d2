"""Hashed ids: buckets against BLAKE2b by hand and by b2sum, and users that meet in a bucket stay different users."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from dlen.data.prepare import prepare
from dlen.data.sources import table_file
from dlen.data.sources.cells import hashes
from dlen.data.sources.table import Table
from dlen.data.store import Store
from tests.data.helpers import bags_of, make_table, refusal, whole

BUCKETS, ROWS = 5, 240
SPEC: dict[str, Any] = {
    "fields": {
        "user": {"side": "user", "hash": BUCKETS},
        "tags": {"kind": "ids", "weight_separator": ":", "hash": 7, "max_values": 2},
    },
    "tasks": {"click": "click"},
    "split": {"by": "fraction", "validation": 0.2, "test": 0.2},
    "user": "user",
}


def log(rows: int = ROWS) -> pl.DataFrame:
    draw = np.random.default_rng(0)
    users = [None if n % 10 == 0 else f"u{draw.integers(40)}" for n in range(rows)]
    tags = ["|".join(f"t{draw.integers(9)}:{w}" for w in draw.permutation(4)[: n % 4]) for n in range(rows)]
    return pl.DataFrame({"user": users, "tags": tags, "click": draw.integers(0, 2, rows)})


def made(folder: Path, frame: pl.DataFrame, **changes: Any) -> Store:
    return prepare(make_table(folder, SPEC | changes, text=frame.write_csv()), folder / "data")


def bucket(text: str | None, buckets: int) -> int:
    if text is None:
        return 0
    return 1 + int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % buckets


def test_the_hash_is_that_of_b2sum() -> None:
    """``printf TEXT | b2sum -l 64`` prints the same bytes on every machine."""
    printed = {"u1": "92994d683f4e6ad5", "Köln": "a9b862ce85040280", "12": "6b7a09e188c630e3"}
    found = hashes(pl.Series([*printed, "u1"]))
    wanted = [int.from_bytes(bytes.fromhex(digits), "little") for digits in printed.values()]
    assert found.tolist() == [*wanted, wanted[0]]


@pytest.mark.parametrize("chunk", [50, 1 << 17])
def test_every_cell_has_the_bucket_of_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(table_file, "CHUNK", chunk)
    frame = log()
    store = made(tmp_path, frame)
    assert [f.vocab_size for f in store.schema.fields] == [BUCKETS + 1, 8]
    assert not store.content["vocabularies"]
    found: Counter[tuple[int, tuple[tuple[int, float], ...]]] = Counter()
    for split in ("train", "validation", "test"):
        batch = whole(store.split(split))
        (lists,) = bags_of(batch)
        for code, values in zip(batch.ids[:, 0].tolist(), lists, strict=True):
            found[code, tuple((i - BUCKETS - 1, w) for i, w in values)] += 1
    wanted: Counter[tuple[int, tuple[tuple[int, float], ...]]] = Counter()
    for user, cell, _ in frame.iter_rows():
        pairs = [(tag, float(weight)) for tag, weight in (v.split(":") for v in (cell or "").split("|") if v)]
        kept = pairs if len(pairs) <= 2 else sorted(pairs, key=lambda pair: -pair[1])[:2]
        wanted[bucket(user, BUCKETS), tuple((bucket(tag, 7), weight) for tag, weight in kept)] += 1
    assert found == wanted


def test_only_absent_ids_are_unknown_and_all_are_counted(tmp_path: Path) -> None:
    store = made(tmp_path, log())
    batch = whole(store.split("train"))
    assert store.unknown["train"]["user"] == pytest.approx(float((batch.ids[:, 0] == 0).double().mean()))
    assert store.unknown["train"]["tags"] == 0
    assert store.counts[: BUCKETS + 1].tolist() == batch.ids[:, 0].bincount(minlength=BUCKETS + 1).tolist()


def test_new_rows_have_the_bucket_of_their_hash(tmp_path: Path) -> None:
    store = made(tmp_path, log())
    new = pl.DataFrame({"user": ["never", " u1 ", "", "7.0"], "tags": ["x:1", "", "t1:1|y:2", "t1:1"]})
    new.write_csv(tmp_path / "new.csv")
    (rows,) = Table(str(tmp_path / "spec.yaml")).read(tmp_path / "new.csv", store)
    batch = rows.batch(torch.arange(4))
    assert batch.ids[:, 0].tolist() == [bucket(user, BUCKETS) for user in ("never", "u1", None, "7")]
    assert (batch.bag_ids - BUCKETS - 1).tolist() == [bucket(tag, 7) for tag in ("x", "t1", "y", "t1")]


def test_users_of_one_bucket_are_different_users(tmp_path: Path) -> None:
    hashed = made(tmp_path / "hashed", log())
    exact = made(tmp_path / "exact", log(), fields={"user": {"side": "user"}}, ignore=["tags"])
    pairs = set()
    for split in ("train", "validation", "test"):
        ours, theirs = (whole(store.split(split)).users for store in (hashed, exact))
        pairs |= set(zip(ours.tolist(), theirs.tolist(), strict=True))
    assert len({one for one, _ in pairs}) == len({other for _, other in pairs}) == len(pairs) > BUCKETS
    assert (0, 0) in pairs


def test_users_that_share_hashed_ids_are_different_users(tmp_path: Path) -> None:
    fields = {"friend": {"column": "tags", "hash": 2}, "user": {"side": "user", "share": "friend"}}
    shared = made(tmp_path / "shared", log(), fields=fields)
    exact = made(tmp_path / "exact", log(), fields={"user": {"side": "user"}}, ignore=["tags"])
    users = [[len(whole(store.split(s)).users.unique()) for s in ("train", "test")] for store in (shared, exact)]
    assert users[0] == users[1]


def test_a_rate_by_a_hashed_id_is_that_of_the_id(tmp_path: Path) -> None:
    rate = {"rate": {"of": "click", "by": "user"}}
    hashed, exact = (
        made(tmp_path / name, log(), fields={"user": user, "often": rate}, ignore=["tags"])
        for name, user in (("hashed", {"hash": 2}), ("exact", {}))
    )
    for split in ("train", "validation", "test"):
        assert torch.equal(whole(hashed.split(split)).numeric, whole(exact.split(split)).numeric)


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ({"hash": 10, "min_count": 2}, "fields.user.min_count: cannot be combined with hash"),
        ({"hash": -1}, "fields.user.hash: -1 is not a whole number from 0"),
        ({"hash": "many"}, "fields.user.hash: 'many' is not a whole number"),
        ({"hash": 10**9}, "fields.user.hash: 1000000000 is not a whole number from 0 to 1e+08"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, field: dict[str, Any], named: str) -> None:
    assert named in refusal(lambda: made(tmp_path, log(), fields={"user": field}, ignore="rest"))
