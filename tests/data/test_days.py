"""Appended days: a store that grows by a day has the rows that preparing everything at once would give."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from dlen.batch import Batch
from dlen.data.append import append, could_append
from dlen.data.days import Days, in_order, labels_of, on_days
from dlen.data.prepare import prepare
from dlen.data.sources.table import Table
from dlen.data.sources.table_partitions import label_of
from dlen.data.store import Store
from dlen.files import locked
from dlen.schema import Kind
from tests.data.helpers import refusal, tensors_of, whole

DAYS = ("2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23", "2026-11-24")
OLD, ROWS = 3, 60
SPEC: dict[str, Any] = {
    "files": "logs",
    "fields": {
        "user": {"side": "user", "min_count": 2},
        "item": {"side": "item"},
        "tags": {"kind": "ids", "separator": "|"},
        "price": {"kind": "numeric"},
        "size": {"kind": "numeric", "transform": "quantile", "buckets": 4},
        "shown": {"kind": "time", "column": "at", "unit": "s", "parts": ["hour"]},
        "rate": {"rate": {"of": ["click", "like"], "by": "user"}},
        "count": {"count": {"by": "item"}},
        "seen": {"history": {"of": "item", "by": "user", "labels": ["click"], "length": 3}},
        "queries": {"kind": "sequence", "separator": "|"},
        "picture": {"kind": "vector", "separator": " "},
    },
    "tasks": {"click": "click", "like": {"label": "like", "observed_where": "click"}},
    "split": {"by": "time", "column": "day", "validation_from": DAYS[1], "test_from": DAYS[2], "allow_one_class": True},
    "rates": {"time": "shown"},
    "user": "user",
}


def rows_of(day: int, seed: int = 0) -> pl.DataFrame:
    """A day's rows in no order of time; later days have further users, items, tags and queries."""
    draw = random.Random(100 * seed + day)
    rows = []
    for number in range(ROWS):
        clicked = draw.random() < 0.5
        rows.append(
            {
                "user": draw.choice([None, *(f"u{n}" for n in range(8 + 2 * day))]) if number else "seldom",
                "item": f"i{draw.randrange(5 + 3 * day)}",
                "tags": "|".join(f"t{draw.randrange(3 + day)}" for _ in range(draw.randrange(4))),
                "price": draw.gauss(0, 1),
                "size": draw.randrange(20),
                "at": 1_700_000_000 + 86_400 * day + draw.randrange(86_400),
                "queries": "|".join(f"q{draw.randrange(2 + day)}" for _ in range(draw.randrange(3))),
                "picture": f"{draw.random():.3f} {draw.random():.3f}" if draw.random() < 0.8 else "",
                "click": int(clicked),
                "like": int(clicked and draw.random() < 0.5),
            }
        )
    return pl.DataFrame(rows)


def write(folder: Path, days: range, spec: dict[str, Any] = SPEC, **frames: pl.DataFrame) -> Table:
    """The files of some days, and the source that reads all that there are."""
    for day in days:
        place = folder / "logs" / f"day={DAYS[day]}" / "part-0.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        frames.get(f"day{day}", rows_of(day)).write_parquet(place)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return Table(str(folder / "spec.yaml"), "log")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, Store, Store]:
    """The folder, and the store of the old days, with one day and with two days appended."""
    folder = tmp_path_factory.mktemp("grown")
    old = prepare(write(folder, range(OLD)), folder / "data")
    one = append(write(folder, range(OLD, OLD + 1)), folder / "data")
    return folder, old, one, append(write(folder, range(OLD + 1, OLD + 2)), folder / "data")


def texts(store: Store, field: str, rows: torch.Tensor) -> list[str | None]:
    """Raw values of rows of the embedding table."""
    values = [None, *store.vocabulary(field)["value"].cast(pl.String)]
    return [values[i] for i in (rows - store.schema.offsets[field]).tolist()]


def same(first: Batch, second: Batch) -> bool:
    pairs = tensors_of(first), tensors_of(second)
    return all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(*map(dict.values, pairs), strict=True))


def day(store: Store, label: str) -> Batch:
    return whole(on_days(store, Days(test=label)).split("test"))


