"""The simulator in pieces: the rows of a single shard, and the same bytes from several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dlen.data.prepare import prepare
from dlen.data.sources import feed
from dlen.data.sources.feed import Feed
from dlen.data.store import Store
from tests.data.helpers import tensors_of, whole
from tests.data.sources.test_table_parallel import bytes_of, check_interruption

CHUNK = 200
WORLDS: dict[str, dict[str, Any]] = {
    "feed": {"hate": 0.05},
    "page": {"positions": 5},
    "two states": {"watching": ["click"], "play_time": 0.5},
}


def made(data: Path, chunks: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Store:
    monkeypatch.setattr(feed, "_CHUNK", CHUNK)
    monkeypatch.setattr(feed, "PIECE", chunks)
    return prepare(Feed(rows=1500, users=40, items=30, **settings), data)


@pytest.mark.parametrize("world", WORLDS)
def test_pieces_have_the_rows_of_a_single_one(world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(tmp_path / "one", 100, monkeypatch, **WORLDS[world])
    three = made(tmp_path / "three", 3, monkeypatch, **WORLDS[world])
    assert (len(one.content["shards"]), len(three.content["shards"])) == (1, 3)
    assert one.schema == three.schema
    assert one.content["notes"]["oracle_auc_on_test"] == three.content["notes"]["oracle_auc_on_test"]
    for split in ("train", "validation", "test"):
        wanted, found = tensors_of(whole(one.split(split))), tensors_of(whole(three.split(split)))
        assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == [], split
        assert one.labels_identity(split) == three.labels_identity(split)


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PIECE", 1)  # a process that is told its chunks does not look at it
    stores = [prepare(Feed(rows=500_000, users=400, items=300), tmp_path / str(n), n) for n in (1, 2)]
    assert len(stores[0].content["shards"]) == 4
    assert bytes_of(stores[0]) == bytes_of(stores[1])


def test_an_interrupted_preparing_goes_on_with_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_CHUNK", CHUNK)
    monkeypatch.setattr(feed, "PIECE", 1)
    source = Feed(rows=1500, users=40, items=30)
    check_interruption(source, tmp_path, monkeypatch, Feed, "_draw", finished=2)
