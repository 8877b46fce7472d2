"""BatchLoader: every row once per epoch, exact resuming, and ranks that share an epoch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import pytest

from dlen.data.loader import BatchLoader
from dlen.data.split import Split
from dlen.errors import UserError
from tests.data.helpers import tiny_split

N = 53


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return tiny_split(tmp_path_factory.mktemp("data"), N)


@pytest.fixture(params=[1 << 14, 7], ids=["drawn once", "drawn in parts"], autouse=True)
def _drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlen.data.loader._DRAWN", request.param)


def ids(batches: Any) -> list[list[int]]:
    return [batch.ids[:, 0].tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def epochs(loader: BatchLoader, count: int) -> list[list[list[int]]]:
    return [ids(loader) for _ in range(count)]


@pytest.mark.parametrize("batch_size", [1, 7, 52, 53, 54, 1000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_once_in_each_epoch(split: Split, batch_size: int, shuffle: bool) -> None:
    loader = BatchLoader(split, batch_size, shuffle=shuffle, seed=1)
    for batches in epochs(loader, 3):
        assert len(batches) == len(loader) == -(-N // batch_size)
        assert [len(b) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert sorted(flat(batches)) == list(range(N))


def test_evaluation_keeps_the_stored_order(split: Split) -> None:
    assert flat(ids(BatchLoader(split, 10, shuffle=False))) == list(range(N))


def test_labels_stay_with_their_rows(split: Split) -> None:
    for batch in BatchLoader(split, 10, shuffle=True):
        assert batch.labels[:, 0].tolist() == [float(row % 2) for row in batch.ids[:, 0].tolist()]


def test_epochs_and_seeds_differ(split: Split) -> None:
    one, other = (epochs(BatchLoader(split, 10, shuffle=True, seed=s), 4) for s in (0, 1))
    assert all(a != b for a, b in pairwise(one))
    assert all(a != b for a, b in zip(one, other, strict=True))
    assert one == epochs(BatchLoader(split, 10, shuffle=True, seed=0), 4)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("taken", range(6))
def test_resumes_in_the_middle_of_an_epoch(split: Split, taken: int, shuffle: bool) -> None:
    whole = epochs(BatchLoader(split, 10, shuffle=shuffle, seed=4), 3)
    first = BatchLoader(split, 10, shuffle=shuffle, seed=4)
    assert ids(first) == whole[0]
    assert ids(islice(first, taken)) == whole[1][:taken]
    state = first.state_dict()
    second = BatchLoader(split, 10, shuffle=shuffle, seed=4)
    second.load_state_dict(state)
    if taken:
        assert ids(second) == whole[1][taken:]
    assert ids(second) == whole[2 if taken else 1]


def test_resumes_after_a_whole_epoch_with_the_next(split: Split) -> None:
    whole = epochs(BatchLoader(split, 10, shuffle=True, seed=4), 3)
    first = BatchLoader(split, 10, shuffle=True, seed=4)
    ids(first)
    second = BatchLoader(split, 10, shuffle=True, seed=4)
    second.load_state_dict(first.state_dict())
    assert epochs(second, 2) == whole[1:]


def test_state_survives_json(split: Split) -> None:
    loader = BatchLoader(split, 10, shuffle=True)
    next(iter(loader))
    assert json.loads(json.dumps(loader.state_dict())) == loader.state_dict()


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_reader_that_counts_batches_and_never_exhausts(split: Split, shuffle: bool) -> None:
    """As in Lightning, which takes len() batches and leaves the generator there."""
    whole = epochs(BatchLoader(split, 10, shuffle=shuffle, seed=2), 4)
    loader = BatchLoader(split, 10, shuffle=shuffle, seed=2)
    kept: list[Iterator[Any]] = []
    for expected in whole:
        iterator = iter(loader)
        kept.append(iterator)
        assert ids(next(iterator) for _ in range(len(loader))) == expected


def ranks(split: Split, world: int, batch_size: int, shuffle: bool) -> list[BatchLoader]:
    return [
        BatchLoader(split, batch_size, shuffle=shuffle, seed=3, rank=rank, world_size=world) for rank in range(world)
    ]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_a_training_epoch(split: Split, world: int) -> None:
    loaders = ranks(split, world, 4, shuffle=True)
    for _ in range(3):
        shares = [ids(loader) for loader in loaders]
        assert {len(s) for s in shares} == {len(loaders[0])}
        assert {len(flat(s)) for s in shares} == {N // world}
        rows = flat([flat(s) for s in shares])
        assert len(set(rows)) == len(rows) == N // world * world


@pytest.mark.parametrize("world", [2, 3, 4, 60])
def test_ranks_share_evaluation_exactly(split: Split, world: int) -> None:
    rows = flat([flat(ids(loader)) for loader in ranks(split, world, 4, shuffle=False)])
    assert sorted(rows) == list(range(N))


@pytest.mark.parametrize("batch_size", range(1, 20))
@pytest.mark.parametrize("world", [2, 3, 4, 7])
def test_ranks_evaluate_as_many_batches(split: Split, world: int, batch_size: int) -> None:
    """And all rows, even if one rank has one row more than fills its batches."""
    loaders = ranks(split, world, batch_size, shuffle=False)
    batches = [ids(loader) for loader in loaders]
    assert {len(b) for b in batches} == {len(loaders[0])}
    assert sorted(flat([flat(b) for b in batches])) == list(range(N))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_see_the_batch_of_one_process(split: Split, world: int) -> None:
    alone = BatchLoader(split, 4 * world, shuffle=True, seed=3)
    together = ranks(split, world, 4, shuffle=True)
    for _ in range(2):
        expected = ids(alone)
        steps = list(zip(*(ids(loader) for loader in together), strict=True))
        for step, batch in zip(steps[: N // (4 * world)], expected, strict=False):
            assert sorted(flat(list(step))) == sorted(batch)


def test_rank_resumes_in_the_middle_of_an_epoch(split: Split) -> None:
    whole = epochs(ranks(split, 2, 4, shuffle=True)[1], 2)
    first, second = ranks(split, 2, 4, shuffle=True)[1], ranks(split, 2, 4, shuffle=True)[1]
    ids(islice(first, 3))
    second.load_state_dict(first.state_dict())
    assert epochs(second, 2) == [whole[0][3:], whole[1]]


@pytest.mark.parametrize(("changed", "key"), [({"batch_size": 8}, "loader.batch_size"), ({"seed": 1}, "seed")])
def test_resuming_with_other_batches_is_refused(split: Split, changed: dict[str, int], key: str) -> None:
    state = BatchLoader(split, 16, shuffle=True).state_dict()
    other = BatchLoader(split, **({"batch_size": 16} | changed), shuffle=True)
    with pytest.raises(UserError, match=f"cannot resume: {key} was"):
        other.load_state_dict(state)


def test_a_limited_epoch_that_is_resumed_at_its_end_goes_on_with_the_next(split: Split) -> None:
    whole, first, again = (BatchLoader(split, 7, shuffle=True, seed=3) for _ in range(3))
    whole.limit = first.limit = again.limit = 2
    epochs = [[b.ids.tolist() for b in itertools.islice(whole, 2)] for _ in range(3)]
    list(itertools.islice(first, 2))
    again.load_state_dict(first.state_dict())
    assert [b.ids.tolist() for b in itertools.islice(again, 2)] == epochs[1]
    assert [b.ids.tolist() for b in itertools.islice(again, 2)] == epochs[2]