def test_an_appended_store_is_found_by_its_files_and_keeps_the_old_splits(
    grown: tuple[Path, Store, Store, Store],
) -> None:
    folder, old, one, two = grown
    assert labels_of(one) == [DAYS[3]]
    assert labels_of(two) == [DAYS[3], DAYS[4]]
    assert prepare(Table(str(folder / "spec.yaml"), "log"), folder / "data").folder == two.folder
    for split in ("train", "validation", "test"):
        assert same(whole(old.split(split)), whole(two.split(split)))
        assert old.labels_identity(split) == two.labels_identity(split)
    assert old.schema == two.schema
    assert torch.equal(old.counts, two.counts)
    shards = [(store.folder / "shards/00000/train/ids.bin").stat().st_ino for store in (old, one, two)]
    assert len(set(shards)) == 1


def test_a_new_row_has_what_preparing_everything_at_once_gives_it(
    tmp_path: Path, grown: tuple[Path, Store, Store, Store]
) -> None:
    """Numbers, rates, counts, times, vectors and gaps bit by bit; ids by their text, where training knows them."""
    _, _, _, two = grown
    at_once = prepare(write(tmp_path, range(len(DAYS))), tmp_path / "data")
    ours = on_days(two, Days(first=DAYS[3], validation=0.0))
    appended, reference = ours.split("train"), at_once.split("test")
    assert (len(appended), len(reference)) == (2 * ROWS, 3 * ROWS)
    got, wanted = whole(appended), reference.batch(torch.arange(ROWS, 3 * ROWS))
    assert torch.equal(got.numeric, wanted.numeric)
    np.testing.assert_array_equal(got.labels.numpy(), wanted.labels.numpy())
    assert torch.equal(got.vectors[0], wanted.vectors[0])
    for column, field in enumerate(ours.schema.of_kind(Kind.ID)):
        if field.name not in two.content["vocabularies"]:
            offsets = [store.schema.offsets[field.name] for store in (ours, at_once)]
            assert torch.equal(got.ids[:, column] - offsets[0], wanted.ids[:, column] - offsets[1])
            continue
        known = texts(at_once, field.name, wanted.ids[:, column])
        all_known = texts(ours, field.name, got.ids[:, column])
        assert all(a == b for a, b in zip(all_known, known, strict=True) if b is not None)
        assert sum(a is not None for a in all_known) > sum(b is not None for b in known)
    assert torch.equal(got.bag_lengths, wanted.bag_lengths)
    for mine, theirs in zip(got.sequences, wanted.sequences, strict=True):
        assert torch.equal(mine.lengths, theirs.lengths)
    place = list(ours.schema.sequences).index("seen")
    seen, wanted_seen = got.sequences[place], wanted.sequences[place]
    names = [f.name for f in ours.schema.sequences["seen"]]
    for column, name in enumerate(names[1:], 1):
        offsets = [store.schema.offsets[name] for store in (ours, at_once)]
        assert torch.equal(seen.ids[:, column] - offsets[0], wanted_seen.ids[:, column] - offsets[1])
    pairs = zip(texts(ours, "item", seen.ids[:, 0]), texts(at_once, "item", wanted_seen.ids[:, 0]), strict=True)
    assert all(a == b for a, b in pairs if b is not None)


@pytest.mark.parametrize("timed", [False, True])
def test_rows_that_do_not_count_see_what_new_rows_see(tmp_path: Path, timed: bool) -> None:
    """With rates of training rows alone, by time or from folds, appended rows add nothing to them."""
    if timed:
        spec = SPEC | {"rates": {"time": "shown", "rows": "train"}}
    else:
        fields = {name: field for name, field in SPEC["fields"].items() if name != "seen"}
        split = {"by": "column", "column": "day", "validation": [DAYS[1]], "test": [DAYS[2]], "allow_one_class": True}
        spec = SPEC | {"fields": fields, "rates": {"time": "none"}, "split": split}
    old = prepare(write(tmp_path, range(OLD), spec), tmp_path / "data")
    source = write(tmp_path, range(OLD, len(DAYS)), spec)
    two = append(source, tmp_path / "data")
    for label in DAYS[3:]:
        (new,) = source.read(tmp_path / "logs" / f"day={label}" / "part-0.parquet", old)
        got, wanted = day(two, label), whole(new)
        assert torch.equal(got.numeric, wanted.numeric)
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(got.sequences, wanted.sequences, strict=True))


def test_an_append_that_was_killed_is_begun_again(tmp_path: Path, grown: tuple[Path, Store, Store, Store]) -> None:
    """What it has left has a ``store.json`` of its own, with today's files."""
    prepare(write(tmp_path, range(OLD)), tmp_path / "data")
    source = write(tmp_path, range(OLD, len(DAYS)))
    done = append(source, tmp_path / "data")
    done.folder.rename(done.folder.with_name(f".{done.folder.name}.writing"))
    again = append(source, tmp_path / "data")
    assert same(day(again, DAYS[4]), day(grown[3], DAYS[4]))
    assert len(list((tmp_path / "data/log").glob("*/store.json"))) == 2


def test_what_another_process_has_appended_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(write(tmp_path, range(OLD)), tmp_path / "data")
    source = write(tmp_path, range(OLD, len(DAYS)))
    theirs: list[tuple[Path, int]] = []  # folder and inode of its store

    @contextmanager
    def late(path: Path, doing: str) -> Iterator[int]:
        monkeypatch.undo()
        folder = append(source, tmp_path / "data").folder
        theirs.append((folder, folder.stat().st_ino))
        with locked(path, doing) as file:
            yield file

    monkeypatch.setattr("dlen.data.append.locked", late)
    ours = append(source, tmp_path / "data").folder
    assert theirs == [(ours, ours.stat().st_ino)]


def test_two_days_at_once_are_as_one_after_the_other(tmp_path: Path, grown: tuple[Path, Store, Store, Store]) -> None:
    prepare(write(tmp_path, range(OLD)), tmp_path / "data")
    both = append(write(tmp_path, range(OLD, len(DAYS))), tmp_path / "data")
    for days in (Days(first=DAYS[3]), Days(last=DAYS[3]), Days(test=DAYS[4])):
        ours, theirs = on_days(both, days), on_days(grown[3], days)
        assert torch.equal(ours.counts, theirs.counts)
        assert ours.schema == theirs.schema
        for split in ("train", "validation", "test"):
            assert same(whole(ours.split(split)), whole(theirs.split(split)))


def test_ids_of_a_later_day_are_unknown_to_the_day_before(grown: tuple[Path, Store, Store, Store]) -> None:
    """Rows of the second day in a view of the first are as new rows are encoded without the second."""
    folder, _, one, two = grown
    only = Days(first=DAYS[3], last=DAYS[3])
    view, without = on_days(two, only), on_days(one, only)
    path = folder / "logs" / f"day={DAYS[4]}" / "part-0.parquet"
    (new,) = Table(str(folder / "spec.yaml"), "log").read(path, without)
    got, wanted = whole(view.split("test")), whole(new)
    assert view.schema == without.schema
    assert torch.equal(view.counts, without.counts)
    assert torch.equal(got.ids, wanted.ids)
    assert torch.equal(got.bag_ids, wanted.bag_ids)
    assert torch.equal(got.sequences[0].ids, wanted.sequences[0].ids)  # the other one has earlier rows of the same day
    assert (got.ids == view.schema.offsets["item"]).any()


def test_new_ids_come_after_the_old_ones_by_count_and_then_by_value(grown: tuple[Path, Store, Store, Store]) -> None:
    _, old, _, two = grown
    for field, least in (("user", 2), ("item", 1)):
        known = list(old.vocabulary(field)["value"])
        for label in DAYS[3:]:
            counts = rows_of(DAYS.index(label))[field].drop_nulls().value_counts()
            new = counts.filter((pl.col("count") >= least) & ~pl.col(field).is_in(known))
            known += list(new.sort(["count", field], descending=[True, False])[field])
            assert list(on_days(two, Days(first=label, last=label)).vocabulary(field)["value"]) == known


def test_a_new_user_is_the_same_one_on_every_day(grown: tuple[Path, Store, Store, Store]) -> None:
    """Also one that is too rare for an id of its own; and no user has the number of another."""
    two, numbers = grown[3], dict[str, set[int]]()
    for number, label in enumerate(DAYS[3:], OLD):
        users = day(two, label).users.tolist()
        assert all((name is None) == (user == 0) for name, user in zip(rows_of(number)["user"], users, strict=True))
        for name, user in zip(rows_of(number)["user"], users, strict=True):
            numbers.setdefault(name, set()).add(user)
    assert len(numbers["seldom"]) == 1
    assert len(set.union(*numbers.values())) == sum(map(len, numbers.values()))


@pytest.mark.parametrize(
    ("path", "column", "label"),
    [
        ("logs/day=2026-11-24/part-0.parquet", "", "2026-11-24"),
        ("logs/day=2026-11-24/country=nl/part-0.parquet", "", "2026-11-24/nl"),
        ("logs/day=2026-11-24/country=nl/part-0.parquet", "day", "2026-11-24"),
        ("logs/log.2026-11-24.csv.gz", "day", "log.2026-11-24"),
    ],
)
def test_a_day_has_the_name_of_its_partition(path: str, column: str, label: str) -> None:
    assert label_of(Path(path), column) == label


def test_days_are_in_the_order_of_their_numbers() -> None:
    days = ["day 9", "day 10", "9", "10/a", "10/b", "2026-9-30", "2026-10-1"]
    assert sorted(set(days), key=in_order) == days


def test_no_label_of_a_later_day_is_seen(tmp_path: Path, grown: tuple[Path, Store, Store, Store]) -> None:
    """Other labels on the second day change nothing on the first, but do change the second."""
    changed = rows_of(4).with_columns(click=1 - pl.col("click"), like=pl.lit(0))
    prepare(write(tmp_path, range(OLD)), tmp_path / "data")
    other = append(write(tmp_path, range(OLD, len(DAYS)), day4=changed), tmp_path / "data")
    assert same(day(other, DAYS[3]), day(grown[3], DAYS[3]))
    assert not same(day(other, DAYS[4]), day(grown[3], DAYS[4]))


def test_the_last_rows_of_the_days_validate_and_the_next_day_tests(grown: tuple[Path, Store, Store, Store]) -> None:
    two = grown[3]
    view = on_days(two, Days(last=DAYS[3], validation=0.25))
    assert view.rows == {**two.rows, "train": 45, "validation": 15, "test": ROWS}
    of_day = whole(on_days(two, Days(test=DAYS[3])).split("test"))
    assert torch.equal(whole(view.split("validation")).numeric, of_day.numeric[45:])
    assert on_days(two, Days(first=DAYS[4], validation=0.25)).rows["test"] == 15  # its own validation rows
    assert view.unknown["test"]["item"] > view.unknown["train"]["item"] == 0
    assert view.labels_identity("test") == on_days(two, Days(test=DAYS[4])).labels_identity("test")


def test_what_cannot_be_appended(tmp_path: Path) -> None:
    source = write(tmp_path, range(OLD))
    data = tmp_path / "data"
    assert "has no data that were prepared with the same YAML" in refusal(lambda: append(source, data))
    store = prepare(source, data)
    assert "config append: nothing is new" in refusal(lambda: append(source, data))
    told = refusal(lambda: on_days(store, Days(first="2026-12-01")))
    assert "has no day from 2026-12-01 to the last; prepare.py append=true appends days" in told
    table = write(tmp_path, range(1, OLD + 1), day1=rows_of(1, seed=1))
    told = refusal(lambda: append(table, data))
    assert f"day={DAYS[1]}/part-0.parquet: has changed since {store.folder} was prepared from it" in told
    (tmp_path / "logs" / f"day={DAYS[1]}" / "part-0.parquet").unlink()
    assert "is no longer one of the files" in refusal(lambda: append(Table(str(table.path), "log"), data))
    assert [p.name for p in (data / "log").iterdir() if p.is_dir()] == [store.folder.name]


def test_what_could_be_appended_is_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert could_append(write(tmp_path, range(OLD)), data) is None  # nothing is prepared
    store = prepare(write(tmp_path, range(OLD)), data)
    assert could_append(write(tmp_path, range(OLD)), data) is None  # nothing is new
    line = could_append(write(tmp_path, range(OLD, len(DAYS))), data)
    assert line is not None
    assert f"all {len(DAYS)} files" in line
    assert f"{store.folder} lacks 2 of them" in line
    assert could_append(write(tmp_path, range(1), day0=rows_of(0, seed=1)), data) is None  # an old file has changed
